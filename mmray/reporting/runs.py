"""A run folder as the page sees it: as it stands, finished or not, with what is missing or torn noted.

Nothing here imports torch or ray, so a report can be made on any machine that holds the folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
# In order of preference: the headline and the per-class tables take the first that any run was evaluated on.
SPLITS = ("test", "val")


@dataclass(frozen=True)
class Run:
    """What a run folder says. `steps` and `epochs` are the events of metrics.jsonl by ascending step, each once."""

    path: str
    label: str
    config: Json
    environment: Json
    dataset: Json
    steps: list[Json]
    epochs: list[Json]
    evaluations: dict[str, Json]
    notes: list[str]


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
    evaluations = {
        split: _read_json(path, ("rows", "metrics"))
        for split in SPLITS
        if (path := run_dir / "evaluation" / f"{split}.json").is_file()
    }
    return Run(
        path=shown_path(str(run_dir.resolve())),
        label=str(config["name"]),
        config=config,
        environment=_read_json(run_dir / "environment.json", ()),
        dataset=_read_json(run_dir / "dataset.json", ("id", "splits")),
        steps=steps,
        epochs=epochs,
        evaluations=evaluations,
        notes=notes,
    )


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
