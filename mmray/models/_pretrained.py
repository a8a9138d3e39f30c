"""Weights to start from: files that timm, torchvision or mmray have saved, fitted to a model.

A file's content says what it is, not its name: safetensors, or torch.save with tensors and plain values only. Weights
of the backbone must fit one for one. The head's are taken where the head is the same; else it starts afresh, and a line
says so.
"""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmray.console import say
from mmray.models._vision import Classifier, with_versions
from mmray.storage import at, fetched

_FILES_OF_A_FOLDER = ("model.safetensors", "pytorch_model.bin")
# Where training scripts keep the weights in a larger file; averaged weights first, as timm reads its own.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")


@dataclass(frozen=True)
class Weights:
    """What a file holds: tensors of the backbone by the library's names, and of mmray's head (empty in other files)."""

    source: str
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]


def given(pretrained: bool | str) -> Weights | None:
    """The weights of the file that `model.pretrained` names; None where it names none, or on the meta device."""
    return None if isinstance(pretrained, bool) or on_meta() else read(pretrained)


def from_hub(pretrained: bool | str) -> bool:
    """Whether the library is to load its own weights; it does not on the meta device."""
    return pretrained is True and not on_meta()


def of_torchvision(pretrained: bool | str, architecture: str) -> Weights | None:
    """As `given`; and the library's own weights of an architecture, from its hub, where they are asked for."""
    if not from_hub(pretrained):
        return given(pretrained)
    from torchvision import models

    where = f"torchvision/{architecture}"
    with hub(True, where):
        weights: Any = models.get_model_weights(architecture).DEFAULT
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    return Weights(where, state, {})


def on_meta() -> bool:
    """Whether tensors are made on the meta device just now."""
    return torch.empty(0).is_meta


def read(source: str) -> Weights:
    """The weights in a file or folder; ValueError, naming it, where there are none that can be read."""
    where = f"model.pretrained={source}"
    state = _tensors_at(_file(at(source), where), where)
    ours = {name.partition(".")[0] for name in state} == {"backbone", "head"}
    if not ours:
        return Weights(where, state, {})
    parts: dict[str, dict[str, Tensor]] = {"backbone": OrderedDict(), "head": {}}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return Weights(where, parts["backbone"], parts["head"])


@contextmanager
def misfits_named(where: str) -> Iterator[None]:
    """PyTorch's complaint about a state dict, hundreds of lines at times, as a ValueError that begins with `where`."""
    try:
        yield
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(f"{where}: weights of another model:\n{_misfits(str(error))}") from None


@contextmanager
def hub(asked: bool, where: str) -> Iterator[None]:
    """While a library loads its own weights, if it is `asked` to: a ValueError that says what to do where it can't."""
    try:
        yield
    except Exception as error:  # of the network, the cache or the library, each with kinds of its own
        if not asked or (isinstance(error, ValueError) and str(error).startswith(where)):
            raise
        raise ValueError(
            f"model.pretrained=true: {where} has no weights, or they can't be fetched ({error}); "
            "fetch them where there is a network and give the file's path, or set model.pretrained: false"
        ) from None


