"""DenseASPP for melody: densely connected dilated convolutions over a map of pitch and time.

Gao, You and Chi, "A Multi-Scale Fully Convolutional Network for Singing Melody Extraction" (APSIPA ASC 2019). Every
layer is batch norm, convolution of 3 x 3, SELU. Each of the encoder's layers reads the input and all layers before it;
the decoder reads all of them, and the input `skip_copies` more times, as in the authors' code: 77 -> 64 -> 32 -> 1
channels give the rows of the pitches; another layer 64 -> 1, averaged over frequency, the row "no melody".

The layers are not computed as they are defined, but so that a map is read and written as seldom as possible:

- All layers that read a map would normalise it with the same mean and variance. They are taken once, while the map is
  written (`_Activate`).
- Batch norm times s plus t, then a convolution with W, is a convolution with W s and a bias: the sum of W t over
  channels and the taps that lie inside the map. So maps are not normalised at all; the bias differs along the border
  only, and is added in `_Activate`. Over a column it takes at most four values, by which of the three rows of taps are
  inside: "kinds" of rows.
- The copies of the input are one input whose weights are the sums over copies.

Shapes: B clips, C channels, F bins, T frames, O output channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.autograd.function import once_differentiable

from mmray.models._published import renamed


class Config(BaseModel):
    """Hyper-parameters; the defaults are the paper's DenseASPP_10.

    DenseASPP_20 has growth 20 and, to have the paper's 120.2 K parameters, skip_copies 1. Its ablations: DenseNet has
    dilations (1, 1, 1, 1, 1), DA_Reversed (24, 18, 12, 6, 3).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "pitch_map"

    name: Literal["dense_aspp"] = "dense_aspp"
    growth: int = Field(default=10, ge=1)
    """Channels that each layer of the encoder adds."""
    skip_copies: int = Field(default=8, ge=0)
    """How many more times the decoder is given the input."""
    dilations: tuple[PositiveInt, ...] = Field(default=(3, 6, 12, 18, 24), min_length=1)
    """Of the encoder's layers, in order."""
    batch_statistics: Literal["running", "clip"] = "running"
    """What batch norm uses in eval mode: its running mean and variance, or each clip's own, as the authors' evaluation
    did. A clip must then be given whole and without padding: every frame depends on all of it."""

    def build(self, num_bins: int) -> DenseAspp:
        """The model; it's convolutional, and so the same for any number of bins."""
        if num_bins < 1:
            raise ValueError(f"dense_aspp has {num_bins} bins; it needs at least 1")
        return DenseAspp(self)


class _Maps(NamedTuple):
    """Maps to be read: tensors to be concatenated along channels, and the statistics of all, None if not taken.

    The tensors hold values minus the pivot of their channel, a number near the mean: bfloat16 rounds what is left by
    less, and weights, which are rounded too, then needn't cancel a mean.
    """

    parts: list[Tensor]
    statistics: _Statistics | None

    def followed_by(self, others: _Maps) -> _Maps:
        """Both, one behind the other."""
        if self.statistics is None or others.statistics is None:
            return _Maps(self.parts + others.parts, None)
        both = zip(self.statistics, others.statistics, strict=True)
        return _Maps(self.parts + others.parts, _Statistics(*(torch.cat(pair) for pair in both)))


class _Statistics(NamedTuple):
    """Of each channel, (C,) each, float32, over B, F and T."""

    mean: Tensor
    var: Tensor
    pivot: Tensor


