"""The residual network of 32 layers that its authors made for CIFAR-10.

He et al., "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2: 6 n + 2 layers with n = 5, of
16, 32 and 64 channels. Shortcuts have no parameters (their option A): where the map shrinks they take every other point
and fill the new channels with zeros. 464,154 parameters at 10 classes, which the paper calls 0.46 M; projections
(option B) would have 466,906. The mean over the map, whatever its size, is what the head reads: images may be of any
size. Nothing shrinks before the second stage, so one of 224 x 224 costs 3.4 G multiplications, twice those of ResNet18.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mmray.models import _pretrained
from mmray.models._vision import Classifier, Head, check_sizes
from mmray.models._vision import Config as VisionConfig

CHANNELS = (16, 32, 64)
BLOCKS_A_STAGE = 5


class Config(VisionConfig):
    """Nothing to set but the head, and weights of mmray's own."""

    name: Literal["resnet32_cifar"] = "resnet32_cifar"
    head: Head = Head()

    def build(self, image_size: tuple[int, int], num_classes: int) -> Classifier:
        """The model for `num_classes` (K) classes; `image_size` does not matter to it."""
        check_sizes(image_size, num_classes)
        backbone = resnet()
        model = Classifier(backbone, self.head.build(CHANNELS[-1], num_classes), image_size, "backbone.stage3")
        return _pretrained.load_whole(model, self.pretrained)


def resnet() -> nn.Sequential:
    """The convolutional part: images (B, 3, H, W) to features (B, 64). Weights as the authors draw them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = CHANNELS[0]
    layers["conv"] = nn.Conv2d(3, last, 3, padding=1, bias=False)
    layers["norm"], layers["relu"] = nn.BatchNorm2d(last), nn.ReLU()
    for number, channels in enumerate(CHANNELS, start=1):
        sizes = [last, *[channels] * BLOCKS_A_STAGE]
        layers[f"stage{number}"] = nn.Sequential(*map(Block, sizes[:-1], sizes[1:]))
        last = channels
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    backbone = nn.Sequential(layers)
    for part in backbone.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return backbone


class Block(nn.Module):
    """Two convolutions and the input added to what they give; at half the resolution where channels are added."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.stride, self.added = 1 if channels_in == channels_out else 2, channels_out - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_out, h, w) of x (B, channels_in, H, W)."""
        shortcut = x
        if self.added:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added // 2))
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + shortcut)
