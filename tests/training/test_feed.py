"""The rows of a step in micro-batches: of like length where that pays, with the very same mean of gradients."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.models import lstm
from mmray.prepared import Int64s
from mmray.tasks import Batch
from mmray.training.feed import micro_batches

SIZE, CLASSES = 6, 4


def rows(lengths: list[int]) -> pa.Table:
    """Rows of so many random frames."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, length * SIZE, np.uint8).tobytes() for length in lengths]
    return pa.table({"id": list(range(len(lengths))), "frames": pa.array(frames, pa.large_binary())})


def length_of_rows(table: pa.Table) -> Int64s:
    return np.array([len(frames) // SIZE for frames in table.column("frames").to_pylist()], np.int64)


def collate(table: pa.Table) -> Batch:
    """Frames and offsets; the labels of a row follow from its id."""
    lengths = torch.from_numpy(length_of_rows(table))
    data = b"".join(table.column("frames").to_pylist())
    ids = torch.tensor(table.column("id").to_pylist(), dtype=torch.int64)
    tensors = {
        "frames": torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, SIZE),
        "offsets": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        "labels": ids.unsqueeze(1) % (torch.arange(CLASSES) + 2) == 0,
    }
    return Batch(table.num_rows, tensors, tuple(map(str, ids.tolist())))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 8), st.booleans())
@settings(deadline=None)
def test_every_row_is_in_one_batch_and_batches_are_of_a_size(
    lengths: list[int], accumulate: int, by_length: bool
) -> None:
    batches = micro_batches(rows(lengths), collate, accumulate, length_of_rows if by_length else None)
    ids = [int(id_) for batch in batches for id_ in batch.ids]
    sizes = [batch.num_rows for batch in batches]
    assert sorted(ids) == list(range(len(lengths)))
    assert len(batches) == min(accumulate, len(lengths))
    assert max(sizes) - min(sizes) <= 1
    sorted_by_length = by_length and accumulate > 1
    assert ids == (sorted(ids, key=lambda i: lengths[i]) if sorted_by_length else list(range(len(lengths))))


def test_a_task_may_say_that_lengths_do_not_matter() -> None:
    batches = micro_batches(rows([5, 1, 3]), collate, 3, lambda table: None)
    assert [batch.ids for batch in batches] == [("0",), ("1",), ("2",)]


def test_gradients_add_up_to_those_of_the_whole_batch() -> None:
    table = rows([9, 2, 30, 1, 14, 7, 21, 3, 3, 12])
    torch.manual_seed(0)
    model = lstm.Config(hidden_size=8, num_layers=2).build(SIZE, CLASSES)
    results = []
    for accumulate, lengths in ((1, None), (4, None), (4, length_of_rows), (10, length_of_rows)):
        model.zero_grad()
        total = 0.0
        for batch in micro_batches(table, collate, accumulate, lengths):
            share = batch.num_rows / table.num_rows
            loss = share * model.loss(batch.tensors["frames"], batch.tensors["offsets"], batch.tensors["labels"])
            loss.backward()
            total += float(loss.detach())
        results.append((total, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    for total, gradients in results[1:]:
        assert total == pytest.approx(results[0][0], rel=1e-6)
        for gradient, expected in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_rows_of_like_length_leave_little_padding() -> None:
    """At 8 micro-batches of 16 rows of 60 to 300 frames; a model that pads would compute so much more than there is."""

    def padded_share(by_length: bool) -> float:
        lengths = np.random.default_rng(1).integers(60, 301, 128)
        batches = micro_batches(rows(lengths.tolist()), collate, 8, length_of_rows if by_length else None)
        padded = sum(int(b.tensors["offsets"].diff().max()) * b.num_rows for b in batches)
        return padded / float(lengths.sum())

    assert padded_share(by_length=True) < 1.15
    assert padded_share(by_length=False) > 1.4
