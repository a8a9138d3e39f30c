"""One class a recording: segments of sound as sequences of feature frames (emotion in music, and anything alike).

A batch has the frames of all its segments, one after another: `features` (frames, D) with `offsets` (B + 1,), and,
where segments are labelled, `labels` (B,) int64. A recording is cut into many segments; scores are given for segments
and, from the mean of its segments' probabilities, for the recording.
"""

from __future__ import annotations

import functools
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, Protocol, TextIO, cast

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import nn

from mmray import config
from mmray.config import Section
from mmray.features import audio, audio_augment, augment_sequence
from mmray.features.audio_features import Extractor
from mmray.features.audio_features import Settings as FeatureSettings
from mmray.prepared import frames_column
from mmray.schema import Column, DatasetInfo, SplitInfo
from mmray.tasks import Batch, _audio_stream, _classification, require_model
from mmray.tasks._melody_files import audio_files

TIMELINE_HOP_S = 1.0
MAX_TIMELINES = 6  # recordings that a report draws along their time


class Config(Section):
    """Settings of the task."""

    name: Literal["audio_classification"] = "audio_classification"
    class_weights: _classification.ClassWeights = "inverse_frequency"
    label_smoothing: config.Fraction = 0.0
    augment: audio_augment.Settings | None = Field(
        None, description="new random changes of the sound in every epoch; needs dataset.store: audio"
    )
    spec_augment: augment_sequence.Settings = augment_sequence.Settings()
    mixup_alpha: NonNegativeFloat = Field(0.0, description="0 = no mixup")


class SequenceModel(Protocol):
    """What this task needs of a model's config."""

    def build(self, input_size: int, num_classes: int) -> nn.Module:
        """A module from sequences (B, T, input_size) and their lengths (B,) to logits (B, num_classes)."""


