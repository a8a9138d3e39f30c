"""Singing melody: from the feature map of a song, the pitch of the voice in every frame, 0 where nobody sings.

A batch has the frames of all its clips, one after another: `cfp` (frames, 3, F) with `offsets` (B + 1,), and, where
clips are labelled, `rows` (frames,) int64: the right row of the model's output, see `cfp.Settings.pitches_hz`. To score
by, it has the labels as they stand in the corpus: `ref_times_s` and `ref_f0_hz`, with `ref_offsets`.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import nn

from mmray import config, losses, predictions
from mmray.config import Section
from mmray.features import audio, augment_cfp, cfp, contour_export
from mmray.features.contour import Contour, decode_argmax, decode_threshold, decode_viterbi, nearest_bins
from mmray.metrics.melody import MelodyMetrics, mir_eval_scores
from mmray.models._conv_flops import flops
from mmray.prepared import frames_column, ragged_column
from mmray.schema import Column, DatasetInfo, SplitInfo
from mmray.tasks import Batch, _melody_files, require_model


class Viterbi(Section):
    """What changes from a frame to the next cost, in nats; see `mmray.features.contour.decode_viterbi`.

    The defaults help models of any confidence; the surer a model is, the more it gains from higher costs: DenseASPP's
    released weights do better at 2, 16 and 16.
    """

    semitone_cost: NonNegativeFloat = 1
    leap_cost: NonNegativeFloat = 8
    switch_cost: NonNegativeFloat = 2


class Config(Section):
    """Settings of the task."""

    name: Literal["melody_extraction"] = "melody_extraction"
    crop_frames: PositiveInt = Field(256, description="length of the random part of a clip that a training step sees")
    augment: augment_cfp.Settings = augment_cfp.Settings()
    decode: Literal["argmax", "threshold", "viterbi"] = "argmax"
    viterbi: Viterbi = Viterbi()
    voicing_threshold: config.Fraction = Field(0.5, description="decode: threshold")


class PitchModel(Protocol):
    """What this task needs of a model's config."""

    def build(self, num_bins: int) -> nn.Module:
        """A module from maps (B, 3, num_bins, T) to logits (B, num_bins + 1, T)."""


