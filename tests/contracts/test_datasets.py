"""What every module of mmray.datasets promises, shown on a small corpus of the synthetic module of the same name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from pydantic import BaseModel, ValidationError

from mmray import lookup
from mmray.datasets import Rejected, Source
from mmray.schema import Column, arrow_schema

NUM_ITEMS = 37


@dataclass(frozen=True)
class Case:
    """A small corpus: settings of its making and of its reading (beside `path`).

    `checksummed`: one flipped bit of it can't pass unnoticed, and `path` may name a single file.
    """

    dataset: str
    made: dict[str, Any]
    read: dict[str, Any]
    checksummed: bool = False


CASES = {
    "youtube8m-video": Case(
        "youtube8m",
        {"num_videos": NUM_ITEMS, "num_classes": 9, "rgb_size": 5, "audio_size": 3, "videos_per_shard": 8},
        {"level": "video", "num_classes": 9, "features": {"mean_rgb": 5, "mean_audio": 3}},
        checksummed=True,
    ),
    "youtube8m-video-float16": Case(
        "youtube8m",
        {"num_videos": NUM_ITEMS, "num_classes": 9, "rgb_size": 5, "audio_size": 3, "test_labels": False},
        {"level": "video", "num_classes": 9, "features": {"mean_rgb": 5, "mean_audio": 3}, "dtype": "float16"},
        checksummed=True,
    ),
    "youtube8m-frame": Case(
        "youtube8m",
        {"num_videos": NUM_ITEMS, "num_classes": 9, "rgb_size": 5, "audio_size": 3, "videos_per_shard": 8}
        | {"level": "frame", "min_frames": 1, "max_frames": 6},
        {"level": "frame", "num_classes": 9, "features": {"rgb": 5, "audio": 3}, "max_frames": 4},
        checksummed=True,
    ),
    "mir1k": Case("mir1k", {"num_clips": NUM_ITEMS, "min_clip_s": 1.0, "max_clip_s": 1.5}, {}),
}  # fmt: skip

# tests/datasets/ and others write small ones of these by hand and hold the modules to the same.
BY_HAND = {
    "adc2004", "album_covers", "audio_folder", "embeddings", "ikala", "image_folder", "image_parquet", "melody_folder",
    "mirdata", "mirex05", "oxford_pets", "union",
}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk with the module and the config that read it."""

    case: Case
    folder: Path
    module: ModuleType
    config: BaseModel


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    case: Case = request.param
    folder = tmp_path_factory.mktemp("corpus")
    synthetic = importlib.import_module(f"mmray.datasets.synthetic.{case.dataset}")
    synthetic.generate(folder, synthetic.Config(**case.made), lambda done, total: None)
    module = lookup.load("dataset", case.dataset)
    return Corpus(case, folder, module, module.Config(path=str(folder), **case.read))


def read_all(corpus: Corpus) -> tuple[list[pa.Table], list[Rejected]]:
    """The rows of every source, and what was rejected."""
    rejected: list[Rejected] = []
    schema = arrow_schema(corpus.module.columns(corpus.config))
    tables = [
        pa.Table.from_batches(list(corpus.module.read(corpus.config, source, rejected.append)), schema)
        for source in corpus.module.sources(corpus.config)
    ]
    return tables, rejected


def test_every_dataset_has_a_case() -> None:
    assert {case.dataset for case in CASES.values()} | BY_HAND == set(lookup.names("dataset"))


@pytest.mark.parametrize("name", lookup.names("dataset"))
def test_module_offers_what_a_dataset_must(name: str) -> None:
    module = lookup.load("dataset", name)
    assert issubclass(module.Config, BaseModel)
    assert isinstance(module.GROUP_KEY, str)
    assert isinstance(module.LABEL_KEY, str)
    wanted = {"sources": 1, "columns": 1, "class_names": 1, "read": 3}
    for function, num_arguments in wanted.items():
        assert len(inspect.signature(getattr(module, function)).parameters) == num_arguments, function


def test_config_has_the_name_of_its_module_and_no_other_key(corpus: Corpus) -> None:
    values = corpus.config.model_dump()
    assert values["name"] == corpus.module.__name__.rpartition(".")[2]
    assert corpus.module.Config.model_validate(values) == corpus.config
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        corpus.module.Config(**values, no_such_key=1)
    with pytest.raises(ValidationError, match="name"):
        corpus.module.Config(**values | {"name": "another"})


def test_sources_are_whole_files_in_a_stable_order(corpus: Corpus) -> None:
    sources: list[Source] = corpus.module.sources(corpus.config)
    assert corpus.module.sources(corpus.config) == sources
    assert [source.path for source in sources] == sorted({source.path for source in sources})
    assert {source.split for source in sources} == {"train", "val", "test"}
    for source in sources:
        assert source.num_bytes == Path(source.path).stat().st_size > 0


