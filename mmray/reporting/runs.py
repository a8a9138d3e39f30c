"""A run folder as the page sees it: as it stands, finished or not, with what is missing or torn noted.

Nothing here imports torch or ray, so a report can be made on any machine that holds the folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
# The evaluations that come first, in this order; others follow by name. The headline and the per-class tables take the
# first that any run was evaluated on.
FIRST_EVALUATIONS = ("test", "val")


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    `steps` and `epochs` are the events of metrics.jsonl by ascending step, each once. `evaluations` maps the name of
    each `evaluation/<name>.json` to its content. `published` maps such a name to the scores that somebody else
    published for this model there, `published_source` says where; the config's section `published` holds both.
    """

    path: str
    label: str
    config: Json
    environment: Json
    dataset: Json
    steps: list[Json]
    epochs: list[Json]
    evaluations: dict[str, Json]
    published: dict[str, dict[str, float]]
    published_source: str
    evaluation_dir: Path
    notes: list[str]


def evaluation_names(runs: Iterable[Run]) -> list[str]:
    """What any of the runs was evaluated on, or has published scores for: test, val, then the others by name."""
    return _in_order({name for run in runs for name in (*run.evaluations, *run.published)})


def read_run(run_dir: Path) -> Run:
    """Read a run folder; ValueError naming the files it lacks or the one that can't be read."""
    needed = ("config.yaml", "environment.json", "dataset.json")
    missing = [name for name in needed if not (run_dir / name).is_file()]
    if missing:
        raise ValueError(f"{run_dir} is not a run folder: it lacks {', '.join(missing)}; `mmray train` writes it")
    try:
        config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{run_dir / 'config.yaml'} is not YAML: {error}") from error
    if not isinstance(config, dict) or "name" not in config:
        raise ValueError(f"{run_dir / 'config.yaml'} has no key 'name'; it must be a run's resolved config")
    steps, epochs, notes = _read_metrics(run_dir / "metrics.jsonl")
    folder = run_dir / "evaluation"
    names = [path.stem for path in folder.glob("*.json") if not path.name.startswith(".")]  # .… is being written
    published, source = _published(config.get("published"), run_dir / "config.yaml")
    return Run(
        path=shown_path(str(run_dir.resolve())),
        label=str(config["name"]),
        config=config,
        environment=_read_json(run_dir / "environment.json", ()),
        dataset=_read_json(run_dir / "dataset.json", ("id", "splits")),
        steps=steps,
        epochs=epochs,
        evaluations={name: _read_json(folder / f"{name}.json", ("rows", "metrics")) for name in _in_order(names)},
        published=published,
        published_source=source,
        evaluation_dir=folder,
        notes=notes,
    )


def _in_order(names: Iterable[str]) -> list[str]:
    places = {name: place for place, name in enumerate(FIRST_EVALUATIONS)}
    return sorted(names, key=lambda name: (places.get(name, len(places)), name))


def _published(section: Any, path: Path) -> tuple[dict[str, dict[str, float]], str]:
    """The published scores by evaluation and metric, and their source; ({}, "") where the config holds none."""
    if section is None:
        return {}, ""
    scores = section.get("scores") if isinstance(section, dict) else None
    if not isinstance(scores, dict) or not all(isinstance(of_one, dict) for of_one in scores.values()):
        raise ValueError(
            f"{path}: published must be like {{source: Table III of the paper, scores: {{test: {{gap: 0.8}}}}}}, "
            f"not {section!r}"
        )
    for name, of_one in scores.items():
        for metric, value in of_one.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{path}: published.scores.{name}.{metric}={value!r} must be a number")
    named = {str(name): {str(metric): float(v) for metric, v in of_one.items()} for name, of_one in scores.items()}
    return named, str(section.get("source") or "")


def _read_json(path: Path, needed: Sequence[str]) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}")
    missing = [key for key in needed if key not in value]
    if missing:
        raise ValueError(f"{path} lacks the key(s) {', '.join(missing)}; it has {', '.join(value) or 'none'}")
    return value


def _read_metrics(path: Path) -> tuple[list[Json], list[Json], list[str]]:
    """The step events, the epoch events and notes on what was left out.

    A killed process leaves a torn line, and a resumed one repeats steps: a torn line is skipped, the last event of a
    step counts.
    """
    if not path.is_file():
        return [], [], ["metrics.jsonl does not exist yet: training has logged nothing"]
    last: dict[tuple[str, int], Json] = {}
    notes = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            last[str(event["event"]), int(event["step"])] = event
        except (ValueError, TypeError, KeyError):
            notes.append(f"metrics.jsonl, line {number}: not a whole event, as a killed process leaves it; left out")
    events = [last[key] for key in sorted(last, key=lambda key: key[1])]
    return (
        [e for e in events if e["event"] == "step"],
        [e for e in events if e["event"] == "epoch"],
        notes,
    )


def distinct_labels(runs: list[Run]) -> list[Run]:
    """The runs, those of the same name told apart by their folder or else by a number."""
    times = Counter(run.label for run in runs)
    runs = [replace(r, label=f"{r.label} ({r.path})") if times[r.label] > 1 else r for r in runs]
    times, so_far = Counter(run.label for run in runs), Counter[str]()
    labelled = []
    for run in runs:
        so_far[run.label] += 1
        number = f" #{so_far[run.label]}" if times[run.label] > 1 else ""
        labelled.append(replace(run, label=run.label + number))
    return labelled


def shown_path(path: str) -> str:
    """An absolute path as others may see it: from the current folder where it lies below it, else its last part."""
    if not path.startswith(("/", "~/", "file:///")):
        return path
    plain = Path(path.removeprefix("file://"))
    return str(plain.relative_to(Path.cwd())) if plain.is_relative_to(Path.cwd()) else plain.name


def without_absolute_paths(value: Any) -> Any:
    """Plain values with every path in them as others may see it."""
    if isinstance(value, dict):
        return {key: without_absolute_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_absolute_paths(item) for item in value]
    return shown_path(value) if isinstance(value, str) else value
