"""Cat or dog: three convolutions and two dense layers, ending in one sigmoid unit.

A Keras exercise in print; layer by layer 448, 4,640, 18,496, 9,470,464 and 513 parameters at 150 x 150 pixels,
9,494,561 in all. The published run has neither dropout nor batch norm; an L2 penalty is a matter of `train.penalties`.
The unit's output z is given as the two logits (0, z): their softmax is (1 - sigmoid(z), sigmoid(z)), and their
cross-entropy the binary one. Pixels from 0 to 1: `task.normalize: none`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from mmray.models import _pretrained
from mmray.models._vision import Classifier, Dropout, TwoLogits, as_keras, check_sizes, convolutions
from mmray.models._vision import Config as VisionConfig


class Config(VisionConfig):
    """Hyper-parameters; the published ones by default."""

    name: Literal["pets_cnn"] = "pets_cnn"
    channels: tuple[PositiveInt, ...] = Field((16, 32, 64), min_length=1, description="of the convolutions, in order")
    hidden: PositiveInt = 512
    dropout: Dropout = Field(0.0, description="of what each of the two dense layers reads")
    batch_norm: bool = Field(False, description="before every ReLU")

    def build(self, image_size: tuple[int, int], num_classes: int) -> Classifier:
        """The model for images of `image_size` (height, width). ValueError unless there are two classes."""
        check_sizes(image_size, num_classes)
        if num_classes != 2:
            raise ValueError(f"model.name=pets_cnn tells 2 classes apart, not {num_classes}; use pets_cnn_multiclass")
        backbone, size = convolutions(self.channels, [0.0] * len(self.channels), self.batch_norm, image_size)
        head: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        if self.dropout:
            head["dropout1"] = nn.Dropout(self.dropout)
        head["dense"] = nn.Linear(size, self.hidden)
        if self.batch_norm:
            head["norm"] = nn.BatchNorm1d(self.hidden)
        head["relu"] = nn.ReLU()
        if self.dropout:
            head["dropout2"] = nn.Dropout(self.dropout)
        head["classifier"] = TwoLogits(self.hidden)
        model = Classifier(backbone, nn.Sequential(head), image_size, f"backbone.relu{len(self.channels)}")
        as_keras(model)
        return _pretrained.load_whole(model, self.pretrained)
