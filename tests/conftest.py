"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session")
def ray_runtime() -> Iterator[None]:
    """Ray on this machine, one instance for the whole session."""
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
