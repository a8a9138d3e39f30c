"""One self-contained HTML page about one run, or several side by side.

A run folder is read as it stands, finished or not: what is missing is said on the page, never guessed. Nothing here
imports torch or ray, so a report can be made on any machine that holds the folder.
"""

from __future__ import annotations

import base64
import io
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import numpy as np
import yaml
from matplotlib.figure import Figure

from mmray.reporting import plots
from mmray.reporting.runs import SPLITS, Json, Run, distinct_labels, read_run, shown_path, without_absolute_paths

# A label with fewer positives than this has too uncertain a score to be called best or worst.
MIN_POSITIVES = 10
NUM_FREQUENT, NUM_BEST, NUM_WORST = 20, 10, 10
DISPLAY_NAMES = {"gap": "GAP", "map": "mAP", "hit_at_1": "Hit@1", "perr": "PERR", "ap": "AP", "lr": "learning rate"}
LOWER_IS_BETTER = re.compile(r"loss|error|false_alarm|perplexity")


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write `out/index.html`, its pictures inlined, and the same pictures as `out/*.png`; return the page's path.

    One run gives a page about it, several a comparison. Raises ValueError for no run, a run given twice, or a folder
    that is no run, naming what it lacks.
    """
    if not run_dirs:
        raise ValueError("no run folder given; name at least one: mmray report RUN…")
    twice = [str(path) for path, times in Counter(Path(p).resolve() for p in run_dirs).items() if times > 1]
    if twice:
        raise ValueError(f"run folder {twice[0]} is given twice; give each run once")
    runs = distinct_labels([read_run(Path(path)) for path in run_dirs])
    split = next((s for s in SPLITS if any(s in run.evaluations for run in runs)), None)

    out.mkdir(parents=True, exist_ok=True)
    pictures = _Pictures(out)
    page = _template().render(
        title=runs[0].label if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=runs,
        colors={run.label: plots.run_color(place) for place, run in enumerate(runs)},
        split=split,
        headline=headline(runs, split) if split else None,
        notes=[(run.label, note) for run in runs for note in run.notes + _checks(run)] + _comparability(runs),
        comparisons=[comparison(runs, s) for s in SPLITS if any(s in run.evaluations for run in runs)],
        settings=_table([_settings(run) for run in runs]),
        differences=_table([_flat(without_absolute_paths(run.config)) for run in runs], only_different=True),
        datasets=[_data_section(group) for group in _by_dataset(runs)],
        curves=_training_curves(runs, pictures),
        label_pictures=[
            *(_score_by_rank(runs, split, pictures) if split else []),
            *(p for group in _by_dataset(runs) for p in _label_histogram(group[0].dataset, pictures)),
        ],
        class_tables=[t for group in _by_dataset(runs) for t in class_tables(group, split)] if split else [],
        throughput=_table([_throughput(run) for run in runs]),
        throughput_curves=_throughput_curves(runs, pictures),
        hardware=_table([_environment(run) for run in runs]),
        configs={
            run.label: yaml.safe_dump(
                without_absolute_paths(run.config), sort_keys=False, allow_unicode=True, width=100
            )
            for run in runs
        },
    )
    index = out / "index.html"
    index.write_text(page, encoding="utf-8")
    return index


# What was measured


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is the better one: losses, errors, false alarms."""
    return LOWER_IS_BETTER.search(metric) is not None


def headline(runs: Sequence[Run], split: str) -> Json | None:
    """The best run by the first metric of the evaluation, and the strongest baseline it meets there.

    `gain` is how far it is ahead of the baseline in the metric's better direction, negative if behind, None without a
    baseline. Runs on other data than the first evaluated one do not compete. None if no run has a finite value.
    """
    evaluated = [run for run in runs if run.evaluations.get(split, {}).get("metrics")]
    if not evaluated:
        return None
    metric = next(iter(evaluated[0].evaluations[split]["metrics"]))
    sign = -1 if lower_is_better(metric) else 1
    values = {run.label: run.evaluations[split]["metrics"].get(metric) for run in evaluated}
    data = evaluated[0].dataset["id"]
    ranked = [run for run in evaluated if _is_finite(values[run.label]) and run.dataset["id"] == data]
    if not ranked:
        return None
    best = max(ranked, key=lambda run: sign * values[run.label])
    evaluation = best.evaluations[split]
    baselines = {
        name: metrics[metric]
        for name, metrics in evaluation.get("baselines", {}).items()
        if _is_finite(metrics.get(metric))
    }
    strongest = max(baselines, key=lambda name: sign * baselines[name], default=None)
    value = values[best.label]
    return {
        "metric": metric,
        "split": split,
        "run": best.label,
        "value": value,
        "baseline": strongest,
        "baseline_value": baselines[strongest] if strongest is not None else None,
        "gain": sign * (value - baselines[strongest]) if strongest is not None else None,
        "rows": evaluation["rows"],
        "rows_with_labels": evaluation.get("rows_with_labels", evaluation["rows"]),
        "num_compared": len(ranked),
    }


