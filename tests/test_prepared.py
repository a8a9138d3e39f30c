"""The order of rows and the reading of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray import prepared
from mmray.prepared import SplitReader, TrainOrder, shard_of_rows

orders = st.builds(
    TrainOrder,
    row_groups=st.lists(st.integers(1, 30), min_size=1, max_size=12).map(tuple),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    window_rows=st.integers(1, 200),
    lanes=st.integers(1, 9),
).filter(lambda order: order.num_rows >= order.batch_size)


def batches(order: TrainOrder, world_size: int) -> list[list[int]]:
    """The rows of each global batch, put together from all ranks."""
    ranks = [
        np.concatenate([order.rows(window, rank, world_size) for window in range(order.num_windows)])
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1, "every rank takes the same number of steps"
    return np.concatenate(ranks, axis=1).tolist()


@settings(max_examples=200, deadline=None)
@given(orders, st.integers(1, 4))
def test_each_batch_is_the_same_at_any_number_of_workers(order: TrainOrder, world_size: int) -> None:
    world_size = min(world_size, order.batch_size)
    alone = batches(order, 1)
    assert batches(order, world_size) == alone
    assert len(alone) == order.num_rows // order.batch_size
    assert {len(batch) for batch in alone} == {order.batch_size}
    times = Counter(row for batch in alone for row in batch)
    assert max(times.values()) == 1, "no row twice in an epoch"
    assert set(times) <= set(range(order.num_rows))


def test_epochs_differ_and_repeat_by_seed() -> None:
    def rows(seed: int, epoch: int) -> list[list[int]]:
        return batches(TrainOrder((10,) * 10, 8, seed, epoch, 32, 4), 1)

    assert rows(0, 0) == rows(0, 0)
    assert rows(0, 0) != rows(0, 1)
    assert rows(0, 0) != rows(1, 0)


def test_rows_left_over_are_other_ones_in_the_next_epoch() -> None:
    def left_over(epoch: int) -> set[int]:
        return set(range(23)) - {row for batch in batches(TrainOrder((23,), 5, 0, epoch), 1) for row in batch}

    assert all(len(left_over(epoch)) == 3 for epoch in range(20))
    assert len(set.union(*(left_over(epoch) for epoch in range(20)))) > 12


def test_batch_is_drawn_from_many_places() -> None:
    """Rows of one batch come from as many row groups as there are lanes, if not more."""
    order = TrainOrder((100,) * 64, 64, 0, 0, window_rows=640, lanes=16)
    first = order.rows(0, 0, 1)[0]
    assert len(set(first // 100)) >= 16


def test_worker_reads_little_more_than_its_share() -> None:
    order = TrainOrder((100,) * 64, 64, 0, 0, window_rows=1600, lanes=16)
    groups = {int(g) for window in range(order.num_windows) for g in set(order.rows(window, 0, 4).reshape(-1) // 100)}
    assert len(groups) <= 64 // 4 + 2 * 4


def test_fewer_rows_than_a_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"train\.batch_size=9 is more than the 8 training rows"):
        _ = TrainOrder((8,), 9, 0, 0).num_steps


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
def test_evaluation_shards_cover_every_row_once(num_rows: int, world_size: int) -> None:
    shards = [range(*shard_of_rows(num_rows, rank, world_size)) for rank in range(world_size)]
    assert [row for shard in shards for row in shard] == list(range(num_rows))


def test_reader_takes_rows_by_number(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    info = prepared.read_info(folder)
    reader = SplitReader(folder, info.split("train"), ("id", "a", "labels"))
    rows = np.array([100, 0, 39, 40, 41, 7, 7])
    table = reader.take(rows)
    assert table.column("id").to_pylist() == [f"train-{row}" for row in rows]
    a = prepared.tensor_column(table, "a")
    everything = prepared.tensor_column(reader.take(np.arange(101)), "a")
    np.testing.assert_array_equal(a, everything[rows])
    labels, offsets = prepared.ragged_column(table, "labels")
    for i, row in enumerate(rows):
        expected = {c for c in range(3) if everything[row, c] > 0} | ({5} if everything[row, 0] < 0 else set())
        assert {c for c in labels[offsets[i] : offsets[i + 1]] if c in (0, 1, 2, 5)} == expected


@pytest.mark.parametrize(("start", "stop", "size"), [(0, 101, 10), (33, 68, 4), (40, 41, 10), (5, 5, 3), (0, 101, 500)])
def test_reader_batches_in_stored_order(make_dataset: Callable[..., Path], start: int, stop: int, size: int) -> None:
    folder = make_dataset()
    tables = list(SplitReader(folder, prepared.read_info(folder).split("train"), ("id",)).batches(start, stop, size))
    assert [name for table in tables for name in table.column("id").to_pylist()] == [
        f"train-{row}" for row in range(start, stop)
    ]
    assert all(table.num_rows == size for table in tables[:-1])


def test_epoch_begun_in_its_middle_goes_on_with_the_same_tables(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset()
    split = prepared.read_info(folder).split("train")
    reader = SplitReader(folder, split, ("id",))
    order = TrainOrder(tuple(g for f in split.files for g in f.row_groups), 6, 0, 3, window_rows=30, lanes=3)
    whole = [t.column("id").to_pylist() for t in prepared.train_tables(reader, order, 1, 2)]
    for step in (0, 1, 5, 7, len(whole)):
        assert [t.column("id").to_pylist() for t in prepared.train_tables(reader, order, 1, 2, step)] == whole[step:]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "has no dataset.json; run mmray prepare"), ("{", "damaged"), ("{}", "damaged")]
)
def test_folder_that_is_no_prepared_dataset(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        prepared.read_info(tmp_path)


def test_split_without_rows_is_named(make_dataset: Callable[..., Path]) -> None:
    info = prepared.read_info(make_dataset({"train": 5, "val": 5}))
    with pytest.raises(ValueError, match=r"no rows in split 'test'; it has \['train', 'val'\]"):
        info.split("test")
