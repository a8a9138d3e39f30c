"""LSTM layers along the frames of a video; a mixture of experts reads the state that the last frame leaves.

The recurrence of Hochreiter and Schmidhuber with forget gates (Gers et al. 2000). Of a step with input x, state h and
cell c before it,

    i, f, o = sigmoid(W x + U h + b)    g = tanh(W x + U h + b)    c' = f c + i g    h' = o tanh(c')

LSTM A and B of "Truly Multi-modal YouTube-8M Video Classification with Video, Audio, and Text" are 2 layers of 1,024
cells with 2 experts, and 4 of 512 with 4; they are those of YouTube-8M's published starter kit.

What makes it train. Users of the kit's LSTM report a GAP that stays at 0.00 for a whole epoch, at the suggested rate of
0.001 too (pull request 35 of google/youtube-8m). The kit scales each frame to length 1, so that a feature is about
0.03, and the first states of LSTM A differ by 0.008 from video to video. Here features keep the range that they were
quantised for, [-2, 2], and states differ by 0.11; gradients of the first layer are 14 times as large. Forget gates
begin open (`forget_bias`), as the kit's do; the run files learn at 0.001 after a warm-up, and clip gradients. On the
synthetic corpus (50 classes, 16 videos a step) LSTM A is so at a GAP of 0.49, 0.65 and 0.72 after 25, 50 and 75 steps;
with frames of length 1 and the kit's rate of 0.01 at 0.17, 0.22 and 0.15.

Rows are packed: step t computes the rows that have a frame t, and no others. A CPU runs the layers below rather than
`nn.LSTM`, which knows two ways there: packed sequences, step by step through autograd, in two to three times the time;
and padded ones. Under autocast to bfloat16 the first keeps cells in bfloat16, and gradients of the second are wrong at
1,024 cells (torch 2.11 with AMX: by a fifth of their length over 10 frames, by all of it over 50). Here matrix products
are bfloat16, gates and cells float32. A GPU runs cuDNN's packed layers, in float32 (TF32 where torch allows it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence

from mmray.features.quantization import dequantize
from mmray.models._frames import FrameClassifier, FrameConfig, autocast_type
from mmray.models._sequence import autocast_off


class Config(FrameConfig):
    """Hyper-parameters; see `FrameConfig` for those of every model of frames."""

    by_length: ClassVar[bool] = True

    name: Literal["lstm"] = "lstm"
    hidden_size: PositiveInt = 1024
    """H, cells of a layer."""
    num_layers: PositiveInt = 2
    forget_bias: float = 1.0
    """The first biases of the forget gates: a cell keeps sigmoid(forget_bias) of itself from one frame to the next."""

    def build(self, input_size: int, num_classes: int) -> FrameClassifier:
        """The model for frames of `input_size` (D) features and `num_classes` (C) labels."""
        encoder = Encoder(input_size, self.hidden_size, self.num_layers, self.forget_bias)
        return self.classifier(encoder, num_classes)


class Encoder(nn.Module):
    """(N, D) frames to the state (B, H) of the last layer after the last frame of each row; 0 where there is none."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int, forget_bias: float) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers)
        with torch.no_grad():
            for layer in range(num_layers):
                _, _, bias, state_bias = self._weights(layer)
                nn.init.zeros_(bias)
                nn.init.zeros_(state_bias)
                bias[hidden_size : 2 * hidden_size] = forget_bias

    def forward(self, frames: Tensor, offsets: Tensor) -> Tensor:
        """See the class."""
        packing = pack(offsets)
        x = dequantize(frames[packing.frames])
        if x.is_cuda and len(x):
            with autocast_off(x.device.type):
                x = self.lstm(PackedSequence(x, torch.tensor(packing.sizes)))[0].data
        else:
            dtype = autocast_type(x)
            with autocast_off(x.device.type):
                for layer in range(self.lstm.num_layers):
                    weight, state_weight, bias, state_bias = self._weights(layer)
                    x = _Layer.apply(x, weight, state_weight, bias + state_bias, packing, dtype)  # type: ignore[no-untyped-call]
        state = x.new_zeros(len(offsets) - 1, self.output_size, dtype=torch.float32)
        return state.index_copy(0, packing.rows, x[packing.last].float())

    def _weights(self, layer: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter, nn.Parameter]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        a, b, c, d = (self.lstm.get_parameter(f"{name}_l{layer}") for name in names)
        return a, b, c, d


