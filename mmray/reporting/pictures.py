"""The pictures of the page: from runs as they were read to figures, and from figures to PNG files."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmray.features import audio_augment
from mmray.reporting import plots, plots_classification, plots_images
from mmray.reporting.runs import Json, Run
from mmray.reporting.scores import (
    class_names_of,
    clip_scores,
    comparison,
    has_class_report,
    interval,
    lower_is_better,
    score_keys,
)
from mmray.reporting.text import display_name, finite_or_nan, is_finite
from mmray.storage import open_parquet, read_table

MAX_SOUNDS = 7  # side by side


class Pictures:
    """Writes figures beside the page under names that never collide, and hands them back for inlining."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.used: set[str] = set()

    def save(self, name: str, figure: Figure, caption: str) -> Json:
        """Write `figure` as PNG; what the template needs to show it, at half its pixels for sharp screens."""
        stem = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "picture"
        file = next(f for n in range(1, 10_000) if (f := f"{stem}_{n}" if n > 1 else stem) not in self.used)
        self.used.add(file)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=plots.DPI, metadata={"Software": None})
        png = buffer.getvalue()
        (self.out / f"{file}.png").write_bytes(png)
        width_px = round(figure.get_figwidth() * plots.DPI / 2)
        height_px = round(figure.get_figheight() * plots.DPI / 2)
        encoded = base64.b64encode(png).decode()
        return {"data": encoded, "width": width_px, "height": height_px, "caption": caption}


def training_curves(
    runs: Sequence[Run], phases: Mapping[str, Sequence[tuple[str, int]]], pictures: Pictures
) -> list[Json]:
    """Every logged metric over the training steps, the loss first, and the learning rate.

    `phases` maps each run's label to the phases of its training, name and the steps before it, which are marked.
    """
    names = dict.fromkeys(
        key.split("/", 1)[1] for run in runs for events in (run.steps, run.epochs) for key in metric_keys(events)
    )
    drawn = []
    for name in sorted(names, key=lambda name: name != "loss"):
        series = {
            run.label: {
                "step": _points(run.steps, f"train/{name}"),
                "train": _points(run.epochs, f"train/{name}"),
                "val": _points(run.epochs, f"val/{name}"),
            }
            for run in runs
        }
        figure = plots.curves(series, display_name(name), log_y=lower_is_better(name))
        plots_images.mark_phases(figure, phases)
        drawn.append(pictures.save(f"curve {name}", figure, display_name(name)))
    rates = {run.label: {"step": _points(run.steps or run.epochs, "lr")} for run in runs}
    if any(len(series["step"][0]) for series in rates.values()):
        figure = plots.curves(rates, "learning rate", log_y=True)
        plots_images.mark_phases(figure, phases)
        drawn.append(pictures.save("curve lr", figure, "learning rate"))
    return drawn


def throughput_curves(runs: Sequence[Run], pictures: Pictures) -> list[Json]:
    """Rows a second, and the share of the time that training waited for them."""
    drawn = []
    for key, label in (("rows_per_s", "rows/s"), ("input_wait_percent", "waiting for input (%)")):
        series = {run.label: {"step": _points(run.steps or run.epochs, key)} for run in runs}
        if any(len(of_run["step"][0]) for of_run in series.values()):
            drawn.append(pictures.save(key, plots.curves(series, label), label))
    return drawn


def score_by_rank(runs: Sequence[Run], split: str, pictures: Pictures) -> list[Json]:
    """Where an evaluation has scores for each label: the score over the label's rank by frequency."""
    entries = {
        run.label: [] if has_class_report(run, split) else run.evaluations.get(split, {}).get("per_class") or []
        for run in runs
    }
    keys = [key for of_run in entries.values() for key in score_keys(of_run)]
    if not keys:
        return []
    points = {
        label: (
            np.array([entry["train_count"] for entry in of_run], dtype=np.int64),
            np.array([finite_or_nan(entry.get(keys[0])) for entry in of_run], dtype=np.float64),
        )
        for label, of_run in entries.items()
    }
    name = display_name(keys[0])
    caption = (
        f"{name} of each label on {split} against the label's rank by training frequency, above the training rows. "
        "Each point is the mean over the ranks within a quarter of its own; it is left out where most of those labels "
        "have no positive."
    )
    return [pictures.save("score_by_rank", plots.score_by_rank(points, f"{name} per label, smoothed"), caption)]


def label_histogram(data: Json, pictures: Pictures) -> list[Json]:
    """Where rows are labelled with classes: how many training rows each label has."""
    counts = np.array(data["splits"].get("train", {}).get("label_counts") or [], dtype=np.int64)
    if counts.sum() == 0:
        return []
    caption = f"Training rows per label of {data['id']}."
    if len(counts) > plots.MAX_NAMED_BARS:
        top = np.sort(counts)[::-1][:10].sum() / counts.sum()
        caption += f" The 10 most frequent of {len(counts):,} labels make up {top:.1%} of all label appearances."
    return [pictures.save("label_histogram", plots.label_histogram(counts, data["class_names"]), caption)]


