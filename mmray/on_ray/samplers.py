"""From the section `tune` to Optuna's samplers and pruners; and what does not go together, and why."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import assert_never

import optuna
from optuna.samplers import BaseSampler

from mmray import config, population
from mmray.tuning import Choice, Param, Plain, Space, grid, params

DEFAULT_SAMPLES = 20


def num_samples(run: config.Run, space: Space) -> int:
    """How many trials the search has."""
    assert run.tune is not None
    tune = run.tune
    if tune.sampler.name == "grid":
        return min(tune.samples or 10**9, sum(1 for _ in grid(space)))
    if tune.sampler.name == "pbt":
        generations = -(-run.train.epochs // tune.sampler.interval_epochs)
        return (tune.sampler.population or population.DEFAULT_POPULATION) * generations
    return tune.samples or DEFAULT_SAMPLES


def check(run: config.Run, space: Space, objectives: Sequence[str]) -> None:
    """ValueError, with the reason and the remedy, for settings of a search that don't go together."""
    assert run.tune is not None
    tune, name, stopper = run.tune, run.tune.sampler.name, run.tune.stopper.name
    if tune.storage not in ("sqlite", "journal") and "://" not in tune.storage:
        raise ValueError(f"tune.storage={tune.storage!r} is no storage: sqlite, journal, or the URL of a database")
    if re.search(r"://[^/@]*:[^/@]*@", tune.storage):
        raise ValueError(
            "tune.storage holds a password, which would stand in study.yaml and in logs; leave it out of the URL and "
            "let the database's driver find it: PGPASSWORD or ~/.pgpass, ~/.my.cnf"
        )
    several = len(objectives) > 1
    conditional = [p.key for p in params(space) if isinstance(p.range, Choice) and p.range.when]
    if several and stopper != "none":
        raise ValueError(f"tune.stopper={stopper} compares one number, and tune.objectives has {len(objectives)}: none")
    if stopper != "none" and not objectives[0].startswith(("val/", "train/")):
        raise ValueError(f"tune.stopper={stopper} needs an objective after each epoch; {objectives[0]} has none: none")
    if several and name in ("cmaes", "pbt"):
        raise ValueError(f"tune.sampler={name} has one objective, and here are {len(objectives)}: tpe, nsga2, gp")
    if name == "cmaes":
        _check_cmaes(space)
    if name == "gp" and conditional:
        raise ValueError(
            f"tune.sampler=gp knows the parameters alone that every trial has; what stands under {conditional[0]} "
            f"would be drawn at random: tune.sampler=tpe"
        )
    if name == "pbt":
        _check_pbt(run, space)
    num_points, samples = len(tune.points), num_samples(run, space)
    if num_points > samples:
        raise ValueError(f"tune.points has {num_points} points and tune.samples={samples} tries fewer; raise it")
    if name == "grid" and num_points:
        raise ValueError("tune.points has no effect with tune.sampler=grid, which tries every point")


def _check_cmaes(space: Space) -> None:
    choices = [param.key for param in params(space) if isinstance(param.range, Choice) and len(param.range.options) > 1]
    if choices:
        raise ValueError(f"tune.sampler=cmaes knows numbers alone, and {choices[0]} is a choice: tune.sampler=tpe")
    if len(space) < 2:
        raise ValueError("tune.sampler=cmaes needs two parameters or more: tune.sampler=gp")
    if importlib.util.find_spec("cmaes") is None:
        raise ValueError("tune.sampler=cmaes needs the package cmaes: pip install cmaes")


def _check_pbt(run: config.Run, space: Space) -> None:
    assert run.tune is not None
    tune = run.tune
    if tune.stopper.name != "none":
        raise ValueError(f"tune.sampler=pbt replaces the worst itself: tune.stopper={tune.stopper.name} must be none")
    if tune.samples is not None:
        raise ValueError("tune.samples has no effect with pbt: its trials are population x generations; leave it out")
    if tune.seeds is not None and len(tune.seeds) > 1:
        raise ValueError("tune.sampler=pbt hands weights on, which several tune.seeds don't share; give one")
    if run.train.phases:
        raise ValueError(
            "tune.sampler=pbt goes on from other trials' last weights, and train.phases may ask for others"
        )
    for param in params(space):
        if not param.key.startswith("train.") or param.key in ("train.epochs", "train.optimizer.name"):
            raise ValueError(
                f"tune.sampler=pbt hands weights and the optimiser's state on from trial to trial: {param.key} can't "
                f"change on the way; keep to other keys of train, or tune.sampler=tpe"
            )


def make_sampler(settings: config.Sampler, seed: int, concurrency: int, samples: int) -> BaseSampler:
    """The sampler of one trial."""
    match settings.name:
        case "tpe":
            return optuna.samplers.TPESampler(
                n_startup_trials=settings.startup_trials,
                multivariate=True,
                group=True,  # what stands under a choice is searched jointly too
                constant_liar=concurrency > 1,
                seed=seed,
            )
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=settings.startup_trials)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1)
        case "nsga2":
            size = settings.population or min(50, max(4, samples // 5))
            return optuna.samplers.NSGAIISampler(population_size=size, seed=seed)
        case "random" | "grid" | "pbt":
            return optuna.samplers.RandomSampler(seed=seed)
    assert_never(settings.name)


def make_pruner(stopper: config.Stopper, epochs: int) -> optuna.pruners.BasePruner:
    """What decides, after an epoch, whether a trial goes on."""
    match stopper.name:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=stopper.min_epochs, reduction_factor=stopper.factor, min_early_stopping_rate=0
            )
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=stopper.min_epochs, max_resource=epochs, reduction_factor=stopper.factor
            )
        case "median":
            return optuna.pruners.MedianPruner(n_warmup_steps=stopper.min_epochs - 1, n_min_trials=3)
        case "none":
            return optuna.pruners.NopPruner()
    assert_never(stopper.name)


def suggest(trial: optuna.trial.Trial, param: Param) -> Plain:
    """Draw one parameter of a trial."""
    range_ = param.range
    if isinstance(range_, Choice):
        chosen: Plain = trial.suggest_categorical(param.name, range_.values())
        return chosen
    if range_.whole:
        step = int(range_.step or 1)
        return trial.suggest_int(param.name, int(range_.low), int(range_.high), step=step, log=range_.log)
    return trial.suggest_float(param.name, range_.low, range_.high, step=range_.step, log=range_.log)
