"""NeXtVLAD: frames in low-dimensional groups, softly assigned to clusters; their residuals summed over the video.

R. Lin, J. Xiao, J. Fan, "NeXtVLAD: An Efficient Neural Network to Aggregate Frame-level Features for Large-scale Video
Classification" (ECCV workshop on YouTube-8M, 2018), with the batch norms of the authors' code. A frame x is expanded to
y of expansion * D numbers and cut into G groups y_g of F = expansion * D / G numbers each. With attention a_g =
sigmoid(u_g y) and assignment s_gk = softmax over k of batch norm(v_gk y), a video is, for K clusters with centres c_k,

    V_k = sum over frames and groups of a_g s_gk (y_g - c_k)

Each V_k is scaled to length 1; batch norm, dropout and a hidden layer with batch norm follow; the hidden units are
multiplied by gates in (0, 1) that see all of them (squeeze and excitation); a mixture of experts reads what is left.

The authors encode image and sound each by a NeXtVLAD of its own and give no other frames; here one encodes the whole
frame, whatever it is made of.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmray.features.quantization import dequantize
from mmray.models._frames import BatchNorm, FrameClassifier, FrameConfig, row_lengths


class Config(FrameConfig):
    """Hyper-parameters; see `FrameConfig` for those of every model of frames."""

    name: Literal["nextvlad"] = "nextvlad"
    expansion: PositiveInt = 2
    groups: PositiveInt = 8
    """G. They must divide expansion * D."""
    clusters: PositiveInt = 128
    """K."""
    vlad_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of the numbers that the hidden layer reads."""
    hidden_size: PositiveInt = 2048
    """E, units of the hidden layer."""
    gating_reduction: PositiveInt = 8
    """The gates are computed from so many times fewer units than there are."""

    def build(self, input_size: int, num_classes: int) -> FrameClassifier:
        """The model for frames of `input_size` (D) features and `num_classes` (C) labels.

        ValueError where the groups don't divide the expanded frame.
        """
        return self.classifier(Encoder(input_size, self), num_classes)


class Encoder(nn.Module):
    """(N, D) frames to the gated hidden layer (B, E). All frames are alike in rank; a row without any sums to zero."""

    def __init__(self, input_size: int, config: Config) -> None:
        super().__init__()
        expanded = config.expansion * input_size
        if expanded % config.groups:
            raise ValueError(
                f"model.groups={config.groups} does not divide the {expanded} numbers of an expanded frame "
                f"(model.expansion={config.expansion} times {input_size} features); choose groups that do"
            )
        self.input_size, self.output_size = input_size, config.hidden_size
        self.groups, self.clusters = config.groups, config.clusters
        group_size, gates = expanded // config.groups, max(1, config.hidden_size // config.gating_reduction)
        self.expand = nn.Linear(input_size, expanded)
        self.attention = nn.Linear(expanded, config.groups)
        self.assignment = nn.Linear(expanded, config.groups * config.clusters, bias=False)
        self.assignment_norm = BatchNorm(config.groups * config.clusters)
        self.centres = nn.Parameter(torch.empty(config.clusters, group_size))
        nn.init.normal_(self.centres, std=1 / math.sqrt(group_size))
        self.vlad_norm = BatchNorm(config.clusters * group_size)
        self.vlad_dropout = nn.Dropout(config.vlad_dropout)
        self.hidden = nn.Linear(config.clusters * group_size, config.hidden_size, bias=False)
        self.hidden_norm = BatchNorm(config.hidden_size)
        self.squeeze = nn.Linear(config.hidden_size, gates, bias=False)
        self.squeeze_norm = BatchNorm(gates)
        self.excite = nn.Linear(gates, config.hidden_size)

    def forward(self, frames: Tensor, offsets: Tensor) -> Tensor:
        """See the class."""
        vlad = F.normalize(self._residuals(dequantize(frames), row_lengths(offsets)), dim=2)
        hidden = self.hidden_norm(self.hidden(self.vlad_dropout(self.vlad_norm(vlad.flatten(1)))))
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze_norm(self.squeeze(hidden)))).float())
        gated: Tensor = hidden.float() * gates
        return gated

    def _residuals(self, x: Tensor, lengths: list[int]) -> Tensor:
        """V of each row: (B, K, F) float32 for features (N, D) of rows of so many frames."""
        expanded = self.expand(x)
        attention = torch.sigmoid(self.attention(expanded).float())
        assignment = self.assignment_norm(self.assignment(expanded)).float()
        weights = assignment.unflatten(1, (self.groups, self.clusters)).softmax(2) * attention.unsqueeze(2)
        parts = zip(
            weights.split(lengths), expanded.unflatten(1, (self.groups, -1)).split(lengths), strict=True
        )  # a product a row: batched ones would want rows padded to one length
        sums = torch.stack([w.flatten(0, 1).T @ y.flatten(0, 1) for w, y in parts]).float()
        totals = torch.stack([w.sum((0, 1)) for w in weights.split(lengths)])
        return sums - totals.unsqueeze(2) * self.centres