def comparison(runs: Sequence[Run], split: str) -> Json:
    """The table of a split: a row per run and per baseline, a column per metric, the best of each column marked.

    A baseline that several runs of one data set report with the same values stands once. A run without an evaluation
    has `values` None. Among runs on different data nothing is marked.
    """
    rows: list[Json] = []
    baselines: dict[tuple[Any, ...], Json] = {}
    for run in runs:
        evaluation = run.evaluations.get(split)
        rows.append({"label": run.label, "path": run.path, "values": None, "is_baseline": False})
        if evaluation is None:
            continue
        rows[-1] |= {
            "values": evaluation["metrics"],
            "rows": evaluation["rows"],
            "rows_with_labels": evaluation.get("rows_with_labels", evaluation["rows"]),
            "checkpoint": shown_path(str(evaluation.get("checkpoint", ""))),
        }
        for name, metrics in evaluation.get("baselines", {}).items():
            key = (name, run.dataset["id"], evaluation["rows"], *sorted(metrics.items()))
            baselines.setdefault(
                key,
                rows[-1] | {"label": name, "values": metrics, "is_baseline": True, "of": run.label},
            )
    times = Counter(row["label"] for row in baselines.values())
    for row in baselines.values():
        if times[row["label"]] > 1:
            row["label"] += f" (data of {row['of']})"
    rows += baselines.values()
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["values"] or ()))
    best: dict[str, float] = {}
    for metric in metrics:
        values = [row["values"].get(metric) for row in rows if row["values"]]
        finite = [value for value in values if _is_finite(value)]
        if finite and len(_by_dataset(runs)) == 1:
            best[metric] = min(finite) if lower_is_better(metric) else max(finite)
    return {"split": split, "metrics": metrics, "rows": rows, "best": best}


def class_tables(runs: Sequence[Run], split: str) -> list[Json]:
    """The per-class tables of runs on one data set: excerpts first, then every class; classes by training frequency.

    Each row is `(rank, name, scores…, train rows, rows in the split)` with one score per kind of score and run. Best
    and worst go by the first run's first score, among labels with at least `MIN_POSITIVES` positives. With few
    classes there is the full table only.
    """
    evaluated = [run for run in runs if run.evaluations.get(split, {}).get("per_class")]
    if not evaluated:
        return []
    by_class = [{entry["class"]: entry for entry in run.evaluations[split]["per_class"]} for run in evaluated]
    score_keys = _score_keys(evaluated[0].evaluations[split]["per_class"])
    ranked = sorted(by_class[0].values(), key=lambda entry: (-entry["train_count"], entry["class"]))
    rows = [
        (
            rank,
            entry["name"],
            *(of_run.get(entry["class"], {}).get(key) for key in score_keys for of_run in by_class),
            entry["train_count"],
            entry["count"],
        )
        for rank, entry in enumerate(ranked, start=1)
    ]
    single = len(evaluated) == 1
    columns = [(key, None if single else run.label) for key in score_keys for run in evaluated]
    full = {"title": f"All {len(rows):,} labels", "columns": columns, "rows": rows, "split": split, "full": True}
    if len(rows) <= NUM_FREQUENT + NUM_BEST + NUM_WORST or not score_keys:
        return [full]
    enough = [row for row in rows if row[-1] >= MIN_POSITIVES and _is_finite(row[2])]
    best_first = sorted(enough, key=lambda row: -row[2])
    by_whom = "" if single else f" by {evaluated[0].label},"
    among = f"{by_whom} of the {len(enough):,} labels with at least {MIN_POSITIVES} positives in {split}"
    excerpts = [
        (f"{NUM_FREQUENT} most frequent", rows[:NUM_FREQUENT]),
        (f"{min(NUM_BEST, len(enough))} best{among}", best_first[:NUM_BEST]),
        (f"{min(NUM_WORST, len(enough))} worst{among}", best_first[::-1][:NUM_WORST]),
    ]
    return [full | {"title": title, "rows": part, "full": False} for title, part in excerpts] + [full]


