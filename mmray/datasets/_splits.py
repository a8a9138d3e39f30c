"""Dividing a corpus into train, val and test so that every class has its share in each: by rows, or by whole groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from mmray.config import Fraction, Section

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class Shares(Section):
    """What each split gets, and the seed of the draw."""

    fractions: dict[SplitName, Fraction] = Field({"train": 0.7, "val": 0.15, "test": 0.15})
    seed: int = 0

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> Self:
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"fractions sum to {total:g}, not 1")
        return self

    @property
    def shares(self) -> dict[SplitName, float]:
        """The splits that get something, in the order train, val, test."""
        return {name: self.fractions[name] for name in SPLITS if self.fractions.get(name, 0) > 0}


def split_rows(labels: Sequence[str | None], shares: Mapping[SplitName, float], seed: int) -> list[SplitName]:
    """A split for every row, at random but in exact shares, in all and (to a row or two) within each class.

    The number of rows of a split is its share, rounded by largest remainders. The rows, sorted by class and shuffled
    within, are dealt out in a sequence that has the splits evenly mixed, so that any stretch of it has its share.
    """
    exact = np.array(list(shares.values())) * len(labels)
    sizes = np.floor(exact + 1e-9).astype(int)
    by_remainder = np.argsort(sizes - exact, kind="stable")
    sizes[by_remainder[: len(labels) - sizes.sum()]] += 1
    places = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes if size] or [np.empty(0)])
    dealt = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(places, kind="stable")]
    classes = np.array([label or "" for label in labels], dtype=object)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(classes[shuffled], kind="stable")]
    found = np.empty(len(labels), int)
    found[order] = dealt
    names = list(shares)
    return [names[number] for number in found]


def split_groups(
    amounts: Mapping[str, Mapping[str | None, float]],
    shares: Mapping[SplitName, float],
    seed: int,
    remedy: str = "bring more of it, or set dataset.split.fractions for fewer splits",
) -> dict[str, SplitName]:
    """A split for every group, given how much it has of each class (playing time, images); None is no class.

    Groups in random order go where most is missing of their classes and of the whole, and every class gets into every
    split; of some hundred such divisions (fewer of a large corpus, where one is as good as another) the one that meets
    the shares best is taken. ValueError, which ends in `remedy`, where a class has fewer groups than there are splits.
    """
    names, groups = list(shares), sorted(amounts)
    if not groups:
        return {}
    classes = sorted({name for of_group in amounts.values() for name in of_group if name is not None})
    _check_enough(amounts, classes, names, remedy)
    places: dict[str | None, int] = {name: place for place, name in enumerate([*classes, None])}
    whole = len(places)  # a last column: the whole is to meet the shares, too
    held: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
    total = np.zeros(whole + 1)
    for group in groups:
        of_group = amounts[group]
        columns = np.array([*(places[name] for name in of_group), whole])
        values = np.array([*of_group.values(), sum(of_group.values())], float)
        total[columns] += values
        held.append((columns, values))
    held = [(columns, values / np.maximum(total[columns], 1e-12)) for columns, values in held]
    wanted = np.array(list(shares.values()))[:, None]
    rng = np.random.default_rng(seed)
    best: tuple[float, NDArray[np.int64]] | None = None
    for _ in range(max(1, min(100, 20_000 // max(1, len(groups))))):
        placed, got, present = _dealt(held, len(classes), total > 0, wanted, rng.permutation(len(groups)))
        badness = float(((got - wanted * (total > 0)) ** 2).sum()) + 1000 * int((present == 0).sum())
        if best is None or badness < best[0]:
            best = badness, placed
    if best is None or best[0] >= 1000:
        raise ValueError(f"groups of several classes allow no division with every class in every split; {remedy}")
    return {group: names[number] for group, number in zip(groups, best[1], strict=True)}


def _check_enough(
    amounts: Mapping[str, Mapping[str | None, float]], classes: Sequence[str], names: Sequence[str], remedy: str
) -> None:
    counts = Counter(name for of_group in amounts.values() for name in of_group)
    for name in classes:
        if counts[name] < len(names):
            holding = sorted(group for group in amounts if name in amounts[group])
            raise ValueError(
                f"class {name!r} has {len(holding)} group{'s' * (len(holding) != 1)} ({', '.join(holding)}), too few "
                f"for one in each of {', '.join(names)}; {remedy}"
            )


def _dealt(
    held: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]],
    num_classes: int,
    there: NDArray[np.bool_],
    wanted: NDArray[np.float64],
    order: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """One division of groups, in this order: the split of each, what each split got of each class, its groups.

    `held` has, for each group, the columns (classes, no class, the whole) that it has some of, and how much.
    """
    placed = np.zeros(len(held), np.int64)
    got = np.zeros((len(wanted), len(there)))
    present = np.zeros((len(wanted), num_classes), np.int64)
    left = np.bincount(np.concatenate([columns[columns < num_classes] for columns, _ in held]), minlength=num_classes)
    for group in order:
        columns, values = held[group]
        classes = columns[columns < num_classes]
        missing = present[:, classes] == 0
        # A class with only as many groups left as splits are without it must go to one of these.
        urgent = left[classes] == missing.sum(axis=0)
        allowed = missing[:, urgent].any(axis=1) if urgent.any() else np.ones(len(wanted), bool)
        excess = (got[:, columns] - wanted) @ values
        split = int(np.argmin(np.where(allowed, excess, np.inf)))
        placed[group] = split
        got[split, columns] += values
        present[split, classes] += 1
        left[classes] -= 1
    return placed, got, present
