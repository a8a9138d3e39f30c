"""The space of a search: which keys of a run file are tried with which values. No Ray and no Optuna here.

`tune.space` maps dotted keys of the run file to ranges:

    train.optimizer.lr: {loguniform: [1e-4, 1e-1]}     # both ends included; evenly in the logarithm
    train.clip_norm: {uniform: [0.5, 5], step: 0.5}
    train.schedule.warmup_steps: {int: [0, 500], step: 50}
    train.shuffle_lanes: {logint: [1, 64]}
    train.batch_size: {choice: [128, 256, 512]}
    model:
      choice: [logistic, moe]
      when:                                            # keys that exist with one of the choices alone
        moe:
          model.num_experts: {int: [1, 8]}
          train.accumulate: 2                          # a plain value is set, not searched

Values of a trial go by the names of their parameters, which are the dotted keys; a key that stands under several
choices has one name for each, `key@choice`. A choice that is no plain value (a list, a mapping) goes by its JSON text.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mmray import config, lookup

Plain: TypeAlias = bool | int | float | str | None
_KINDS = ("uniform", "loguniform", "int", "logint", "choice")
# What a search can't change, and why.
_FIXED = {
    "name": "trials are named by their number",
    "out": "trials lie in the folder of the study",
    "seed": "list the seeds in tune.seeds",
    "tune": "a search does not search itself",
    "resources": "all trials have the same processes",
    "published": "it has no effect",
    "predict": "it has no effect on what validation finds",
    "train.monitor": "what is monitored is the first of tune.objectives",
    "train.keep_best": "see tune.keep_best",
}


@dataclass(frozen=True)
class Numbers:
    """Numbers from `low` to `high`, both included; with `step` every so much from `low` on; `log`: evenly in log."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def values(self) -> list[Plain]:
        """Every value, of which there must be a countable number: ValueError else."""
        step = self.step or (1 if self.whole else None)
        if step is None:
            raise ValueError("has no end of values: give it a step, or choices")
        values = (self.low + i * step for i in range(round((self.high - self.low) / step) + 1))
        return [int(value) if self.whole else float(f"{value:.12g}") for value in values]  # 0.3, not 0.1 + 2 * 0.1

    def ends(self) -> list[Plain]:
        """The lowest and the highest value."""
        return [int(end) if self.whole else end for end in (self.low, self.high)]

    def holds(self, value: Any) -> bool:
        """Whether this is one of the values."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9


@dataclass(frozen=True)
class Choice:
    """One of `options`, by label; `when` has the parameters that exist with one of them alone."""

    options: dict[Plain, Any]
    when: dict[Plain, Space] = field(default_factory=dict)

    def values(self) -> list[Plain]:
        """The labels."""
        return list(self.options)

    ends = values

    def holds(self, value: Any) -> bool:
        """Whether this is one of the labels."""
        return any(type(value) is type(label) and value == label for label in self.options)


@dataclass(frozen=True)
class Param:
    """One searched key of the run file, by its name in the study."""

    key: str
    name: str
    range: Numbers | Choice


Space: TypeAlias = tuple[Param, ...]
Values: TypeAlias = dict[str, Plain]  # name of a parameter -> number, or label of a choice


def space_of(run: config.Run) -> Space:
    """The space of a run's search, checked.

    ValueError names every key that the run file does not have and every range or value that does not fit it.
    """
    if run.tune is None:
        raise ValueError(f"{run.name} has no section tune; see configs/tune/ for some")
    wrong: list[str] = []
    space = _parse(run.tune.space, "", Counter(_keys(run.tune.space)), (), wrong)
    if not wrong:
        wrong = _misfits(run, space)
    if wrong:
        listed = "\n".join(f"  {line}" for line in dict.fromkeys(wrong))
        raise ValueError(f"{run.name}: wrong tune.space\n{listed}")
    return space


def params(space: Space, given: Mapping[str, Plain] | None = None) -> Iterator[Param]:
    """All parameters, those under choices too; but not those under choices that are not what is `given`."""
    for param in space:
        yield param
        if isinstance(param.range, Choice):
            for label, inner in param.range.when.items():
                if given is None or param.name not in given or given[param.name] == label:
                    yield from params(inner, given)


def walk(space: Space, pick: Callable[[Param], Plain]) -> Values:
    """The values of a trial: what `pick` says of each parameter, and of those that its choices bring in."""
    values: Values = {}
    for param in space:
        values[param.name] = value = pick(param)
        if isinstance(param.range, Choice):
            values |= walk(param.range.when.get(value, ()), pick)
    return values


def combinations(space: Space, options: Callable[[Param], Sequence[Plain]]) -> Iterator[Values]:
    """Every combination of the options of each parameter, the last one changing fastest."""
    if not space:
        yield {}
        return
    first, rest = space[0], space[1:]
    for value in options(first):
        inner = first.range.when.get(value, ()) if isinstance(first.range, Choice) else ()
        for others in combinations((*inner, *rest), options):
            yield {first.name: value} | others


def grid(space: Space) -> Iterator[Values]:
    """Every point of the space; ValueError for a parameter whose values can't be counted."""

    def options(param: Param) -> Sequence[Plain]:
        try:
            return param.range.values()
        except ValueError as error:
            raise ValueError(f"tune.sampler=grid: tune.space.{param.key} {error}") from None

    return combinations(space, options)


