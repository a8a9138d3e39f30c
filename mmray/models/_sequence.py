"""What the models of a sequence of features share: a row is as many frames as its length says, and no more.

Every model is the same chain: standardise each feature (`InputNorm`), relate frames to one another (the encoder, in
which alone models differ), summarise the frames that are left by mean and maximum, classify. Frames beyond a row's
length are 0 wherever a convolution could reach them, and count for nothing where frames are summed.

Inside, layer norm over the channels of each frame takes the place of batch norm: it knows neither padding nor the other
rows of a batch, so that how rows are shared out among workers doesn't matter, and needs no statistics to be right
before the first validation.

Shapes: B rows, T frames, D features, C channels, K classes. A sequence is (B, T, C) in memory as well: layer norm and
matrix products read it as it lies, and so do convolutions once they are told that it is an image of height 1 with
channels last, which on a CPU takes about half the time of `nn.Conv1d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available


class ConvConfig(BaseModel):
    """Hyper-parameters of `ConvStack`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "feature_sequence"

    name: str
    channels: tuple[PositiveInt, ...] = Field(default=(64, 64, 128), min_length=1)
    """Of the convolutions, in order."""
    kernel: PositiveInt = 5
    """Frames that a convolution sees at once; odd."""
    stride: PositiveInt = 2
    """Every convolution leaves one frame in so many."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Of whole channels behind each convolution, and of the numbers that the classifier reads."""

    @model_validator(mode="after")
    def _no_frame_is_skipped(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel} has no middle; use {self.kernel - 1} or {self.kernel + 1}")
        if self.stride > self.kernel:
            raise ValueError(f"stride={self.stride} skips frames: it must be at most kernel={self.kernel}")
        return self

    def convolutions(self, input_size: int) -> ConvStack:
        """The convolutions over `input_size` (D) features."""
        return ConvStack(input_size, self.channels, self.kernel, self.stride, self.dropout)


class RecurrentConfig(ConvConfig):
    """Hyper-parameters of convolutions and the recurrent layers behind them."""

    hidden_size: PositiveInt = 64
    """Numbers that a recurrent layer remembers, in each direction."""
    num_layers: PositiveInt = 1
    """Recurrent layers, one on another."""
    bidirectional: bool = True
    """Whether half of each layer reads from the end; without, a frame knows only those before it."""

    def recurrence(self, input_size: int, cell: type[nn.LSTM | nn.GRU]) -> nn.Module:
        """Convolutions over `input_size` (D) features, and recurrent layers over what they give."""
        front = self.convolutions(input_size)
        back = Recurrent(
            cell, front.output_size, self.hidden_size, self.num_layers, self.bidirectional, dropout=self.dropout
        )
        return Chain(front, back)


class SequenceClassifier(nn.Module):
    """Features in, logits out, through an encoder.

    The encoder maps (x (B, T, D), lengths (B,)) to (x (B, T', C), lengths), with 0 < T' <= T, and says C as
    `output_size`. embedding_size: E = 2 C.
    """

    def __init__(self, encoder: nn.Module, input_size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        if min(input_size, num_classes) < 1:
            raise ValueError(f"{input_size} features and {num_classes} classes: a classifier needs at least 1 of each")
        self.input_size = input_size
        self.embedding_size = 2 * int(encoder.output_size)  # type: ignore[arg-type]
        self.norm = InputNorm(input_size)
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.embedding_size, num_classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, K), float32, of features x (B, T, D) of which the first lengths (B,) frames of each row count.

        The softmax of the logits is the probability of each class. ValueError for other shapes, and for a length
        outside 1..T where lengths are on the CPU (elsewhere, looking would mean waiting for the device).
        """
        logits: Tensor = self.classifier(self.dropout(self.embed(x, lengths)))
        return logits.float()

    def embed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What the classifier reads, (B, E) float32: mean and maximum over time of each channel of the encoder."""
        self._require_fit(x, lengths)
        lengths = lengths.to(x.device)
        x, lengths = self.encoder(self.norm(x, lengths), lengths)
        x, beyond = x.float(), beyond_length(x, lengths)
        mean = x.masked_fill(beyond, 0).sum(1) / lengths.unsqueeze(1)
        return torch.cat([mean, x.masked_fill(beyond, -torch.inf).amax(1)], dim=1)

    def _require_fit(self, x: Tensor, lengths: Tensor) -> None:
        if x.dim() != 3 or x.shape[1] < 1 or x.shape[2] != self.input_size:
            raise ValueError(f"x has shape {tuple(x.shape)}; this model needs (B, T, {self.input_size}), T >= 1")
        if lengths.shape != x.shape[:1] or lengths.is_floating_point():
            raise ValueError(
                f"lengths is {tuple(lengths.shape)} {lengths.dtype}; x needs whole numbers, ({len(x)},) of them"
            )
        if lengths.device.type == "cpu" and ((lengths < 1) | (lengths > x.shape[1])).any():
            raise ValueError(f"lengths are {lengths.tolist()}; each must be from 1 to the {x.shape[1]} frames of x")