def _score_keys(per_class: Sequence[Json]) -> list[str]:
    """What the entries of `per_class` measure: their keys beyond those that say which class and how many rows."""
    described = {"class", "name", "train_count", "count"}
    return [key for key in per_class[0] if key not in described] if per_class else []


def _checks(run: Run) -> list[str]:
    """Where the numbers of one run contradict one another, or what they say is no success."""
    notes = []
    data = run.dataset
    if {"rows_in", "rows_out", "rejected"} <= data.keys() and data["rows_in"] != data["rows_out"] + data["rejected"]:
        notes.append(f"rows in {data['rows_in']:,} ≠ rows out {data['rows_out']:,} + rejected {data['rejected']:,}")
    for split, evaluation in run.evaluations.items():
        rows = data["splits"].get(split, {}).get("rows", evaluation["rows"])
        if rows != evaluation["rows"]:
            notes.append(f"the evaluation covers {evaluation['rows']:,} of the {rows:,} rows of {split}")
    for event in ("step", "epoch"):
        events = run.steps if event == "step" else run.epochs
        for key in _metric_keys(events):
            steps = [e["step"] for e in events if key in e and not _is_finite(e[key])]
            if steps:
                notes.append(f"{key} is not a finite number at {len(steps):,} {event}(s), first at step {steps[0]:,}")
    return notes


def _comparability(runs: Sequence[Run]) -> list[tuple[str, str]]:
    ids = list(dict.fromkeys(run.dataset["id"] for run in runs))
    if len(ids) > 1:
        return [
            ("comparison", f"the runs use different data ({', '.join(ids)}): their numbers do not compare directly")
        ]
    return []


# What was run, and on what


def _settings(run: Run) -> Json:
    config = run.config
    parameters = run.environment.get("num_parameters")
    steps = [event["step"] for event in run.steps + run.epochs]
    repeat = shlex.quote(f"{run.path}/config.yaml")
    epochs = config.get("train", {}).get("epochs")
    return {
        "task": _name_of(config.get("task")),
        "dataset": run.dataset["id"],
        "model": _name_of(config.get("model")),
        "parameters": None if parameters is None else number(parameters),
        "seed": config.get("seed"),
        "epochs finished": f"{len(run.epochs):,} of {epochs:,}" if isinstance(epochs, int) else f"{len(run.epochs):,}",
        "last logged step": f"{max(steps):,}" if steps else None,
        "repeat it": f"mmray train {repeat} --set name={shlex.quote(config['name'] + '-again')}",
    }


def _name_of(section: Any) -> Any:
    return section.get("name") if isinstance(section, dict) else section


def _by_dataset(runs: Sequence[Run]) -> list[list[Run]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.dataset["id"], []).append(run)
    return list(groups.values())


def _data_section(runs: Sequence[Run]) -> Json:
    data = runs[0].dataset
    splits = []
    for name, split in data["splits"].items():
        counts = split.get("label_counts") or []
        splits.append(
            {
                "name": name,
                "rows": split["rows"],
                "labels": sum(counts),
                "labels_per_row": sum(counts) / split["rows"] if split["rows"] else None,
                "empty": sum(count == 0 for count in counts) if counts else None,
            }
        )
    return {"data": data, "runs": [run.label for run in runs], "splits": splits}


def _throughput(run: Run) -> Json:
    def values(key: str, events: list[Json]) -> list[float]:
        return [event[key] for event in events if _is_finite(event.get(key))]

    # An epoch's figure covers all of its steps; before the first epoch ends there are the logged steps only.
    events = run.epochs if values("rows_per_s", run.epochs) else run.steps
    rows_per_s, wait = values("rows_per_s", events), values("input_wait_percent", events)
    memory = values("device_memory_mb", run.steps + run.epochs)
    epoch_s = values("epoch_s", run.epochs)
    return {
        "rows/s, median": f"{median(rows_per_s):,.0f}" if rows_per_s else None,
        "waiting for input, median": f"{median(wait):.1f} %" if wait else None,
        "device memory, peak": f"{max(memory):,.0f} MB" if memory else None,
        "epoch, median": f"{median(epoch_s):,.1f} s" if epoch_s else None,
        "epoch, shortest to longest": f"{min(epoch_s):,.1f} to {max(epoch_s):,.1f} s" if epoch_s else None,
        "all epochs": _duration(sum(epoch_s)) if epoch_s else None,
    }


def _environment(run: Run) -> Json:
    units = {"memory_gb": "memory, GB", "num_cpus": "CPUs", "num_workers": "workers", "cpu": "CPU", "gpus": "GPUs"}
    shown = {}
    for key, value in run.environment.items():
        if key == "num_parameters":
            continue
        if isinstance(value, list):
            value = ", ".join(f"{times} x {name}" for name, times in Counter(map(str, value)).items()) or "none"
        shown[units.get(key, key.replace("_", " "))] = without_absolute_paths(value)
    return shown


