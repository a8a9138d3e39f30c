"""Breeds of pets from scratch: three convolutions and two dense layers.

A Keras exercise in print, with convolutions of 32, 64 and 128 channels as those of `pets_cnn`, a dense layer of 512,
and dropout of 0.3 behind all convolutions but the first and of 0.4 before the last layer. 19,052,645 parameters at
150 x 150 pixels and 37 classes. Pixels from 0 to 1: `task.normalize: none`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from mmray.models import _pretrained
from mmray.models._vision import Classifier, Dropout, as_keras, check_sizes, convolutions
from mmray.models._vision import Config as VisionConfig


class Config(VisionConfig):
    """Hyper-parameters; the published ones by default."""

    name: Literal["pets_cnn_multiclass"] = "pets_cnn_multiclass"
    channels: tuple[PositiveInt, ...] = Field((32, 64, 128), min_length=1, description="of the convolutions, in order")
    conv_dropout: Dropout = Field(0.3, description="behind every convolution but the first")
    hidden: PositiveInt = 512
    dropout: Dropout = Field(0.4, description="of what the last layer reads")

    def build(self, image_size: tuple[int, int], num_classes: int) -> Classifier:
        """The model for images of `image_size` (height, width) and `num_classes` (K) classes."""
        check_sizes(image_size, num_classes)
        dropouts = [0.0, *[self.conv_dropout] * (len(self.channels) - 1)]
        backbone, size = convolutions(self.channels, dropouts, batch_norm=False, image_size=image_size)
        head = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                dense=nn.Linear(size, self.hidden),
                relu=nn.ReLU(),
                dropout=nn.Dropout(self.dropout),
                classifier=nn.Linear(self.hidden, num_classes),
            )
        )
        model = Classifier(backbone, head, image_size, f"backbone.relu{len(self.channels)}")
        as_keras(model)
        return _pretrained.load_whole(model, self.pretrained)
