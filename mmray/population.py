"""Population based training: generations of trials that go on with the weights of the best and vary their values.

After Jaderberg et al., "Population Based Training of Neural Networks" (arXiv:1711.09846), with truncation selection.
A trial is one member of one generation: it goes on from the checkpoint of its parent for `interval_epochs`. Its
number says which: generation = number // population, member = number % population. A member goes on with its own
weights and values, unless it was among the worst of its generation: then it takes those of one of the best, and each
value is perturbed. All is a function of the seed and the trials before, so a search that was stopped goes on the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mmray.config import Sampler
from mmray.tuning import Choice, Numbers, Plain, Space, Values, params

DEFAULT_POPULATION = 8
RESAMPLED = 0.25  # how often a value is drawn anew instead of perturbed, as in the paper
FACTORS = (0.8, 1.2)


def generation_of(index: int, population: int) -> range:
    """The indices of the trials of the generation that trial `index` belongs to."""
    first = index - index % population
    return range(first, first + population)


def parent_of(index: int, scores: Mapping[int, float], sampler: Sampler, population: int) -> int:
    """The index of the trial that trial `index` (from the second generation on) goes on from.

    `scores` has the objective of every finished trial of the generation before, more being better, NaN for failed
    ones. ValueError where all of them failed.
    """
    before = generation_of(index - population, population)
    ranked = sorted((i for i in before if not math.isnan(scores.get(i, math.nan))), key=lambda i: (-scores[i], i))
    if not ranked:
        raise ValueError(f"all {population} trials of a generation failed: there is none to go on from")
    num_replaced = max(1, round(sampler.quantile * population))
    own = index - population
    if own in ranked[: population - num_replaced]:
        return own
    rng = np.random.default_rng([sampler.seed, index, 0])
    return int(rng.choice(ranked[: max(1, min(num_replaced, len(ranked)))]))


def perturbed(values: Values, space: Space, seed: int, index: int) -> Values:
    """The values of a replaced member: those of its parent, each a little changed or, now and then, drawn anew."""
    rng = np.random.default_rng([seed, index, 1])
    ranges = {param.name: param.range for param in params(space)}
    return {name: _perturbed(ranges[name], value, rng) for name, value in values.items()}


def _perturbed(range_: Numbers | Choice, value: Plain, rng: np.random.Generator) -> Plain:
    anew = rng.random() < RESAMPLED
    if isinstance(range_, Choice):
        labels = range_.values()
        place = labels.index(value) + int(rng.choice([-1, 1]))
        return labels[int(rng.integers(len(labels)))] if anew else labels[min(max(place, 0), len(labels) - 1)]
    assert isinstance(value, int | float)
    if anew:
        low, high = (math.log(end) if range_.log else end for end in (range_.low, range_.high))
        drawn = rng.uniform(low, high)
        changed = math.exp(drawn) if range_.log else drawn
    else:
        changed = value * float(rng.choice(FACTORS))
        if range_.step and abs(changed - value) < range_.step:  # a step at least
            changed = value + math.copysign(range_.step, changed - value)
        elif range_.whole and round(changed) == value:
            changed = value + math.copysign(1, changed - value)
    changed = min(max(changed, range_.low), range_.high)
    if range_.step:
        changed = range_.low + round((changed - range_.low) / range_.step) * range_.step
    return round(changed) if range_.whole else float(changed)