def load_backbone(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a whole state; ValueError, beginning with `where`, listing what is missing, unknown or of another shape."""
    with misfits_named(where):
        module.load_state_dict(with_versions(state, module))


def load_head(model: Classifier, found: Mapping[str, Tensor], source: str) -> None:
    """Give the head of `model` the tensors `found`, by their names in a head, where they are of the same head.

    Of another, only ImageNet's layer is taken, where this head keeps it: from a head that has it, too, or from a
    library's own classifier. ValueError where it is not there.
    """
    ours = model.head.state_dict()
    if "imagenet.weight" in ours and "imagenet.weight" not in found:
        found = {name.replace("classifier.", "imagenet."): tensor for name, tensor in found.items()}
    fits = {name for name in ours if name in found and found[name].shape == ours[name].shape}
    imagenet = {name for name in ours if name.startswith("imagenet.")}
    if not imagenet <= fits:
        shape = tuple(ours["imagenet.weight"].shape)
        raise ValueError(f"{source} has no linear layer {shape} for model.head.kind=keep_imagenet to keep")
    if fits == ours.keys() == found.keys():
        model.head.load_state_dict(dict(found))
        return
    model.head.load_state_dict({name: found[name] for name in imagenet}, strict=False)
    theirs, own = found.get("classifier.weight"), ours["classifier.weight"]
    if imagenet:
        say(f"{source}: ImageNet's layer is kept; the layers behind it start afresh")
    elif theirs is not None and len(theirs) != len(own):
        say(f"{source}: the head starts afresh, for that in the file has {len(theirs):,} outputs, not {len(own):,}")
    else:
        say(f"{source}: the head starts afresh, for that in the file is another, or there is none")


def as_head(classifier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a library's classifier by their names in a head; none where it is not one linear layer.

    A convolution of 1 x 1 is one.
    """
    parts = {name.rpartition(".")[2]: tensor for name, tensor in classifier.items()}
    weight = parts.get("weight")
    one_layer = len({name.rpartition(".")[0] for name in classifier}) == 1 and set(parts) <= {"weight", "bias"}
    if not one_layer or weight is None or weight.ndim not in (2, 4):
        return {}
    return {f"classifier.{part}": t.flatten(1) if t.ndim == 4 else t for part, t in parts.items()}


def with_classifier(state: Mapping[str, Tensor], classifier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state`, with zeros in place of those tensors of the `classifier` that it has in another shape or not at all.

    So the library can load it whole, and strictly; what it then holds as classifier is thrown away.
    """
    whole = OrderedDict(state)
    if hasattr(state, "_metadata"):
        whole._metadata = state._metadata  # type: ignore[attr-defined]
    for name, ours in classifier.items():
        if name not in whole or whole[name].shape != ours.shape:
            whole[name] = torch.zeros(ours.shape, dtype=ours.dtype)
    return whole


def load_whole(model: Classifier, pretrained: bool | str) -> Classifier:
    """`model`, for which there are no weights but mmray's own, with those that `pretrained` names, if it does."""
    if pretrained is True:
        raise ValueError(
            "model.pretrained=true: no hub has weights of this model; give a checkpoint of mmray, or false"
        )
    if weights := given(pretrained):
        load_backbone(model.backbone, weights.backbone, weights.source)
        load_head(model, weights.head, weights.source)
    return model


def _file(path: Path, where: str) -> Path:
    if (path / "checkpoints").is_dir():
        steps = sorted(folder.name for folder in (path / "checkpoints").glob("step-*"))
        listed = ", ".join(steps) if steps else "it has none yet"
        raise ValueError(f"{where} is a run folder; name one of its checkpoints, {path}/checkpoints/...: {listed}")
    if path.is_dir():
        for name in _FILES_OF_A_FOLDER:
            if (path / name).is_file():
                return path / name
        raise ValueError(f"{where}: a folder without {' or '.join(_FILES_OF_A_FOLDER)}")
    if not path.is_file():
        raise ValueError(
            f"{where}: no such file; give a file of weights, an mmray checkpoint, or true for the library's own weights"
        )
    return path


def _tensors_at(path: Path, where: str) -> dict[str, Tensor]:
    with fetched(path) as here:
        return _tensors(here, where)


def _tensors(path: Path, where: str) -> dict[str, Tensor]:
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    if is_safetensors:
        try:
            return _unwrapped(load_file(path))
        except SafetensorError as error:
            raise ValueError(f"{where}: a damaged file of safetensors: {error}") from None
    try:
        # timm's own training keeps its options, plain values in a Namespace, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of many kinds; what they say is how to run the code in it all the same
        raise ValueError(
            f"{where}: neither safetensors nor a file of torch.save with tensors and plain values only (no other is "
            "read: it could run code); save the model's state_dict() and nothing else"
        ) from None
    for key in _NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    named = isinstance(state, dict) and state and all(isinstance(tensor, Tensor) for tensor in state.values())
    if not named:
        raise ValueError(f"{where}: holds no state dict, which maps names to tensors")
    return _unwrapped(state)


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that DistributedDataParallel and torch.compile put before all names."""
    bare = OrderedDict((_WRAPPERS.sub("", name), tensor) for name, tensor in state.items())
    if hasattr(state, "_metadata"):
        bare._metadata = {_WRAPPERS.sub("", f"{name}.")[:-1]: value for name, value in state._metadata.items()}  # type: ignore[attr-defined]
    return bare


def _misfits(complaint: str) -> str:
    """PyTorch's list of what does not fit, the first few of each kind."""
    kinds: dict[str, list[str]] = {"missing": [], "unknown": [], "of another shape": []}
    for line in complaint.splitlines()[1:]:
        message = line.strip()
        if message.startswith("Missing key"):
            kinds["missing"] += re.findall(r'"([^"]+)"', message)
        elif message.startswith("Unexpected key"):
            kinds["unknown"] += re.findall(r'"([^"]+)"', message)
        else:
            kinds["of another shape"].append(message.removeprefix("size mismatch for "))
    return "\n".join(f"  {kind}: {_first(found)}" for kind, found in kinds.items() if found)


def _first(items: list[str]) -> str:
    more = [f"and {len(items) - 8} more"] if len(items) > 8 else []
    return ", ".join([*items[:8], *more])
