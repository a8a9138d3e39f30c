"""`mmray prepare`: the parts of a corpus as Ray Data tasks, wherever the cluster has a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmray import config, disk, lookup, preparation
from mmray.console import progress, say
from mmray.files import locked
from mmray.on_ray import runtime
from mmray.preparation import BadInputError, Part, PartNote
from mmray.prepared import read_info
from mmray.storage import at
from mmray.training import run_folder
from mmray.training.import_weights import IMPORTED


def prepare(run: config.Run, verbose: bool = False) -> Path:
    """Make the prepared dataset of a run unless it exists; return its folder.

    What an interrupted preparation finished is kept. Raises BadInputError for input that the run does not allow.
    """
    runtime.warn_of_relative_paths(run)
    plan = preparation.plan(run)
    if not (plan.folder / "dataset.json").exists():
        with locked(plan.folder.with_name(f".{plan.folder.name}.lock"), f"preparing {plan.folder}", wait=True):
            if not (plan.folder / "dataset.json").exists():  # the other process may have made it
                runtime.start(verbose)
                preparation.publish(plan, _write_parts(run, plan))
    info = read_info(plan.folder)
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in info.splits.items())
    say(f"prepared {plan.folder}: {info.rows_in:,} rows in, {info.rows_out:,} out, {info.rejected:,} rejected ({rows})")
    _say_split(run)
    preparation.check_rejected(run, plan.folder, info)
    return plan.folder


def prepare_for(run: config.Run, run_dir: Path, verbose: bool = False) -> Path:
    """The prepared dataset that `run_dir` was trained on: as it stands, or made again from an unchanged corpus."""
    trained_on = run_folder.read_info(run_dir).id
    if trained_on == IMPORTED:
        raise ValueError(
            f"the weights of {run_dir} were imported, without a corpus: to predict or evaluate name one, --corpus "
            f"{run.dataset.name}=PATH; to train give the run another name, --set name=..."
        )
    folder = at(run.prepare.out) / trained_on
    if (folder / "dataset.json").exists():
        return folder
    folder = prepare(run, verbose)
    if folder.name != trained_on:
        raise ValueError(
            f"{run_dir} was trained on prepared dataset {trained_on}, which is gone, and the corpus now gives "
            f"{folder.name}: it has changed since; train a new run (--set name=...)"
        )
    return folder


def _say_split(run: config.Run) -> None:
    """Say how the corpus was divided, where its dataset module divides it by itself and can tell."""
    report = getattr(lookup.load("dataset", run.dataset.name), "split_report", None)  # type: ignore[attr-defined]
    if report is not None and run.prepare.split.by == "corpus":
        say(report(run.dataset))


def _write_parts(run: config.Run, plan: preparation.Plan) -> list[PartNote]:
    values, parts, folder = run.to_dict(), plan.parts, plan.aside.absolute()

    def write(row: dict[str, Any]) -> dict[str, Any]:
        part = Part.from_json(row["part"])
        try:
            note = preparation.write_part(config.from_dict(values), part, folder)
        except (ValueError, OSError) as error:  # an answer, not a failure of the task: no retry, no stack trace
            return {"part": part.index, "note": "", "bad": str(error), "full": disk.is_full(error)}
        return {"part": part.index, "note": note.model_dump_json(), "bad": "", "full": False}

    # Each row has its part: what `write` itself held would be read anew by every task.
    items = [{"part": part.to_json()} for part in parts]
    rows_of_parts = runtime.ray_data().from_items(items, override_num_blocks=len(parts))
    data = rows_of_parts.map(write, num_cpus=run.resources.data.cpus, **runtime.placement(run.resources.data))
    notes: dict[int, PartNote] = {}
    rows = rejected = 0
    total_mb = sum(s.num_bytes for p in parts for s in p.sources) / 2**20
    with progress("prepare", len(parts), f"parts of {total_mb:,.0f} MB") as advance:
        for row in data.iter_rows():
            if row["full"]:
                raise disk.full(folder, _bytes_left(parts, notes), "the rest of the prepared dataset")
            if row["bad"]:
                raise BadInputError(row["bad"])
            note = notes[row["part"]] = PartNote.model_validate_json(row["note"])
            rows += sum(split.rows for split in note.splits.values())
            rejected += len(note.rejected)
            advance(len(notes), f"{rows:,} rows, {rejected:,} rejected")
    return [notes[part.index] for part in parts]


def _bytes_left(parts: Sequence[Part], notes: Mapping[int, PartNote]) -> int:
    """What the parts that are not done will take, if each byte of the corpus becomes as many as so far."""
    read = {part.index: sum(source.num_bytes for source in part.sources) for part in parts}
    written = sum(split.num_bytes for note in notes.values() for split in note.splits.values())
    left = sum(num_bytes for index, num_bytes in read.items() if index not in notes)
    done = sum(read[index] for index in notes)
    return int(left * written / done) if done else left
