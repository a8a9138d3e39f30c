"""A random forest over candidate classes: scikit-learn's very trees, grown in chunks, kept as plain arrays.

Trees `offset` to `offset + count` of a forest are those of one forest of all trees with the same seed, to the bit: a
warm start over `offset` trees that are not there draws their seeds and grows the others alone.

A chunk is one safetensors file: for the nodes of its trees, one after another, `feature` (int16, -1 at a leaf), `split`
(float64: the threshold, or at a leaf the share of its training candidates that were labels) and `right` (int32: the
node where a score above the threshold goes; any other goes to the next node); and `roots` (int64), the first node of
each tree and the end.
"""
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmray.ensembling.fitting import Candidates
from mmray.ensembling.pooling import Float32s, normalise
from mmray.features.native import compiled
from mmray.files import written_whole
from mmray.storage import fetched


@dataclass(frozen=True)
class Forest:
    """Grown trees: the files of their chunks, in order; of how many candidates a row (`k` a member) they judge."""

    chunks: tuple[str, ...]
    num_trees: int
    k: int
    exclusive: bool


def grow(
    scores: Float32s, hits: npt.NDArray[np.bool_], offset: int, count: int, seed: int, min_samples_leaf: int = 1
) -> dict[str, npt.NDArray[Any]]:
    """Trees `offset` to `offset + count` of the forest with this seed, as the arrays of a chunk.

    `scores`: (N, M) float32, of candidates; `hits`: (N,), which are labels, some but not all.
    """
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(
        n_estimators=offset + count, random_state=seed, warm_start=True, min_samples_leaf=min_samples_leaf
    )
    forest.estimators_ = [None] * offset
    forest.fit(scores, hits)
    trees = [tree.tree_ for tree in forest.estimators_[offset:]]
    features, splits, rights = [], [], []
    for tree in trees:
        leaf = tree.children_left == -1
        if (tree.children_left[~leaf] != np.flatnonzero(~leaf) + 1).any():
            raise RuntimeError("scikit-learn no longer numbers a left child after its parent: please report this")
        features.append(np.where(leaf, -1, tree.feature).astype(np.int16))
        splits.append(np.where(leaf, tree.value[:, 0, 1], tree.threshold))
        rights.append(tree.children_right.astype(np.int32))
    return {
        "feature": np.concatenate(features),
        "split": np.concatenate(splits),
        "right": np.concatenate(rights),
        "roots": np.concatenate([[0], np.cumsum([tree.node_count for tree in trees])]).astype(np.int64),
    }


def save(path: Path, chunk: dict[str, npt.NDArray[Any]]) -> None:
    """Write a chunk whole."""
    from safetensors.numpy import save_file

    with written_whole(path) as aside:
        save_file(chunk, aside)


def predict(forest: Forest, scores: Float32s) -> npt.NDArray[np.float64]:
    """The mean over the trees of the share of labels, (N,), of candidates (N, M): scikit-learn's `predict_proba`.

    Chunk by chunk, so that one of them at a time is in memory.
    """
    from safetensors.numpy import load_file

    total = np.zeros(len(scores))
    for name in forest.chunks:
        with fetched(name) as here:
            chunk = load_file(here)
        _add_trees(total, scores, chunk["feature"], chunk["split"], chunk["right"], chunk["roots"])
    return total / forest.num_trees


def score(forest: Forest, candidates: Candidates, num_classes: int) -> Float32s:
    """The forest's scores of every class, (R, C): 0 for what is no candidate."""
    counts = np.diff(candidates.offsets)
    result = np.zeros((len(counts), num_classes), np.float32)
    result[np.repeat(np.arange(len(counts)), counts), candidates.classes] = predict(forest, candidates.scores)
    if forest.exclusive:
        normalise(result)
    return result


def chunks_of(num_trees: int, trees_a_task: int) -> Sequence[tuple[int, int]]:
    """First tree and number of trees of each chunk."""
    return [(first, min(trees_a_task, num_trees - first)) for first in range(0, num_trees, trees_a_task)]


@compiled
def _add_trees(
    total: npt.NDArray[np.float64],
    scores: Float32s,
    feature: npt.NDArray[np.int16],
    split: npt.NDArray[np.float64],
    right: npt.NDArray[np.int32],
    roots: npt.NDArray[np.int64],
) -> None:
    for tree in range(len(roots) - 1):  # a tree stays in the cache while all candidates go through it
        root = roots[tree]
        for i in range(len(scores)):
            node = root
            while feature[node] >= 0:
                node = node + 1 if np.float64(scores[i, feature[node]]) <= split[node] else root + right[node]
            total[i] += split[node]
