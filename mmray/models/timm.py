"""Any classifier of the library timm (https://github.com/huggingface/pytorch-image-models), with a head of one's own.

    model: {name: timm/efficientnet_b2, pretrained: true, head: {kind: dropout_linear, dropout: 0.3}}

The backbone is the library's model without its classifier: pooling, and whatever else stands before the last linear
layer, is as the library has it. Architectures that are made for one size of images (ViT, Swin) are made for the run's.
timm.list_models() names the architectures; `timm/<name>.<tag>` chooses among several weights of one. Most want
`task.normalize: imagenet`; a few of the weights were trained on other scales (their `mean` and `std` in
timm.get_pretrained_cfg(name)), which fine-tuning makes up for.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from mmray.models import _pretrained
from mmray.models._vision import Classifier, Dropout, Head, check_sizes, probe, unknown_architecture
from mmray.models._vision import Config as VisionConfig


class Config(VisionConfig):
    """Which architecture, which weights, which head."""

    name: Literal["timm"] = "timm"
    architecture: str = "resnet18"
    drop_rate: Dropout | None = Field(None, description="dropout before the head; default: the architecture's own")
    drop_path_rate: Dropout | None = Field(None, description="stochastic depth; default: the architecture's own")
    head: Head = Head()

    @field_validator("architecture")
    @classmethod
    def _known(cls, architecture: str) -> str:
        import timm

        base, dot, tag = architecture.partition(".")
        if not timm.is_model(base):
            raise unknown_architecture("timm", base, timm.list_models(), "timm.list_models()")
        tags = [name.partition(".")[2] for name in timm.list_models(f"{base}.*", pretrained=True)]
        if dot and tag not in tags:
            raise ValueError(f"timm has no weights {tag!r} of {base}; choose from {', '.join(tags) or 'none'}")
        return architecture

    def build(self, image_size: tuple[int, int], num_classes: int) -> Classifier:
        """The model for images of `image_size` (height, width) and `num_classes` (K) classes."""
        check_sizes(image_size, num_classes)
        where, from_hub = f"timm/{self.architecture}", _pretrained.from_hub(self.pretrained)
        if self._made_for_another(image_size):  # not all of them work in every size; on the meta device it costs little
            with torch.device("meta"):
                probe(self._create(image_size), image_size)
        weights = _pretrained.given(self.pretrained)
        if weights is None:
            with _pretrained.hub(from_hub, where):
                library = self._create(image_size, pretrained=from_hub)
            found = own = _pretrained.as_head(_taken_off(library))
        else:
            library, found, own = self._from_file(image_size, weights)
        head = self.head.build(
            library.head_hidden_size,  # type: ignore[arg-type]
            num_classes,
            imagenet_classes=len(own["classifier.weight"]) if own else None,
            bias="classifier.bias" in own or not own,
        )
        model = Classifier(library, head, image_size)
        if weights is not None or from_hub:
            _pretrained.load_head(model, found, weights.source if weights else where)
        return model

    def _from_file(
        self, image_size: tuple[int, int], weights: _pretrained.Weights
    ) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
        """The library's model without its classifier; the head in the file; and the classifier as a head.

        The library fits the weights itself: it knows older names of layers, and position embeddings of another size.
        """
        num_classes = self._native_classes() or 1000
        with torch.device("meta"):
            ours = _taken_off(self._create(image_size, num_classes=num_classes))
        state = _pretrained.with_classifier(weights.backbone, ours)
        with _pretrained.misfits_named(weights.source):
            try:
                library = self._create(
                    image_size,
                    num_classes=num_classes,
                    pretrained=True,
                    pretrained_cfg_overlay={"state_dict": state, "num_classes": num_classes, "label_offset": 0},
                )
            except (KeyError, AttributeError, IndexError) as error:  # of the library's filters, which look for layers
                raise ValueError(f"{weights.source}: weights of another model: timm fails with {error!r}") from None
        library.pretrained_cfg.pop("state_dict", None)  # type: ignore[operator,union-attr]
        _taken_off(library)
        theirs = {name: weights.backbone[name] for name in ours if name in weights.backbone}
        return library, weights.head or _pretrained.as_head(theirs), _pretrained.as_head(ours)

    def _native_classes(self) -> int:
        import timm

        known = timm.get_pretrained_cfg(self.architecture)
        return known.num_classes if known else 1000

    def _made_for_another(self, image_size: tuple[int, int]) -> bool:
        """Whether the architecture is made for one size, which by default is another."""
        import timm

        known = timm.get_pretrained_cfg(self.architecture)
        return known is not None and known.fixed_input_size and image_size != tuple(known.input_size[1:])

    def _create(self, image_size: tuple[int, int], **settings: Any) -> nn.Module:
        """The library's model for images of this size; ValueError where it can't be made as set."""
        import timm

        chosen: dict[str, Any] = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}
        if self._made_for_another(image_size):
            chosen["img_size"] = image_size
        chosen = {key: value for key, value in chosen.items() if value is not None}
        where = f"timm/{self.architecture}"
        try:
            model: nn.Module = timm.create_model(self.architecture, **chosen, **settings)
        except (TypeError, AssertionError) as error:
            wanted = ", ".join(f"{key}={value}" for key, value in chosen.items())
            raise ValueError(f"{where} can't be made with {wanted or 'its own settings'}: {error}") from None
        if not hasattr(model, "reset_classifier"):
            raise ValueError(f"{where} is no classifier, but an encoder for other models; choose another")
        return model


def _taken_off(library: nn.Module) -> dict[str, Tensor]:
    """Take a model's classifier off, which leaves what it read; return its tensors by the library's names."""
    before = library.state_dict()
    library.reset_classifier(0)  # type: ignore[operator]
    after = library.state_dict()
    return {name: tensor for name, tensor in before.items() if name not in after}
