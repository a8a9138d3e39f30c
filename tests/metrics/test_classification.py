"""Classification metrics against scikit-learn and hand computation, their accumulation, and intervals over groups."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from mmray.metrics.classification import METRICS, ClassificationMetrics, bootstrap_interval, class_weights


@st.composite
def data(draw, max_rows=40):
    """(probabilities (B, K), labels (B,)): few classes, so that some are empty, and with many equal probabilities."""
    num_classes, num_rows = draw(st.integers(2, 6)), draw(st.integers(1, max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["spread", "equal", "certain"]))
    if kind == "spread":
        p = rng.dirichlet(np.full(num_classes, 0.4), num_rows)
    elif kind == "equal":
        p = rng.integers(0, 3, (num_rows, num_classes)) + 1e-3
        p = p / p.sum(axis=1, keepdims=True)
    else:
        p = np.eye(num_classes)[rng.integers(0, num_classes, num_rows)]
    labels = rng.integers(0, draw(st.integers(1, num_classes)), num_rows)
    return p, labels


def scored(p, labels):
    metrics = ClassificationMetrics(p.shape[1])
    metrics.update(p, labels)
    return metrics


def naive_ece(p, labels):
    """Guo et al., equation 3, row by row."""
    bins = {}
    for row, label in zip(p, labels, strict=True):
        confidence = max(row)
        place = next(m for m in range(15) if confidence <= (m + 1) / 15 or m == 14)
        bins.setdefault(place, []).append((int(np.argmax(row)) == label, confidence))
    return sum(
        len(rows) / len(p) * abs(np.mean([right for right, _ in rows]) - np.mean([c for _, c in rows]))
        for rows in bins.values()
    )


def test_hand_computed():
    p = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.5, 0.25, 0.25]]
    metrics = scored(np.array(p), [0, 0, 1, 0, 2])
    assert metrics.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert metrics.per_class() == [
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "count": 3},
        {"precision": 1 / 2, "recall": 1.0, "f1": 2 / 3, "count": 1},
        {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 1},
    ]
    scores = metrics.compute()
    assert tuple(scores) == METRICS
    assert scores["weighted_accuracy"] == 3 / 5
    assert scores["macro_recall"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["weighted_precision"] == pytest.approx((3 * 2 / 3 + 1 * 1 / 2) / 5)
    assert scores["log_loss"] == pytest.approx(-math.log(0.7 * 0.6 * 0.8 * 0.3 * 0.25) / 5)
    # Rows 1 to 5 fall into bins 11, 9, 12, 6 and 8 of 15 (a confidence of 0.4 is the upper edge of the sixth).
    assert [(bin["low"], bin["high"], bin["count"]) for bin in metrics.reliability()] == [
        (m / 15, (m + 1) / 15, 1) for m in (5, 7, 8, 10, 11)
    ]
    # right: 0.7, 0.6, 0.8; wrong: 0.4, 0.5
    assert scores["ece"] == pytest.approx((0.3 + 0.4 + 0.2 + 0.4 + 0.5) / 5)
    # The label's place: first, first, first, second (equal to the third, lower class first), second (likewise third).
    assert [metrics.top_k_accuracy(k) for k in (1, 2, 3, 4)] == [3 / 5, 4 / 5, 1.0, 1.0]


@settings(max_examples=150, deadline=None)
@given(data())
def test_equal_to_scikit_learn(rows):
    p, labels = rows
    predicted, classes = p.argmax(axis=1), np.arange(p.shape[1])
    metrics = scored(p, labels)
    scores = metrics.compute()
    assert (metrics.confusion == confusion_matrix(labels, predicted, labels=classes)).all()
    per_class = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0)
    assert [tuple(c.values()) for c in metrics.per_class()] == list(zip(*(x.tolist() for x in per_class), strict=True))
    assert scores["weighted_accuracy"] == scores["weighted_recall"] == accuracy_score(labels, predicted)
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)[:3]
        ours = [scores[f"{average}_{name}"] for name in ("precision", "recall", "f1")]
        assert ours == pytest.approx(expected, rel=1e-14, abs=0)
    certain_enough = np.clip(p, 2.0**-52, 1)
    assert scores["log_loss"] == pytest.approx(-np.log(certain_enough[np.arange(len(p)), labels]).mean(), abs=1e-9)
    assert scores["ece"] == pytest.approx(naive_ece(p, labels), abs=1e-9)


def test_log_loss_and_top_k_equal_to_scikit_learn():
    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.ones(7), 500), rng.integers(0, 7, 500)
    metrics = scored(p, labels)
    assert metrics.compute()["log_loss"] == pytest.approx(log_loss(labels, p, labels=np.arange(7)), abs=1e-9)
    for k in range(1, 7):
        assert metrics.top_k_accuracy(k) == top_k_accuracy_score(labels, p, k=k, labels=np.arange(7))


@settings(max_examples=100, deadline=None)
@given(data(), st.integers(0, 2**32 - 1))
def test_top_k_where_probabilities_are_equal(rows, seed):
    p, labels = rows
    metrics = scored(p, labels)
    order = np.argsort(-p, axis=1, kind="stable")
    for k in range(1, p.shape[1] + 1):
        assert metrics.top_k_accuracy(k) == np.mean(
            [label in row[:k] for row, label in zip(order, labels, strict=True)]
        )


@settings(max_examples=50, deadline=None)
@given(data(), st.randoms(use_true_random=False))
def test_parts_in_any_order_give_the_very_numbers_of_one_pass(rows, rng: random.Random):
    p, labels = rows
    whole = scored(p, labels)
    order = rng.sample(range(len(p)), len(p))
    cuts = sorted(rng.choices(range(len(p) + 1), k=3))
    merged = ClassificationMetrics(p.shape[1])
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(p)], strict=True)]
    rng.shuffle(parts)
    for part in parts:
        merged.merge(scored(p[part], labels[part]).state())
    assert merged.compute() == whole.compute()
    assert merged.per_class() == whole.per_class()
    assert merged.reliability() == whole.reliability()
    assert merged.num_rows == len(p)


def test_classes_that_do_not_occur_are_no_part_of_a_macro_mean():
    metrics = scored(np.eye(5)[[0, 1, 3]], [0, 1, 1])
    scores = metrics.compute()
    assert scores["macro_recall"] == pytest.approx((1 + 1 / 2 + 0) / 3)  # 3 occurs as a prediction; 2 and 4 nowhere
    assert metrics.per_class()[2] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0}


def test_a_certain_mistake_costs_36_nats_and_a_certain_hit_nothing():
    assert scored(np.eye(2), [1, 0]).compute()["log_loss"] == pytest.approx(52 * math.log(2))
    assert scored(np.eye(2), [0, 1]).compute()["log_loss"] == 0


def test_calibration_of_coarse_bins():
    """100 rows at 0.8 of which 60 are right, 50 at 0.95 all right: |0.6 - 0.8| and |1 - 0.95|, weighted by rows."""
    p = np.array([[0.8, 0.2]] * 100 + [[0.95, 0.05]] * 50)
    metrics = scored(p, [0] * 60 + [1] * 40 + [0] * 50)
    assert metrics.compute()["ece"] == pytest.approx((100 * 0.2 + 50 * 0.05) / 150)
    assert metrics.reliability() == [
        {"low": 11 / 15, "high": 12 / 15, "count": 100, "confidence": pytest.approx(0.8), "accuracy": 0.6},
        {"low": 14 / 15, "high": 1.0, "count": 50, "confidence": pytest.approx(0.95), "accuracy": 1.0},
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_floats_of_any_width(dtype):
    logits = torch.randn(200, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.randint(40, (200,), generator=torch.Generator().manual_seed(1))
    metrics = scored(logits.softmax(1).to(dtype), labels)
    assert metrics.compute() == pytest.approx(scored(logits.softmax(1), labels).compute(), abs=1e-2)
    assert metrics.compute()["ece"] <= 1


@pytest.mark.parametrize(
    ("p", "labels", "message"),
    [
        ([[0.5, math.nan]], [0], r"probabilities\[0, 1\] \(row, class\) is nan"),
        ([[0.5, 0.5], [1.5, -0.5]], [0, 0], r"probabilities\[1, 1\] \(row, class\) is -0.5; .* softmax"),
        ([[0.5, 0.5], [math.inf, 0.5]], [0, 0], "of row 1 sum to inf; expected 1"),
        ([[0.5, 0.5], [0.5, 0.4]], [0, 0], r"of row 1 sum to 0\.9; expected 1"),
        ([[0.5, 0.5]], [2], r"labels\[0\] is 2; expected 0 to 1"),
        ([[0.5, 0.5]], [-1], r"labels\[0\] is -1; expected 0 to 1"),
        ([[0.5, 0.5]], [0.0], "labels are float64; expected integers"),
        ([[0.5, 0.5]], [0, 1], r"labels have shape \(2,\); expected \(1,\)"),
        ([[0.5, 0.25, 0.25]], [0], r"shape \(1, 3\); expected \(rows, 2\)"),
    ],
)
def test_what_is_no_classification_is_refused_and_changes_nothing(p, labels, message):
    metrics = scored(np.eye(2), [0, 0])
    before = metrics.compute()
    with pytest.raises(ValueError, match=message):
        metrics.update(p, labels)
    assert metrics.compute() == before


def test_no_rows_and_other_classes():
    metrics = ClassificationMetrics(3)
    metrics.update(np.empty((0, 3)), np.empty(0, np.int64))
    for compute in (metrics.compute, lambda: metrics.top_k_accuracy(1)):
        with pytest.raises(ValueError, match="no rows were scored"):
            compute()
    assert metrics.reliability() == []
    with pytest.raises(ValueError, match="can't merge metrics of 2 classes into metrics of 3"):
        metrics.merge(ClassificationMetrics(2).state())
    with pytest.raises(ValueError, match="num_classes=0"):
        ClassificationMetrics(0)


def test_class_weights():
    weights = class_weights([711, 2301, 2166])  # N / (K n_c) of the counts of the published corpus
    assert weights.round(4).tolist() == [2.4276, 0.7501, 0.7969]
    assert np.average(weights, weights=[711, 2301, 2166]) == pytest.approx(1)
    with pytest.raises(ValueError, match="class 1 has 0 training rows"):
        class_weights([5, 0])


def naive_interval(predicted, labels, groups, score, seed, num_resamples):
    """One resample at a time, rows picked group by group, scored by scikit-learn."""
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    values = []
    for _ in range(num_resamples):
        rows = np.concatenate([np.flatnonzero(groups == names[g]) for g in rng.integers(len(names), size=len(names))])
        values.append(score(labels[rows], predicted[rows]))
    return np.percentile(values, [2.5, 97.5]).tolist()


def made_up(num_groups=12, num_classes=4, seed=0):
    """Rows whose errors agree within a group: (predicted, labels, groups)."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 30, num_groups)
    groups = np.repeat([f"track {g}" for g in rng.permutation(num_groups)], sizes)
    labels = np.repeat(rng.integers(0, num_classes, num_groups), sizes)
    wrong = np.repeat(rng.uniform(0, 0.8, num_groups), sizes) > rng.uniform(size=len(labels))
    return np.where(wrong, rng.integers(0, num_classes, len(labels)), labels), labels, groups