class Task:
    """Segments of sound in, a probability a class out; trained by weighted cross-entropy."""

    monitor: ClassVar[str] = "val/macro_f1"
    maximise: ClassVar[bool] = True
    all_labelled: ClassVar[bool] = True

    def __init__(self, run: config.Run, info: DatasetInfo) -> None:
        require_model(run, takes="feature_sequence")
        self.info = info
        self.num_classes = len(info.class_names)
        self.seed = run.seed
        self._config = cast(Config, run.task)
        self._model_config = cast(SequenceModel, run.model)
        self.features: FeatureSettings = run.dataset.features  # type: ignore[attr-defined]
        self._segment_s: float = run.dataset.segment_s  # type: ignore[attr-defined]
        self._mix: audio.Mix = run.dataset.mix  # type: ignore[attr-defined]
        self._changes: audio_augment.Settings = self._config.augment or run.dataset.augment  # type: ignore[attr-defined]
        self._split_by: str = run.dataset.split.by  # type: ignore[attr-defined]
        self._stores_audio = any(column.name == "audio" for column in info.columns)
        if self._config.augment is not None and not self._stores_audio:
            raise ValueError("task.augment changes the sound while training; it needs dataset.store: audio")

    def columns(self, labelled: bool) -> tuple[str, ...]:
        """Columns read for a batch."""
        return ("id", "audio" if self._stores_audio else "features", *(["labels"] if labelled else []))

    def build_model(self) -> nn.Module:
        """The run's model over the features."""
        return self._model_config.build(self.features.size, self.num_classes)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def augmented(self, table: pa.Table, epoch: int) -> pa.Table:
        """The rows with their sound newly changed: the same in every run of this seed, whichever worker has them."""
        settings = self._config.augment
        if settings is None:
            return table
        changed = []
        for name, samples in zip(table.column("id").to_pylist(), self._sounds(table), strict=True):
            rng = audio_augment.rng_of(self.seed, name, epoch)
            sound = audio_augment.augment(samples, self.features.sample_rate_hz, settings, rng)
            changed.append(_as_int16(sound).tobytes())
        place = table.schema.get_field_index("audio")
        return table.set_column(place, "audio", pa.array(changed, self.info.column("audio").arrow_type()))

    def collate(self, table: pa.Table) -> Batch:
        """Rows to tensors; features are computed here where the prepared dataset has the sound itself."""
        if self._stores_audio:
            sequences = [self._extractor(samples) for samples in self._sounds(table)]
            frames = np.concatenate(sequences)
            offsets = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
        else:
            frames, offsets = frames_column(table, self.info.column("features"))
        tensors = {"features": torch.tensor(frames), "offsets": torch.from_numpy(offsets)}
        if "labels" in table.column_names:
            tensors["labels"] = _classification.labels_of(table, "segment")
        return Batch(table.num_rows, tensors, tuple(table.column("id").to_pylist()))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Weighted cross-entropy, mean over rows, of newly masked and mixed features."""
        x, lengths = _padded(batch)
        targets = F.one_hot(batch.tensors["labels"], self.num_classes).float()
        x = augment_sequence.spec_augment(x, lengths, self._config.spec_augment)
        if self._config.mixup_alpha:
            x, lengths, targets = augment_sequence.mixup(x, lengths, targets, self._config.mixup_alpha)
        return self._cross_entropy(model(x, lengths), targets).mean()

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, float]:
        """Probabilities (B, K) float32, and the loss summed over rows; 0 for rows without labels."""
        logits = model(*_padded(batch)).float()
        loss = 0.0
        if "labels" in batch.tensors:
            targets = F.one_hot(batch.tensors["labels"], self.num_classes).float()
            loss = float(self._cross_entropy(logits, targets).detach().sum())
        return logits.softmax(1), loss

    def new_metrics(self) -> _classification.BatchMetrics:
        """Accuracy, precision, recall and F1 of segments."""
        return _classification.BatchMetrics(self.num_classes)

    def prediction_columns(self, split: SplitInfo) -> list[Column]:
        """Segment, recording, label where it is known, and every class's probability."""
        names = ["id", "group", "start_s", *(["labels"] if split.labelled_rows else [])]
        scores = Column(name="scores", dtype="float32", shape=(self.num_classes,), unit="probability")
        return [*(self.info.column(name) for name in names), scores]

    def predictions(self, columns: list[Column], rows: pa.Table, scores: torch.Tensor) -> pa.Table:
        """The segments with their probabilities (B, K)."""
        return _classification.with_scores(columns, rows, scores)

    def score(self, folder: Path) -> dict[str, Any]:
        """Segments and recordings, each class, the confusions, what always the commonest class gets, and any leak."""
        table, labels, scores = _classification.read_scored(folder)
        groups, ids = (np.array(table.column(name).to_pylist()) for name in ("group", "id"))
        segments = _classification.metrics_of(scores, labels)
        tracks = self._tracks(ids, groups, labels, scores)
        by_track = _classification.metrics_of(
            np.array([track["probabilities"] for track in tracks]), np.array([track["label"] for track in tracks])
        ).compute()
        metrics = segments.compute()
        metrics |= {"track_accuracy": by_track["weighted_accuracy"], "track_macro_f1": by_track["macro_f1"]}
        trained_on = set(self.info.split("train").groups or [])
        return {
            "metrics": metrics,
            "intervals": self._intervals(scores.argmax(1), labels, groups, tracks),
            "baselines": {"most frequent class": _classification.commonest_class(self.info, labels).compute()},
            "per_class": _classification.of_each_class(self.info, segments),
            "confusion": segments.confusion.tolist(),
            "reliability": segments.reliability(),
            "tracks": tracks,
            "timelines": self._timelines(ids, table.column("start_s").to_numpy(), groups, scores, tracks),
            "leak": {
                "split_by": self._split_by,
                "segments": len(labels),
                "sharing_a_track_with_train": int(sum(group in trained_on for group in groups.tolist())),
            },
        }

    def examples(self, scored: dict[str, Any]) -> tuple[list[str], tuple[str, ...], dict[str, str]]:
        """One segment a class with its features, or, where sound is stored, one segment and how sound is changed."""
        first = {c: next((t for t in scored["tracks"] if t["label"] == c), None) for c in range(self.num_classes)}
        ids = [f"{track['first_segment']}" for track in first.values() if track is not None]
        if not self._stores_audio:
            facts = {"hop_s": repr(self.features.hop_s), "row_names": json.dumps(self.features.names)}
            return ids, ("features",), facts
        if not self._changes.kinds:
            return [], (), {}
        changes = self._changes.model_dump_json(include={"pitch_shift_semitones", "time_stretch_rates", "quality"})
        return ids[:1], ("audio",), {"sample_rate_hz": str(self.features.sample_rate_hz), "changes": changes}

    def _timelines(
        self,
        ids: np.ndarray,
        starts_s: np.ndarray,
        groups: np.ndarray,
        scores: np.ndarray,
        tracks: list[dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """The longest recording of each class, segment by segment, for a picture: up to `MAX_TIMELINES` of them.

        None where segments were drawn into splits one by one: what a split has of a recording is full of gaps.
        """
        if self._split_by == "segment":
            return []
        original = np.array(["~" not in name.rpartition("@")[2] for name in ids.tolist()])  # copies: @30~1
        drawn: list[dict[str, Any]] = []
        for c in range(self.num_classes):
            longest = max((t for t in tracks if t["label"] == c), key=lambda t: int(t["segments"]), default=None)
            if longest is None or len(drawn) == MAX_TIMELINES:
                continue
            rows = np.flatnonzero(original & (groups == longest["group"]))
            rows = rows[np.argsort(starts_s[rows], kind="stable")]
            if len(rows) > 1 and len(set(starts_s[rows].tolist())) == len(rows):  # a group may be of several files
                drawn.append(
                    {
                        "group": longest["group"],
                        "label": c,
                        "start_s": starts_s[rows].tolist(),
                        "probabilities": scores[rows].round(4).tolist(),
                    }
                )
        return drawn

    def _intervals(
        self, predicted: np.ndarray, labels: np.ndarray, groups: np.ndarray, tracks: list[dict[str, Any]]
    ) -> dict[str, list[float]]:
        """95 % intervals by the bootstrap over recordings."""
        guess, true, names = ([track[key] for track in tracks] for key in ("predicted", "label", "group"))
        segment_metrics = {"weighted_accuracy": "weighted_accuracy", "macro_f1": "macro_f1"}
        track_metrics = {"track_accuracy": "weighted_accuracy", "track_macro_f1": "macro_f1"}
        return {
            **_classification.intervals(predicted, labels, groups, self.num_classes, segment_metrics),
            **_classification.intervals(guess, true, names, self.num_classes, track_metrics),
        }

    def files(self, source: str) -> list[Path]:
        """The sound files that `source` names."""
        return audio_files(source)

    def outputs(self, files: list[Path], out: Path, extras: frozenset[str]) -> list[dict[str, Path]]:
        """A table of one row each, the file's classes; with `timeline`, another one along the file.

        `out` is a table (`.csv`) for one file, a folder for several: `<stem>.classes.csv`, `<stem>.timeline.csv`.
        """
        if unknown := sorted(extras - {"timeline"}):
            raise ValueError(f"{unknown[0]!r} is nothing that task audio_classification writes; choose from timeline")
        outputs = [{"classes": table} for table in _classification.class_tables(files, out, "sound")]
        if "timeline" in extras:
            for of_file in outputs:
                stem = of_file["classes"].name.removesuffix(".csv").removesuffix(".classes")
                of_file["timeline"] = of_file["classes"].with_name(f"{stem}.timeline.csv")
        return outputs

    def predict_file(self, model: nn.Module, device: torch.device, file: Path, outputs: dict[str, Path]) -> str:
        """Classify a sound file of any length: the mean over its segments, and with `timeline` every second of it."""
        predict = functools.partial(self.probabilities, model, device)
        rate, names = self.features.sample_rate_hz, self.info.class_names
        whole = _audio_stream.timeline(file, predict, rate, self._segment_s, self._segment_s, mix=self._mix)
        mean = np.mean([probabilities for _, probabilities in whole], axis=0)
        said = _classification.write_class_table(outputs["classes"], file, names, mean)
        if "timeline" in outputs:
            line = _audio_stream.timeline(file, predict, rate, self._segment_s, TIMELINE_HOP_S, mix=self._mix)
            _audio_stream.write_timeline_csv(outputs["timeline"], line, names)
        return said

    def predict_stream(self, model: nn.Module, device: torch.device, stdin: BinaryIO, pcm: str, out: TextIO) -> None:
        """Classify raw samples as they arrive, every second; `pcm` is `<format>:<rate>:<channels>`, s16le:44100:2."""
        kind, _, numbers = pcm.partition(":")
        rate, _, channels = numbers.partition(":")
        if not (rate.isdigit() and channels.isdigit()):
            raise ValueError(f"--pcm {pcm}: expected <format>:<rate in Hz>:<channels>, such as s16le:44100:2")
        results = _audio_stream.stream_pcm(
            stdin, cast(_audio_stream.PcmFormat, kind), int(rate), int(channels),
            functools.partial(self.probabilities, model, device), self.features.sample_rate_hz,
            self._segment_s, TIMELINE_HOP_S,
        )  # fmt: skip
        _audio_stream.write_timeline_csv(out, results, self.info.class_names)

    def probabilities(self, model: nn.Module, device: torch.device, samples: np.ndarray) -> np.ndarray:
        """Of each class, (K,), for sound (n,) at the features' rate."""
        x = torch.from_numpy(self._extractor(samples))[None].to(device)
        with torch.inference_mode():
            logits = model(x, torch.tensor([x.shape[1]], device=device))
        found: np.ndarray = logits[0].float().softmax(0).cpu().numpy()
        return found

    def _cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Of each row, (B,): targets (B, K) sum to 1; a class's share counts by the weight of the class."""
        return _classification.cross_entropy(logits, targets, self._weights, self._config.label_smoothing)

    @functools.cached_property
    def _weights(self) -> torch.Tensor | None:
        return _classification.weights_of(self._config.class_weights, self.info)

    @functools.cached_property
    def _extractor(self) -> Extractor:
        return Extractor(self.features)

    def _sounds(self, table: pa.Table) -> list[np.ndarray]:
        frames, offsets = frames_column(table, self.info.column("audio"))
        return [frames[a:b, 0].astype(np.float32) / 32768 for a, b in pairwise(offsets.tolist())]

    def _tracks(
        self, ids: np.ndarray, groups: np.ndarray, labels: np.ndarray, scores: np.ndarray
    ) -> list[dict[str, Any]]:
        """Each recording with the mean of its segments' probabilities, by name."""
        tracks = []
        for group in sorted(set(groups.tolist())):
            of_group = groups == group
            mean = scores[of_group].mean(0, dtype=np.float64)
            tracks.append(
                {
                    "group": group,
                    "label": int(labels[of_group][0]),
                    "predicted": int(mean.argmax()),
                    "segments": int(of_group.sum()),
                    "first_segment": str(ids[of_group][0]),
                    "probabilities": mean.tolist(),
                }
            )
        return tracks


def _padded(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (B, T, D), zeros behind the shorter ones, and their lengths (B,)."""
    frames, offsets = batch.tensors["features"].float(), batch.tensors["offsets"]
    lengths = offsets.diff()
    place = torch.arange(int(lengths.max()), device=frames.device)
    inside = place < lengths[:, None]
    x = frames[(offsets[:-1, None] + place).clamp(max=len(frames) - 1)] * inside[:, :, None]
    return x, lengths


def _as_int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