def test_corpus_that_is_not_there_is_named(corpus: Corpus, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        config = corpus.config.model_copy(update={"path": str(path)})
        with pytest.raises(ValueError, match=f"{path}"):
            corpus.module.sources(config)


def test_rows_have_the_columns_that_were_announced(corpus: Corpus) -> None:
    columns: list[Column] = corpus.module.columns(corpus.config)
    schema = arrow_schema(columns)
    assert {corpus.module.GROUP_KEY, corpus.module.LABEL_KEY} <= set(schema.names)
    assert len(set(schema.names)) == len(schema.names)
    num_batches = 0
    for source in corpus.module.sources(corpus.config):
        for batch in corpus.module.read(corpus.config, source, pytest.fail):
            num_batches += 1
            assert batch.schema.equals(schema), batch.schema.to_string()
            batch.validate(full=True)
            for column in columns:
                assert batch.column(column.name).null_count == 0, column.name
    assert num_batches >= len(corpus.module.sources(corpus.config))


def test_every_item_is_a_row_once(corpus: Corpus) -> None:
    tables, rejected = read_all(corpus)
    assert not rejected
    keys = [key for table in tables for key in table.column("id").to_pylist()]
    assert len(keys) == len(set(keys)) == NUM_ITEMS
    assert all(table.num_rows for table in tables)


def test_no_group_stands_in_two_splits(corpus: Corpus) -> None:
    splits: dict[str, set[str | None]] = {}
    for source, table in zip(corpus.module.sources(corpus.config), read_all(corpus)[0], strict=True):
        for group in table.column(corpus.module.GROUP_KEY).to_pylist():
            splits.setdefault(group, set()).add(source.split)
    assert all(len(found) == 1 for found in splits.values())


def test_most_rows_have_a_label(corpus: Corpus) -> None:
    tables, _ = read_all(corpus)
    labelled = [len(label) > 0 for table in tables for label in table.column(corpus.module.LABEL_KEY).to_pylist()]
    assert sum(labelled) > len(labelled) / 2


def test_labels_are_classes(corpus: Corpus) -> None:
    names = corpus.module.class_names(corpus.config)
    assert len(set(names)) == len(names)
    tables, _ = read_all(corpus)
    if "labels" not in tables[0].column_names:
        pytest.skip("labels are no classes")
    labels = [label for table in tables for row in table.column("labels").to_pylist() for label in row]
    assert labels
    assert set(labels) <= set(range(len(names)))


def test_reading_twice_gives_the_same_rows(corpus: Corpus) -> None:
    (first, _), (second, _) = read_all(corpus), read_all(corpus)
    assert all(a.equals(b) for a, b in zip(first, second, strict=True))


def flip(path: Path, position: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 0x10
    path.write_bytes(damaged)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9], ids="at {} of the file".format)
def test_rows_and_rejected_account_for_every_input(corpus: Corpus, tmp_path: Path, share: float) -> None:
    """One bit of one source is flipped: what gives no row is rejected, with its place and reason, and nothing else."""
    if not corpus.case.checksummed:
        pytest.skip("has no checksums")
    sources: list[Source] = corpus.module.sources(corpus.config)
    victim = tmp_path / Path(sources[-1].path).name
    victim.write_bytes(Path(sources[-1].path).read_bytes())
    flip(victim, int(share * sources[-1].num_bytes))
    config = corpus.config.model_copy(update={"path": str(victim)})
    whole = sum(batch.num_rows for batch in corpus.module.read(corpus.config, sources[-1], pytest.fail))

    rejected: list[Rejected] = []
    read: Callable[..., Any] = corpus.module.read
    (source,) = corpus.module.sources(config)
    rows = sum(batch.num_rows for batch in read(config, source, rejected.append))
    assert rows + len(rejected) == whole
    (bad,) = rejected
    assert bad.path == str(victim)
    assert bad.reason
    assert bad.offset is not None
    assert 0 <= bad.offset < victim.stat().st_size
    assert str(victim) in str(bad)


def test_what_reject_raises_reaches_the_caller(corpus: Corpus, tmp_path: Path) -> None:
    """So that a run can fail at the first bad input."""
    if not corpus.case.checksummed:
        pytest.skip("has no checksums")
    source = corpus.module.sources(corpus.config)[0]
    victim = tmp_path / Path(source.path).name
    victim.write_bytes(Path(source.path).read_bytes())
    flip(victim, source.num_bytes // 2)

    def refuse(bad: Rejected) -> None:
        raise LookupError(bad.reason)

    with pytest.raises(LookupError, match=r"."):
        list(corpus.module.read(corpus.config, Source(str(victim), source.split, source.num_bytes), refuse))
