"""One self-contained HTML page about one run, or several side by side.

A run folder is read as it stands, finished or not: what is missing is said on the page, never guessed. Nothing here
imports torch or ray, so a report can be made on any machine that holds the folder.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import yaml

from mmray.reporting import plots
from mmray.reporting.ensembles import ensemble_sections, ensemble_settings, score_by_cost
from mmray.reporting.images import ACCURACY_TABLE, class_accuracy, confused_images, phase_starts, phase_tables
from mmray.reporting.melody import contours
from mmray.reporting.pictures import (
    Pictures,
    augmentations,
    clip_distributions,
    confusions,
    feature_maps,
    label_histogram,
    metric_bars,
    metric_keys,
    score_by_rank,
    throughput_curves,
    timelines,
    training_curves,
)
from mmray.reporting.runs import (
    Json,
    Run,
    distinct_labels,
    evaluation_names,
    read_run,
    without_absolute_paths,
)
from mmray.reporting.scores import (
    class_report,
    class_tables,
    clip_tables,
    comparison,
    headline,
    leak_remarks,
    scored_rows,
    track_tables,
)
from mmray.reporting.text import display_name, duration, flop, is_finite, number, shape
from mmray.reporting.video import common_words, modality_tables
from mmray.storage import at

# What environment.json says of the model; it stands among the settings, not beside the hardware.
_OF_THE_MODEL = ("num_parameters", "conv_flops_per_second")


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write `out/index.html`, its pictures inlined, and the drawn ones also as `out/*.png`; return the page's path.

    One run gives a page about it, several a comparison. Raises ValueError for no run, a run given twice, or a folder
    that is no run, naming what it lacks.
    """
    if not run_dirs:
        raise ValueError("no run folder given; name at least one: mmray report RUN…")
    twice = [str(path) for path, times in Counter(p.resolve() for p in map(at, run_dirs)).items() if times > 1]
    if twice:
        raise ValueError(f"run folder {twice[0]} is given twice; give each run once")
    runs = distinct_labels([read_run(at(path)) for path in run_dirs])
    names = evaluation_names(runs)
    split = next((name for name in names if any(name in run.evaluations for run in runs)), None)

    out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(out)
    melodies, melody_remarks = contours(runs, pictures)
    page = _template().render(
        title=runs[0].label if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=runs,
        colors={run.label: plots.run_color(place) for place, run in enumerate(runs)},
        split=split,
        headline=headline(runs, split) if split else None,
        leaks=leak_remarks(runs, split) if split else [],
        notes=[(run.label, note) for run in runs for note in run.notes + _checks(run)] + _comparability(runs),
        comparisons=[comparison(runs, name) for name in names] if split else [],
        metric_bars=metric_bars(runs, names, pictures) if split else [],
        modality_tables=modality_tables(runs, names),
        ensembles=ensemble_sections(runs, names, pictures),
        cost_pictures=[picture for name in names for picture in score_by_cost(runs, name, pictures)],
        settings=_table([_settings(run) | ensemble_settings(run) for run in runs]),
        differences=_table([_flat(_choices(run)) for run in runs], only_different=True),
        datasets=[_data_section(group) for group in _by_dataset(runs)],
        curves=training_curves(runs, {run.label: phase_starts(run) for run in runs}, pictures),
        phase_tables=phase_tables(runs),
        class_reports=[found for name in names if (found := class_report(runs, name))],
        confusions=[picture for name in names for picture in confusions(runs, name, pictures)],
        class_accuracy=class_accuracy(runs, names, pictures),
        accuracy_table=ACCURACY_TABLE,
        confused_images=confused_images(runs, names),
        feature_maps=feature_maps(runs, names, pictures),
        augmentations=augmentations(runs, names, pictures),
        timelines=timelines(runs, names, pictures),
        track_tables=[table for name in names for table in track_tables(runs, name)],
        melodies=melodies,
        melody_remarks=melody_remarks,
        clip_pictures=clip_distributions(runs, names, pictures),
        clip_tables=[table for name in names for table in clip_tables(runs, name)],
        label_pictures=[
            *(score_by_rank(runs, split, pictures) if split else []),
            *(p for group in _by_dataset(runs) for p in label_histogram(group[0].dataset, pictures)),
        ],
        word_pictures=common_words(runs, names, pictures),
        class_tables=[t for group in _by_dataset(runs) for t in class_tables(group, split)] if split else [],
        throughput=_table([_throughput(run) for run in runs]),
        throughput_curves=throughput_curves(runs, pictures),
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
        notes += _not_fractions(split, evaluation["metrics"], run.published.get(split, {}))
    for event in ("step", "epoch"):
        events = run.steps if event == "step" else run.epochs
        for key in metric_keys(events):
            steps = [e["step"] for e in events if key in e and not is_finite(e[key])]
            if steps:
                notes.append(f"{key} is not a finite number at {len(steps):,} {event}(s), first at step {steps[0]:,}")
    return notes


def _not_fractions(name: str, measured: Json, published: dict[str, float]) -> list[str]:
    """Published scores that look like percent where ours are fractions."""
    return [
        f"the published {metric} on {name} is {number(value)}, the measured one {number(measured[metric])}: "
        "is one of them in percent?"
        for metric, value in published.items()
        if value > 1 and is_finite(measured.get(metric)) and 0 <= measured[metric] <= 1
    ]


def _comparability(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Whether the runs' numbers may be set against one another: those on other data may not, unless clip by clip."""
    ids = list(dict.fromkeys(run.dataset["id"] for run in runs))
    if len(ids) == 1:
        return []
    names = evaluation_names(runs)
    apart = [n for n in names if len({scored_rows(run, n) for run in runs if n in run.evaluations}) > 1]
    different = f"the runs use different data ({', '.join(ids)})"
    if apart or not any(run.evaluations for run in runs):
        where = f" on {', '.join(apart)}" if apart and len(apart) < len(names) else ""
        return [("comparison", f"{different}: their numbers{where} do not compare directly")]
    return [
        ("comparison", f"{different}, but were scored on the same clips: their scores compare, their losses do not")
    ]


# What was run, and on what


def _settings(run: Run) -> Json:
    config = run.config
    parameters: Any = run.environment.get("num_parameters")
    flops: Any = run.environment.get("conv_flops_per_second")
    steps = [event["step"] for event in run.steps + run.epochs]
    repeat = shlex.quote(f"{run.path}/config.yaml")
    epochs = config.get("train", {}).get("epochs")
    return {
        "task": _name_of(config.get("task")),
        "dataset": run.dataset["id"],
        "model": _name_of(config.get("model")),
        "parameters": None if parameters is None else number(parameters),
        "convolutions": f"{flop(flops)} a second of audio" if is_finite(flops) else None,
        "seed": config.get("seed"),
        "epochs finished": f"{len(run.epochs):,} of {epochs:,}" if isinstance(epochs, int) else f"{len(run.epochs):,}",
        "last logged step": f"{max(steps):,}" if steps else None,
        "repeat it": f"mmray train {repeat} --set name={shlex.quote(config['name'] + '-again')}",
    }


def _choices(run: Run) -> Json:
    """The config without what is no choice of the run's: the scores that others have published."""
    return {key: value for key, value in without_absolute_paths(run.config).items() if key != "published"}


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
    of_classes = any(split.get("label_counts") for split in data["splits"].values())
    return {"data": data, "runs": [run.label for run in runs], "splits": splits, "of_classes": of_classes}


def _throughput(run: Run) -> Json:
    def values(key: str, events: list[Json]) -> list[float]:
        return [event[key] for event in events if is_finite(event.get(key))]

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
        "all epochs": duration(sum(epoch_s)) if epoch_s else None,
    }


def _environment(run: Run) -> Json:
    units = {"memory_gb": "memory, GB", "num_cpus": "CPUs", "num_workers": "workers", "cpu": "CPU", "gpus": "GPUs"}
    shown = {}
    for key, value in run.environment.items():
        if key in _OF_THE_MODEL:
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