@pytest.mark.parametrize(
    ("metric", "place", "average"),
    [(f"{a}_{m}", i, a) for a in ("macro", "weighted") for i, m in enumerate(("precision", "recall", "f1"))],
)
def test_bootstrap_equal_to_one_resample_at_a_time(metric, place, average):
    predicted, labels, groups = made_up()

    def score(true, guess):
        return precision_recall_fscore_support(true, guess, average=average, zero_division=0)[place]

    expected = naive_interval(predicted, labels, groups, score, seed=3, num_resamples=60)
    ours = bootstrap_interval(predicted, labels, groups, metric, 4, num_resamples=60, seed=3)
    assert ours == pytest.approx(expected, rel=1e-12)


def test_bootstrap_of_accuracy_where_its_distribution_is_known():
    """Every row its own group and 30 of 100 right: the resampled accuracy is binomial(100, 0.3) / 100."""
    predicted, labels = np.zeros(100, int), np.array([0] * 30 + [1] * 70)
    low, high = bootstrap_interval(predicted, labels, np.arange(100), "weighted_accuracy", 2, num_resamples=20_000)
    assert (low, high) == (pytest.approx(0.21, abs=0.011), pytest.approx(0.39, abs=0.011))
    # The same rows in 10 tracks that are right or wrong as a whole: binomial(10, 0.3) / 10.
    tracks = np.repeat(np.arange(10), 10)
    assert bootstrap_interval(predicted, labels, tracks, "weighted_accuracy", 2) == [0.0, 0.6]


