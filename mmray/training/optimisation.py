"""Optimisers, learning rates, weight averages, and which phase an epoch belongs to.

A learning rate and a weight decay are pure functions of the step and of the metrics so far, so nothing of them is
stored. So is the phase of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from mmray import config


def build_optimizer(settings: config.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of `train.optimizer` over all parameters of the model.

    Parameters are in groups that share the factor of their learning rate, `lr_factor`, and whether they decay,
    `decays`; `set_rates` goes by them.
    """
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        factor = next((f for pattern, f in settings.layer_lr.items() if fnmatchcase(name, pattern)), 1.0)
        decays = not any(fnmatchcase(name, pattern) for pattern in settings.no_weight_decay)
        grouped.setdefault((factor, decays), []).append(parameter)
    groups = [{"params": params, "lr_factor": factor, "decays": decays} for (factor, decays), params in grouped.items()]
    lr, decay = settings.lr, settings.weight_decay
    match settings.name:
        case "adam":
            return torch.optim.Adam(groups, lr, settings.betas, settings.eps, weight_decay=decay, foreach=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr, settings.betas, settings.eps, weight_decay=decay, foreach=True)
        case "sgd":
            return torch.optim.SGD(groups, lr, settings.momentum, weight_decay=decay, foreach=True)
        case "rmsprop":
            return torch.optim.RMSprop(
                groups, lr, eps=settings.eps, momentum=settings.momentum, weight_decay=decay, foreach=True
            )


def set_rates(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Give every group of `build_optimizer` its learning rate and weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


@dataclass(frozen=True)
class Progress:
    """How far a phase has come, as a schedule sees it.

    `steps` are done, of `epochs` epochs of `steps_per_epoch`. `watched` has the metric of the plateau schedule after
    each finished epoch of the phase; `maximise` is whether more of it is better.
    """

    steps: int
    steps_per_epoch: int
    epochs: int
    watched: Sequence[float] = ()
    maximise: bool = True


def learning_rate(schedule: config.Schedule, peak: float, progress: Progress) -> float:
    """Learning rate of the next step of a phase whose highest is `peak`."""
    if progress.steps < schedule.warmup_steps:
        return peak * (progress.steps + 1) / schedule.warmup_steps
    match schedule.name:
        case "constant":
            return peak
        case "cosine":
            since = progress.steps - schedule.warmup_steps
            share = since / max(1, progress.epochs * progress.steps_per_epoch - schedule.warmup_steps)
            low = schedule.final_fraction
            return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
        case "step" | "plateau":
            return max(schedule.min_lr, float(peak * schedule.gamma ** _drops(schedule, progress)))


def weight_decay(schedule: config.Schedule, initial: float, progress: Progress) -> float:
    """Weight decay of the next step of a phase that begins with `initial`."""
    if schedule.weight_decay_gamma is None:
        return initial
    return float(initial * schedule.weight_decay_gamma ** _drops(schedule, progress))


def _drops(schedule: config.Schedule, progress: Progress) -> int:
    """How often a step or plateau schedule has multiplied the learning rate by gamma."""
    if schedule.name == "plateau":
        return _plateaus(progress.watched, schedule.patience, progress.maximise)
    if schedule.every_epochs is not None:
        return progress.steps // progress.steps_per_epoch // schedule.every_epochs
    assert schedule.every_steps is not None  # the schema requires one of them
    return max(0, progress.steps - schedule.warmup_steps) // schedule.every_steps


def _plateaus(watched: Sequence[float], patience: int, maximise: bool) -> int:
    """How often `patience` epochs in a row brought nothing better."""
    best, since, found = -math.inf, 0, 0
    for value in watched:
        value = value if maximise else -value
        if value > best:
            best, since = value, 0
        else:
            since += 1
        if since > patience:
            since, found = 0, found + 1
    return found


def epochs_since_best(monitored: Sequence[float], maximise: bool, min_delta: float = 0.0) -> int:
    """Finished epochs since the last one that beat all before it by more than `min_delta`."""
    best, since = -math.inf, 0
    for value in monitored:
        value = value if maximise else -value
        if value > best + min_delta:
            best, since = value, 0
        else:
            since += 1
    return since


def current_phase(train: config.Train, monitored: Sequence[float], maximise: bool) -> tuple[int, int]:
    """The phase that the next epoch belongs to, by its number, and the first epoch of that phase.

    `monitored` has the monitored metric of every finished epoch. Early stopping ends a phase, and the next begins; the
    last phase has no end here: see `is_finished`.
    """
    first = 0
    for number, phase in enumerate(train.each_phase[:-1]):
        done = monitored[first : first + phase.epochs]
        length = next((n for n in range(1, len(done) + 1) if _is_over(train, phase, done[:n], maximise)), None)
        if length is None:
            return number, first
        first += length
    return len(train.each_phase) - 1, first


def is_finished(train: config.Train, monitored: Sequence[float], maximise: bool) -> bool:
    """Whether a run with one value of the monitored metric for each finished epoch has come to its end."""
    number, first = current_phase(train, monitored, maximise)
    phases = train.each_phase
    return number == len(phases) - 1 and _is_over(train, phases[-1], monitored[first:], maximise)


def _is_over(train: config.Train, phase: config.Phase, monitored: Sequence[float], maximise: bool) -> bool:
    """Whether a phase ends with these epochs of it."""
    stopping = train.early_stopping
    return len(monitored) >= phase.epochs or (
        stopping is not None and epochs_since_best(monitored, maximise, stopping.min_delta) >= stopping.patience
    )


class Average:
    """Exponential moving average of the parameters of a model: `train.ema_decay`.

    After each step a <- d a + (1 - d) w, with d = min(decay, (1 + t) / (10 + t)) after step t (from 1) of the phase, so
    that an average does not hold on to the first weights. It begins with the weights that the model has now.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self.tensors = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps of the phase; what is frozen stays as it is."""
        trained = [name for name, parameter in self._parameters.items() if parameter.requires_grad]
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            [self.tensors[name] for name in trained], [self._parameters[name].detach() for name in trained], 1 - decay
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model the averaged weights to go on from."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.tensors[name])

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """Have the model compute with the averaged weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data