def data_variants(run: config.Run, space: Space) -> list[config.Run]:
    """One run for each way in which the space changes the prepared dataset; the run itself where it changes nothing.

    ValueError where there is no end of them.
    """

    def options(param: Param) -> Sequence[Plain]:
        if param.key.split(".")[0] in ("dataset", "prepare"):
            try:
                return param.range.values()
            except ValueError as error:
                raise ValueError(f"tune.space.{param.key} {error}; each value needs a prepared dataset") from None
        # Others matter only for what stands under them.
        return param.range.values() if isinstance(param.range, Choice) and param.range.when else param.range.ends()[:1]

    found = (run_of(run, space, values) for values in combinations(space, options))
    return list({data_key(variant): variant for variant in found}.values())


def data_key(run: config.Run) -> str:
    """Equal for runs that share a prepared dataset."""
    return json.dumps([run.to_dict()["dataset"], run.to_dict()["prepare"]])


def run_of(run: config.Run, space: Space, values: Values, **changes: Any) -> config.Run:
    """The run that a trial is: `run` with the values in their places, without its search, and with `changes`.

    Where a trial has another dataset, model or task than `run`, of that section it keeps nothing else. ValueError
    where the values do not go together.
    """
    settings = run.to_dict() | {"tune": None} | changes
    found = {param.name: param for param in params(space)}
    chosen = {found[name].key: _decoded(found[name], value) for name, value in values.items()}
    modules = {f"{section}.name" for section in config.Run.MODULES}
    for key in sorted(chosen, key=lambda key: key not in modules):  # what they have comes after them
        section = key.split(".")[0]
        if key in modules and str(chosen[key]).partition("/")[0] != settings[section]["name"]:
            settings[section] = {}
        _put(settings, key, chosen[key])
    return config.from_dict(settings, where=f"{run.name} with {describe(values)}")


def points(run: config.Run, space: Space) -> list[Values]:
    """The values of `tune.points`, as far as each gives them; ValueError for what the space does not hold."""
    assert run.tune is not None
    return [
        _default(run, space) if point == "default" else _point(point, space, f"{run.name}: tune.points.{place}")
        for place, point in enumerate(run.tune.points)
        if isinstance(point, dict) or point == "default"
    ]


def describe(values: Values) -> str:
    """Values for people: `lr 0.003, model moe`, by the last part of each key, or the whole where that is not one."""
    short = {name: name.removesuffix(".name").rpartition(".")[2] for name in values}
    times = Counter(short.values())
    return ", ".join(
        f"{short[name] if times[short[name]] == 1 else name} {f'{v:.4g}' if isinstance(v, float) else v}"
        for name, v in values.items()
    )


def _keys(space: Mapping[str, Any]) -> Iterator[str]:
    for key, spec in space.items():
        yield _whole_key(str(key))
        when = spec.get("when") if isinstance(spec, dict) else None
        for inner in when.values() if isinstance(when, dict) else ():
            if isinstance(inner, dict):
                yield from _keys(inner)


def _whole_key(key: str) -> str:
    return f"{key}.name" if key in config.Run.MODULES else key


def _parse(
    space: Mapping[str, Any], under: str, times: Counter[str], above: tuple[str, ...], wrong: list[str]
) -> Space:
    found = []
    keys = tuple(_whole_key(str(key)) for key in space)
    for key, spec in zip(keys, space.values(), strict=True):
        reason = next((why for fixed, why in _FIXED.items() if key == fixed or key.startswith(f"{fixed}.")), None)
        if reason:
            wrong.append(f"{key}: can't be searched: {reason}")
            continue
        if key in above:
            wrong.append(f"{key}: stands both under {under} and above it; keep one of them")
            continue
        name = key if times[key] == 1 or not under else f"{key}@{under}"
        try:
            found.append(Param(key, name, _range(key, spec, times, (*above, *keys), wrong)))
        except ValueError as error:
            wrong.append(f"{key}: {error}")
    return tuple(found)


def _range(key: str, spec: Any, times: Counter[str], above: tuple[str, ...], wrong: list[str]) -> Numbers | Choice:
    if not isinstance(spec, dict):
        return Choice({_label(spec): spec})
    kinds = [kind for kind in _KINDS if kind in spec]
    if len(kinds) != 1:
        raise ValueError(f"{spec!r} must have one of {', '.join(_KINDS)}, such as {{loguniform: [1e-4, 1e-1]}}")
    (kind,) = kinds
    allowed = {"choice": ("when",), "uniform": ("step",), "int": ("step",)}.get(kind, ())
    for other in spec:
        if other not in (kind, *allowed):
            raise ValueError(f"{kind} knows no {other!r}; {lookup.suggest(str(other), list(allowed))}")
    if kind == "choice":
        return _choice(key, spec, times, above, wrong)
    return _numbers(kind, spec)


