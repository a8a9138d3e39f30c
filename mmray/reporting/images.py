"""What the page shows of image classification: who is taken for whom, each class by every run; and training in phases.

`evaluation/<name>.examples.parquet` of such a task has the columns `id`, `scores`, `image`, as it was stored, and where
the model could tell where it looked `heat`, uint8 (H, W). Its metadata say how images are stored (`mmray.image`, JSON)
and how the heat was found (`mmray.heat`).
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmray.files import written_whole
from mmray.reporting import plots_images
from mmray.reporting.pictures import Pictures, metric_keys
from mmray.reporting.runs import Json, Run
from mmray.reporting.scores import class_names_of, lower_is_better
from mmray.reporting.text import display_name, is_finite
from mmray.storage import read_table

SHOWN_PX = 120  # height of an image on the page; twice as many pixels are kept, for sharp screens
FEW_CLASSES = 5  # so many are seen at a glance in the table of one run
ACCURACY_TABLE = "per_class_accuracy.csv"


@dataclass(frozen=True)
class Example:
    """One image, uint8 (H, W, 3), the probabilities of the classes (K,), and where the model looked, uint8 (H, W)."""

    id: str
    image: np.ndarray
    scores: np.ndarray
    heat: np.ndarray | None


def read_examples(path: Path) -> tuple[dict[str, Example], str | None]:
    """Stored examples by id, and how their heat was found; ValueError naming what the file lacks, or what no image."""
    table = read_table(path)
    facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    missing = [name for name in ("id", "scores", "image") if name not in table.column_names]
    missing += [key for key in ("mmray.image", *["mmray.heat"] * ("heat" in table.column_names)) if key not in facts]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; run mmray evaluate again")
    stored = json.loads(facts["mmray.image"])
    height, width = stored["size"]
    scores = table["scores"].combine_chunks().to_numpy_ndarray()
    heat = table["heat"].combine_chunks().to_numpy_ndarray() if "heat" in table.column_names else None
    if heat is not None and heat.shape[1:] != (height, width):
        raise ValueError(f"{path}: heat of {heat.shape[1:]} for images of {(height, width)}; run mmray evaluate again")
    found = {}
    for row, (name, data) in enumerate(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True)):
        try:
            image = _pixels(data, stored["store"], (height, width))
        except (ValueError, UnidentifiedImageError) as error:
            raise ValueError(f"{path}: image {name}: {error}; run mmray evaluate again") from None
        found[name] = Example(name, image, scores[row], None if heat is None else heat[row])
    return found, facts.get("mmray.heat")


def _pixels(data: bytes, store: str, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a stored image, uint8 (H, W, 3). Without torchvision: a report needs no torch."""
    if store == "jpeg":
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        if image.shape[:2] != size:
            raise ValueError(f"a JPEG file of {image.shape[:2]} where all have {size}")
        return image
    return np.frombuffer(data, np.uint8).reshape(*size, 3)


def confused_images(runs: Sequence[Run], names: Sequence[str]) -> list[Json]:
    """Of each evaluation that lists them: the most confused pairs of classes with images of each, and the surest right.

    Each section has `name`, `run`, `heat` (how it was found, or None), `remark` and `rows`: a title and its photos.
    """
    return [
        _confused_images(run, name)
        for name in names
        for run in runs
        if "confused_pairs" in run.evaluations.get(name, {})
    ]


def _confused_images(run: Run, name: str) -> Json:
    evaluation = run.evaluations[name]
    path = run.evaluation_dir / f"{name}.examples.parquet"
    examples, heat = read_examples(path) if path.is_file() else ({}, None)
    classes = class_names_of(run, name)
    counts = {entry["class"]: entry["count"] for entry in evaluation["per_class"]}
    chosen = [i for pair in evaluation["confused_pairs"] for i in pair["ids"]] + evaluation["right"]
    if path.is_file() and (missing := [i for i in chosen if i not in examples]):
        raise ValueError(f"{path} lacks the image {missing[0]} of {name}.json; run mmray evaluate again")
    rows = []
    for pair in evaluation["confused_pairs"]:
        true, taken_for = pair["true"], pair["predicted"]
        photos = []
        for example in (examples[i] for i in pair["ids"] if i in examples):
            p = example.scores
            photos.append(_photo(example, f"{example.id}: {p[taken_for]:.2f}, {classes[true]} {p[true]:.2f}"))
        title = f"{classes[true]} → {classes[taken_for]}: {pair['count']:,} of {counts[true]:,}"
        rows.append({"title": title, "photos": photos})
    right = [examples[i] for i in evaluation["right"] if i in examples]
    if right:
        photos = [_photo(one, f"{classes[int(one.scores.argmax())]} {one.scores.max():.2f}: {one.id}") for one in right]
        rows.append({"title": "Right, and surest of it", "photos": photos})
    remark = "" if examples or not chosen else f"No images are stored with the evaluation on {name}."
    return {"name": name, "run": run.label, "heat": heat, "remark": remark, "rows": rows}


def _photo(example: Example, caption: str) -> Json:
    """An image, beside it the same with its heat, as a JPEG file for the page."""
    tiles = [example.image]
    if example.heat is not None:
        tiles.append(plots_images.heat_overlay(example.image, example.heat))
    joined = Image.fromarray(np.concatenate(tiles, axis=1))
    width = max(1, round(SHOWN_PX * joined.width / joined.height))
    joined.thumbnail((2 * width, 2 * SHOWN_PX))
    buffer = io.BytesIO()
    joined.save(buffer, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"data": data, "width": width, "height": SHOWN_PX, "caption": caption}