def beyond_length(x: Tensor, lengths: Tensor) -> Tensor:
    """Whether a frame of x (B, T, C) lies beyond the length of its row: (B, T, 1), bool."""
    return (torch.arange(x.shape[1], device=x.device) >= lengths.unsqueeze(1)).unsqueeze(2)


class InputNorm(nn.Module):
    """Batch norm of the features over all frames that count, without scale and shift.

    In training mode the mean and variance are those of the batch, in eval mode their averages over all batches so far.
    Unlike a hidden layer's, they don't drift as the weights do, and so all batches weigh the same.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, input_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(input_size))
        self.register_buffer("running_var", torch.ones(input_size))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), float32, with 0, the mean, beyond the length of each row, whatever x has there."""
        beyond = beyond_length(x, lengths)
        x = x.to(self.running_mean.dtype).masked_fill(beyond, 0)
        mean, var = self._measure(x, beyond, lengths.sum()) if self.training else (self.running_mean, self.running_var)
        return ((x - mean) * torch.rsqrt(var + self.eps)).masked_fill(beyond, 0)

    def _measure(self, x: Tensor, beyond: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.sum((0, 1)) / count
        var = (x - mean).masked_fill(beyond, 0).square().sum((0, 1)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            weight = 1 / self.num_batches_tracked
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)), weight)
        return mean, var


class ConvStack(nn.Module):
    """Convolutions along time, each followed by layer norm over channels, ReLU and dropout of channels.

    All features are channels of the first: neighbours among cepstral coefficients are no more alike than others, so
    there is nothing to convolve along that axis.
    """

    def __init__(self, input_size: int, channels: Sequence[int], kernel: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.output_size, self.stride = channels[-1], stride
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, (1, kernel), (1, stride), (0, kernel // 2))
            for i, o in zip((input_size, *channels[:-1]), channels, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)
        self.dropout = nn.Dropout1d(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T', C) of x (B, T, D), which is 0 beyond lengths, as the result is; a convolution leaves ceil(T / s)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x.mT.unsqueeze(2)).squeeze(2).mT
            lengths = (lengths - 1) // self.stride + 1
            x = self.dropout(F.relu(norm(x)).mT).mT
            x = x * (~beyond_length(x, lengths)).to(x.dtype)  # finite: a product, half the cost of filling
        return x, lengths


class Recurrent(nn.Module):
    """Recurrent layers along time, each in one direction or in both.

    The direction from the end is a recurrent layer like the other, over rows that are turned round within their length.
    So padding, which comes last for both, is never remembered, and no sequence need be packed: packed ones took a CPU
    two (GRU) to five (LSTM) times as long to train on. The recurrence is float32 under autocast too, for it adds up
    over all frames.
    """

    def __init__(
        self,
        cell: type[nn.LSTM | nn.GRU],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        num_directions = 2 if bidirectional else 1
        self.output_size = num_directions * hidden_size
        sizes = (input_size, *[self.output_size] * (num_layers - 1))
        self.forwards = nn.ModuleList(cell(size, hidden_size, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(
            cell(size, hidden_size, batch_first=True) for size in (sizes if bidirectional else ())
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) of x (B, T, D), with anything beyond lengths, and the lengths."""
        num_frames = x.shape[1]
        # A permutation that is its own inverse: L-1 ... 0 for the L frames of a row, T-1 ... L for the rest.
        turned = (lengths.unsqueeze(1) - 1 - torch.arange(num_frames, device=x.device)) % num_frames
        rows = torch.arange(len(x), device=x.device).unsqueeze(1)
        with autocast_off(x.device.type):
            x = x.float()
            for number, forwards in enumerate(self.forwards):
                if number:
                    x = self.dropout(x)
                outputs = [forwards(x)[0]]
                if self.backwards:
                    outputs.append(self.backwards[number](x[rows, turned])[0][rows, turned])
                x = torch.cat(outputs, dim=2)
        return x, lengths


class Chain(nn.Module):
    """Two encoders, one behind the other."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.output_size = second.output_size

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As every encoder."""
        out: tuple[Tensor, Tensor] = self.second(*self.first(x, lengths))
        return out


def autocast_off(device_type: str) -> AbstractContextManager[object]:
    """A context in which operations keep the type of their inputs."""
    if not is_autocast_available(device_type):  # meta, for one
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
