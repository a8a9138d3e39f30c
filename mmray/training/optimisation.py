"""Optimisers and learning rates. A learning rate is a pure function of the step, so nothing of it is stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from mmray import config


def build_optimizer(settings: config.Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of `train.optimizer`."""
    lr, decay = settings.lr, settings.weight_decay
    match settings.name:
        case "adam":
            return torch.optim.Adam(parameters, lr, settings.betas, settings.eps, weight_decay=decay, foreach=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, settings.betas, settings.eps, weight_decay=decay, foreach=True)
        case "sgd":
            return torch.optim.SGD(parameters, lr, settings.momentum, weight_decay=decay, foreach=True)
        case "rmsprop":
            return torch.optim.RMSprop(
                parameters, lr, eps=settings.eps, momentum=settings.momentum, weight_decay=decay, foreach=True
            )


def learning_rate(train: config.Train, step: int, num_steps: int, monitored: Sequence[float], maximise: bool) -> float:
    """Learning rate of step `step` (from 0) of `num_steps`.

    `monitored` holds the monitored metric after each finished epoch; only the plateau schedule looks at it.
    """
    schedule, peak = train.schedule, train.optimizer.lr
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    since = step - schedule.warmup_steps
    match schedule.name:
        case "constant":
            return peak
        case "cosine":
            share = since / max(1, num_steps - schedule.warmup_steps)
            low = schedule.final_fraction
            return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))
        case "step":
            assert schedule.every_steps is not None  # the schema requires it
            return float(peak * schedule.gamma ** (since // schedule.every_steps))
        case "plateau":
            return float(peak * schedule.gamma ** _plateaus(monitored, schedule.patience, maximise))


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


def is_finished(train: config.Train, monitored: Sequence[float], maximise: bool) -> bool:
    """Whether a run with one value of the monitored metric for each finished epoch has come to its end."""
    stopping = train.early_stopping
    return len(monitored) >= train.epochs or (
        stopping is not None and epochs_since_best(monitored, maximise, stopping.min_delta) >= stopping.patience
    )


def _plateaus(monitored: Sequence[float], patience: int, maximise: bool) -> int:
    """How often `patience` epochs in a row brought nothing better."""
    best, since, found = -math.inf, 0, 0
    for value in monitored:
        value = value if maximise else -value
        if value > best:
            best, since = value, 0
        else:
            since += 1
        if since > patience:
            since, found = 0, found + 1
    return found
