"""Inception v3, cut after one of its blocks, with a dense layer over the whole feature map: transfer to 37 breeds.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (arXiv:1512.00567), as torchvision has it,
without the auxiliary classifier. `cut: Mixed_6e`, which Keras calls mixed7, leaves 768 x 7 x 7 of 150 x 150 pixels.

Give it images normalised as ImageNet's (`task.normalize: imagenet`). The weights were trained on pixels from -1 to 1,
and the first layer here turns the one scale into the other, as torchvision's model does with its weights.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from mmray import lookup
from mmray.models import _pretrained
from mmray.models._vision import Classifier, Dropout, as_keras, check_sizes, probe
from mmray.models._vision import Config as VisionConfig

STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")
# torchvision's blocks in order, each with Keras's name for it.
BLOCKS = {
    "Mixed_5b": "mixed0", "Mixed_5c": "mixed1", "Mixed_5d": "mixed2",
    "Mixed_6a": "mixed3", "Mixed_6b": "mixed4", "Mixed_6c": "mixed5", "Mixed_6d": "mixed6", "Mixed_6e": "mixed7",
    "Mixed_7a": "mixed8", "Mixed_7b": "mixed9", "Mixed_7c": "mixed10",
}  # fmt: skip
LAYERS = (*STEM, *BLOCKS)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels


class Config(VisionConfig):
    """Where to cut, which weights, and the head."""

    name: Literal["inception_v3"] = "inception_v3"
    cut: str = Field("Mixed_6e", description="the last layer kept, by torchvision's name or Keras's (mixed7)")
    hidden: PositiveInt = Field(1024, description="of the dense layer over the feature map, head.dense")
    dropout: Dropout = Field(0.7, description="of what the last layer reads")

    @field_validator("cut")
    @classmethod
    def _a_layer(cls, cut: str) -> str:
        ours = {theirs: ours for ours, theirs in BLOCKS.items()}.get(cut, cut)
        if ours not in LAYERS:
            raise ValueError(f"{cut!r} is no layer of inception_v3; {lookup.suggest(cut, list(LAYERS))}")
        return ours

    def build(self, image_size: tuple[int, int], num_classes: int) -> Classifier:
        """The model for images of `image_size` (height, width), of 75 x 75 or more, and `num_classes` (K) classes."""
        check_sizes(image_size, num_classes)
        weights = _pretrained.of_torchvision(self.pretrained, "inception_v3")
        backbone = inception(self.cut)
        if weights is not None:
            _pretrained.load_backbone(backbone, self._up_to_cut(weights.backbone), weights.source)
        head = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                dense=nn.Linear(probe(backbone, image_size).numel(), self.hidden),
                relu=nn.ReLU(),
                norm=nn.BatchNorm1d(self.hidden),
                dropout=nn.Dropout(self.dropout),
                classifier=nn.Linear(self.hidden, num_classes),
            )
        )
        as_keras(head)
        model = Classifier(backbone, head, image_size, f"backbone.{self.cut}")
        if weights is not None:
            _pretrained.load_head(model, weights.head, weights.source)
        return model

    def _up_to_cut(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the layers that torchvision has behind the cut, and without its classifiers."""
        behind = (*LAYERS[LAYERS.index(self.cut) + 1 :], "fc", "AuxLogits")
        return {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in behind}


def inception(cut: str) -> nn.Sequential:
    """torchvision's layers from the first to the one called `cut`, by their names, behind the change of scale."""
    from torchvision.models import Inception3

    library = Inception3(aux_logits=False, init_weights=True)
    kept = LAYERS[: LAYERS.index(cut) + 1]
    return nn.Sequential(OrderedDict(rescale=Rescale(), **{name: library.get_submodule(name) for name in kept}))


class Rescale(nn.Module):
    """From pixels normalised by ImageNet's mean and deviation to pixels from -1 to 1."""

    scale: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([2 * std for std in _STD]).view(3, 1, 1), persistent=False)
        self.register_buffer("offset", torch.tensor([2 * mean - 1 for mean in _MEAN]).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) of x (B, 3, H, W)."""
        return x * self.scale + self.offset