@dataclass(frozen=True)
class Packing:
    """Rows of different lengths, step after step: at each, the rows that still have a frame, the longest row first.

    `sizes[t]` rows stand at step t, at the places from the sum of those before it on. R rows have frames at all.
    """

    sizes: list[int]
    frames: Tensor  # (N,): which frame stands at each place
    before: Tensor  # (N - sizes[0],): for each place after the first step, that of the same row one step earlier
    rows: Tensor  # (R,): which row is the longest, and so on
    last: Tensor  # (R,): the place of the last frame of each of `rows`


def pack(offsets: Tensor) -> Packing:
    """How to pack rows at offsets (B + 1,). Waits for the device once."""
    lengths, order = offsets.diff().sort(descending=True, stable=True)
    num_steps = int(lengths[0]) if len(lengths) else 0
    steps = torch.arange(num_steps, device=offsets.device).unsqueeze(1)
    there = steps < lengths  # (T, B)
    sizes = there.sum(1)
    starts = sizes.cumsum(0) - sizes
    places = starts.unsqueeze(1) + torch.arange(len(order), device=offsets.device)  # of row and step, if there
    rows = order[lengths > 0]
    return Packing(
        sizes=sizes.tolist(),
        frames=(offsets[order] + steps)[there],
        before=places[:-1][there[1:]],
        rows=rows,
        last=places[lengths[: len(rows)] - 1, torch.arange(len(rows), device=offsets.device)],
    )


class _Layer(torch.autograd.Function):
    """One layer over packed rows: x (N, D) to the states (N, H).

    All that does not wait for the state before is one matrix product over all frames: the input's part of the gates,
    and, going back, the gradients of both weights and of the input. `dtype` is that of matrix products and of the
    states between them; gates and cells are float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        state_weight: Tensor,
        bias: Tensor,
        packing: Packing,
        dtype: torch.dtype,
    ) -> Tensor:
        """weight (4 H, D), state_weight (4 H, H), bias (4 H,): of i, f, g, o in this order, as in `nn.LSTM`."""
        size = state_weight.shape[1]
        x, weight, state_weight = x.to(dtype), weight.to(dtype), state_weight.to(dtype)
        gates = F.linear(x, weight).float().add_(bias)
        cells = gates.new_empty(len(x), size)
        states = x.new_empty(len(x), size)
        for now, before in _steps(packing.sizes):
            gate = gates[now]
            if before is not None:
                gate += F.linear(states[before], state_weight)
            i, f, g, o = gate.chunk(4, dim=1)
            gate[:, : 2 * size].sigmoid_(), g.tanh_(), o.sigmoid_()
            cell = torch.mul(i, g, out=cells[now])
            if before is not None:
                cell.addcmul_(f, cells[before])
            states[now] = cell.tanh().mul_(o)
        ctx.save_for_backward(x, weight, state_weight, gates, cells, states)
        ctx.packing = packing
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, state_weight and bias."""
        x, weight, state_weight, gates, cells, states = ctx.saved_tensors
        packing: Packing = ctx.packing
        dtype, size = x.dtype, state_weight.shape[1]
        with autocast_off(x.device.type):
            d_states = gradient.float().clone()
            d_cells = gates.new_zeros(packing.sizes[0] if packing.sizes else 0, size)
            d_units = torch.empty_like(gates, dtype=dtype)
            transposed = state_weight.T.contiguous()  # few rows multiply faster with columns that lie side by side
            for now, before in reversed(list(_steps(packing.sizes))):
                i, f, g, o = gates[now].chunk(4, dim=1)
                d_state, cell = d_states[now], cells[now].tanh()
                d_cell = d_cells[: len(d_state)]
                d_cell += d_state * o * (1 - cell.square())
                d_i, d_f, d_g, d_o = d_units[now].chunk(4, dim=1)
                d_i.copy_(d_cell * g * i * (1 - i))
                d_g.copy_(d_cell * i * (1 - g.square()))
                d_o.copy_(d_state * cell * o * (1 - o))
                if before is None:
                    d_f.zero_()
                else:
                    d_f.copy_(d_cell * cells[before] * f * (1 - f))
                    d_cell *= f
                    d_states[before] += F.linear(d_units[now], transposed)
            first = packing.sizes[0] if packing.sizes else 0
            return (
                d_units @ weight if ctx.needs_input_grad[0] else None,
                (d_units.T @ x).float(),
                (d_units[first:].T @ states[packing.before]).float(),
                d_units.sum(0, dtype=torch.float32),
                None,
                None,
            )


def _steps(sizes: list[int]) -> list[tuple[slice, slice | None]]:
    """The places of each step, and those of the same rows at the step before."""
    steps: list[tuple[slice, slice | None]] = []
    start = 0
    for number, size in enumerate(sizes):
        previous = start - sizes[number - 1]
        steps.append((slice(start, start + size), slice(previous, previous + size) if number else None))
        start += size
    return steps