def _choice(key: str, spec: dict[str, Any], times: Counter[str], above: tuple[str, ...], wrong: list[str]) -> Choice:
    if not isinstance(spec["choice"], list) or not spec["choice"]:
        raise ValueError(f"choice={spec['choice']!r} must be a list of values")
    options = {_label(value): value for value in spec["choice"]}
    if len(options) < len(spec["choice"]):
        raise ValueError(f"choice={spec['choice']!r} has a value twice")
    labels = {str(label): label for label in options}
    when = {}
    for option, inner in spec.get("when", {}).items():
        if str(option) not in labels:
            raise ValueError(f"when.{option}: is none of the choices; {lookup.suggest(str(option), list(labels))}")
        if not isinstance(inner, dict):
            raise ValueError(f"when.{option}={inner!r} must map keys to ranges")
        when[labels[str(option)]] = _parse(inner, str(option), times, above, wrong)
    return Choice(options, when)


def _numbers(kind: str, spec: dict[str, Any]) -> Numbers:
    bounds = spec[kind]
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ValueError(f"{kind}={bounds!r} must be [lowest, highest]")
    whole, log = kind.endswith("int"), kind.startswith("log")
    low, high = (_number(bound, whole) for bound in bounds)
    if low > high:
        raise ValueError(f"{kind}={bounds!r}: the lowest comes first")
    if log and low <= 0:
        raise ValueError(f"{kind}={bounds!r}: has no logarithm at {low:g}; begin above 0")
    step = _number(spec["step"], whole) if "step" in spec else 1.0 if whole and not log else None
    if step is not None:
        if step <= 0:
            raise ValueError(f"step={step:g} must be above 0")
        steps = (high - low) / step
        if abs(steps - round(steps)) > 1e-9:
            raise ValueError(f"{kind}={bounds!r}: no whole number of steps of {step:g}; end at "
                             f"{low + math.floor(steps) * step:g}")  # fmt: skip
    return Numbers(low, high, step, log, whole)


def _number(value: Any, whole: bool) -> float:
    # YAML reads 1e-4, without a point, as text.
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (whole and number != int(number)):
        raise ValueError(f"{value!r} is not a {'whole ' if whole else ''}number")
    return number


def _label(value: Any) -> Plain:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def _decoded(param: Param, value: Plain) -> Any:
    return param.range.options[value] if isinstance(param.range, Choice) else value


def _put(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if settings.get(parent) is None:
            settings[parent] = {}
        settings = settings[parent]
        if not isinstance(settings, dict):
            raise ValueError(f"tune.space.{key}: {parent!r} is a value, not a section")
    settings[last] = value


def _misfits(run: config.Run, space: Space) -> list[str]:
    """What the schema of the run says of each end and each choice of every parameter, in each branch."""
    wrong: list[str] = []
    for branch in combinations(space, _first_or_branching):
        for param in params(space, branch):
            if param.name not in branch:
                continue
            for value in param.range.ends():
                values = walk(space, lambda p: value if p is param else branch.get(p.name, p.range.ends()[0]))  # noqa: B023
                try:
                    run_of(run, space, values)
                except ValueError as error:
                    wrong += [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
    return wrong


def _first_or_branching(param: Param) -> Sequence[Plain]:
    branching = isinstance(param.range, Choice) and param.range.when
    return param.range.values() if branching else param.range.ends()[:1]


def _default(run: config.Run, space: Space) -> Values:
    """The run's own values, as far as the space holds them."""
    settings = run.to_dict()
    given: Values = {}
    for param in params(space):
        inner: Any = settings
        for part in param.key.split("."):
            inner = inner.get(part) if isinstance(inner, dict) else None
        labels = [_label(inner)]
        section = settings.get(param.key.split(".")[0])
        if param.key.endswith(".name") and isinstance(section, dict) and "architecture" in section:
            labels.append(f"{section['name']}/{section['architecture']}")  # timm/resnet18
        for label in labels:
            if param.range.holds(label):
                given[param.name] = label
    reached = {param.name for param in params(space, given)}
    return {name: value for name, value in given.items() if name in reached}


def _point(point: dict[str, Any], space: Space, where: str) -> Values:
    given: Values = {}
    names = {name: param for param in params(space) for name in (param.key, param.name)}
    for key, value in point.items():
        param = names.get(_whole_key(key))
        if param is None:
            raise ValueError(f"{where}.{key}: is not in tune.space; {lookup.suggest(key, sorted(names))}")
        label: Plain = _number(value, param.range.whole) if isinstance(param.range, Numbers) else _label(value)
        if isinstance(param.range, Numbers) and param.range.whole and label is not None:
            label = int(label)
        if not param.range.holds(label):
            raise ValueError(f"{where}.{key}={value!r}: is not in its range, {param.range}")
        given[param.name] = label
    reached = {param.name for param in params(space, given)}
    for name in given:
        if name not in reached:
            raise ValueError(f"{where}.{name}: does not exist with the other values of this point")
    return given
