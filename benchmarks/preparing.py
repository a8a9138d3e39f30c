"""Reading TFRecord shards through Ray Data, and the memory of preparing.

    python benchmarks/preparing.py [--videos 24000]

Rows/s of ray.data.read_tfrecords with a tf_schema (it needs tensorflow: pip install tensorflow) against mmray's parts
as Ray Data tasks, reading alone and with Parquet written; then the peak resident memory of preparing a corpus and
one of four times its size. Both read the same video-level shards from the page cache.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mmray import config, preparation
from mmray.console import say
from mmray.datasets.synthetic import youtube8m as synthetic
from mmray.on_ray import runtime


def make_run(root: Path, corpus: Path, classes: int = 200) -> config.Run:
    return config.from_dict(
        {
            "name": "prepare", "task": "video_classification", "model": "logistic",
            "dataset": {"name": "youtube8m", "path": str(corpus), "level": "video", "num_classes": classes},
            "prepare": {"out": str(root / "prepared")},
        }
    )  # fmt: skip


def read_rows(run: config.Run) -> int:
    """Rows of the corpus, parsed by Ray Data tasks of one part each and counted."""
    import ray.data

    plan, values = preparation.plan(run), run.to_dict()

    def read(row: dict[str, int]) -> dict[str, int]:
        from mmray import lookup

        run = config.from_dict(values)
        dataset = lookup.load("dataset", "youtube8m")
        sources = plan_parts[row["id"]].sources
        return {"rows": sum(b.num_rows for s in sources for b in dataset.read(run.dataset, s, say))}

    plan_parts = plan.parts
    return int(ray.data.range(len(plan.parts), override_num_blocks=len(plan.parts)).map(read).sum("rows"))


def write_rows(run: config.Run) -> int:
    """Rows of the corpus, prepared."""
    import shutil

    from mmray.on_ray.prepare import prepare
    from mmray.prepared import read_info

    shutil.rmtree(run.prepare.out, ignore_errors=True)
    return read_info(prepare(run)).rows_out


def stock_rows(corpus: Path) -> int:
    """Rows of the corpus, by Ray's own reader; its schema needs tensorflow."""
    import ray.data
    from tensorflow_metadata.proto.v0 import schema_pb2

    schema = schema_pb2.Schema()
    for name, kind in (("id", "BYTES"), ("labels", "INT"), ("mean_rgb", "FLOAT"), ("mean_audio", "FLOAT")):
        schema.feature.add(name=name, type=getattr(schema_pb2, kind))
    return ray.data.read_tfrecords([str(p) for p in sorted(corpus.glob("*.tfrecord"))], tf_schema=schema).count()


def timed(function: object, *arguments: object) -> float:
    """Rows/s of `function(*arguments)`, which returns rows."""
    began = time.perf_counter()
    rows = function(*arguments)  # type: ignore[operator]
    return float(rows / (time.perf_counter() - began))


def peak_mb(root: str, corpus: str) -> None:
    """Prepare part by part in this process and print its peak resident memory."""
    run = make_run(Path(root), Path(corpus))
    plan = preparation.plan(run)
    preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    size = sum(s.num_bytes for p in plan.parts for s in p.sources) / 2**20
    print(f"peak resident memory preparing {size:,.0f} MB: {peak:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for corpus, videos in (("small", arguments.videos), ("large", 4 * arguments.videos)):
            made = synthetic.Config(num_videos=videos, num_classes=200)
            synthetic.generate(root / corpus, made, lambda done, total: None)
        for corpus in ("small", "large"):
            process = mp.get_context("spawn").Process(
                target=peak_mb, args=(str(root / f"memory-{corpus}"), str(root / corpus))
            )
            process.start()
            process.join()
        runtime.start()
        small = make_run(root, root / "small")
        timed(read_rows, small)  # workers start, code compiles
        ours = [timed(read_rows, small) for _ in range(arguments.rounds)]
        whole = [timed(write_rows, small) for _ in range(arguments.rounds)]
        print(f"mmray, parsed:               {statistics.median(ours):>10,.0f} rows/s")
        print(f"mmray, parsed and written:   {statistics.median(whole):>10,.0f} rows/s")
        try:
            import tensorflow  # noqa: F401
            import tensorflow_metadata  # noqa: F401
        except ImportError as error:
            sys.exit(
                f"no peer to compare with: {error.name} is not installed (pip install tensorflow tensorflow-metadata)"
            )
        stock = [timed(stock_rows, root / "small") for _ in range(arguments.rounds)]
        print(f"ray.data.read_tfrecords:     {statistics.median(stock):>10,.0f} rows/s")
        print(f"ratio {statistics.median(ours) / statistics.median(stock):,.0f} (target 50)")


if __name__ == "__main__":
    main()
