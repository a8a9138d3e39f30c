"""Any classifier of the library torchvision (https://github.com/pytorch/vision), with a head of one's own.

    model: {name: torchvision/vit_b_16, pretrained: true, head: {kind: keep_imagenet}}

The backbone is the library's model without its last linear layer; what stands before that, dropout included, is as the
library has it. ViT and MaxViT are made for the run's image size. torchvision.models.list_models() names the
architectures; `pretrained: true` takes the weights that the library calls DEFAULT. All of them want
`task.normalize: imagenet`; GoogLeNet and Inception turn it into the scale [-1, 1] they were trained on by themselves,
with weights and without, and have no auxiliary classifiers here.
"""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from mmray.models import _pretrained
from mmray.models._vision import Classifier, Dropout, Head, check_sizes, unknown_architecture
from mmray.models._vision import Config as VisionConfig

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_WITH_AUXILIARY = ("googlenet", "inception_v3")
# DenseNets were saved under names that Python once allowed: norm.1 for norm1.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class Config(VisionConfig):
    """Which architecture, which weights, which head."""

    name: Literal["torchvision"] = "torchvision"
    architecture: str = "resnet18"
    drop_rate: Dropout | None = Field(None, description="the architecture's dropout; default: its own")
    drop_path_rate: Dropout | None = Field(None, description="stochastic depth; default: the architecture's own")
    head: Head = Head()

    @field_validator("architecture")
    @classmethod
    def _known(cls, architecture: str) -> str:
        from torchvision import models

        names = models.list_models(module=models)
        if architecture not in names:
            raise unknown_architecture("torchvision", architecture, names, "torchvision.models.list_models()")
        return architecture

    def build(self, image_size: tuple[int, int], num_classes: int) -> Classifier:
        """The model for images of `image_size` (height, width) and `num_classes` (K) classes."""
        check_sizes(image_size, num_classes)
        weights = _pretrained.of_torchvision(self.pretrained, self.architecture)
        library = self._create(image_size)
        name, layer = _classifier(library)
        ours = {key: tensor for key, tensor in library.state_dict().items() if key.startswith(f"{name}.")}
        found: dict[str, Tensor] = {}
        if weights is not None:
            state = _of_today(weights.backbone, library)
            theirs = {key: state[key] for key in ours if key in state}
            found = weights.head or (_pretrained.as_head(theirs) if isinstance(layer, nn.Linear) else {})
            _pretrained.load_backbone(library, _pretrained.with_classifier(state, ours), weights.source)
        if isinstance(layer, nn.Linear):
            library.set_submodule(name, nn.Identity())
            head = self.head.build(layer.in_features, num_classes, layer.out_features, layer.bias is not None)
        else:  # a ReLU comes after this convolution: no linear layer could take its weights
            library.classifier = nn.Sequential(library.classifier[0], nn.AdaptiveAvgPool2d(1))  # type: ignore[index,arg-type]
            head = self.head.build(layer.in_channels, num_classes)
        model = Classifier(library, head, image_size)
        if weights is not None:
            _pretrained.load_head(model, found, weights.source)
        return model

    def _create(self, image_size: tuple[int, int]) -> nn.Module:
        """The library's model for images of this size; ValueError where it can't be made as set."""
        chosen = {
            "drop_rate" if self.architecture.startswith("densenet") else "dropout": self.drop_rate,
            "stochastic_depth_prob": self.drop_path_rate,
        }
        chosen = {key: value for key, value in chosen.items() if value is not None}
        where = f"torchvision/{self.architecture}"
        try:
            library = _made(self.architecture, chosen | self._fixed(image_size))
        except (TypeError, AssertionError, ValueError) as error:
            raise ValueError(f"{where} can't be made for {image_size} pixels with {chosen}: {error}") from None
        known = inspect.signature(type(library).__init__).parameters
        if unknown := [key for key in chosen if key not in known]:  # some architectures pass over what they don't know
            raise ValueError(f"{where} has no {' and no '.join(unknown)}; leave out model.drop_rate or drop_path_rate")
        return library

    def _fixed(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """What the architecture must be told beside what the run file says."""
        if self.architecture.startswith("vit_"):
            if image_size[0] != image_size[1]:
                raise ValueError(f"it takes square images; timm/vit_base_patch16_224 and the like take {image_size}")
            return {"image_size": image_size[0]}
        if self.architecture.startswith("maxvit_"):
            return {"input_size": image_size}
        if self.architecture in _WITH_AUXILIARY:
            return {"aux_logits": False, "init_weights": True, "transform_input": True}
        return {}


def _made(architecture: str, settings: dict[str, Any]) -> nn.Module:
    from torchvision import models

    try:
        return models.get_model(architecture, weights=None, **settings)  # type: ignore[no-any-return]
    except NotImplementedError:  # RegNets compute their sizes with tensors: not on the meta device
        if not _pretrained.on_meta():
            raise
    with torch.device("cpu"):
        return models.get_model(architecture, weights=None, **settings).to("meta")  # type: ignore[no-any-return]


def _classifier(library: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and layer that give the logits: the last linear layer, or SqueezeNet's convolution."""
    linear = [(name, layer) for name, layer in library.named_modules() if isinstance(layer, nn.Linear)]
    if linear:
        return linear[-1]
    convolution: nn.Conv2d = library.classifier[1]  # type: ignore[index,assignment]
    return "classifier.1", convolution


def _of_today(state: Mapping[str, Tensor], library: nn.Module) -> dict[str, Tensor]:
    """A saved state by today's names: without auxiliary classifiers, a ViT's positions as `library` has them."""
    from torchvision.models import VisionTransformer
    from torchvision.models.vision_transformer import interpolate_embeddings

    ours = library.state_dict()
    today = OrderedDict(
        (_OLD_DENSENET.sub(r"\1\2", name), tensor)
        for name, tensor in state.items()
        if name in ours or not name.startswith(_AUXILIARY)
    )
    if hasattr(state, "_metadata"):
        today._metadata = state._metadata  # type: ignore[attr-defined]
    positions = today.get("encoder.pos_embedding")
    if isinstance(library, VisionTransformer) and positions is not None:
        today = interpolate_embeddings(library.image_size, library.patch_size, today)
    return today