def class_accuracy(runs: Sequence[Run], names: Sequence[str], pictures: Pictures) -> list[Json]:
    """The accuracy of each class by all runs that tell the same classes apart: pictures and `per_class_accuracy.csv`.

    The table has a column a run, empty for a class without rows or of other runs, and a row for each evaluation and
    class; `rows` is empty where runs were scored on different ones. Several runs are compared, or the classes of one if
    there are more than a few; otherwise there is nothing, and no table.
    """
    drawn, lines, labels = [], [], set()
    for name in names:
        for group in _of_same_classes(runs, name):
            entries = [run.evaluations[name]["per_class"] for run in group]
            accuracy = np.array([[_accuracy(entry) for entry in of_run] for of_run in entries]).T
            classes = [str(entry["name"]) for entry in entries[0]]
            for c, klass in enumerate(classes):
                counts = {of_run[c]["count"] for of_run in entries}
                values = dict(zip((run.label for run in group), accuracy[c].tolist(), strict=True))
                line = {"evaluation": name, "class": klass, "rows": counts.pop() if len(counts) == 1 else ""}
                lines.append((line, {label: value for label, value in values.items() if is_finite(value)}))
            labels |= {run.label for run in group}
            figure = plots_images.class_accuracy(accuracy, classes, [run.label for run in group])
            caption = (
                f"{name}: accuracy of each class, the share of its rows that is right (%), the best classes first."
            )
            drawn.append(pictures.save(f"class accuracy {name}", figure, caption))
    if drawn:
        _write_accuracy(pictures.out / ACCURACY_TABLE, lines, [run.label for run in runs if run.label in labels])
    return drawn


def _write_accuracy(path: Path, lines: Sequence[tuple[Json, dict[str, float]]], labels: Sequence[str]) -> None:
    with written_whole(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["evaluation", "class", "rows", *labels])
        for line, values in lines:
            writer.writerow([*line.values(), *(values.get(label, "") for label in labels)])


def _of_same_classes(runs: Sequence[Run], name: str) -> list[list[Run]]:
    """The runs that give each row one class, together where the classes are the same; those worth a picture."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        evaluation = run.evaluations.get(name, {})
        entries = evaluation.get("per_class") or []
        if evaluation.get("confusion") and entries and "recall" in entries[0]:
            groups.setdefault(tuple((entry["class"], entry["name"]) for entry in entries), []).append(run)
    return [group for classes, group in groups.items() if len(group) > 1 or len(classes) > FEW_CLASSES]


def _accuracy(entry: Json) -> float:
    return float(entry["recall"]) if entry["count"] else np.nan


def phase_starts(run: Run) -> list[tuple[str, int]]:
    """The phases of training that have begun: the name of each and the step after which it began; [] without any."""
    events = sorted(run.steps + run.epochs, key=lambda event: event["step"])
    starts, before = [], 0
    for phase, group in groupby((e for e in events if "phase" in e), key=lambda event: event["phase"]):
        starts.append((str(phase), before))
        before = max(event["step"] for event in group)
    return starts


def phase_tables(runs: Sequence[Run]) -> list[Json]:
    """How far training and validation are apart in each phase, at its last epoch and at its best one.

    A table for each metric that tells the best, which is the config's `train.monitor`, else the first metric of
    validation that is no loss; equally good epochs give the last of them, as for checkpoints.
    """
    tables: dict[str, Json] = {}
    for run in runs:
        phased = [event for event in run.epochs if "phase" in event]
        monitor = _monitor(run, phased)
        if monitor is None:
            continue
        rows = tables.setdefault(
            monitor, {"kind": "phases", "monitor": monitor, "columns": _phase_columns(runs, monitor), "rows": []}
        )["rows"]
        for phase, group in groupby(phased, key=lambda event: event["phase"]):
            epochs = list(group)
            start = [*([run.label] if len(runs) > 1 else []), phase]
            rows.append([*start, *_of_phase("last", epochs, epochs[-1], monitor)])
            finite = [event for event in epochs if is_finite(event.get(monitor))]
            if finite:
                sign = -1 if lower_is_better(monitor) else 1
                best = max(finite, key=lambda event: (sign * event[monitor], event["step"]))
                rows.append([*start, *_of_phase("best", epochs, best, monitor)])
    return list(tables.values())


def _monitor(run: Run, epochs: Sequence[Json]) -> str | None:
    logged = [key for key in metric_keys(epochs) if key.startswith("val/")]
    configured = run.config.get("train", {}).get("monitor")
    if configured in logged:
        return str(configured)
    return next((key for key in logged if key != "val/loss"), logged[0] if logged else None)


def _phase_columns(runs: Sequence[Run], monitor: str) -> list[Json]:
    texts = [*(["run"] if len(runs) > 1 else []), "phase", "epoch"]
    numbers = ["trained parameters", "train loss", "val loss", "val less train"]
    if monitor != "val/loss":
        numbers.append(f"val {display_name(monitor.removeprefix('val/'))}")
    return [{"title": title, "run": None, "is_text": title in texts} for title in texts + numbers]


def _of_phase(which: str, epochs: Sequence[Json], at: Json, monitor: str) -> list[Any]:
    """The cells of one epoch of a phase."""
    train, val = at.get("train/loss"), at.get("val/loss")
    gap = val - train if is_finite(train) and is_finite(val) else None  # type: ignore[operator]
    place = next(n for n, event in enumerate(epochs, start=1) if event is at)
    epoch = f"{which}, {place:,} of {len(epochs):,}"
    return [epoch, at.get("trained_parameters"), train, val, gap, *([at.get(monitor)] if monitor != "val/loss" else [])]
