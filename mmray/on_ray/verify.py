"""`mmray data verify`: every record of every shard read and checked, one Ray task a shard."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from mmray.console import progress, say
from mmray.datasets import youtube8m
from mmray.datasets.youtube8m import Config, CorpusReport, ShardReport
from mmray.on_ray import runtime

_LISTED = 20
_IN_FLIGHT = 256  # tasks at a time, so that neither the scheduler nor the object store sees a whole corpus


def verify(path: str, num_classes: int | None = None, verbose: bool = False) -> CorpusReport:
    """Check the shards at `path` (a folder, a pattern or a shard); level and features are found in the first good one.

    Labels are checked against `num_classes` where it is given. ValueError where there is no shard, or none can be read.
    """
    config = _detect(path, num_classes)
    sources = youtube8m.sources(config)
    runtime.start(verbose)
    import ray

    check = ray.remote(youtube8m.verify)
    queue, running, reports, records = iter(enumerate(sources)), {}, {}, 0
    with progress("verify", len(sources), "shards") as advance:
        while len(reports) < len(sources):
            for number, source in itertools.islice(queue, _IN_FLIGHT - len(running)):
                running[check.remote(config, source)] = number
            (done, *_), _ = ray.wait(list(running))
            report: ShardReport = ray.get(done)
            reports[running.pop(done)] = report
            records += report.num_rows
            advance(len(reports), f"{records:,} records")
    return youtube8m.merge([reports[number] for number in sorted(reports)])


def describe(report: CorpusReport) -> None:
    """Print what was found: a screenful, whatever the size of the corpus."""
    splits = ", ".join(f"{name or 'no split'} {rows:,}" for name, rows in report.rows_of_split.items())
    say(f"{report.num_shards:,} shards, {report.num_bytes / 2**20:,.1f} MB, {report.num_rows:,} records ({splits})")
    counts = report.label_counts
    if counts.sum():
        used = counts[counts > 0]
        labels = f"{counts.sum() / max(1, report.num_rows - report.num_unlabelled):.2f} a labelled record"
        say(f"labels: {len(used):,} of {len(counts):,} classes occur, {labels}, {report.num_unlabelled:,} have none")
        say(f"  records a class: most {used.max():,}, median {int(np.median(used)):,}, fewest {used.min():,}")
    else:
        say("labels: none")
    if report.frame_counts.sum():
        _describe_frames(report.frame_counts)
    repeated = report.duplicated_ids
    say(f"ids that occur more than once: {len(repeated):,}")
    for name, shards in list(repeated.items())[:_LISTED]:
        say(f"  {name}: {', '.join(shards)}")
    say(f"bad records: {len(report.rejected):,}")
    for bad in report.rejected[:_LISTED]:
        say(f"  {bad}")
    if len(report.rejected) > _LISTED:
        say(f"  and {len(report.rejected) - _LISTED:,} more; --json writes all of them")


def as_dict(report: CorpusReport) -> dict[str, Any]:
    """The whole report as plain values, for JSON."""
    return {
        "shards": report.num_shards,
        "bytes": report.num_bytes,
        "records": report.num_rows,
        "unlabelled": report.num_unlabelled,
        "records_of_split": report.rows_of_split,
        "label_counts": report.label_counts.tolist(),
        "frame_counts": report.frame_counts.tolist(),
        "duplicated_ids": report.duplicated_ids,
        "bad": [bad.as_dict() for bad in report.rejected],
    }


def _detect(path: str, num_classes: int | None) -> Config:
    """The layout of the first shard that has one."""
    guess = Config(path=path, level="video", num_classes=1)
    problems = []
    for source in youtube8m.sources(guess):
        try:
            found = youtube8m.detect(source.path) if num_classes is None else youtube8m.detect(source.path, num_classes)
        except ValueError as error:
            problems.append(str(error))
            continue
        say(f"{found.level} level: " + ", ".join(f"{name} of {size}" for name, size in found.features.items()))
        return found.model_copy(update={"path": path})
    raise ValueError("no shard can be read:\n" + "\n".join(f"  {problem}" for problem in problems[:_LISTED]))


def _describe_frames(frame_counts: np.ndarray) -> None:
    """A histogram of video lengths in ten bars."""
    lengths = np.repeat(np.arange(len(frame_counts)), frame_counts)
    say(f"frames a record: {lengths.min()} to {lengths.max()}, median {int(np.median(lengths))}")
    heights, edges = np.histogram(lengths, bins=min(10, max(1, int(np.ptp(lengths)))))
    for height, low, high in zip(heights, edges, edges[1:], strict=False):
        say(f"  {low:>5.0f} to {high:>5.0f}  {'#' * int(40 * height / heights.max()):<40} {height:,}")