def metric_bars(runs: Sequence[Run], names: Sequence[str], pictures: Pictures) -> list[Json]:
    """The scores of each evaluation as bars, beside the published ones; none where a table row says the same."""
    drawn = []
    for name in names:
        measured = {run.label: _finite(run.evaluations.get(name, {}).get("metrics", {})) for run in runs}
        published = {run.label: _finite(run.published.get(name, {})) for run in runs}
        intervals = {
            run.label: {m: ends for m in measured[run.label] if (ends := interval(run.evaluations[name], m))}
            for run in runs
        }
        num_bars = sum(map(bool, measured.values())) + sum(map(bool, published.values()))
        if num_bars < 2 and not any(intervals.values()):
            continue
        metrics = {
            metric: display_name(metric) + (" (lower is better)" if lower_is_better(metric) else "")
            for metric in comparison(runs, name)["metrics"]
        }
        sources = list(dict.fromkeys(run.published_source for run in runs if published[run.label]))
        caption = name + (f"; published: {', '.join(filter(None, sources)) or 'no source given'}" if sources else "")
        if any(intervals.values()):
            # A point needs no axis from 0, but one axis: what has no upper bound, a loss, would squeeze the others.
            bounded = {metric: text for metric, text in metrics.items() if "loss" not in metric}
            figure = plots_classification.interval_chart(measured, intervals, published, bounded)
            caption += "; lines are 95 % intervals"
        else:
            figure = plots.metric_bars(measured, published, metrics)
        drawn.append(pictures.save(f"metrics {name}", figure, caption))
    return drawn


def clip_distributions(runs: Sequence[Run], names: Sequence[str], pictures: Pictures) -> list[Json]:
    """The first metric of every clip, sorted, for each evaluation that has scores of more than one clip."""
    drawn = []
    for name in names:
        found = {run.label: of_run for run in runs if (of_run := clip_scores(run, name)) is not None}
        if not found:
            continue
        metric = next(iter(found.values()))[0]
        scores = {run.label: np.array(found[run.label][1] if run.label in found else []) for run in runs}
        caption = f"{display_name(metric)} of each clip of {name}, from the worst to the best"
        for label, values in scores.items():
            if num_missing := int(np.isnan(values).sum()):
                caption += f"; {num_missing:,} of {len(values):,} have none{f' with {label}' if len(runs) > 1 else ''}"
        if any(np.isfinite(values).sum() > 1 for values in scores.values()):
            axis = f"{display_name(metric)} on {name}"
            figure = plots.sorted_scores(scores, axis, best_first=lower_is_better(metric))
            drawn.append(pictures.save(f"clips {name}", figure, f"{caption}."))
    return drawn


def confusions(runs: Sequence[Run], name: str, pictures: Pictures) -> list[Json]:
    """The confusion matrix of each run that has one, and one diagram of how reliable the runs' probabilities are."""
    drawn = []
    for run in runs:
        evaluation = run.evaluations.get(name, {})
        if not evaluation.get("confusion"):
            continue
        matrix = np.array(evaluation["confusion"], dtype=np.int64)
        entries = evaluation.get("per_class") or []
        names = [str(entry["name"]) for entry in entries] or [f"class {place}" for place in range(len(matrix))]
        of_run = f", {run.label}" if len(runs) > 1 else ""
        caption = (
            f"{name}{of_run}: rows by label and prediction; shades and percentages are shares of the label's rows."
        )
        figure = plots_classification.confusion(matrix, names)
        drawn.append(pictures.save(f"confusion {name}{of_run}", figure, caption))
    bins = {run.label: run.evaluations.get(name, {}).get("reliability") or [] for run in runs}
    if any(bins.values()):
        caption = (
            f"{name}: how often predictions are right against how sure they are. Below the grey line a model is too "
            "sure of itself. The area of a point goes by its rows, whose shares are below."
        )
        drawn.append(pictures.save(f"reliability {name}", plots_classification.reliability(bins), caption))
    return drawn


