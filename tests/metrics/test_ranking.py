"""GAP, mAP, Hit@1 and PERR against hand computation, enumeration of orders, sklearn and a naive re-implementation."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mmray.metrics import ranking
from mmray.metrics.ranking import RankingMetrics, average_precision, label_prior_scores, labels_of_multi_hot
from mmray.metrics.top_k import top_k

INF = float("inf")


def naive_average_precision(pairs, num_positives):
    """Definition in exact rationals; a hit in a group of ties stands at each of its places equally often."""
    total = Fraction(0)
    for score in {score for score, _ in pairs}:
        above = [hit for other, hit in pairs if other > score]
        group = [hit for other, hit in pairs if other == score]
        for place in range(1, len(group) + 1):
            if sum(group) == 0:
                continue
            before = Fraction((place - 1) * (sum(group) - 1), max(len(group) - 1, 1))
            total += Fraction(sum(group), len(group)) * (sum(above) + 1 + before) / (len(above) + place)
    return total / num_positives if num_positives else Fraction(0)


def naive_metrics(scores, multi_hot, k):
    """All metrics straight from their definitions, in plain Python."""
    num_videos, num_classes = scores.shape
    ranked = [sorted(range(num_classes), key=lambda c: (-row[c], c)) for row in scores.tolist()]
    pairs = [
        (c, scores[i, c].item(), int(multi_hot[i, c]))
        for i in range(num_videos)
        for c in ranked[i][: min(k, num_classes)]
    ]
    ap = {
        c: naive_average_precision([(s, h) for d, s, h in pairs if c == d], int(multi_hot[:, c].sum()))
        for c in range(num_classes)
        if multi_hot[:, c].any()
    }
    perr = []
    for i in range(num_videos):
        n = int(multi_hot[i].sum())
        if n > 0:
            perr.append(Fraction(sum(bool(multi_hot[i, c]) and scores[i, c] > 0 for c in ranked[i][:n]), n))
    return {
        "gap": float(naive_average_precision([(s, h) for _, s, h in pairs], int(multi_hot.sum()))),
        "map": float(sum(ap.values()) / max(len(ap), 1)),
        "hit_at_1": sum(int(multi_hot[i, ranked[i][0]]) for i in range(num_videos)) / num_videos,
        "perr": float(sum(perr) / max(len(perr), 1)),
    }, ap


def accumulated(scores, multi_hot, k):
    metrics = RankingMetrics(scores.shape[1], k)
    metrics.update(scores, labels_of_multi_hot(multi_hot))
    return metrics


def sparse(rng, shape, rate=0.1):
    return (rng.random(shape) < rate).astype(np.uint8)


# ---- Hand computation


def test_two_videos_by_hand():
    # video 0 ranks 2 1 0, has labels 1 and 2;  video 1 ranks 0 2 1, has label 1;  k = 2
    scores = np.array([[0.1, 0.5, 0.9], [0.8, 0.2, 0.3]], np.float32)
    metrics = RankingMetrics(3, k=2)
    metrics.update(scores, ([2, 1, 1], [0, 2, 3]))
    # pool: 0.9 hit, 0.8 miss, 0.5 hit, 0.3 miss; 3 positives:  (1/1 + 2/3) / 3
    # class 1: pool 0.5 hit; 2 positives, one of them cut off:  (1/1) / 2.  class 2: 0.9 hit, 0.3 miss:  1.
    # first predictions: hit, miss.  PERR: video 0 has both labels in its first 2, video 1 not its label in its first 1
    assert metrics.compute() == pytest.approx({"gap": 5 / 9, "map": 3 / 4, "hit_at_1": 1 / 2, "perr": 1 / 2}, abs=1e-15)
    assert metrics.compute(count_empty_classes=True)["map"] == pytest.approx(1.5 / 3, abs=1e-15)
    np.testing.assert_allclose(metrics.per_class_ap(), [np.nan, 0.5, 1.0], rtol=1e-15)
    np.testing.assert_array_equal(metrics.label_counts, [0, 2, 1])


def test_expectation_of_a_tie_by_hand():
    # One hit and one miss of equal score: first or second with probability 1/2:  (1/1 + 1/2) / 2
    for pool in ([0.5, 0.5], [0.0, -0.0], [INF, INF], [-INF, -INF]):
        assert average_precision(np.array(pool, np.float32), [True, False], 1) == pytest.approx(0.75, abs=1e-15)


def test_a_score_of_zero_is_no_perr_hit_but_is_hit_at_1():
    metrics = accumulated(np.array([[0.0, -1.0]], np.float32), np.array([[1, 0]]), k=2)
    assert metrics.compute() == {"gap": 1.0, "map": 1.0, "hit_at_1": 1.0, "perr": 0.0}


# ---- Ties in the pool: the mean over every order


@pytest.mark.parametrize("seed", range(6))
def test_ties_are_the_mean_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.array([0.2, 0.4, 0.6], np.float32), 7)
    hits = rng.random(7) < 0.5
    hits[0] = True
    total, num_orders = 0.0, 0
    for order in permutations(range(7)):
        if all(scores[a] >= scores[b] for a, b in pairwise(order)):
            ranked = hits[list(order)]
            total += sum(ranked[: j + 1].sum() / (j + 1) for j in range(7) if ranked[j])
            num_orders += 1
    assert num_orders > 1
    assert average_precision(scores, hits, 9) == pytest.approx(total / num_orders / 9, abs=1e-13)


# ---- A naive re-implementation


@pytest.mark.parametrize(
    ("num_videos", "num_classes", "k"),
    [(1, 1, 20), (30, 1, 1), (20, 7, 20), (20, 25, 3), (12, 300, 20), (9, 700, 64), (7, 600, 65), (25, 257, 1)],
)
@pytest.mark.parametrize("kind", ["distinct", "few_values", "all_equal", "saturated", "negative"])
def test_agrees_with_naive(num_videos, num_classes, k, kind):
    rng = np.random.default_rng(num_videos * num_classes + k)
    shape = (num_videos, num_classes)
    scores = {
        "distinct": lambda: rng.permutation(num_videos * num_classes).reshape(shape) / 1024,
        "few_values": lambda: rng.integers(0, 4, shape) / 4,
        "all_equal": lambda: np.full(shape, 0.5),
        "saturated": lambda: rng.choice([-INF, 0.0, -0.0, 1.0, INF], shape),
        "negative": lambda: -rng.random(shape),
    }[kind]().astype(np.float32)
    multi_hot = sparse(rng, shape)
    metrics = accumulated(scores, multi_hot, k)
    expected, expected_ap = naive_metrics(scores, multi_hot, k)
    assert metrics.compute() == pytest.approx(expected, abs=1e-9)
    ap = metrics.per_class_ap()
    for c in range(num_classes):
        if c in expected_ap:
            assert ap[c] == pytest.approx(float(expected_ap[c]), abs=1e-9)
        else:
            assert np.isnan(ap[c])


@pytest.mark.parametrize("label", [0, 1])
def test_agrees_with_naive_without_labels_and_with_all(label):
    scores = np.random.default_rng(1).random((8, 30), dtype=np.float32)
    multi_hot = np.full((8, 30), label)
    metrics = accumulated(scores, multi_hot, k=20)
    assert metrics.compute() == pytest.approx(naive_metrics(scores, multi_hot, 20)[0], abs=1e-9)
    assert metrics.hit_at_1() == label


def test_more_labels_than_k_with_ties_at_the_cut():
    rng = np.random.default_rng(2)
    scores = rng.integers(-1, 3, (40, 12)).astype(np.float32)
    multi_hot = sparse(rng, (40, 12), rate=0.6)
    assert accumulated(scores, multi_hot, 2).perr() == pytest.approx(
        naive_metrics(scores, multi_hot, 2)[0]["perr"], abs=1e-12
    )


def test_per_class_ap_agrees_with_sklearn():
    rng = np.random.default_rng(3)
    scores = rng.permutation(200 * 15).reshape(200, 15).astype(np.float32)
    multi_hot = sparse(rng, (200, 15), rate=0.2)
    expected = [average_precision_score(multi_hot[:, c], scores[:, c]) for c in range(15)]
    np.testing.assert_allclose(accumulated(scores, multi_hot, k=20).per_class_ap(), expected, rtol=1e-12)


# ---- Merging and order


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_split_and_order_give_the_very_numbers_of_one_pass(data):
    seed = data.draw(st.integers(0, 2**32 - 1))
    num_videos = data.draw(st.integers(1, 30))
    num_parts = data.draw(st.integers(1, 5))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, data.draw(st.integers(1, 40)), (num_videos, 11)).astype(np.float32)
    multi_hot = sparse(rng, (num_videos, 11), rate=0.3)
    whole = accumulated(scores, multi_hot, k=4)

    part_of = rng.integers(0, num_parts, num_videos)
    parts = [accumulated(scores[part_of == p], multi_hot[part_of == p], k=4) for p in rng.permutation(num_parts)]
    merged = RankingMetrics(11, k=4)
    for part in parts:
        merged.merge(part)
    assert merged.num_videos == num_videos
    assert merged.compute() == whole.compute()
    np.testing.assert_array_equal(merged.per_class_ap(), whole.per_class_ap())


def test_storage_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 9, (50, 13)).astype(np.float32)
    multi_hot = sparse(rng, (50, 13))
    whole = accumulated(scores, multi_hot, k=3).compute()
    monkeypatch.setattr(ranking, "_ROWS_PER_BLOCK", 8)
    parts = RankingMetrics(13, k=3)
    for start, stop in [(0, 3), (3, 3), (3, 8), (8, 33), (33, 50)]:
        parts.update(scores[start:stop], labels_of_multi_hot(multi_hot[start:stop]))
    assert parts.compute() == whole
    parts.merge(parts)  # every video twice: shares stay
    assert parts.num_videos == 100
    assert parts.hit_at_1() == whole["hit_at_1"]
    np.testing.assert_array_equal(parts.state()["scores"][50:], parts.state()["scores"][:50])


def test_merge_leaves_the_other_alone_and_shares_nothing():
    rng = np.random.default_rng(5)
    a, b = (accumulated(rng.random((6, 5), dtype=np.float32), sparse(rng, (6, 5), 0.4), k=2) for _ in range(2))
    before = b.compute()
    a.merge(b)
    a.update(np.ones((3, 5), np.float32), ([1], [0, 1, 1, 1]))
    b.update(np.zeros((0, 5), np.float32), ([], [0]))
    assert b.compute() == before


@pytest.mark.parametrize("num_classes", [40, 2**15, 2**15 + 1])
def test_state_round_trip(num_classes, tmp_path):
    rng = np.random.default_rng(6)
    scores = rng.random((10, num_classes), dtype=np.float32)
    labels = (np.arange(20) * 2 + num_classes - 40, np.arange(11) * 2)
    scores[np.repeat(np.arange(10), 2), labels[0]] += rng.random(20, dtype=np.float32)
    metrics = RankingMetrics(num_classes)
    metrics.update(scores, labels)
    np.savez(tmp_path / "state.npz", **metrics.state())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as state:
        again = RankingMetrics.from_state(state)
        assert state["scores"].nbytes + state["codes"].nbytes == 10 * 20 * (6 if num_classes <= 2**15 else 8)
    assert again.compute() == metrics.compute()
    assert metrics.gap() > 0
    again.update(scores, labels)
    assert again.num_videos == 20
    assert RankingMetrics.from_state(RankingMetrics(3).state()).num_videos == 0


# ---- Stored predictions


def test_stored_predictions_equal_dense_scores_in_any_order():
    rng = np.random.default_rng(7)
    scores = rng.integers(0, 9, (40, 50)).astype(np.float32)
    multi_hot = sparse(rng, (40, 50), rate=0.04)
    labels = labels_of_multi_hot(multi_hot)
    dense = accumulated(scores, multi_hot, k=10)
    classes, top_scores = top_k(scores, 10)
    shuffled = rng.permuted(np.tile(np.arange(10), (40, 1)), axis=1)
    stored = RankingMetrics(50, k=10)
    stored.update_top_k(
        np.take_along_axis(classes, shuffled, 1).astype(np.int64), np.take_along_axis(top_scores, shuffled, 1), labels
    )
    assert stored.compute() == dense.compute()
    for name, array in dense.state().items():
        np.testing.assert_array_equal(stored.state()[name], array, err_msg=name)


def test_perr_of_stored_predictions_needs_as_many_predictions_as_labels():
    metrics = RankingMetrics(5, k=2)
    metrics.update_top_k(np.array([[0, 1]]), np.array([[0.9, 0.8]], np.float32), ([0, 1], [0, 2]))
    assert metrics.compute()["perr"] == 1.0
    beyond = RankingMetrics(5, k=2)
    beyond.update_top_k(np.array([[0, 1]]), np.array([[0.9, 0.8]], np.float32), ([0, 1, 2], [0, 3]))
    metrics.merge(RankingMetrics.from_state(beyond.state()))
    assert metrics.num_videos_beyond_k == 1
    assert set(metrics.compute()) == {"gap", "map", "hit_at_1"}
    assert metrics.gap() == pytest.approx(4 / 5)
    with pytest.raises(ValueError, match="1 videos have more labels than the k=2"):
        metrics.perr()


# ---- The prior baseline


def test_prior_predicts_the_training_frequencies():
    prior = label_prior_scores([3, 0, 4], 4)
    assert prior.dtype == np.float32
    np.testing.assert_array_equal(prior, np.array([0.75, 0, 1], np.float32))
    for counts, num_videos in [([1, 5], 4), ([-1, 2], 4), ([0.0, np.nan], 4), ([1], 0), ([[1]], 1)]:
        with pytest.raises(ValueError, match="expected"):
            label_prior_scores(counts, num_videos)


def test_broadcast_rows_equal_written_out_rows():
    rng = np.random.default_rng(8)
    multi_hot = sparse(rng, (300, 30))
    labels = labels_of_multi_hot(multi_hot)
    prior = label_prior_scores(multi_hot.sum(axis=0), 300)
    scores = np.broadcast_to(prior, (300, 30))
    expected, _ = naive_metrics(scores.copy(), multi_hot, k=20)
    metrics = RankingMetrics(30)
    metrics.update(scores, labels)
    assert metrics.compute() == pytest.approx(expected, abs=1e-9)
    classes, top_scores = top_k(prior[None], 20)
    stored = RankingMetrics(30)
    stored.update_top_k(np.broadcast_to(classes, (300, 20)), np.broadcast_to(top_scores, (300, 20)), labels)
    assert stored.compute() == metrics.compute()


# ---- Top k


def lexicographic_top_k(scores, k):
    return np.lexsort((np.broadcast_to(np.arange(scores.shape[1]), scores.shape), -scores))[:, :k]


@settings(max_examples=150, deadline=None)
@given(
    num_classes=st.sampled_from([1, 2, 19, 63, 64, 255, 256, 257, 511, 512, 1000]),
    k=st.sampled_from([1, 2, 20, 63, 64, 65, 100]),
    num_values=st.sampled_from([1, 2, 3, 50, 10_000]),
    seed=st.integers(0, 2**32 - 1),
)
def test_top_k_equals_a_full_sort(num_classes, k, num_values, seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([[-INF, INF, 0.0, -0.0], rng.normal(size=num_values)]).astype(np.float32)
    scores = rng.choice(values[rng.integers(0, 5) :], (3, num_classes))
    classes, top_scores = top_k(scores, k)
    expected = lexicographic_top_k(scores, k)
    assert classes.dtype == np.int32
    np.testing.assert_array_equal(classes, expected)
    # bit for bit: -0.0 stays -0.0
    np.testing.assert_array_equal(top_scores.view(np.int32), np.take_along_axis(scores, expected, 1).view(np.int32))


@pytest.mark.parametrize("order", ["rising", "falling", "high_scores_in_one_lane"])
def test_top_k_of_adverse_orders(order):
    scores = np.sort(np.random.default_rng(9).random((4, 4716), dtype=np.float32), axis=1)
    if order == "falling":
        scores = scores[:, ::-1]
    if order == "high_scores_in_one_lane":
        scores[:, 5::256] += 1
    np.testing.assert_array_equal(top_k(scores, 20)[0], lexicographic_top_k(scores, 20))


@pytest.mark.parametrize("k", [20, 70])
def test_top_k_reads_every_type_and_stride(k):
    half = np.random.default_rng(10).random((300, 90)).astype(np.float16)
    expected = lexicographic_top_k(half.astype(np.float32), k)
    strided = np.asfortranarray(half.astype(np.float32))
    for scores in (half, half.astype(np.float32), strided, torch.from_numpy(half), torch.from_numpy(strided)):
        np.testing.assert_array_equal(top_k(scores, k)[0], expected)
    brain = torch.from_numpy(half).bfloat16().requires_grad_()
    np.testing.assert_array_equal(top_k(brain, k)[0], lexicographic_top_k(brain.detach().float().numpy(), k))


@pytest.mark.parametrize("k", [20, 70])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (140, 299), (299, 256)])
def test_nan_is_refused_with_its_place(k, row, column):
    scores = np.random.default_rng(11).random((300, 300), dtype=np.float32)
    scores[row, column] = np.nan
    with pytest.raises(ValueError, match=rf"scores\[{row}, {column}\] \(row, class\) is NaN"):
        top_k(scores, k)


# ---- Wrong input


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (([0, 5], [0, 1, 2]), "row 1 has label 5; expected 0 to 4"),
        (([-1], [0, 1, 1]), "row 0 has label -1"),
        (([2, 3, 3], [0, 1, 3]), "row 1 has label 3 twice"),
        (([2], [0, 1]), "2 offsets; expected 3"),
        (([2], [0, 0, 0]), "run from 0 to 0; expected from 0 to the 1 labels"),
        (([2], [1, 1, 1]), "run from 1"),
        (([2, 3], [0, 3, 2]), "never falling"),
        (([0.5], [0, 1, 1]), "expected integers"),
        (([[1]], [0, 1, 1]), "expected integers"),
    ],
)
def test_wrong_labels_are_named_and_change_nothing(labels, message):
    metrics = RankingMetrics(5, k=2)
    classes, scores = np.array([[0, 1], [2, 3]]), np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match=message):
        metrics.update(np.zeros((2, 5), np.float32), labels)
    with pytest.raises(ValueError, match=message):
        metrics.update_top_k(classes, scores, labels)
    assert metrics.num_videos == 0
    assert metrics.label_counts.sum() == 0


@pytest.mark.parametrize(
    ("classes", "scores", "message"),
    [
        ([[0, 1], [2, 5]], [[1, 1], [1, 1]], "row 1 predicts class 5; expected 0 to 4"),
        ([[0, 1], [2, -1]], [[1, 1], [1, 1]], "row 1 predicts class -1"),
        ([[0, 1], [2**32, 1]], [[1, 1], [1, 1]], "row 1 predicts class 4294967296"),
        ([[3, 3], [2, 1]], [[1, 2], [1, 1]], "row 0 predicts class 3 twice"),
        ([[3, 2], [2, 1]], [[1, 2], [1, np.nan]], "row 1 has score NaN for class 1"),
        ([[3], [2]], [[1], [1]], r"expected \(videos, 2\)"),
        ([[3.0, 2.0], [2.0, 1.0]], [[1, 2], [1, 1]], "classes are float64; expected integers"),
    ],
)
def test_wrong_predictions_are_named_and_change_nothing(classes, scores, message):
    metrics = RankingMetrics(5, k=2)
    with pytest.raises(ValueError, match=message):
        metrics.update_top_k(np.array(classes), np.array(scores, np.float32), ([1], [0, 1, 1]))
    assert metrics.num_videos == 0


def test_wrong_scores_are_refused_and_change_nothing():
    metrics = RankingMetrics(5, k=2)
    with pytest.raises(ValueError, match="float64; expected float32"):
        metrics.update(np.zeros((2, 5)), ([], [0, 0, 0]))
    with pytest.raises(ValueError, match=r"\(2, 4\); expected \(videos, 5\)"):
        metrics.update(np.zeros((2, 4), np.float32), ([], [0, 0, 0]))
    with pytest.raises(ValueError, match="NaN"):
        metrics.update(np.full((2, 5), np.nan, np.float32), ([1], [0, 1, 1]))
    assert metrics.num_videos == 0
    assert metrics.label_counts.sum() == 0


def test_no_videos_have_no_metrics():
    metrics = RankingMetrics(5)
    metrics.update(np.zeros((0, 5), np.float32), ([], [0]))
    for compute in (metrics.compute, metrics.gap, metrics.per_class_ap, metrics.hit_at_1, metrics.perr):
        with pytest.raises(ValueError, match="no videos"):
            compute()


def test_settings_that_make_no_sense_are_refused():
    for num_classes, k in [(0, 20), (5, 0), (2**31, 20)]:
        with pytest.raises(ValueError, match="expected"):
            RankingMetrics(num_classes, k)
    with pytest.raises(ValueError, match="num_classes=4, k=2 into num_classes=5, k=2"):
        RankingMetrics(5, 2).merge(RankingMetrics(4, 2))
    with pytest.raises(ValueError, match=r"multi_hot\[0, 1\] is 2"):
        labels_of_multi_hot([[0, 2]])
    with pytest.raises(ValueError, match="less than the 2 hits"):
        average_precision(np.ones(2, np.float32), [True, True], 1)
    with pytest.raises(ValueError, match=r"scores\[1\] is NaN"):
        average_precision(np.array([0.5, np.nan], np.float32), [True, True], 2)


def test_predictions_beyond_k_make_perr_exact_and_change_nothing_else() -> None:
    rng = np.random.default_rng(7)
    scores = rng.random((60, 40), np.float32)
    labels = labels_of_multi_hot(rng.random((60, 40)) < 0.3)  # up to 20 labels a video, k is 5
    dense, stored = RankingMetrics(40, k=5), RankingMetrics(40, k=5)
    dense.update(scores, labels)
    stored.update_top_k(*top_k(scores, 25), labels)
    assert stored.compute() == dense.compute()
    assert "perr" in stored.compute()
