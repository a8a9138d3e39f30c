"""k-means against scikit-learn's, and histograms against loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from mmray.features import keyword_clusters
from mmray.features.keyword_clusters import Histograms, fit, nearest
from mmray.features.word_vectors import opened


def blobs(num: int = 900, centres: int = 20, size: int = 6) -> np.ndarray:
    random = np.random.default_rng(0)
    places = 4 * random.standard_normal((centres, size))
    vectors: np.ndarray = (places[random.integers(centres, size=num)] + random.standard_normal((num, size))).astype("f")
    return vectors


def test_the_same_as_scikit_learn_from_the_same_beginning() -> None:
    vectors = blobs()
    begin = keyword_clusters._seeds(vectors, 20, np.random.default_rng(3))
    theirs = KMeans(20, init=begin, n_init=1, max_iter=100, tol=0).fit(vectors)
    ours = fit(vectors, 20, seed=3)
    np.testing.assert_allclose(ours, theirs.cluster_centers_, atol=2e-5)
    clusters, distances = nearest(vectors, ours)
    np.testing.assert_array_equal(clusters, theirs.labels_)
    assert distances.sum() == pytest.approx(theirs.inertia_, rel=1e-5)


def test_as_good_as_scikit_learn_from_its_own_beginning() -> None:
    vectors = blobs()
    ours = np.mean([nearest(vectors, fit(vectors, 20, seed))[1].sum() for seed in range(5)])
    theirs = np.mean([KMeans(20, n_init=1, random_state=seed).fit(vectors).inertia_ for seed in range(5)])
    assert ours < 1.1 * theirs


def test_a_seed_gives_the_same_clusters() -> None:
    vectors = blobs()
    assert np.array_equal(fit(vectors, 7, 1), fit(vectors, 7, 1))
    assert not np.array_equal(fit(vectors, 7, 1), fit(vectors, 7, 2))


def test_as_many_clusters_as_words_are_the_words() -> None:
    vectors = blobs(30)
    found = fit(vectors, 30, 0)
    assert np.array_equal(found[np.lexsort(found.T)], vectors[np.lexsort(vectors.T)])


def test_too_few_different_words() -> None:
    vectors = np.repeat(blobs(3), 5, axis=0)
    with pytest.raises(ValueError, match="words with 3 different vectors cannot make 4 clusters"):
        fit(vectors, 4, 0)


def test_an_empty_cluster_goes_to_the_farthest_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three beginnings are in one place: the second of them gets nothing at first."""
    vectors = np.array([[0.0], [1.0], [10.0], [11.0], [50.0]], np.float32)
    begin = np.array([[0.0], [0.0], [10.0]], np.float32)
    monkeypatch.setattr(keyword_clusters, "_seeds", lambda *_: begin)
    assert sorted(fit(vectors, 3, 0).ravel().tolist()) == [0.5, 10.5, 50.0]


def test_histograms_count_words_by_the_nearest_centroid(tmp_path: Path) -> None:
    (tmp_path / "vectors.txt").write_text("4 2\na 0 0\nb 1 0\nc 9 9\nd 8 9\n")
    words = opened(str(tmp_path / "vectors.txt"), str(tmp_path))
    histograms = Histograms(words, np.array([[9, 9], [0.4, 0], [-50, 0]], np.float32))
    numbers, offsets = np.array([0, 1, 2, 3, 3, 3, *[0] * 300]), np.array([0, 3, 3, 6, 306])
    expected = [[1, 2, 0], [0, 0, 0], [3, 0, 0], [0, 255, 0]]
    for _ in range(2):  # the second time from memory
        found = histograms.of(numbers, offsets)
        assert found.dtype == np.uint8
        assert found.tolist() == expected
    assert histograms.of(numbers[:0], np.array([0])).shape == (0, 3)
    with pytest.raises(ValueError, match=r"centroids have shape \(3, 1\)"):
        Histograms(words, np.zeros((3, 1), np.float32))
