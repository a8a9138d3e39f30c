"""Preparation's resizing as arithmetic on tensors, for exported models: any size in, no choice left to a runtime.

An antialiased resize is two products with a matrix: one over the columns of an image, one over its rows. The matrices
are computed from the image's size within the graph, so that every runtime weighs the same pixels alike. As torchvision
does on 8 bits, both passes are rounded; its weights there have 16 bits, so that a pixel may differ by a level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmray.features.images import Settings


def resize(images: Tensor, settings: Settings) -> Tensor:
    """uint8 (B, H, W, 3) as `features.images.resize` makes of each: whole numbers 0 to 255, float32 (B, 3, *size)."""
    height, width = settings.size
    rows, columns = (torch.scalar_tensor(side, dtype=torch.float64) for side in images.shape[1:3])
    cut_rows, cut_columns, inner_height, inner_width = rows, columns, torch.tensor(height), torch.tensor(width)
    if settings.resize == "crop":
        cut_rows = (columns * height / width).round().clamp(min=1).minimum(rows)
        cut_columns = (rows * width / height).round().clamp(min=1).minimum(columns)
    elif settings.resize == "pad":
        scale = (height / rows).minimum(width / columns)
        inner_height, inner_width = ((scale * side).round().clamp(min=1) for side in (rows, columns))
    x = images.permute(0, 3, 1, 2).float()
    bicubic = settings.interpolation == "bicubic"
    across = _weights(images.shape[2], columns, cut_columns, width, inner_width, bicubic)
    down = _weights(images.shape[1], rows, cut_rows, height, inner_height, bicubic)
    return _levels(down @ _levels(x @ across.T))


def _levels(x: Tensor) -> Tensor:
    return (x + 0.5).floor().clamp(0, 255)


def _weights(num: int, size: Tensor, cut: Tensor, num_out: int, inner: Tensor, bicubic: bool) -> Tensor:
    """Weights (num_out, num) of `num` pixels in each of `num_out`.

    The middle `cut` pixels fill the middle `inner` ones; the others stay black. `size` is `num` as a tensor.
    """
    start, first = ((size - cut) / 2).floor(), ((num_out - inner) / 2).floor()
    scale = cut / inner
    stretch = scale.clamp(min=1)  # antialiasing: where pixels are merged, the kernel grows with them
    out = torch.arange(num_out, dtype=torch.float64)[:, None] - first
    place = torch.arange(num, dtype=torch.float64)[None, :] - start
    distance = ((place + 0.5) - (out + 0.5) * scale).abs() / stretch
    weights = _keys(distance) if bicubic else (1 - distance).clamp(min=0)
    weights = torch.where((place >= 0) & (place < cut), weights, 0)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.where((out >= 0) & (out < inner), weights, 0).float()


def _keys(distance: Tensor) -> Tensor:
    """The cubic kernel of R. Keys (1981) with a = -1/2, of distances of 0 or more."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
