"""Melody clips as an evaluation keeps them for the report, `evaluation/<name>.examples.parquet`, and their pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmray.reporting import plots_melody
from mmray.reporting.pictures import Pictures
from mmray.reporting.runs import Json, Run, evaluation_names
from mmray.reporting.text import display_name, number
from mmray.storage import open_parquet, read_table

# No further clip is drawn once a page has so many pictures, and of one clip no more than can be seen.
MAX_PICTURES = 12
MAX_SHOWN_S = 15.0
NUM_CHANNELS = 3
CHANNEL = 1  # the generalised cepstrum of spectrum: partials stand out from noise, and there are no subharmonics
_COLUMNS = ("id", "cfp", "est_f0_hz", "ref_times_s", "ref_f0_hz")
_FACTS = ("hop_s", "first_frame_s", "min_hz", "bins_per_octave")


@dataclass(frozen=True)
class Example:
    """One clip. `cfp` is (T, 3, F) of 0 to 1, `f0_hz` the estimate (T,) in Hz, 0 unvoiced; the reference as it was
    published, its own times in seconds and pitches in Hz, both empty where there is none.
    """

    id: str
    hop_s: float
    first_frame_s: float
    min_hz: float
    bins_per_octave: float
    cfp: np.ndarray
    f0_hz: np.ndarray
    ref_times_s: np.ndarray
    ref_f0_hz: np.ndarray

    @property
    def times_s(self) -> np.ndarray:
        """The centres of the frames, (T,) in seconds."""
        return self.first_frame_s + self.hop_s * np.arange(len(self.f0_hz))

    @property
    def frequencies_hz(self) -> np.ndarray:
        """The centres of the map's rows, (F,)."""
        return self.min_hz * 2 ** (np.arange(self.cfp.shape[2]) / self.bins_per_octave)

    def reference(self) -> np.ndarray | None:
        """The reference on the frames, (T,) in Hz, 0 unvoiced, by mir_eval's rules; None where there is none."""
        if len(self.ref_times_s) == 0:
            return None
        from mmray.features.contour import to_grid  # compiles numba functions: only where there is a melody

        return to_grid(self.ref_times_s, self.ref_f0_hz, self.times_s)


def holds_melody(path: Path) -> bool:
    """Whether a file of examples holds melody clips, and not another task's rows."""
    try:
        return "cfp" in open_parquet(path).schema_arrow.names
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}; run mmray evaluate again") from None


def read_examples(path: Path) -> list[Example]:
    """Read stored clips; ValueError naming what the file lacks, or the clip whose columns don't agree in length."""
    table = read_table(path)
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    missing = [name for name in _COLUMNS if name not in table.column_names]
    missing += [f"mmray.{fact}" for fact in _FACTS if f"mmray.{fact}" not in metadata]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; run mmray evaluate again")
    facts = {fact: float(metadata[f"mmray.{fact}"]) for fact in _FACTS}
    return [_example(path, row, facts) for row in table.select(_COLUMNS).to_pylist()]


def _example(path: Path, row: Json, facts: dict[str, float]) -> Example:
    lists = {key: np.asarray(row[key] or [], np.float64) for key in ("est_f0_hz", "ref_times_s", "ref_f0_hz")}
    values = np.frombuffer(row["cfp"], np.float16)
    num_frames = len(lists["est_f0_hz"])
    num_bins, left_over = divmod(len(values), max(NUM_CHANNELS * num_frames, 1))
    if num_frames == 0 or num_bins == 0 or left_over or len(lists["ref_times_s"]) != len(lists["ref_f0_hz"]):
        raise ValueError(
            f"{path}: clip {row['id']} has {len(values)} values of cfp for {num_frames} frames of est_f0_hz, and "
            f"{len(lists['ref_times_s'])} times for {len(lists['ref_f0_hz'])} pitches of the reference; "
            "run mmray evaluate again"
        )
    return Example(
        id=str(row["id"]),
        hop_s=facts["hop_s"],
        first_frame_s=facts["first_frame_s"],
        min_hz=facts["min_hz"],
        bins_per_octave=facts["bins_per_octave"],
        cfp=values.reshape(num_frames, NUM_CHANNELS, num_bins),
        f0_hz=lists["est_f0_hz"],
        ref_times_s=lists["ref_times_s"],
        ref_f0_hz=lists["ref_f0_hz"],
    )