class _Layer(nn.Module):
    """Batch norm, convolution of 3 x 3, and (not here: see `_activate`) SELU."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1, copies: int = 0) -> None:
        super().__init__()
        self.dilation = dilation
        self.copies = copies  # how many times the first 3 channels stand behind the others once more
        self.norm = nn.BatchNorm2d(inputs + 3 * copies)
        self.conv = nn.Conv2d(inputs + 3 * copies, outputs, 3, padding=dilation, dilation=dilation)

    def forward(self, maps: _Maps) -> _Sums:
        """What SELU is to be taken of."""
        mean, var, pivot = self._statistics(maps)
        scale = self.norm.weight * torch.rsqrt(var + self.norm.eps)
        shift = self.norm.bias - (mean - pivot) * scale
        x = maps.parts[0]
        with _autocast_off(x.device.type):
            weight = self.conv.weight * scale.view(1, -1, 1, 1)
            of_shift = (self.conv.weight * shift.view(1, -1, 1, 1)).sum(dim=1)
            bins = _taps_inside(x.shape[2], self.dilation, x.device)
            frames = _taps_inside(x.shape[3], self.dilation, x.device)
            kinds = weight.new_tensor([[0, 1, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1]])
            bias = torch.einsum("oij,ki,tj->kto", of_shift, kinds, frames.to(weight.dtype))
            bias = bias + self.conv.get_parameter("bias")
            if self.copies:
                inputs, others, copies = torch.tensor_split(weight, [3, weight.shape[1] - 3 * self.copies], dim=1)
                inputs = inputs + copies.reshape(-1, self.copies, 3, 3, 3).sum(dim=1)
                weight = torch.cat([inputs, others], dim=1)
        convolved = _convolve(maps.parts, weight.to(x.dtype), self.dilation)
        return _Sums(convolved, bias, 2 * bins[:, 0] + bins[:, 2])

    def _statistics(self, maps: _Maps) -> _Statistics:
        """Those to normalise by: the running ones if the maps have none, which in training mode follow the maps'."""
        running_mean, running_var = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        if maps.statistics is None:
            return _Statistics(running_mean, running_var, torch.zeros_like(running_mean))
        used = _Statistics(*(torch.cat([value, value[:3].repeat(self.copies)]) for value in maps.statistics))
        if self.training:
            count = maps.parts[0].shape[0] * maps.parts[0].shape[2:].numel()
            with torch.no_grad():
                self.norm.get_buffer("num_batches_tracked").add_(1)
                running_mean.lerp_(used.mean, _MOMENTUM)
                running_var.lerp_(used.var * (count / max(1, count - 1)), _MOMENTUM)
        return used


_MOMENTUM = 0.1  # PyTorch's


class _Sums(NamedTuple):
    """A layer's convolution (B, O, F, T) and what must be added to it: bias[kind of row, :, o] of each o, f and t."""

    convolved: Tensor
    bias: Tensor  # (4, T, O)
    kind: Tensor  # (F,), int64


def _taps_inside(length: int, dilation: int, device: torch.device) -> Tensor:
    """Of each place on an axis, which of three taps lie on it: (length, 3), 0 or 1."""
    place = torch.arange(length, device=device).unsqueeze(1)
    taps = place + torch.tensor([-dilation, 0, dilation], device=device)
    return ((taps >= 0) & (taps < length)).long()


def _autocast_off(device_type: str) -> AbstractContextManager[object]:
    if not is_autocast_available(device_type):  # meta, for one
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


class DenseAspp(nn.Module):
    """The model; see `Config` for the sizes.

    context_frames: frames on each side that an output frame depends on, in eval mode with running statistics.
    batch_statistics: as in `Config`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        growth, dilations = config.growth, config.dilations
        self.batch_statistics = config.batch_statistics
        self.context_frames = sum(dilations) + 3
        self.encoder = nn.ModuleList(_Layer(3 + i * growth, growth, d) for i, d in enumerate(dilations))
        self.decoder = _Layer(3 + len(dilations) * growth, 64, copies=config.skip_copies)
        self.refine = _Layer(64, 32)
        self.pitch = _Layer(32, 1)
        self.no_melody = _Layer(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, F + 1, T), float32, of a map x (B, 3, F, T): row 0 "no melody", row r pitch r."""
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"x has shape {tuple(x.shape)}; dense_aspp needs (B, 3, F, T)")
        if self.training or self.batch_statistics == "running":
            return self._logits(x, measure=self.training)
        return torch.cat([self._logits(clip, measure=True) for clip in torch.tensor_split(x, max(1, len(x)))])

    def _logits(self, x: Tensor, measure: bool) -> Tensor:
        """`measure`: normalise by the statistics of this batch, else by the running ones."""
        maps = _input_maps(x, measure)
        for layer in self.encoder:
            maps = maps.followed_by(_activate(layer(maps), measure))
        maps = _activate(self.decoder(maps), measure)
        no_melody = _activate(self.no_melody(maps), False).parts[0]
        maps = _activate(self.refine(maps), measure)
        pitch = _activate(self.pitch(maps), False).parts[0]
        return torch.cat([no_melody.mean(dim=2), pitch.squeeze(1)], dim=1)


def _input_maps(x: Tensor, measure: bool) -> _Maps:
    """The model's input, in the type that autocast asks for."""
    x = _float32_or_better(x)
    statistics = None
    if measure:
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        x = x - mean.view(1, -1, 1, 1)
        statistics = _Statistics(mean, var, mean)
    if is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return _Maps([x.contiguous(memory_format=torch.channels_last)], statistics)


