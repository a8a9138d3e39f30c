"""Reading YouTube-8M shards: rows a second, ours against tf.data, the `tfrecord` package and a bare read of the file.

    taskset -c 0 python benchmarks/tfrecord.py [--rounds 7] [--videos 20000] [--clips 250]

Peers: tensorflow and tfrecord (`pip install tensorflow tfrecord`), best in an environment of their own. The shards are
made first, in a temporary folder, in the real layout: video level 1024 + 128 floats, frame level 250-360 frames of
1024 + 128 bytes. All read from the page cache, in one thread. tf.data parses 1,024 Examples or 16 SequenceExamples at
once and decodes the frames' bytes; the `tfrecord` package and "ours, no checksums" verify nothing, the others do.
Limit: the bytes of the file, read in chunks of 256 KiB and thrown away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmray.features.tfrecord import RecordSpec, read_batches
from mmray.features.tfrecord_write import encode_example, encode_sequence_example, write_tfrecord

NUM_CLASSES = 3862
VECTORS = {"mean_rgb": 1024, "mean_audio": 128}
FRAMES = {"rgb": 1024, "audio": 128}
VIDEO = RecordSpec(NUM_CLASSES, vectors=VECTORS)
FRAME = RecordSpec(NUM_CLASSES, frames=FRAMES)


def peer(name: str) -> Any:
    """Import a module of a peer, or say which package is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(
            f"this benchmark compares with {name.split('.')[0]}, which can't be imported ({error}): pip install it"
        )


def videos(count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for k in range(count):
        labels = rng.integers(0, NUM_CLASSES, rng.integers(1, 6)).tolist()
        vectors = {name: rng.standard_normal(size).astype(np.float32) for name, size in VECTORS.items()}
        yield encode_example({"id": f"v{k:03d}", "labels": labels, **vectors})


def clips(count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for k in range(count):
        num_frames = int(rng.integers(250, 361))
        lists = {name: [rng.bytes(size) for _ in range(num_frames)] for name, size in FRAMES.items()}
        yield encode_sequence_example({"id": f"v{k:03d}", "labels": [int(rng.integers(NUM_CLASSES))]}, lists)


def bare_read(path: str) -> int:
    chunk = memoryview(bytearray(256 * 1024))
    with open(path, "rb", buffering=0) as file:
        while file.readinto(chunk):
            pass
    return 0


def ours(path: str, spec: RecordSpec, **options: bool) -> int:
    def refuse(bad: object) -> None:
        raise ValueError(str(bad))

    return sum(len(batch) for batch in read_batches(path, spec, reject=refuse, **options))


def tf_videos(tf: Any, path: str) -> Any:
    features = {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)}
    features |= {name: tf.io.FixedLenFeature([size], tf.float32) for name, size in VECTORS.items()}
    return tf.data.TFRecordDataset(path).batch(1024).map(lambda records: tf.io.parse_example(records, features))


def tf_clips(tf: Any, path: str) -> Any:
    context = {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)}
    lists = {name: tf.io.RaggedFeature(tf.string) for name in FRAMES}

    def parse(records: Any) -> dict[str, Any]:
        row, frames, _ = tf.io.parse_sequence_example(records, context, lists)
        return row | {name: tf.io.decode_raw(frames[name].flat_values, tf.uint8) for name in FRAMES}

    return tf.data.TFRecordDataset(path).batch(16).map(parse)


def num_tf_rows(dataset: Any) -> int:
    return sum(int(batch["id"].shape[0]) for batch in dataset)


class Package:
    """The `tfrecord` package in a process of its own: its messages and tensorflow's can't live in one."""

    def __init__(self, path: str, level: str) -> None:
        command = [sys.executable, __file__, "--package", path, level]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def num_rows(self) -> int:
        """Read the whole shard once more."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("again", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(1)  # it has said why
        return int(answer)

    def close(self) -> None:
        """End the other process."""
        self.process.communicate()

    @staticmethod
    def serve(path: str, level: str) -> None:
        """The other process: read the shard as often as asked."""
        # Python puts this folder first, where this script would stand for the package of the same name.
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent.resolve()]
        loader = peer("tfrecord.reader").tfrecord_loader
        context = {"id": "byte", "labels": "int"}
        for _ in sys.stdin:
            if level == "video":
                records = loader(path, None, context | dict.fromkeys(VECTORS, "float"))
            else:
                records = loader(path, None, context, sequence_description=dict.fromkeys(FRAMES, "byte"))
            print(sum(1 for _ in records), flush=True)


def check_equal(path: str, spec: RecordSpec, dataset: Any) -> None:
    """Every value that tf.data reads, we read."""
    ids: list[str] = []
    features: dict[str, list[np.ndarray]] = {name: [] for name in (*spec.vectors, *spec.frames)}
    for batch in read_batches(path, spec, reject=print):
        ids += batch.ids.to_pylist()
        for name, values in {**batch.vectors, **batch.frames}.items():
            features[name].append(values)
    truth = list(dataset)
    assert ids == [id_.decode() for batch in truth for id_ in batch["id"].numpy()]
    for name, values in features.items():
        assert np.array_equal(np.concatenate(values), np.concatenate([batch[name].numpy() for batch in truth])), name


def compare(level: str, path: str, runs: dict[str, Callable[[], int]], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    num_rows: dict[str, int] = {}
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, run in runs.items():
            start = time.perf_counter()
            num_rows[name] = run()
            seconds[name].append(time.perf_counter() - start)
    size, count = os.path.getsize(path), max(num_rows.values())
    print(f"\n{level}: {count:,} rows, {size / 1e6:.0f} MB; medians of {rounds} alternating rounds")
    print(
        f"{'':26} {'rows/s':>9} {'MB/s':>7}"
        + "".join(f" {name:>15}" for name in ("/ tf.data", "/ tfrecord", "/ bare read"))
    )
    for name in runs:
        median = statistics.median(seconds[name][1:])
        ratios = [
            statistics.median(other / own for other, own in zip(seconds[peer][1:], seconds[name][1:], strict=True))
            for peer in ("tf.data", "tfrecord package", "bare read")
        ]
        print(f"{name:26} {count / median:9,.0f} {size / median / 1e6:7,.0f}" + "".join(f" {r:15.2f}" for r in ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--videos", type=int, default=20_000)
    parser.add_argument("--clips", type=int, default=250)
    parser.add_argument("--package", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.package:
        Package.serve(*options.package)
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tf = peer("tensorflow")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for level, records, spec, dataset in (
            ("video", videos(options.videos), VIDEO, tf_videos),
            ("frame", clips(options.clips), FRAME, tf_clips),
        ):
            path = f"{folder}/{level}.tfrecord"
            write_tfrecord(Path(path), records)
            check_equal(path, spec, dataset(tf, path))
            package = Package(path, level)
            runs: dict[str, Callable[[], int]] = {
                "ours, output reused": partial(ours, path, spec, reuse_buffers=True),
                "ours, fresh output": partial(ours, path, spec),
                "ours reused, no checksums": partial(ours, path, spec, reuse_buffers=True, verify_crc=False),
                "tf.data": lambda path=path, dataset=dataset: num_tf_rows(dataset(tf, path)),
                "tfrecord package": package.num_rows,
                "bare read": partial(bare_read, path),
            }
            compare(f"{level} level", path, runs, options.rounds)
            package.close()


if __name__ == "__main__":
    main()