def contours(runs: Sequence[Run], pictures: Pictures) -> tuple[list[Json], list[str]]:
    """Pictures of stored clips, each run's estimate of the same clip side by side, and remarks on what is not shown."""
    names = evaluation_names(runs)
    stored: dict[tuple[str, str], dict[str, Example]] = {}
    bare: dict[str, list[str]] = {}
    for name, run in ((name, run) for name in names for run in runs if name in run.evaluations):
        path = run.evaluation_dir / f"{name}.examples.parquet"
        if path.is_file() and holds_melody(path):
            stored[name, run.label] = {example.id: example for example in read_examples(path)}
        elif "raw_pitch_accuracy" in run.evaluations[name]["metrics"]:
            bare.setdefault(name, []).append(run.label)
    listed = [f"{name} ({', '.join(labels)})" if len(runs) > 1 else name for name, labels in bare.items()]
    remarks = [f"No clips to draw are stored with the evaluation on {', '.join(listed)}."] if listed else []
    clips = list(_in_turn({name: _ids(stored, name) for name in names}))
    chosen: list[tuple[str, str, Run]] = []
    num_clips = 0
    while num_clips < len(clips) and len(chosen) < MAX_PICTURES:
        name, clip = clips[num_clips]
        chosen += [(name, clip, run) for run in runs if clip in stored.get((name, run.label), {})]
        num_clips += 1
    if num_clips < len(clips):
        remarks.append(f"{num_clips:,} of {len(clips):,} stored clips are drawn.")
    chosen.sort(key=lambda choice: names.index(choice[0]))
    several = len(runs) > 1
    drawn = [_contour(stored[name, run.label][clip], run, name, pictures, several) for name, clip, run in chosen]
    return drawn, remarks


def _ids(stored: dict[tuple[str, str], dict[str, Example]], name: str) -> list[str]:
    """The clips that any run keeps of an evaluation, those first that most runs keep."""
    times = Counter(clip for (of, _), clips in stored.items() if of == name for clip in clips)
    return [clip for clip, _ in times.most_common()]


def _in_turn(clips: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """The clips as (evaluation, clip): the first of every evaluation, then the second of each, and so on."""
    for place in range(max(map(len, clips.values()), default=0)):
        for name, of_one in clips.items():
            if place < len(of_one):
                yield name, of_one[place]


def _contour(example: Example, run: Run, name: str, pictures: Pictures, several: bool) -> Json:
    reference = example.reference()
    part = fullest_part(reference if reference is not None else example.f0_hz, example.hop_s)
    figure = plots_melody.contour_over_cfp(
        example.cfp[part, CHANNEL].astype(np.float32),
        example.frequencies_hz,
        example.times_s[part],
        example.hop_s,
        example.f0_hz[part],
        None if reference is None else reference[part],
    )
    scores: Json = next((c for c in run.evaluations[name].get("per_clip") or [] if c["id"] == example.id), {})
    metrics = [m for m in run.evaluations[name]["metrics"] if m in scores]
    remarks = [f"{display_name(metric)} {number(scores[metric])}" for metric in metrics]
    if reference is None:
        remarks.append("the clip has no reference")
    elif not (reference > 0).any():
        remarks.append("nobody sings in the reference")
    if not (example.f0_hz > 0).any():
        remarks.append("the estimate finds no melody")
    if part != slice(0, len(example.f0_hz)):
        remarks.append(
            f"seconds {example.times_s[part][0]:.1f} to {example.times_s[part][-1]:.1f}, those with most melody"
        )
    caption = ", ".join([name, example.id] + [run.label] * several)
    caption += f": {'; '.join(remarks)}." if remarks else "."
    return pictures.save(f"contour {name} {example.id} {run.label if several else ''}", figure, caption)


def fullest_part(f0_hz: np.ndarray, hop_s: float, max_s: float = MAX_SHOWN_S) -> slice:
    """The frames of at most `max_s` seconds with the most voiced ones, the first such; all where there are no more."""
    num_shown = max(1, round(max_s / hop_s))
    if len(f0_hz) <= num_shown:
        return slice(0, len(f0_hz))
    voiced = np.concatenate([[0], np.cumsum(f0_hz > 0)])
    first = int(np.argmax(voiced[num_shown:] - voiced[:-num_shown]))
    return slice(first, first + num_shown)
