"""What the models of images share: a backbone, a head, and how a run file asks for them.

Every model here is `Classifier`: its backbone turns images into features, or into a feature map, and its head, layer
after layer, turns these into logits. So all parameters of the backbone are called `backbone.*` and all of the head
`head.*`, in every architecture; the last layer of the head is `head.classifier`.

Shapes: B images of H x W pixels, K classes, E numbers that describe an image.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from torch import Tensor, nn

from mmray.config import Section

Dropout = Annotated[float, Field(ge=0, lt=1)]


def _read_switch(value: object) -> object:
    """What the command line says as text."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


class Config(Section):
    """What the run file says of every model of images."""

    takes: ClassVar[str] = "image"

    name: str
    pretrained: Annotated[bool | str, BeforeValidator(_read_switch)] = Field(
        False, description="true: the library's own weights, from its hub; or a file of weights, or an mmray checkpoint"
    )


HeadKind = Literal["linear", "dropout_linear", "mlp", "keep_imagenet"]


class Head(Section):
    """What stands between the features and the logits.

    - `linear`: one linear layer;
    - `dropout_linear`: dropout before it;
    - `mlp`: a linear layer, ReLU and dropout for each of `hidden`, then the linear layer;
    - `keep_imagenet`: the classifier that the architecture has for ImageNet (1,000 classes of the usual weights), then
      dropout, then a linear layer and ReLU for each of `hidden`, then the linear layer.
    """

    kind: HeadKind = "linear"
    dropout: Dropout | None = Field(None, description="share of numbers dropped; default 0.2 where the kind has it")
    hidden: tuple[PositiveInt, ...] | None = Field(None, description="of mlp and keep_imagenet; default [128]")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kind = values.get("kind", "linear")
        defaults: dict[str, Any] = {} if kind == "linear" else {"dropout": 0.2}
        if kind in ("mlp", "keep_imagenet"):
            defaults["hidden"] = (128,)
        return {**values, **{key: value for key, value in defaults.items() if values.get(key) is None}}

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Head:
        if self.kind == "linear" and self.dropout is not None:
            raise ValueError(f"kind=linear has no dropout={self.dropout:g}; use kind: dropout_linear")
        if self.kind in ("linear", "dropout_linear") and self.hidden is not None:
            raise ValueError(f"kind={self.kind} has no hidden={list(self.hidden)}; use kind: mlp")
        return self

    def build(self, size: int, num_classes: int, imagenet_classes: int | None = None, bias: bool = True) -> nn.Module:
        """The layers from `size` (E) features to `num_classes` (K) logits.

        `imagenet_classes`: outputs of the architecture's own classifier, None where it has none that could be kept.
        `bias`: whether the library's classifier adds one.
        """
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if self.kind == "keep_imagenet":
            if imagenet_classes is None:
                raise ValueError("model.head.kind=keep_imagenet: this architecture has no linear layer to keep")
            layers["imagenet"] = nn.Linear(size, imagenet_classes, bias=bias)
            size = imagenet_classes
        if self.kind in ("dropout_linear", "keep_imagenet"):
            layers["dropout"] = nn.Dropout(self.dropout or 0.0)
        for number, width in enumerate(self.hidden or (), start=1):
            layers[f"hidden{number}"] = nn.Linear(size, width)
            layers[f"relu{number}"] = nn.ReLU()
            if self.kind == "mlp":
                layers[f"dropout{number}"] = nn.Dropout(self.dropout or 0.0)
            size = width
        layers["classifier"] = nn.Linear(size, num_classes, bias=bias or len(layers) > 0)
        return nn.Sequential(layers)


class Classifier(nn.Module):
    """Images in, logits out.

    `backbone` maps (B, 3, H, W) to what `head`, an `nn.Sequential` whose last layer is linear, reads. `embedding_size`
    is E, what that layer reads. `feature_layer` names the module of whose output (B, C, h, w) a heat map can be made,
    None where there is none; where it is not given, one image of `image_size` is watched for it.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, image_size: tuple[int, int], feature_layer: str | None = None
    ) -> None:
        super().__init__()
        assert isinstance(head, nn.Sequential)
        self.backbone, self.head, self.image_size = backbone, head, image_size
        self.embedding_size: int = head.classifier.in_features  # type: ignore[assignment,union-attr]
        self._feature_layer, self._looked_for = feature_layer, feature_layer is not None

    @property
    def feature_layer(self) -> str | None:
        """Dotted name of the last module that gives a map (B, C, h, w) of features, or None."""
        if not self._looked_for:
            found = last_feature_map(self.backbone, self.image_size)
            self._feature_layer, self._looked_for = f"backbone.{found}" if found else None, True
        return self._feature_layer

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) float32 of images x (B, 3, H, W) float."""
        logits: Tensor = self.head(self.backbone(x))
        return logits.float()

    def embed(self, x: Tensor) -> Tensor:
        """What the classifier reads of images x (B, 3, H, W): (B, E) float32."""
        embedding: Tensor = self.head[:-1](self.backbone(x))
        return embedding.float()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As any module's; a state without versions of its modules, as safetensors give it, is of the newest."""
        return super().load_state_dict(with_versions(state_dict, self), strict, assign)


