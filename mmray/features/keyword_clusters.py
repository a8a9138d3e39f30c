"""k-means over word vectors, and a list of words as a histogram over the clusters.

Greedy k-means++ (Arthur and Vassilvitskii, SODA 2007), then Lloyd's iterations until no vector changes its cluster. A
cluster that is left empty is put on the vector that is farthest from its centroid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmray.features.word_vectors import Floats, WordVectors

Int64s = npt.NDArray[np.int64]
Floats64 = npt.NDArray[np.float64]

_BLOCK_ROWS = 8192


def fit(vectors: Floats, num_clusters: int, seed: int, max_iterations: int = 100) -> Floats:
    """Centroids (num_clusters, V) of vectors (n, V); the same for the same seed on one machine.

    ValueError where there are fewer different vectors than clusters.
    """
    centroids = _seeds(vectors, num_clusters, np.random.default_rng(seed))
    before = np.full(len(vectors), -1, np.int64)
    for _ in range(max_iterations):
        clusters, distances = nearest(vectors, centroids)
        if np.array_equal(clusters, before):
            break
        before = clusters
        centroids = _means(vectors, clusters, distances, num_clusters)
    return centroids


def _means(vectors: Floats, clusters: Int64s, distances: Floats, num_clusters: int) -> Floats:
    """The mean of each cluster; for empty ones the vectors farthest from their centroids."""
    order = np.argsort(clusters, kind="stable")
    counts = np.bincount(clusters, minlength=num_clusters)
    filled, empty = np.flatnonzero(counts), np.flatnonzero(counts == 0)
    means = np.empty((num_clusters, vectors.shape[1]), np.float32)
    starts = np.searchsorted(clusters[order], filled)
    means[filled] = np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64) / counts[filled, None]
    means[empty] = vectors[np.argsort(-distances, kind="stable")[: len(empty)]]
    return means


def _seeds(vectors: Floats, num_clusters: int, random: np.random.Generator) -> Floats:
    """Vectors to begin with, one after another: of a few that are drawn in proportion to their squared distance from
    those before, the one that leaves the smallest sum of distances. The few are as many as in scikit-learn.
    """
    num_tries = 2 + int(np.log(num_clusters))
    exact = vectors.astype(np.float64)
    squares = np.square(exact).sum(axis=1)
    chosen = [int(random.integers(len(vectors)))]
    distances = _distances(exact, squares, chosen)[0]
    while len(chosen) < num_clusters:
        total = np.cumsum(distances)
        if not total[-1]:
            raise ValueError(f"words with {len(chosen):,} different vectors cannot make {num_clusters:,} clusters")
        tries = np.searchsorted(total, random.random(num_tries) * total[-1], "right")
        left = np.minimum(distances, _distances(exact, squares, tries))
        best = int(left.sum(axis=1).argmin())
        chosen.append(int(tries[best]))
        distances = left[best]
    return vectors[chosen]


def _distances(vectors: Floats64, squares: Floats64, places: Int64s | list[int]) -> Floats64:
    """Squared distances (p, n) of all vectors from those at some places; exactly 0 for equal ones."""
    products = vectors[places] @ vectors.T
    scale = squares[places][:, None] + squares
    distances: Floats64 = scale - 2 * products
    return np.where(distances > 1e-12 * scale, distances, 0.0)


def nearest(vectors: Floats, centroids: Floats) -> tuple[Int64s, npt.NDArray[np.float32]]:
    """The nearest centroid of each vector (n,), the first among equals, and its squared distance (n,)."""
    clusters, distances = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    squares = np.square(centroids).sum(axis=1)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        scores = block @ (-2 * centroids.T)
        scores += squares
        best = scores.argmin(axis=1)
        clusters[start : start + len(block)] = best
        distances[start : start + len(block)] = scores[np.arange(len(block)), best] + np.square(block).sum(axis=1)
    return clusters, np.maximum(distances, 0, out=distances)


class Histograms:
    """Counts words by the cluster that their vector is nearest to; each word is looked at once a process."""

    def __init__(self, words: WordVectors, centroids: Floats) -> None:
        if centroids.ndim != 2 or centroids.shape[1] != words.size:
            raise ValueError(f"centroids have shape {centroids.shape}; word vectors of {words.size} need (K, that)")
        self._words, self._centroids = words, centroids
        self._cluster_of = np.full(len(words), -1, np.int32)

    def of(self, numbers: npt.NDArray[np.integer[Any]], offsets: Int64s) -> npt.NDArray[np.uint8]:
        """Histograms (B, K) of rows whose words have the numbers `numbers[offsets[i]:offsets[i + 1]]`.

        A count stays at 255: YouTube allows 500 characters of keywords a video.
        """
        new = np.unique(numbers[self._cluster_of[numbers] < 0])
        if len(new):
            self._cluster_of[new] = nearest(self._words.take(new), self._centroids)[0]
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        size = len(self._centroids)
        cells, counts = np.unique(rows * size + self._cluster_of[numbers], return_counts=True)
        histograms = np.zeros((len(offsets) - 1) * size, np.uint8)
        histograms[cells] = np.minimum(counts, 255)
        return histograms.reshape(-1, size)
