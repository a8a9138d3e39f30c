"""Fixtures that tests of several packages share."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Before anything imports Ray: its tests need no authentication, and a test must not wait for a slow machine.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["MMRAY_TEST_SESSION"] = str(os.getpid())  # marks the processes that this session's Ray starts

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmray import config
from mmray.files import write_json
from mmray.schema import Column, DatasetInfo, FileInfo, SplitInfo, arrow_schema

NUM_CLASSES = 6


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    folder = Path(os.environ.get("MMRAY_REAL_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MMRAY_REAL_DATA")
    return folder


@dataclass(frozen=True)
class S3Server:
    """A server of S3's protocol on this machine: an address in its bucket, and the environment it is reached by."""

    url: str
    environment: dict[str, str]
    port: int


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """The environment by which processes reach `s3_server`, set for this session; nothing listens there without it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in values.items():
            patch.setenv(key, value)
        yield values


@pytest.fixture(scope="session")
def s3_server(s3_environment: dict[str, str]) -> Iterator[S3Server]:
    """moto's server with an empty bucket. Tests write below names of their own."""
    pytest.importorskip("moto")
    import pyarrow.fs as pa_fs

    port = int(s3_environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert server.poll() is None, "moto's server ended"
            time.sleep(0.1)
        filesystem = pa_fs.S3FileSystem(
            allow_bucket_creation=True, endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1"
        )
        filesystem.create_dir("mmray-tests")
        yield S3Server("s3://mmray-tests", s3_environment, port)
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def ray_runtime(s3_environment: dict[str, str]) -> Iterator[None]:
    """Ray on this machine, one instance for the whole session; its processes reach `s3_server`, where that runs."""
    ray = pytest.importorskip("ray")
    from mmray.on_ray import runtime

    runtime.start()
    yield
    ray.shutdown()


MakeRun = Callable[..., config.Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make a small run over the dataset of `make_dataset`; keyword arguments replace sections of it."""

    def make(**sections: object) -> config.Run:
        values: dict[str, object] = {
            "name": "tiny",
            "out": str(tmp_path / "runs"),
            "task": "video_classification",
            "dataset": {"name": "youtube8m", "path": str(tmp_path), "num_classes": NUM_CLASSES, "level": "video"},
            "model": {"name": "logistic"},
            "train": {"epochs": 2, "batch_size": 6, "precision": "fp32", "log_every_steps": 1, "shuffle_lanes": 4},
            "prepare": {"out": str(tmp_path / "prepared")},
        }
        return config.from_dict(values | sections)

    return make


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Make a prepared dataset of random learnable rows: `a` (3,), `b` (2,) float32, labels from their signs."""

    def make(rows: dict[str, int] | None = None, rows_per_file: int = 40, row_group: int = 7) -> Path:
        folder = tmp_path / "dataset"
        columns = [
            Column(name="id", dtype="string"),
            Column(name="labels", dtype="int32", shape=(None,)),
            Column(name="a", dtype="float32", shape=(3,)),
            Column(name="b", dtype="float32", shape=(2,)),
        ]
        splits = {}
        for number, (split, count) in enumerate((rows or {"train": 101, "val": 23, "test": 17}).items()):
            rng = np.random.default_rng(number)
            a, b = rng.standard_normal((count, 3), np.float32), rng.standard_normal((count, 2), np.float32)
            signs = np.concatenate([a, b, -a[:, :1]], axis=1) > 0
            table = pa.table(
                [
                    pa.array([f"{split}-{i}" for i in range(count)]),
                    pa.array([np.flatnonzero(s).tolist() for s in signs], pa.list_(pa.int32())),
                    pa.FixedShapeTensorArray.from_numpy_ndarray(a),
                    pa.FixedShapeTensorArray.from_numpy_ndarray(b),
                ],
                schema=arrow_schema(columns),
            )
            files = []
            for start in range(0, count, rows_per_file):
                part = table.slice(start, rows_per_file)
                path = folder / split / f"part-{start:05d}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(part, path, row_group_size=row_group)
                groups = [min(row_group, part.num_rows - g) for g in range(0, part.num_rows, row_group)]
                files.append(FileInfo(path=str(path.relative_to(folder)), row_groups=groups))
            splits[split] = SplitInfo(
                rows=count,
                num_bytes=table.nbytes,
                files=files,
                labelled_rows=int(signs.any(axis=1).sum()),
                label_counts=signs.sum(axis=0).tolist(),
                max_labels=int(signs.sum(axis=1).max()),
            )
        total = sum(split.rows for split in splits.values())
        info = DatasetInfo(
            id="tiny-000", columns=columns, class_names=[f"class {c}" for c in range(NUM_CLASSES)], splits=splits,
            split_rule="of a test", group_key="id", rows_in=total, rows_out=total, rejected=0, rejected_reasons={},
        )  # fmt: skip
        write_json(folder / "dataset.json", info.model_dump(mode="json"))
        return folder

    return make