def _float32_or_better(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _convolve(parts: list[Tensor], weight: Tensor, dilation: int) -> Tensor:
    """The convolution, (B, O, F, T) without a bias, of the concatenation of the parts, with zeros around it."""
    if dilation > 1 and weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
        output: Tensor = _DilatedConvolution.apply(weight, dilation, *parts)  # type: ignore[no-untyped-call]
        return output
    whole: Tensor = _Concatenation.apply(*parts) if len(parts) > 1 else parts[0]  # type: ignore[no-untyped-call]
    return F.conv2d(whole, weight, padding=dilation, dilation=dilation)


class _Concatenation(torch.autograd.Function):
    """Along channels, with gradients that are contiguous: others are added eight times as slowly."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        """torch.cat(parts, dim=1)."""
        ctx.sizes = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of each part."""
        needed = zip(torch.split_with_sizes(gradients[0], ctx.sizes, dim=1), ctx.needs_input_grad, strict=True)
        return tuple(g.contiguous(memory_format=torch.channels_last) if yes else None for g, yes in needed)


class _DilatedConvolution(torch.autograd.Function):
    """`_convolve` part by part, each with its own zeros around it: in oneDNN a dilated convolution of few channels is
    two to five times as fast when it needn't make the zeros itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dilation: int, *parts: Tensor) -> Tensor:
        """See `_convolve`."""
        ctx.save_for_backward(weight, *parts)
        ctx.dilation = dilation
        first, *others = (_convolve_padded(x, w, dilation) for x, w in zip(parts, _split(weight, parts), strict=True))
        for other in others:
            first.add_(other)
        return first

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of weight, dilation and parts."""
        weight, *parts = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_weight, of_parts = [], []
        for x, w, needed in zip(parts, _split(weight, parts), ctx.needs_input_grad[2:], strict=True):
            steps = [ctx.dilation] * 2
            of_weight.append(
                torch.ops.aten.convolution_backward(
                    gradient, x, w, None, [1, 1], steps, steps, False, [0, 0], 1, [False, True, False]
                )[1]
            )
            mirrored = w.flip(2, 3).transpose(0, 1)
            of_parts.append(_convolve_padded(gradient, mirrored, ctx.dilation) if needed else None)
        return torch.cat(of_weight, dim=1), None, *of_parts


def _split(weight: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights of each part."""
    return torch.split_with_sizes(weight, [part.shape[1] for part in parts], dim=1)


def _convolve_padded(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    d, odd = dilation, x.shape[1] % 2  # an odd number of channels is slow, too
    weight = F.pad(weight, (0, 0, 0, 0, 0, odd))
    return F.conv2d(F.pad(x, (d, d, d, d, 0, odd)), weight, dilation=dilation)


def _activate(sums: _Sums, measure: bool) -> _Maps:
    """SELU of a layer's sums, whose `convolved` may be overwritten.

    With `measure`, in the type of `convolved` and with statistics; without, float32 or better where O is 1.
    """
    convolved, bias, kind = sums
    if measure and convolved.device.type == "cpu" and convolved.dtype == torch.bfloat16:
        y, mean, var, pivot = _Activate.apply(convolved, bias, kind)  # type: ignore[no-untyped-call]
        return _Maps([y], _Statistics(mean, var, pivot))
    addend = bias.index_select(0, kind).permute(2, 0, 1)
    y = F.selu(_float32_or_better(convolved).add_(addend), inplace=True)
    if not measure:
        return _Maps([y if y.shape[1] == 1 else y.to(convolved.dtype)], None)
    var, mean = torch.var_mean(y, dim=(0, 2, 3), correction=0)
    pivot = mean.detach()
    return _Maps([(y - pivot.view(1, -1, 1, 1)).to(convolved.dtype)], _Statistics(mean, var, pivot))


class _Activate(torch.autograd.Function):
    """`_activate` in one pass over bfloat16 in the CPU's memory, and one more for its gradient."""

    @staticmethod
    def forward(ctx: Any, convolved: Tensor, bias: Tensor, kind: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y - pivot (B, O, F, T) bfloat16; of y, mean and biased variance (O,) float32; pivot (O,)."""
        batch, outputs, bins, frames = convolved.shape
        middle = convolved[:, :, bins // 2].float() + bias[kind[bins // 2]].T
        pivot = F.selu(middle).mean(dim=(0, 2))  # near enough to the mean that the variance can't cancel
        y = torch.empty_like(convolved, memory_format=torch.channels_last)
        biases = bias.detach().reshape(4, -1).numpy()
        arguments = (_rows(convolved), biases, kind.numpy(), pivot.repeat(frames).numpy(), _rows(y))
        sums = np.sum(_in_threads(_selu, bins, *arguments), axis=0).reshape(2, frames, outputs).sum(axis=1)
        centre, square = torch.from_numpy(sums / (batch * bins * frames))
        centre_float32 = centre.float()
        ctx.save_for_backward(y, kind, centre_float32, pivot)
        ctx.mark_non_differentiable(pivot)
        return y, pivot + centre_float32, (square - centre.square()).float(), pivot

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of both inputs. That of y has two more parts, from its mean and variance: a + b (y - pivot)."""
        y, kind, centre, pivot = ctx.saved_tensors
        of_y, of_mean, of_var, _ = gradients
        batch, outputs, bins, frames = y.shape
        count = batch * bins * frames
        b = of_var * (2 / count)
        a = of_mean / count - b * centre
        of_convolved = torch.empty_like(y, memory_format=torch.channels_last)
        channels = [value.repeat(frames).numpy() for value in (pivot, a, b)]
        arguments = (_rows(y), _rows(of_y), kind.numpy(), *channels, _rows(of_convolved))
        of_bias = np.sum(_in_threads(_selu_gradient, bins, *arguments), axis=0)
        return of_convolved, torch.from_numpy(of_bias).reshape(4, frames, outputs), None


def _rows(x: Tensor) -> NDArray[Any]:
    """A float32 or bfloat16 (its bits as uint16) tensor (B, C, F, T) as (B, F, T C): one row of memory a bin."""
    x = x.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    if x.dtype == torch.bfloat16:
        x = x.view(torch.uint16)
    return x.reshape(*x.shape[:2], -1).numpy()


def _in_threads(kernel: Any, num_rows: int, *arguments: Any) -> list[Any]:
    """What the kernel returns for equal shares of the rows, in as many threads as torch uses."""
    threads = torch.get_num_threads()
    bounds = np.linspace(0, num_rows, threads + 1).astype(int)
    if threads == 1:
        return [kernel(0, num_rows, *arguments)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda start, stop: kernel(start, stop, *arguments), bounds[:-1], bounds[1:]))


# The innermost loops are without branches and calls and keep to 32 bits, so that the compiler can vectorise them.
_SCALE = np.float32(1.0507009873554805)  # of SELU, and it times SELU's alpha
_NEGATIVE = np.float32(1.0507009873554805 * 1.6732632423543772)
_ZERO, _ONE = np.float32(0), np.float32(1)
_LOG2_E = np.float32(1.4426950408889634)
_ROUND = np.float32(1.5 * 2**23)  # adding and subtracting it rounds a float32 of small magnitude to an integer
_EXP2_5, _EXP2_4, _EXP2_3, _EXP2_2, _EXP2_1 = (
    np.float32(math.log(2) ** n / math.factorial(n)) for n in range(5, 0, -1)
)
_HALF_BELOW = np.int32(0x7FFF)


@numba.njit(inline="always")
def _from_bfloat16(bits: np.uint16) -> np.float32:
    return np.int32(np.int32(bits) << 16).view(np.float32)


@numba.njit(inline="always")
def _to_bfloat16(x: np.float32) -> np.uint16:
    """Rounded to the nearest, ties to even."""
    bits = np.float32(x).view(np.int32)
    odd = np.int32(np.int32(bits >> 16) & 1)
    return np.uint16(np.int32(bits + _HALF_BELOW + odd) >> 16)


@numba.njit(inline="always", fastmath={"contract"})
def _exp(x: np.float32) -> np.float32:
    """e^x for x <= 0, to 3e-6: bfloat16 has 2e-3; never below 2^-126, the end of float32's normal range."""
    t = max(x * _LOG2_E, np.float32(-126))
    exponent = (t + _ROUND) - _ROUND
    r = t - exponent
    mantissa = _EXP2_5 * r + _EXP2_4
    mantissa = mantissa * r + _EXP2_3
    mantissa = mantissa * r + _EXP2_2
    mantissa = mantissa * r + _EXP2_1
    mantissa = mantissa * r + _ONE
    return mantissa * np.int32((np.int32(exponent) + 127) << 23).view(np.float32)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _selu(
    start: int,
    stop: int,
    convolved: NDArray[np.uint16],
    biases: NDArray[np.float32],
    kind: NDArray[np.int64],
    pivot: NDArray[np.float32],
    y_out: NDArray[np.uint16],
) -> NDArray[np.float64]:
    """Write y - pivot, y = SELU(convolved + bias), for the rows start to stop; return its sums and its square's.

    convolved, y_out: (B, F, T O), bfloat16; biases (4, T O); kind (F,): of the row; pivot (T O,); returned (2, T O).
    """
    sums = np.zeros((2, len(pivot)), np.float32)
    first, second = sums[0], sums[1]
    for f in range(start, stop):
        bias = biases[kind[f]]
        for n in range(len(convolved)):
            x_row, y_row = convolved[n, f], y_out[n, f]
            for i in range(len(pivot)):
                x = _from_bfloat16(x_row[i]) + bias[i]
                y = _SCALE * max(x, _ZERO) + _NEGATIVE * (_exp(min(x, _ZERO)) - _ONE)
                deviation = y - pivot[i]
                y_row[i] = _to_bfloat16(deviation)
                first[i] += deviation
                second[i] += deviation * deviation
    return sums.astype(np.float64)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _selu_gradient(
    start: int,
    stop: int,
    y: NDArray[np.uint16],
    y_gradient: NDArray[np.uint16],
    kind: NDArray[np.int64],
    pivot: NDArray[np.float32],
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    convolved_gradient_out: NDArray[np.uint16],
) -> NDArray[np.float32]:
    """Write the gradient of convolved for the rows start to stop, and return that of biases; of y it is
    y_gradient + a + b y.

    Here y stands for y - pivot. Shapes as in `_selu`; a, b: (T O,).
    """
    of_biases = np.zeros((4, len(a)), np.float32)
    for f in range(start, stop):
        of_bias = of_biases[kind[f]]
        for n in range(len(y)):
            y_row, g_row, out_row = y[n, f], y_gradient[n, f], convolved_gradient_out[n, f]
            for i in range(len(a)):
                value = _from_bfloat16(y_row[i])
                selu = value + pivot[i]
                slope = _SCALE if selu > _ZERO else selu + _NEGATIVE
                gradient = (_from_bfloat16(g_row[i]) + a[i] + b[i] * value) * slope
                out_row[i] = _to_bfloat16(gradient)
                of_bias[i] += gradient
    return of_biases


def published_config(state: dict[str, Tensor]) -> Config:
    """The config of the model whose released state dict this is; ValueError if it isn't one."""
    encoder = _published_encoder(state)
    decoder = state.get("up_conv3_pitch.1.weight")
    if not encoder or decoder is None or decoder.dim() != 4:
        raise ValueError(
            "not the released weights of DenseASPP: no convolutions conv_d_<dilation>.1.weight and "
            f"up_conv3_pitch.1.weight among the keys {sorted(state)}"
        )
    growth = state[encoder[0] + ".1.weight"].shape[0]
    copies = (decoder.shape[1] - 3 - growth * len(encoder)) // 3
    dilations = tuple(int(name.removeprefix("conv_d_")) for name in encoder)
    return Config(growth=growth, skip_copies=max(0, copies), dilations=dilations)


def rename_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' released state dict as one of the model that `published_config(state)` builds.

    ValueError if a key is missing or unknown, or a tensor has another shape than that model's.
    """
    config = published_config(state)
    with torch.device("meta"):
        ours = DenseAspp(config).state_dict()
    names = {f"encoder.{i}": name for i, name in enumerate(_published_encoder(state))}
    names |= {"decoder": "up_conv3_pitch", "refine": "up_conv2_pitch"}
    names |= {"pitch": "up_conv1_pitch", "no_melody": "bottom_pitch"}
    sizes = f"growth {config.growth}, skip_copies {config.skip_copies}, dilations {list(config.dilations)}"
    return renamed(state, ours, names, f"DenseASPP with {sizes}")


def _published_encoder(state: dict[str, Tensor]) -> list[str]:
    """The names of the encoder's layers, in the order of the widths of their inputs."""
    layers = [key.removesuffix(".1.weight") for key in state if re.fullmatch(r"conv_d_\d+\.1\.weight", key)]
    return sorted(layers, key=lambda layer: state[layer + ".1.weight"].shape[1])
