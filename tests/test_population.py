"""Population based training: who goes on from whom, and how values change."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.config import Sampler
from mmray.population import FACTORS, parent_of, perturbed
from mmray.tuning import Choice, Numbers, Param, Space

SPACE: Space = (
    Param("lr", "lr", Numbers(1e-4, 1e-1, log=True)),
    Param("decay", "decay", Numbers(0, 1, step=0.25)),
    Param("steps", "steps", Numbers(1, 9, step=1, whole=True)),
    Param("lanes", "lanes", Numbers(1, 64, log=True, whole=True)),
    Param("kind", "kind", Choice({"a": 1, "b": 2, "c": 3})),
)


def test_the_worst_go_on_from_the_best_and_the_others_from_themselves() -> None:
    sampler = Sampler(name="pbt", quantile=0.25)
    scores = {8 + i: float(score) for i, score in enumerate([3, 7, 1, 8, 5, 6, 2, 4])}  # best: 11, 9; worst: 10, 14
    for index in range(16, 24):
        parent = parent_of(index, scores, sampler, 8)
        assert parent == parent_of(index, scores, sampler, 8)
        assert parent in (9, 11) if index - 8 in (10, 14) else parent == index - 8


def test_failed_ones_go_on_from_the_best() -> None:
    sampler = Sampler(name="pbt", quantile=0.25)
    scores = {0: 1.0, 1: math.nan, 2: 3.0}  # 1 is not finite, 3 has failed
    assert [parent_of(i, scores, sampler, 4) for i in (4, 5, 6, 7)] == [0, 2, 2, 2]
    with pytest.raises(ValueError, match="all 4 trials of a generation failed"):
        parent_of(4, {}, sampler, 4)


@given(st.integers(0, 10**6), st.floats(1e-4, 1e-1), st.sampled_from([0.0, 0.25, 1.0]), st.integers(1, 9),
       st.integers(1, 64), st.sampled_from("abc"))  # fmt: skip
def test_perturbed_values_are_others_within_the_space(
    seed: int, lr: float, decay: float, steps: int, lanes: int, kind: str
) -> None:
    values = {"lr": lr, "decay": decay, "steps": steps, "lanes": lanes, "kind": kind}
    changed = perturbed(values, SPACE, seed, 3)
    assert changed == perturbed(values, SPACE, seed, 3)
    assert changed.keys() == values.keys()
    for param in SPACE:
        assert param.range.holds(changed[param.name])
    assert type(changed["steps"]) is type(changed["lanes"]) is int


def test_numbers_go_up_or_down_by_a_fifth_mostly() -> None:
    ratios = [float(perturbed({"lr": 0.01}, SPACE, seed, 0)["lr"]) / 0.01 for seed in range(400)]  # type: ignore[arg-type]
    usual = [ratio for ratio in ratios if any(math.isclose(ratio, factor) for factor in FACTORS)]
    assert 0.68 < len(usual) / len(ratios) < 0.82  # three quarters