def _table(columns: Sequence[Json], only_different: bool = False) -> list[tuple[str, list[str]]]:
    """Rows `(name, one text per column)` of the union of the columns' keys; a dash where a column lacks one.

    Rows that are None throughout are left out, with `only_different` also those whose values all agree.
    """
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key) for column in columns]
        same = all(value == values[0] for value in values)
        if any(value is not None for value in values) and not (only_different and same):
            rows.append((key, ["—" if value is None else str(value) for value in values]))
    return rows


def _flat(config: Json, prefix: str = "") -> Json:
    """`{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    flat: Json = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# Pictures


class _Pictures:
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


def _training_curves(runs: Sequence[Run], pictures: _Pictures) -> list[Json]:
    names = dict.fromkeys(
        key.split("/", 1)[1] for run in runs for events in (run.steps, run.epochs) for key in _metric_keys(events)
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
        drawn.append(pictures.save(f"curve {name}", figure, display_name(name)))
    rates = {run.label: {"step": _points(run.steps or run.epochs, "lr")} for run in runs}
    if any(len(series["step"][0]) for series in rates.values()):
        figure = plots.curves(rates, "learning rate", log_y=True)
        drawn.append(pictures.save("curve lr", figure, "learning rate"))
    return drawn


def _throughput_curves(runs: Sequence[Run], pictures: _Pictures) -> list[Json]:
    drawn = []
    for key, label in (("rows_per_s", "rows/s"), ("input_wait_percent", "waiting for input (%)")):
        series = {run.label: {"step": _points(run.steps or run.epochs, key)} for run in runs}
        if any(len(of_run["step"][0]) for of_run in series.values()):
            drawn.append(pictures.save(key, plots.curves(series, label), label))
    return drawn


def _score_by_rank(runs: Sequence[Run], split: str, pictures: _Pictures) -> list[Json]:
    entries = {run.label: run.evaluations.get(split, {}).get("per_class") or [] for run in runs}
    keys = [key for of_run in entries.values() for key in _score_keys(of_run)]
    if not keys:
        return []
    points = {
        label: (
            np.array([entry["train_count"] for entry in of_run], dtype=np.int64),
            np.array([_float(entry.get(keys[0])) for entry in of_run], dtype=np.float64),
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


def _label_histogram(data: Json, pictures: _Pictures) -> list[Json]:
    counts = np.array(data["splits"].get("train", {}).get("label_counts") or [], dtype=np.int64)
    if counts.sum() == 0:
        return []
    caption = f"Training rows per label of {data['id']}."
    if len(counts) > plots.MAX_NAMED_BARS:
        top = np.sort(counts)[::-1][:10].sum() / counts.sum()
        caption += f" The 10 most frequent of {len(counts):,} labels make up {top:.1%} of all label appearances."
    return [pictures.save("label_histogram", plots.label_histogram(counts, data["class_names"]), caption)]


def _metric_keys(events: Iterable[Json]) -> list[str]:
    """The keys `train/…` and `val/…` in order of first appearance."""
    return list(dict.fromkeys(key for event in events for key in event if key.startswith(("train/", "val/"))))


def _points(events: list[Json], key: str) -> plots.Points:
    """Step and value of the events that have `key`, both of shape (N,); NaN for what is not a finite number."""
    having = [event for event in events if key in event]
    return (
        np.array([event["step"] for event in having], dtype=np.int64),
        np.array([_float(event[key]) for event in having], dtype=np.float64),
    )


# Text


def display_name(metric: str) -> str:
    """A metric's name as people write it: `hit_at_1` -> Hit@1; others with blanks for underscores."""
    return DISPLAY_NAMES.get(metric, metric.replace("_", " "))


def number(value: Any) -> str:
    """A value for people: whole numbers in full, others to 4 decimals (small ones to 4 digits), None as a dash."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}" if 0 < abs(value) < 0.001 else f"{value:,.4f}"


def shape(sizes: Sequence[int | None]) -> str:
    """A column's shape for people: `[None, 1024]` -> any x 1,024."""
    return " x ".join("any" if size is None else f"{size:,}" for size in sizes)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _float(value: Any) -> float:
    return float(value) if _is_finite(value) else math.nan


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s" if m else f"{seconds:.1f} s"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "display_name": display_name, "shell": shlex.quote, "shape": shape}
    return environment.get_template("page.html.j2")