def test_bootstrap_takes_rows_in_any_order_and_names_of_any_kind(monkeypatch):
    predicted, labels, groups = made_up()
    expected = bootstrap_interval(predicted, labels, groups, "macro_f1", 4)
    order = np.random.default_rng(1).permutation(len(labels))
    assert bootstrap_interval(predicted[order], labels[order], groups[order], "macro_f1", 4) == expected
    numbers = np.unique(groups, return_inverse=True)[1]
    assert bootstrap_interval(predicted.tolist(), labels.tolist(), numbers.tolist(), "macro_f1", 4) == expected
    monkeypatch.setattr("mmray.metrics.classification._DRAWS_AT_ONCE", 100)
    assert bootstrap_interval(predicted, labels, groups, "macro_f1", 4) == expected  # drawn in 250 parts


def test_bootstrap_of_one_group_knows_nothing_and_of_one_answer_everything():
    assert bootstrap_interval([0, 1], [0, 0], ["a", "a"], "macro_f1", 2) == [0.0, 1.0]
    assert bootstrap_interval([0, 1], [0, 1], ["a", "b"], "weighted_accuracy", 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "ece"}, "metric='ece' has no bootstrap interval; choose one of weighted_accuracy"),
        ({"num_resamples": 0}, "num_resamples=0"),
        ({"groups": []}, r"groups have shape \(0,\)"),
        ({"labels": [0]}, r"labels have shape \(1,\); expected \(2,\)"),
        ({"predicted": [0, 2]}, r"predicted\[1\] is 2; expected 0 to 1"),
    ],
)
def test_bootstrap_refuses(change, message):
    arguments = {"predicted": [0, 1], "labels": [0, 1], "groups": ["a", "b"], "metric": "macro_f1", "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(**(arguments | change))
