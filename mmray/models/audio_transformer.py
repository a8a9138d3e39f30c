"""A small transformer over a sequence of audio features.

Patches of consecutive frames are its tokens (256 ms at 8 frames and a hop of 32 ms); positions are sinusoids and so
extend to any length (Vaswani et al., "Attention Is All You Need", 2017); layers normalise what they read, not what
they write, which trains without warm-up (Xiong et al., "On Layer Normalization in the Transformer Architecture",
2020). At 27 features (20 MFCC, 7 of spectral contrast) and 3 classes: 245,955 parameters.

Shapes: B rows, T frames, D features, N tokens, W numbers a token, H heads.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

from mmray.models._sequence import SequenceClassifier, autocast_off, beyond_length


class Config(BaseModel):
    """Hyper-parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "feature_sequence"

    name: Literal["audio_transformer"] = "audio_transformer"
    patch_frames: PositiveInt = 8
    """Frames that make one token."""
    width: PositiveInt = 96
    """Numbers a token; even, and a multiple of `num_heads`."""
    num_layers: PositiveInt = 3
    num_heads: PositiveInt = 4
    feedforward: PositiveInt = 192
    """Hidden units of each layer's network over single tokens."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Of the tokens, of what each half of a layer adds to them, and of the numbers that the classifier reads."""

    @model_validator(mode="after")
    def _width_divides(self) -> Self:
        if self.width % 2 or self.width % self.num_heads:
            step = math.lcm(2, self.num_heads)
            below = self.width // step * step
            choices = f"{below} or {below + step}" if below else f"{step}"
            raise ValueError(f"width={self.width} must be even and a multiple of num_heads={self.num_heads}: {choices}")
        return self

    def build(self, input_size: int, num_classes: int) -> SequenceClassifier:
        """The model for `input_size` (D) features a frame and `num_classes` (K) classes."""
        return SequenceClassifier(Transformer(input_size, self), input_size, num_classes, self.dropout)


class Transformer(nn.Module):
    """Tokens, layers, and a last layer norm; see `Config` for the sizes."""

    def __init__(self, input_size: int, config: Config) -> None:
        super().__init__()
        self.patch_frames, self.output_size = config.patch_frames, config.width
        self.tokens = nn.Linear(config.patch_frames * input_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            _Layer(config.width, config.num_heads, config.feedforward, config.dropout) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, W) of x (B, T, D), which is 0 beyond lengths; N = ceil(T / patch_frames)."""
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.patch_frames))
        x = x.reshape(len(x), -1, self.patch_frames * x.shape[2])
        lengths = (lengths - 1) // self.patch_frames + 1
        attended = ~beyond_length(x, lengths).mT.unsqueeze(1)  # (B, 1, 1, N): the same for all heads and tokens
        x = self.tokens(x).float()
        x = self.dropout(x + sinusoids(x.shape[1], x.shape[2], x.device))
        for layer in self.layers:
            x = layer(x, attended)
        return self.norm(x), lengths


class _Layer(nn.Module):
    """Attention among tokens, then a network over each; both add to what they read."""

    def __init__(self, width: int, num_heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feedforward = nn.Sequential(nn.Linear(width, feedforward), nn.GELU(), nn.Linear(feedforward, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """(B, N, W) of x (B, N, W), float32; no token heeds those not `attended` (B, 1, 1, N)."""
        heads = self.queries_keys_values(self.attention_norm(x)).view(*x.shape[:2], 3, self.num_heads, -1)
        # Float32 under autocast too: there is a softmax inside, and its bfloat16 gradient takes a CPU 6 times as long.
        with autocast_off(x.device.type):
            queries, keys, values = heads.float().permute(2, 0, 3, 1, 4)  # each (B, H, N, W / H)
            heeded = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attended)
        x = x + self.dropout(self.attention_out(heeded.transpose(1, 2).flatten(2)))
        added: Tensor = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return added


def sinusoids(num_tokens: int, width: int, device: torch.device) -> Tensor:
    """Positions (N, W): sines and cosines of n w, at W / 2 angular frequencies w from 1 down towards 1 / 10,000."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000) / width))
    angles = torch.outer(torch.arange(num_tokens, device=device), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