class Task:
    """Feature maps in, a posterior over (no melody, F pitches) per frame out."""

    monitor: ClassVar[str] = "val/overall_accuracy"
    maximise: ClassVar[bool] = True
    all_labelled: ClassVar[bool] = True

    def __init__(self, run: config.Run, info: DatasetInfo) -> None:
        require_model(run, takes="pitch_map")
        self.info = info
        self._config = cast(Config, run.task)
        self._model_config = cast(PitchModel, run.model)
        self._stores_posteriors = run.predict.posteriors
        self.map = info.column("cfp")
        self.settings: cfp.Settings = run.dataset.cfp  # type: ignore[attr-defined]
        self.mix: audio.Mix = run.dataset.mix  # type: ignore[attr-defined]
        self.pitches_hz = self.settings.pitches_hz()

    def columns(self, labelled: bool) -> tuple[str, ...]:
        """Columns read for a batch."""
        return ("id", "cfp", *(["f0_hz", "ref_times_s", "ref_f0_hz"] if labelled else []))

    def build_model(self) -> nn.Module:
        """The run's model over the bins of the feature."""
        return self._model_config.build(self.settings.num_bins)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Operations of the model's convolutions for a second of sound; a multiply-add is two."""
        num_frames = 256
        return {
            "conv_flops_per_second": flops(model, self.settings.num_bins, num_frames) / num_frames / self.settings.hop_s
        }

    def augmented(self, table: pa.Table, epoch: int) -> pa.Table:
        """The rows as they are: what changes anew is done on the device, see `loss`."""
        return table

    def collate(self, table: pa.Table) -> Batch:
        """Rows to tensors. The map keeps its type: it is widened on the device.

        ValueError, naming the clip, where one has no label among columns that are.
        """
        ids = tuple(table.column("id").to_pylist())
        frames, offsets = frames_column(table, self.map)
        tensors = {"cfp": torch.tensor(frames), "offsets": torch.from_numpy(offsets)}
        if "f0_hz" in table.column_names:
            f0_hz, label_offsets = ragged_column(table, "f0_hz")
            unlabelled = np.flatnonzero(np.diff(label_offsets) != np.diff(offsets))
            if len(unlabelled):
                raise ValueError(
                    f"clip {ids[unlabelled[0]]!r} has no label, but every clip to train or validate on needs one; "
                    "set dataset.labels: required, which lists those without, and bring their labels or leave them out"
                )
            tensors["rows"] = torch.from_numpy(nearest_bins(f0_hz, self.pitches_hz))
            times_s, ref_offsets = ragged_column(table, "ref_times_s")
            tensors["ref_times_s"] = torch.tensor(times_s)
            tensors["ref_f0_hz"] = torch.tensor(ragged_column(table, "ref_f0_hz")[0])
            tensors["ref_offsets"] = torch.from_numpy(ref_offsets)
        return Batch(table.num_rows, tensors, ids)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """`losses.pitch_loss` over a random crop of each clip, newly augmented."""
        x, rows, counted = self._crops(batch)
        x, rows, kept = augment_cfp.augment(x, rows, self._config.augment)
        return losses.pitch_loss(model(x), rows, counted & kept)

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, float]:
        """Posteriors (frames, F + 1) float32 of whole clips, and the loss summed over clips; 0 without labels.

        Each clip goes through the model by itself: padding it to the length of others would change its last frames.
        """
        posteriors, loss = [], 0.0
        for first, last in pairwise(batch.tensors["offsets"].tolist()):
            logits = _melody_files.logits_of_map(model, batch.tensors["cfp"][first:last].float())
            if "rows" in batch.tensors:
                rows = batch.tensors["rows"][None, first:last]
                loss += float(losses.pitch_loss(logits[None].detach(), rows, torch.ones_like(rows, dtype=torch.bool)))
            posteriors.append(logits.softmax(0).T)
        return torch.cat(posteriors), loss

    def new_metrics(self) -> PosteriorMetrics:
        """Overall accuracy, raw pitch and chroma accuracy, voicing recall and false alarm: means over clips."""
        return PosteriorMetrics(self)

    def decode(self, posteriors: np.ndarray) -> Contour:
        """The contour of posteriors (T, F + 1), as `task.decode` says."""
        if self._config.decode == "viterbi":
            return decode_viterbi(posteriors, self.pitches_hz, **self._config.viterbi.model_dump())
        if self._config.decode == "threshold":
            return decode_threshold(posteriors, self.pitches_hz, self._config.voicing_threshold)
        return decode_argmax(posteriors, self.pitches_hz)

    def prediction_columns(self, split: SplitInfo) -> list[Column]:
        """Clip, reference where it is known, and the estimate of every frame."""
        reference = ["ref_times_s", "ref_f0_hz"] if split.labelled_rows else []
        columns = [self.info.column(name) for name in ("id", "group", *reference)]
        columns.append(Column(name="est_f0_hz", dtype="float64", shape=(None,), unit="Hz, 0 = no melody"))
        columns.append(Column(name="confidence", dtype="float32", shape=(None,), unit="probability of melody"))
        if self._stores_posteriors:
            width = self.settings.num_bins + 1
            columns.append(Column(name="posteriors", dtype="float16", shape=(None, width), unit="probability"))
        return columns

    def predictions(self, columns: list[Column], rows: pa.Table, scores: torch.Tensor) -> pa.Table:
        """The contours of posteriors (frames, F + 1), and the posteriors where they are asked for."""
        _, offsets = frames_column(rows, self.map)
        per_clip = [scores[a:b].numpy() for a, b in pairwise(offsets.tolist())]
        contours = [self.decode(posteriors) for posteriors in per_clip]
        new = {
            "est_f0_hz": [contour.f0_hz for contour in contours],
            "confidence": [contour.confidence for contour in contours],
            "posteriors": [posteriors.astype(np.float16).tobytes() for posteriors in per_clip],
        }
        arrays = {
            c.name: pa.array(new[c.name], c.arrow_type()) if c.name in new else rows.column(c.name) for c in columns
        }
        return pa.table(arrays)

    def score(self, folder: Path) -> dict[str, Any]:
        """The five metrics by mir_eval, their values if nobody ever sang, and every clip's own.

        They are over the clips that have a label, `rows_with_labels`. ValueError where none has.
        """
        metrics, silent, groups = MelodyMetrics(mir_eval_scores), MelodyMetrics(), {}
        for table in predictions.read_tables(folder, 64, leave_out=("posteriors",)):
            for row in table.to_pylist():
                if not row["ref_times_s"]:
                    continue
                est_f0_hz = np.asarray(row["est_f0_hz"], np.float64)
                times_s = self.settings.frame_times_s(len(est_f0_hz))
                reference = np.asarray(row["ref_times_s"]), np.asarray(row["ref_f0_hz"])
                metrics.update(row["id"], *reference, times_s, est_f0_hz)
                silent.update(row["id"], *reference, times_s, np.zeros_like(est_f0_hz))
                groups[row["id"]] = row["group"]
        return {
            "rows_with_labels": len(groups),
            "metrics": metrics.compute(),
            "baselines": {"no melody anywhere": silent.compute()},
            "per_clip": [{"id": clip["id"], "group": groups[clip["id"]], **clip} for clip in metrics.per_clip()],
        }

    def examples(self, scored: dict[str, Any]) -> tuple[list[str], tuple[str, ...], dict[str, str]]:
        """The clips with the best, the median and the worst overall accuracy, with their feature maps."""
        ranked = sorted(scored["per_clip"], key=lambda clip: -clip["overall_accuracy"])
        places = sorted({0, len(ranked) // 2, len(ranked) - 1})
        facts = {
            "hop_s": repr(self.settings.hop_s),
            "first_frame_s": repr(float(self.settings.frame_times_s(1)[0])),
            "min_hz": repr(self.settings.min_hz),
            "bins_per_octave": repr(self.settings.bins_per_octave),
        }
        return [ranked[place]["id"] for place in places], ("cfp",), facts

    def files(self, source: str) -> list[Path]:
        """The sound files that `source` names."""
        return _melody_files.audio_files(source)

    def outputs(self, files: list[Path], out: Path, extras: frozenset[str]) -> list[dict[str, Path]]:
        """A table of times and pitches each; and by `extras` its notes as MIDI, and a sound file with the contour."""
        return _melody_files.outputs(files, out, extras)

    def predict_file(self, model: nn.Module, device: torch.device, file: Path, outputs: dict[str, Path]) -> str:
        """Extract the melody of a sound file of any length.

        A `.csv` has a column of confidences too; a `.txt` is MIREX's, two columns without a header.
        """
        found = _melody_files.extract_contour(model, self._cfp, file, device, self.decode, self.mix)
        series = found.times_s, found.f0_hz
        confidence = found.confidence if outputs["contour"].suffix.lower() == ".csv" else None
        contour_export.write_csv(outputs["contour"], *series, confidence)
        said = f"{outputs['contour']}: {found.times_s[-1]:,.1f} s, {np.mean(found.f0_hz > 0):.0%} with melody"
        if "midi" in outputs:
            notes = contour_export.notes(*series)
            contour_export.write_midi(outputs["midi"], notes)
            said += f", {len(notes):,} notes"
        if "sonification" in outputs:
            contour_export.write_sonification(outputs["sonification"], file, *series, mix=self.mix)
        return said

    @functools.cached_property
    def _cfp(self) -> cfp.Cfp:
        return cfp.Cfp(self.settings)

    def _crops(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A random part of every clip: maps (B, 3, F, T), right rows (B, T), and which frames are of the clip.

        Frames beyond the end of a clip shorter than `crop_frames` are 0 and not counted.
        """
        frames, offsets = batch.tensors["cfp"], batch.tensors["offsets"]
        lengths = offsets.diff()
        width = min(self._config.crop_frames, int(lengths.max()))
        room = (lengths - width).clamp(min=0)
        starts = (torch.rand(batch.num_rows, device=room.device) * (room + 1)).long().clamp(max=room)
        within = starts[:, None] + torch.arange(width, device=room.device)
        counted = within < lengths[:, None]
        index = offsets[:-1, None] + within.clamp(max=lengths[:, None] - 1)
        x = frames[index].float() * counted[:, :, None, None]
        return x.permute(0, 2, 3, 1), batch.tensors["rows"][index], counted


class PosteriorMetrics:
    """`MelodyMetrics` over batches of posteriors."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.melody = MelodyMetrics()

    def update(self, scores: torch.Tensor, batch: Batch) -> None:
        """Take in posteriors (frames, F + 1) and the labels of the batch."""
        times_s, f0_hz = batch.tensors["ref_times_s"].numpy(), batch.tensors["ref_f0_hz"].numpy()
        spans = zip(
            batch.ids,
            pairwise(batch.tensors["offsets"].tolist()),
            pairwise(batch.tensors["ref_offsets"].tolist()),
            strict=True,
        )
        for name, (first, last), (ref_first, ref_last) in spans:
            contour = self._task.decode(scores[first:last].numpy())
            reference = times_s[ref_first:ref_last], f0_hz[ref_first:ref_last]
            est_times_s = self._task.settings.frame_times_s(last - first)
            self.melody.update(name, *reference, est_times_s, contour.f0_hz)

    def state(self) -> dict[str, Any]:
        """All that was taken in, as arrays."""
        return self.melody.state()

    def merge(self, state: dict[str, Any]) -> None:
        """Take in another process's `state()`."""
        self.melody.merge(state)

    def compute(self) -> dict[str, float]:
        """The metrics by name."""
        return self.melody.compute()
