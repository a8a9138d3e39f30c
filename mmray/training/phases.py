"""Parameters by name: which ones a pattern of a run file means, a phase trains, a penalty is for.

Parameters go by their names in `model.named_parameters()`. A pattern is that of `fnmatch`, upper and lower case told
apart: `*` stands for anything, dots included.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mmray import config

Penalties = list[tuple[nn.Parameter, float, float]]  # weights, l1, l2


def matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """The names that one of the patterns fits."""
    patterns = list(patterns)
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def trained_parameters(phase: config.Phase, model: nn.Module) -> set[str]:
    """The names of the parameters that a phase trains.

    `from_layer` means the first parameter of that module and all that follow it in `model.named_parameters()`.
    """
    names = [name for name, _ in model.named_parameters()]
    if phase.train is not None:
        return matching(names, phase.train)
    if phase.freeze is not None:
        return set(names) - matching(names, phase.freeze)
    if phase.from_layer is not None:
        return set(names[_under(phase.from_layer, names)[0] :])
    return set(names)


def check_patterns(train: config.Train, model: nn.Module) -> None:
    """ValueError where a pattern of `train` names no parameter of the model, or a phase trains none.

    A model on the meta device will do.
    """
    names = [name for name, _ in model.named_parameters()]
    choices = [*(f"{name}.*" for name in _modules(model)), *names]
    optimizer = train.optimizer
    given = [("train.optimizer.layer_lr", pattern) for pattern in optimizer.layer_lr]
    given += [("train.optimizer.no_weight_decay", pattern) for pattern in optimizer.no_weight_decay]
    given += [(f"train.penalties.{i}.parameters", penalty.parameters) for i, penalty in enumerate(train.penalties)]
    for i, phase in enumerate(train.phases):
        given += [(f"train.phases.{i}.train", pattern) for pattern in phase.train or ()]
        given += [(f"train.phases.{i}.freeze", pattern) for pattern in phase.freeze or ()]
    wrong = [
        f"{key}={pattern!r} names no parameter of the model; {_near(pattern, choices)}"
        for key, pattern in given
        if not matching(names, [pattern])
    ]
    for i, phase in enumerate(train.phases):
        if phase.from_layer is not None and not _under(phase.from_layer, names):
            wrong.append(
                f"train.phases.{i}.from_layer={phase.from_layer!r} is no module of the model that has parameters; "
                f"{_near(phase.from_layer, _modules(model))}"
            )
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not wrong:
        wrong = [
            f"train.phases.{i} ({phase.name!r}) trains no parameter at all; change what it says of train and freeze"
            for i, phase in enumerate(train.phases)
            if not trained_parameters(phase, model) & trainable
        ]
    if wrong:
        raise ValueError("\n".join(wrong))


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms whose parameters are all frozen: their running statistics must not move either.

    One without parameters goes with the innermost module around it that has some.
    """
    return [m for name, m in model.named_modules() if isinstance(m, _NormBase) and _is_frozen(model, name)]


def penalties_of(train: config.Train, model: nn.Module) -> Penalties:
    """What `train.penalties` asks of the parameters that are trained now; frozen ones have none, as in Keras."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [
        (parameter, penalty.l1, penalty.l2)
        for penalty in train.penalties
        for name, parameter in trained.items()
        if fnmatchcase(name, penalty.parameters)
    ]


def total_penalty(penalties: Penalties) -> torch.Tensor:
    """l1 * sum |w| + l2 * sum w^2, over all of them: a scalar, in float32."""
    total = torch.zeros((), device=penalties[0][0].device if penalties else None)
    for weights, l1, l2 in penalties:
        if l1:
            total = total + l1 * weights.abs().sum()
        if l2:
            total = total + l2 * weights.square().sum()
    return total


def _is_frozen(model: nn.Module, name: str) -> bool:
    parameters = list(model.get_submodule(name).parameters())
    if not parameters and name:
        return _is_frozen(model, name.rpartition(".")[0])
    return not any(parameter.requires_grad for parameter in parameters)


def _under(module: str, names: Sequence[str]) -> list[int]:
    """The places in `names` of the parameters of a module."""
    return [place for place, name in enumerate(names) if name.startswith(f"{module}.")]


def _modules(model: nn.Module) -> list[str]:
    """The names of all modules that have parameters, the model itself left out."""
    return [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]


def _near(wrong: str, choices: Sequence[str]) -> str:
    """The half-sentence that follows a name that is not there: a few that are like it, or else those at the top."""
    near = difflib.get_close_matches(wrong, choices, n=5, cutoff=0.5)
    if near:
        return f"near it are {', '.join(near)}"
    top = [name for name in choices if "." not in name.removesuffix(".*")]
    return f"choose from {', '.join(top)} and what is in them" if top else "the model has no parts"