def feature_maps(runs: Sequence[Run], names: Sequence[str], pictures: Pictures) -> list[Json]:
    """The features of a segment of each class, from the rows that an evaluation of audio keeps.

    `evaluation/<name>.examples.parquet` of such a task has the columns `id`, `labels` and `features`, float32 bytes of
    (T, D), and says in its metadata `mmray.hop_s` and `mmray.row_names`, a JSON list of D names. Runs on one data set
    keep the same rows, which are drawn once.
    """
    drawn = []
    seen: set[tuple[str, str]] = set()
    for name, run in ((name, run) for name in names for run in runs if name in run.evaluations):
        path = run.evaluation_dir / f"{name}.examples.parquet"
        if not path.is_file() or "features" not in open_parquet(path).schema_arrow.names:
            continue
        table = read_table(path)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        missing = [column for column in ("id", "labels") if column not in table.column_names]
        missing += [key for key in ("mmray.hop_s", "mmray.row_names") if key not in metadata]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; run mmray evaluate again")
        row_names = [str(row) for row in json.loads(metadata["mmray.row_names"])]
        class_names = class_names_of(run, name)
        for row in table.select(["id", "labels", "features"]).to_pylist():
            classes = [class_names.get(klass, f"class {klass}") for klass in row["labels"]]
            if (run.dataset["id"], row["id"]) in seen:
                continue
            seen.add((run.dataset["id"], row["id"]))
            values = np.frombuffer(row["features"], np.float32)
            if len(values) % len(row_names):
                raise ValueError(f"{path}: {row['id']} has {len(values)} values for {len(row_names)} rows of features")
            figure = plots_classification.feature_map(
                values.reshape(-1, len(row_names)), float(metadata["mmray.hop_s"]), row_names
            )
            caption = (
                f"{', '.join(classes) or 'no label'}: {row['id']} of {name}. Each row in its own standard deviations."
            )
            drawn.append(pictures.save(f"features {name} {row['id']}", figure, caption))
    return drawn


def timelines(runs: Sequence[Run], names: Sequence[str], pictures: Pictures) -> list[Json]:
    """How the probabilities go along single recordings, where an evaluation has kept some, by segment."""
    drawn = []
    for name, run in ((name, run) for name in names for run in runs if name in run.evaluations):
        class_names = class_names_of(run, name)
        for one in run.evaluations[name].get("timelines") or []:
            probabilities = np.array(one["probabilities"], dtype=np.float64)
            labels = [class_names.get(c, f"class {c}") for c in range(probabilities.shape[1])]
            figure = plots_classification.timeline(np.array(one["start_s"], dtype=np.float64), probabilities, labels)
            of_run = f", {run.label}" if len(runs) > 1 else ""
            caption = (
                f"{one['group']} of {name}{of_run}, labelled {labels[one['label']]}: what each segment is taken for."
            )
            drawn.append(pictures.save(f"timeline {name} {run.label} {one['group']}", figure, caption))
    return drawn


def augmentations(runs: Sequence[Run], names: Sequence[str], pictures: Pictures) -> list[Json]:
    """A segment before and after each change of pitch and tempo that the run may make of it.

    Needs sound: `evaluation/<name>.examples.parquet` of a run on `store: audio` has the columns `id` and `audio`,
    int16 bytes of (n, 1), and says in its metadata `mmray.sample_rate_hz` and `mmray.changes`, settings in JSON. Runs
    that change the same segments alike share a picture.
    """
    drawn = []
    seen: set[tuple[str, str, str]] = set()
    for name, run in ((name, run) for name in names for run in runs if name in run.evaluations):
        path = run.evaluation_dir / f"{name}.examples.parquet"
        if not path.is_file() or "audio" not in open_parquet(path).schema_arrow.names:
            continue
        table = read_table(path)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        missing = [key for key in ("mmray.sample_rate_hz", "mmray.changes") if key not in metadata]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; run mmray evaluate again")
        rate = int(metadata["mmray.sample_rate_hz"])
        changes = audio_augment.Settings.model_validate_json(metadata["mmray.changes"])
        for row in table.select(["id", "audio"]).to_pylist():
            if (key := (run.dataset["id"], row["id"], metadata["mmray.changes"])) in seen:
                continue
            seen.add(key)
            samples = np.frombuffer(row["audio"], np.int16).astype(np.float32) / 32768
            sounds: list[tuple[str, np.ndarray, int]] = [("as recorded", samples, rate)]
            for semitones in changes.pitch_shift_semitones:
                shifted = audio_augment.pitch_shift(samples, rate, semitones, changes.quality)
                sounds.append((f"{semitones:+g} semitones", shifted, rate))
            for speed in changes.time_stretch_rates:
                stretched = audio_augment.time_stretch(samples, speed, changes.quality, rate)
                sounds.append((f"{speed:g} times as fast", stretched, rate))
            figure = plots_classification.augmentation_panel(sounds[:MAX_SOUNDS])
            caption = (
                f"{row['id']} of {name}, and what augmentation makes of it: waveforms, and spectrograms over 80 dB."
            )
            drawn.append(pictures.save(f"augmentation {name} {row['id']}", figure, caption))
    return drawn


def _finite(metrics: Json) -> dict[str, float]:
    return {metric: float(value) for metric, value in metrics.items() if is_finite(value)}


def metric_keys(events: Iterable[Json]) -> list[str]:
    """The keys `train/…` and `val/…` in order of first appearance."""
    return list(dict.fromkeys(key for event in events for key in event if key.startswith(("train/", "val/"))))


def _points(events: list[Json], key: str) -> plots.Points:
    """Step and value of the events that have `key`, both of shape (N,); NaN for what is not a finite number."""
    having = [event for event in events if key in event]
    return (
        np.array([event["step"] for event in having], dtype=np.int64),
        np.array([finite_or_nan(event[key]) for event in having], dtype=np.float64),
    )
