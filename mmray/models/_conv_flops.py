"""What the convolutions of a model of a pitch map cost, counted without computing anything.

One multiplication and its addition are two operations. Counted is what `forward` does for one map; elementwise work
isn't. `dense_aspp` does less than its layers say, for it adds up the weights of the copies of its input.

For 256 bins x 256 frames, in units of 1e9, beside table IV of Gao et al. (2019), which doesn't say what it counts:

| | multiply-adds, by the layers | operations, as computed | printed |
|---|---|---|---|
| DenseASPP, growth 10, 8 copies | 4.85 | 7.89 | 5.48 |
| DenseASPP, growth 20, 1 copy | 7.80 | 15.38 | 8.79 |
| SegNet | 3.57 | 7.13 | 18.76 |

The printed numbers are 1.13 times the multiply-adds of both DenseASPPs. For SegNet 18.67 is what the multiply-adds
would be if all of its decoder ran at 256 bins, not the first two layers at 16 and 64.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(module: nn.Module, num_bins: int, num_frames: int) -> int:
    """Operations (two a multiply-add) of the convolutions for one map (1, 3, num_bins, num_frames), in eval mode."""
    model = copy.deepcopy(module).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, num_bins, num_frames, device="meta"))
    return int(counter.get_flop_counts()["Global"][torch.ops.aten.convolution])