class TwoLogits(nn.Linear):
    """One linear unit z as two logits (0, z): their softmax is (1 - sigmoid(z), sigmoid(z))."""

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2) of x (B, E)."""
        return F.pad(super().forward(x), (1, 0))


def with_versions(state: Mapping[str, Any], module: nn.Module) -> Mapping[str, Any]:
    """`state`, with the versions that `module`'s own state notes where it has none.

    Some modules change what they load by its version, and take a state without one for an ancient one or refuse it.
    """
    if hasattr(state, "_metadata"):
        return state
    versioned = OrderedDict(state)
    versioned._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    return versioned


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """All of a module in eval mode and without gradients; as it was, afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def probe(module: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """A module's answer to one grey image, in eval mode. ValueError where it takes none of this size."""
    parameter = next(module.parameters())
    image = torch.zeros(1, 3, *image_size, device=parameter.device, dtype=parameter.dtype)
    with at_rest(module):
        try:
            answer: Tensor = module(image)
        except (RuntimeError, AssertionError) as error:
            height, width = image_size
            raise ValueError(f"images of {height} x {width} pixels don't fit this model: {error}") from None
    return answer


def last_feature_map(backbone: nn.Module, image_size: tuple[int, int]) -> str | None:
    """The last module of `backbone` to give a feature map (1, C, h, w), None where tokens or the like come after it.

    A map of one point is a gate, or a mean over the image. A map has more channels than rows and columns, by which it
    is told from one whose channels stand last.
    """
    found: str | None = None

    def watch(name: str) -> Any:
        def seen(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal found
            if not isinstance(output, Tensor) or output.ndim < 3 or output.shape[2:] == (1, 1):
                return
            is_map = output.ndim == 4 and output.shape[1] > max(output.shape[2:])
            found = name if is_map else None

        return seen

    hooks = [part.register_forward_hook(watch(name)) for name, part in backbone.named_modules() if name]
    try:
        probe(backbone, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def check_sizes(image_size: tuple[int, int], num_classes: int) -> None:
    """ValueError where there is no pixel or no class."""
    if min(*image_size, num_classes) < 1:
        raise ValueError(f"images of {image_size} pixels and {num_classes} classes: a classifier needs at least 1 each")


def unknown_architecture(library: str, name: str, choices: Iterable[str], listing: str) -> ValueError:
    """The error for a name that a library doesn't have: the nearest that it has. `listing` is what lists them all."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=6, cutoff=0.5)
    nearest = f"did you mean {', '.join(map(repr, near))}? " if near else ""
    return ValueError(f"{library} has no classifier {name!r}; {nearest}{listing} lists all {len(choices):,}")


def convolutions(
    channels: Iterable[int], dropouts: Iterable[float], batch_norm: bool, image_size: tuple[int, int]
) -> tuple[nn.Sequential, int]:
    """Blocks of a 3 x 3 convolution without padding, ReLU, and the maximum of 2 x 2; and how many numbers they leave.

    `dropouts` has a share for each block, 0 for none; `batch_norm` puts one before each ReLU. ValueError where images
    of `image_size` (height, width) are too small.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    (height, width), last, number = image_size, 3, 0
    for number, (size, dropout) in enumerate(zip(channels, dropouts, strict=True), start=1):
        layers[f"conv{number}"] = nn.Conv2d(last, size, 3)
        if batch_norm:
            layers[f"norm{number}"] = nn.BatchNorm2d(size)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        height, width, last = (height - 2) // 2, (width - 2) // 2, size
    if min(height, width) < 1:
        least = 3 * 2**number - 2
        raise ValueError(
            f"images of {image_size[0]} x {image_size[1]} pixels are too small for {number} convolutions, each with "
            f"pooling; they need {least} x {least}"
        )
    return nn.Sequential(layers), last * height * width


def as_keras(module: nn.Module) -> None:
    """Weights as Keras draws them: uniform by Glorot and Bengio (2010), biases 0."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(part.weight)
            assert part.bias is not None
            nn.init.zeros_(part.bias)
