"""The models of frames against the same layers as usually written, a row at a time; and what they can learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mmray.features.quantization import dequantize
from mmray.models import dbof, lstm, nextvlad
from mmray.models._frames import BatchNorm, FrameClassifier

SIZE, CLASSES = 12, 4
LENGTHS = [5, 0, 9, 1, 9, 3]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of so few numbers are faster without threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(lengths: list[int] = LENGTHS, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (sum(lengths), SIZE), dtype=torch.uint8, generator=generator)
    return frames, torch.tensor([0, *lengths]).cumsum(0)


def rows_of(frames: Tensor, offsets: Tensor) -> list[Tensor]:
    """The features of each row."""
    return list(dequantize(frames).split(offsets.diff().tolist()))


def scrambled(model: FrameClassifier) -> FrameClassifier:
    """In eval mode, with scales, shifts and statistics that are no longer 1 and 0."""
    torch.manual_seed(3)
    model(*batch([30, 30, 30], seed=5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


# LSTM ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 7), max_size=6))
@settings(max_examples=60, deadline=None)
def test_packing_is_that_of_torch(lengths: list[int]) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    packing = lstm.pack(offsets)
    numbers = torch.arange(sum(lengths))
    theirs = sorted((row for row in numbers.split(lengths) if len(row)), key=len, reverse=True)
    if not theirs:
        assert (packing.sizes, len(packing.frames), len(packing.before), len(packing.rows)) == ([], 0, 0, 0)
        return
    packed = pack_sequence(theirs)
    assert packing.sizes == packed.batch_sizes.tolist()
    assert torch.equal(packing.frames, packed.data)
    assert packing.frames[packing.last].tolist() == [int(row[-1]) for row in theirs]
    assert [lengths[row] for row in packing.rows] == [len(row) for row in theirs]
    assert [int(offsets[row]) for row in packing.rows] == [int(row[0]) for row in theirs]
    later = packing.frames[packing.sizes[0] :]
    assert torch.equal(packing.frames[packing.before] + 1, later)


@pytest.mark.parametrize(("hidden_size", "num_layers"), [(7, 1), (5, 3)])
def test_lstm_is_that_of_torch_row_by_row(hidden_size: int, num_layers: int) -> None:
    """The states and every gradient, that of the frames' features left out."""
    torch.manual_seed(0)
    encoder = lstm.Config(hidden_size=hidden_size, num_layers=num_layers).build(SIZE, CLASSES).encoder
    frames, offsets = batch()
    weights = torch.randn(len(LENGTHS), hidden_size)
    states = [
        encoder.lstm(row.unsqueeze(1))[1][0][-1, 0] if len(row) else torch.zeros(hidden_size)
        for row in rows_of(frames, offsets)
    ]
    expected, actual = torch.stack(states), encoder(frames, offsets)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad((out * weights).sum(), encoder.parameters()) for out in (actual, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_lstm_in_bfloat16_has_gradients_near_those_of_float32() -> None:
    """Within the rounding of its products."""
    torch.manual_seed(0)
    encoder = lstm.Config(hidden_size=32, num_layers=2).build(SIZE, CLASSES).encoder
    frames, offsets = batch([60, 41, 12])
    weights, gradients = torch.randn(3, 32), []
    for lowered in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            states = encoder(frames, offsets)
        assert states.dtype == torch.float32
        gradients.append(torch.autograd.grad((states * weights).sum(), encoder.parameters()))
    for exact, rounded in zip(*gradients, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_a_cell_remembers_in_float32_under_autocast() -> None:
    """A cell that gains 1/1000 at each of 500 steps: in bfloat16 it would stop at a quarter."""
    encoder = lstm.Config(hidden_size=1, num_layers=1).build(1, CLASSES).encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.lstm.bias_ih_l0.copy_(torch.tensor([50.0, 50.0, np.arctanh(1e-3), 50.0]))
    frames, offsets = torch.zeros(500, 1, dtype=torch.uint8), torch.tensor([0, 500])
    with torch.autocast("cpu", torch.bfloat16):
        assert float(encoder(frames, offsets).detach()) == pytest.approx(np.tanh(0.5), rel=5e-3)


def test_forget_gates_begin_open() -> None:
    model = lstm.Config(hidden_size=3, num_layers=2, forget_bias=2.5).build(SIZE, CLASSES)
    for layer in range(2):
        bias = model.encoder.lstm.get_parameter(f"bias_ih_l{layer}") + model.encoder.lstm.get_parameter(
            f"bias_hh_l{layer}"
        )
        assert bias.tolist() == [0, 0, 0, 2.5, 2.5, 2.5, 0, 0, 0, 0, 0, 0]


# DBoF ------------------------------------------------------------------------------------------------------------


def norm_of(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Outside training, step by step."""
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("eval_frames", [4, "all"])
def test_dbof_is_its_layers_row_by_row(pooling: Any, eval_frames: Any) -> None:
    settings = dbof.Config(projection_size=20, hidden_size=6, pooling=pooling, eval_frames=eval_frames)
    encoder = scrambled(settings.build(SIZE, CLASSES)).encoder
    frames, offsets = batch()
    expected = []
    for row in rows_of(frames, offsets):
        if eval_frames == 4 and len(row):
            row = torch.stack([row[int((n + 0.5) * len(row) / 4)] for n in range(4)])
        x = F.relu(norm_of(norm_of(row, encoder.input_norm) @ encoder.projection.weight.T, encoder.projection_norm))
        pooled = torch.zeros(20)
        if len(row):
            pooled = x.amax(0) if pooling == "max" else x.mean(0)
        expected.append(F.relu(norm_of(pooled @ encoder.hidden.weight.T, encoder.hidden_norm)))
    torch.testing.assert_close(encoder(frames, offsets), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_batch_norm_of_dbof_knows_the_frames_that_are_there_and_no_others() -> None:
    encoder = dbof.Config(projection_size=20, hidden_size=6, num_frames="all").build(SIZE, CLASSES).encoder
    frames, offsets = batch()
    encoder.train()(frames, offsets)
    features = dequantize(frames)
    momentum, count = encoder.input_norm.momentum, len(features)
    torch.testing.assert_close(encoder.input_norm.running_mean, momentum * features.mean(0))
    torch.testing.assert_close(encoder.input_norm.running_var, 1 - momentum + momentum * features.var(0))
    normed = (features - features.mean(0)) / (features.var(0) * (count - 1) / count + 1e-5).sqrt()
    projected = (normed @ encoder.projection.weight.T).detach()
    torch.testing.assert_close(encoder.projection_norm.running_mean, momentum * projected.mean(0))
    torch.testing.assert_close(encoder.projection_norm.running_var, 1 - momentum + momentum * projected.var(0))


def test_batch_norm_of_fewer_than_two_rows_is_that_of_evaluation() -> None:
    norm = BatchNorm(3)
    norm(torch.randn(50, 3))
    for count in (0, 1):
        x, before = torch.randn(count, 3), norm.running_mean.clone()
        torch.testing.assert_close(norm.train()(x), norm.eval()(x))
        assert torch.equal(norm.running_mean, before)
    assert norm.train()(torch.randn(2, 3)).abs().max() < 1.001, "two values are one standard deviation apart"


def test_every_frame_of_a_row_is_drawn_as_often() -> None:
    """Chi-squared with 4 and 1 degrees of freedom; draws of 30,000 have one such value in 1e6."""
    torch.manual_seed(0)
    offsets, rows = torch.tensor([0, 3, 3, 8, 10]), torch.tensor([2, 3])
    drawn = dbof.sample(offsets, rows, 30_000)
    assert drawn.shape == (2, 30_000)
    for row, first, length, bound in zip(drawn, (3, 8), (5, 2), (33.4, 23.9), strict=True):
        counts = torch.bincount(row - first, minlength=length)
        assert len(counts) == length
        expected = 30_000 / length
        assert ((counts - expected) ** 2 / expected).sum() < bound


def test_frames_drawn_change_from_step_to_step_and_differ_by_row() -> None:
    torch.manual_seed(0)
    offsets, rows = torch.tensor([0, 200, 400]), torch.tensor([0, 1])
    first, second = dbof.sample(offsets, rows, 20), dbof.sample(offsets, rows, 20)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1] - 200)


def test_evenly_spread_frames_by_hand() -> None:
    offsets, rows = torch.tensor([0, 10, 10, 12, 13]), torch.tensor([0, 2, 3])
    assert dbof.spread(offsets, rows, 4).tolist() == [[1, 3, 6, 8], [10, 10, 11, 11], [12] * 4]
    assert dbof.spread(offsets, rows, 1).tolist() == [[5], [11], [12]]


# NeXtVLAD --------------------------------------------------------------------------------------------------------


def naive_nextvlad(encoder: nextvlad.Encoder, row: Tensor) -> Tensor:
    """The formulas of the paper for one row, frame by frame, group by group and cluster by cluster."""
    groups, clusters = encoder.groups, encoder.clusters
    vlad = torch.zeros_like(encoder.centres)
    for x in row:
        y = encoder.expand.weight @ x + encoder.expand.bias
        attention = torch.sigmoid(encoder.attention.weight @ y + encoder.attention.bias)
        logits = norm_of(encoder.assignment.weight @ y, encoder.assignment_norm)
        for g in range(groups):
            part = y[g * len(y) // groups : (g + 1) * len(y) // groups]
            assignment = logits[g * clusters : (g + 1) * clusters].softmax(0)
            for k in range(clusters):
                vlad[k] += attention[g] * assignment[k] * (part - encoder.centres[k])
    lengths = vlad.norm(dim=1, keepdim=True)
    vlad = torch.where(lengths > 0, vlad / lengths, vlad)
    hidden = norm_of(encoder.hidden.weight @ norm_of(vlad.flatten(), encoder.vlad_norm), encoder.hidden_norm)
    squeezed = F.relu(norm_of(encoder.squeeze.weight @ hidden, encoder.squeeze_norm))
    return hidden * torch.sigmoid(encoder.excite.weight @ squeezed + encoder.excite.bias)


@torch.no_grad()
def test_nextvlad_is_the_formulas_of_the_paper() -> None:
    settings = nextvlad.Config(expansion=2, groups=3, clusters=5, hidden_size=16, gating_reduction=4)
    encoder = scrambled(settings.build(SIZE, CLASSES)).encoder
    frames, offsets = batch()
    expected = torch.stack([naive_nextvlad(encoder, row) for row in rows_of(frames, offsets)])
    torch.testing.assert_close(encoder(frames, offsets), expected, rtol=1e-4, atol=1e-5)


def test_groups_that_do_not_divide_the_expanded_frame_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.groups=5 does not divide the 24 numbers.*2 times 12 features"):
        nextvlad.Config(groups=5).build(SIZE, CLASSES)


# All -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (lstm, {"hidden_size": 0}),
        (lstm, {"num_layers": 0}),
        (dbof, {"num_frames": "some"}),
        (dbof, {"num_frames": 0}),
        (dbof, {"pooling": "median"}),
        (nextvlad, {"vlad_dropout": 1.0}),
        (nextvlad, {"dropout": -0.1}),
        (dbof, {"num_experts": 0}),
    ],
)
def test_config_refuses_nonsense(module: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        module.Config(**settings)


def lstm_cells(inputs: int, cells: int) -> int:
    """Weights of the input and of the state, and two biases a gate."""
    return 4 * cells * (inputs + cells + 2)


def mixture(inputs: int, experts: int) -> int:
    return 4716 * ((2 * experts + 1) * inputs + experts)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (lstm.Config(), lstm_cells(1152, 1024) + lstm_cells(1024, 1024) + mixture(1024, 2)),
        (
            lstm.Config(hidden_size=512, num_layers=4, num_experts=4),
            lstm_cells(1152, 512) + 3 * lstm_cells(512, 512) + mixture(512, 4),
        ),
        (dbof.Config(), 2 * 1152 + 1152 * 8192 + 2 * 8192 + 8192 * 1024 + 2 * 1024 + mixture(1024, 2)),
        (
            nextvlad.Config(),
            1153 * 2304 + 2305 * 8 + 2304 * 1024 + 2 * 1024 + 128 * 288 + 2 * 36864
            + 36864 * 2048 + 2 * 2048 + 2048 * 256 + 2 * 256 + 257 * 2048 + mixture(2048, 2),
        ),
    ],
)  # fmt: skip
def test_numbers_of_parameters_of_the_published_sizes(config: Any, expected: int) -> None:
    with torch.device("meta"):
        model = config.build(1152, 4716)
    assert sum(p.numel() for p in model.parameters()) == expected


def first_or_second(num_pairs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in which an event A comes before an event B, class 0, or after it, class 1, and one without either: class 2.

    Of a pair, both rows have the very same frames.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for _ in range(num_pairs):
        length = int(torch.randint(8, 21, (), generator=generator))
        plain = torch.randint(110, 146, (length, 4), dtype=torch.uint8, generator=generator)
        row = plain.clone()
        row[int(torch.randint(0, length // 2, (), generator=generator)), 0] = 255
        row[int(torch.randint(length // 2, length - 1, (), generator=generator)), 1] = 255
        rows += [row, row.flip(0), plain]
        labels += [0, 1, 2]
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return torch.cat(rows), offsets, F.one_hot(torch.tensor(labels), 3).bool()


@pytest.mark.parametrize(
    ("config", "lr", "accuracy"),
    [
        (lstm.Config(hidden_size=24, num_layers=1), 1e-2, (1, 1)),
        (dbof.Config(projection_size=32, hidden_size=16, num_frames="all"), 1e-2, (0.5, 1)),
        (nextvlad.Config(groups=2, clusters=4, hidden_size=16, vlad_dropout=0.0), 1e-2, (0.5, 1)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_can_be_learnt(config: Any, lr: float, accuracy: tuple[float, float]) -> None:
    """Whether there are events, all tell; which came first, the LSTM alone: the others take frames in no order."""
    torch.manual_seed(0)
    model = config.build(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(150):
        model.loss(*first_or_second(10, seed=step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    frames, offsets, labels = first_or_second(60, seed=1000)
    with torch.no_grad():
        logits = model.eval()(frames, offsets)
    right = (logits.argmax(1) == labels.long().argmax(1)).float()
    has_events = ~labels[:, 2]
    expected_order, expected_events = accuracy
    assert right[has_events].mean() == pytest.approx(expected_order, abs=0.06)
    assert ((logits.argmax(1) == 2) == labels[:, 2]).float().mean() == pytest.approx(expected_events, abs=0.06)
    if expected_order == 0.5:
        torch.testing.assert_close(logits[0::3], logits[1::3], rtol=0, atol=1e-4)
