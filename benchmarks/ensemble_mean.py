"""The mean of 6 models' scores of 4,716 classes, float16, against reading them: the work of one task, on one core.

    taskset -c 0 python benchmarks/ensemble_mean.py [rows, default 36000]

Writes what 6 models would have predicted (57 kB a video; 2 GB for 36,000), lets each contender go through all of it in
alternating rounds, and prints medians. `read` is pyarrow reading the columns of scores and no more: what any method has
to do; `bytes` the same files by read(2) into one buffer. `numpy` is the mean of the same arrays by numpy, block by
block. All must agree before any is timed. Then the peak memory of a process that combines a fourth of the rows, and
all: it must not grow with them.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmray import class_scores, config, predictions
from mmray.ensembling import blocks
from mmray.ensembling.blocks import Ensemble
from mmray.ensembling.inputs import match, open_member, pieces
from mmray.ensembling.pooling import Rule, pool, scores_of
from mmray.files import write_json
from mmray.predictions import PredictionsInfo
from mmray.schema import Column, DatasetInfo, SplitInfo

NUM_MODELS, NUM_CLASSES = 6, 4716
ROWS_A_GROUP = 512
NUM_ROUNDS = 5
RULE = Rule("linear", (1 / NUM_MODELS,) * NUM_MODELS)


def write_member(folder, rows, seed):
    columns = [
        Column(name="id", dtype="string"),
        Column(name="scores", dtype="float16", shape=(None, NUM_CLASSES), unit="probability"),
    ]
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    some = (rng.random((ROWS_A_GROUP, NUM_CLASSES), np.float32) ** 16).astype(np.float16)  # few likely classes
    offsets = pa.py_buffer(np.arange(ROWS_A_GROUP + 1, dtype=np.int64) * some[0].nbytes)
    with predictions.open_writer(folder / "part-00000.parquet", columns) as writer:
        for start in range(0, rows, ROWS_A_GROUP):
            group = pa.LargeBinaryArray.from_buffers(
                pa.large_binary(), ROWS_A_GROUP, [None, offsets, pa.py_buffer(np.roll(some, start, axis=1))]
            )
            ids = pa.array([f"{row:010d}" for row in range(start, start + ROWS_A_GROUP)])
            writer.write_table(pa.table({"id": ids, "scores": group}))
    info = PredictionsInfo(
        run=folder.name, dataset="d", split="test", step=1, rows=rows, labelled=False, columns=columns
    )
    write_json(folder / "predictions.json", info.model_dump(mode="json"))


def ensemble_of(root, rows=None):
    inputs = match([open_member(f"model-{i}", root / f"model-{i}") for i in range(NUM_MODELS)])
    run = config.from_dict(
        {
            "name": "mean", "task": "video_classification", "model": "logistic",
            "dataset": {"name": "youtube8m", "path": "nowhere", "num_classes": NUM_CLASSES, "level": "video"},
        }
    )  # fmt: skip
    train = SplitInfo(rows=1, num_bytes=1, files=[])
    info = DatasetInfo(
        id="d", columns=[Column(name="mean_rgb", dtype="float32", shape=(4,))],
        class_names=[str(c) for c in range(NUM_CLASSES)], splits={"train": train}, split_rule="", group_key="id",
        rows_in=1, rows_out=1, rejected=0, rejected_reasons={},
    )  # fmt: skip
    chosen = [block for block in inputs.blocks() if rows is None or block.stop <= rows]
    return Ensemble(inputs.members, "classes", run.to_dict(), info), inputs, chosen


def contenders(root, out):
    ensemble, inputs, chosen = ensemble_of(root)
    buffer = memoryview(bytearray(4 << 20))

    def read_bytes():
        for member in inputs.members:
            with (member.folder / "part-00000.parquet").open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def read():
        for block in chosen:
            for tables in pieces(inputs.members, block, ("scores",)):
                assert tables[0].num_rows

    def by_numpy():
        for block in chosen:
            for tables in pieces(inputs.members, block, ("scores",)):
                columns = (m.column("scores") for m in inputs.members)
                dense = [class_scores.dense_scores(t, c) for t, c in zip(tables, columns, strict=True)]
                sum(x.astype(np.float32) for x in dense) / np.float32(NUM_MODELS)

    def combine():
        for block in chosen:
            for tables in pieces(inputs.members, block, ("scores",)):
                pool(RULE, [scores_of(m, t) for m, t in zip(inputs.members, tables, strict=True)], NUM_CLASSES)

    def combine_and_write():
        for block in chosen:
            path = out / f"part-{block.index:05d}.parquet"
            path.unlink(missing_ok=True)
            blocks.write(ensemble, RULE, block, ensemble.columns(inputs), path)

    return {
        "bytes": read_bytes,
        "read": read,
        "read and mean": combine,
        "read, mean and write float32": combine_and_write,
        "numpy: read and mean": by_numpy,
    }


def require_equal(root):
    _, inputs, chosen = ensemble_of(root)
    tables = next(pieces(inputs.members, chosen[0], ("scores",)))
    scores = [scores_of(m, t) for m, t in zip(inputs.members, tables, strict=True)]
    expected = np.mean([s.values[:64].astype(np.float64) for s in scores], axis=0)
    np.testing.assert_allclose(pool(RULE, scores, NUM_CLASSES)[:64], expected, atol=1e-6)


def print_speed(root, rows):
    found = contenders(root, root)
    seconds = {name: [] for name in found}
    for _ in range(NUM_ROUNDS):
        for name, run in found.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    num_bytes = rows * NUM_MODELS * NUM_CLASSES * 2
    print(
        f"mean of {NUM_MODELS} models x {rows:,} videos x {NUM_CLASSES:,} classes, {num_bytes / 1e9:.1f} GB of float16"
    )
    print(f"{'':32}{'GB/s':>8}{'videos/s':>12}{'x read':>9}{'x bytes':>9}")
    for name, took in seconds.items():
        ratios = [
            statistics.median(peer / ours for peer, ours in zip(seconds[other], took, strict=True))
            for other in ("read", "bytes")
        ]
        median = statistics.median(took)
        print(f"{name:32}{num_bytes / median / 1e9:8.2f}{rows / median:12,.0f}{ratios[0]:9.2f}{ratios[1]:9.2f}")


def print_memory(root, rows):
    for part in (rows // 4, rows):
        command = [sys.executable, __file__, str(root), str(part)]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"peak memory of a process that combines {part:,} videos: {int(peak):,} MiB")


def combine_for_memory(root, rows):
    ensemble, inputs, chosen = ensemble_of(root, rows)
    for block in chosen:
        path = root / f"memory-{block.index:05d}.parquet"
        blocks.write(ensemble, RULE, block, ensemble.columns(inputs), path)
        path.unlink()
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak_kb // 1024)


def main():
    if len(sys.argv) == 3:
        combine_for_memory(Path(sys.argv[1]), int(sys.argv[2]))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 36_000
    rows -= rows % ROWS_A_GROUP
    root = Path(tempfile.mkdtemp(prefix="mmray-ensemble-"))
    try:
        for model in range(NUM_MODELS):
            write_member(root / f"model-{model}", rows, model)
        require_equal(root)
        print_speed(root, rows)
        print_memory(root, rows)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
