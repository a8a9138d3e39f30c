"""The scores of a run folder: its own, its baseline's, every class's; from predictions that are what they say."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score

from mmray import class_scores, config, evaluation
from mmray.files import write_json, write_text
from mmray.schema import Column, DatasetInfo, SplitInfo

Labels = list[list[int]]


@pytest.fixture
def make_run_dir(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder with what an evaluation reads: config, `dataset.json` and predictions of the test split.

    `k` is what was stored of each row (None: everything), `top_k` what counts for the metrics.
    """

    def make(
        train_counts: list[int], train_rows: int, labels: Labels, scores: np.ndarray, k: int | None = None,
        top_k: int = 20, **said: int,
    ) -> Path:  # fmt: skip
        run_dir = tmp_path / "run"
        classes = scores.shape[1]
        run = {
            "name": "run",
            "task": {"name": "video_classification", "top_k": top_k},
            "dataset": {"name": "youtube8m", "path": "corpus", "level": "video", "num_classes": classes},
            "model": "logistic",
        }
        write_text(run_dir / "config.yaml", config.from_dict(run).to_yaml())
        train = SplitInfo(rows=train_rows, num_bytes=0, files=[], label_counts=train_counts, max_labels=classes)
        info = DatasetInfo(
            id="d", columns=[Column(name="id", dtype="string"), Column(name="x", dtype="float32", shape=(2,))],
            class_names=[f"class {c}" for c in range(classes)],
            splits={"train": train}, split_rule="", group_key="id",
            rows_in=0, rows_out=0, rejected=0, rejected_reasons={},
        )  # fmt: skip
        write_json(run_dir / "dataset.json", info.model_dump(mode="json"))
        folder = run_dir / "predictions" / "test"
        folder.mkdir(parents=True)
        for number, start in enumerate(range(0, len(labels), 4)):
            rows = slice(start, start + 4)
            ids = pa.array([str(i) for i in range(len(labels))][rows])
            known = pa.array(labels[rows], pa.list_(pa.int32()))
            table = class_scores.to_table(ids, known, scores[rows].astype(np.float32), k)
            pq.write_table(table, folder / f"part-{number:05d}.parquet")
        stored = {
            "run": "run",
            "dataset": "d",
            "split": "test",
            "step": 40,
            "rows": len(labels),
            "labelled": True,
            "columns": [c.model_dump(mode="json") for c in class_scores.columns_of(classes, k, labelled=True)],
        }
        write_json(folder / "predictions.json", stored | said)
        return run_dir

    return make


def pool_precision(pool: list[tuple[float, bool]]) -> float:
    """The sum over hits of (hits down to here) / (rank here), as the mean over all orders of equal scores."""
    total, rank, hits = 0.0, 0, 0
    for _, equal in itertools.groupby(sorted(pool, key=lambda p: -p[0]), key=lambda p: p[0]):
        group = [hit for _, hit in equal]
        places = list(itertools.combinations(range(len(group)), sum(group)))  # where the hits may stand
        sums = [sum((hits + n) / (rank + j + 1) for n, j in enumerate(of_hits, 1)) for of_hits in places]
        total += sum(sums) / len(sums)
        rank, hits = rank + len(group), hits + sum(group)
    return total


def naive_metrics(labels: Labels, scores: list[list[float]], k: int = 20) -> dict[str, float]:
    """The four metrics from their definitions, in plain Python."""
    classes = range(len(scores[0]))
    best = [sorted(classes, key=lambda c, row=row: (-row[c], c)) for row in scores]
    kept = [(i, c) for i in range(len(labels)) for c in best[i][:k]]
    pool = [(scores[i][c], c in labels[i]) for i, c in kept]
    positives = [sum(c in row for row in labels) for c in classes]
    per_class = [
        pool_precision([(scores[i][c], c in labels[i]) for i, kept_c in kept if kept_c == c]) / positives[c]
        for c in classes
        if positives[c]
    ]
    shares = [
        sum(c in row and scores[i][c] > 0 for c in best[i][: len(row)]) / len(row)
        for i, row in enumerate(labels)
        if row
    ]
    return {
        "gap": pool_precision(pool) / sum(positives),
        "map": sum(per_class) / len(per_class),
        "hit_at_1": sum(best[i][0] in row for i, row in enumerate(labels)) / len(labels),
        "perr": sum(shares) / len(shares),
    }


def test_prior_by_hand(make_run_dir: Callable[..., Path]) -> None:
    """Training frequencies 0.8, 0.4 and 0.2, predicted for two videos with the labels {0} and {1}.

    Pooled: two predictions at 0.8 with one hit, expectation 1/2 (1/1 + 1/2) = 3/4; two at 0.4 with one hit,
    1/2 (2/3 + 2/4) = 7/12; so GAP = (3/4 + 7/12) / 2 = 2/3. Each class with a label has AP 3/4. The first guess, class
    0, is right once in two.
    """
    run_dir = make_run_dir([4, 2, 1], 5, [[0], [1]], np.array([[0.9, 0.2, 0.1], [0.3, 0.8, 0.1]]))
    result = evaluation.evaluate(run_dir, "test")
    expected = {"gap": 2 / 3, "map": 3 / 4, "hit_at_1": 1 / 2, "perr": 1 / 2}
    assert result["baselines"]["prior"] == pytest.approx(expected, rel=1e-12)
    assert result["metrics"] == pytest.approx({"gap": 1, "map": 1, "hit_at_1": 1, "perr": 1})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [None, 20, 23], ids=str)
def test_run_and_prior_equal_the_definitions(make_run_dir: Callable[..., Path], seed: int, k: int | None) -> None:
    """24 classes, more than the 20 that count; two are the most frequent alike, and some were never seen."""
    rng = np.random.default_rng(seed)
    labels = [sorted(rng.choice(24, rng.integers(0, 5), replace=False).tolist()) for _ in range(5)]
    labels[0] = [3, 17]
    frequencies = [int(n) for n in rng.permutation(np.clip(np.arange(24) - 5, 0, 17))]
    scores = rng.permutation(120).reshape(5, 24) / 128
    result = evaluation.evaluate(make_run_dir(frequencies, 30, labels, scores, k), "test")
    assert result["metrics"] == pytest.approx(naive_metrics(labels, scores.tolist()), rel=1e-12)
    prior = [[n / 30 for n in frequencies]] * 5
    assert result["baselines"]["prior"] == pytest.approx(naive_metrics(labels, prior), rel=1e-12)


@pytest.mark.parametrize("k", [None, 5, 20], ids=str)
def test_as_many_classes_count_as_the_task_says(make_run_dir: Callable[..., Path], k: int | None) -> None:
    """With `task.top_k: 3`, as in validation; rows have up to 5 labels, so PERR looks beyond."""
    rng = np.random.default_rng(7)
    labels = [sorted(rng.choice(24, rng.integers(1, 6), replace=False).tolist()) for _ in range(5)]
    labels[0] = [0, 5, 9, 13, 20]
    frequencies = [int(n) for n in rng.permutation(24)]
    scores = rng.permutation(120).reshape(5, 24) / 128
    result = evaluation.evaluate(make_run_dir(frequencies, 30, labels, scores, k, top_k=3), "test")
    assert result["metrics"] == pytest.approx(naive_metrics(labels, scores.tolist(), k=3), rel=1e-12)
    prior = [[n / 30 for n in frequencies]] * 5
    assert result["baselines"]["prior"] == pytest.approx(naive_metrics(labels, prior, k=3), rel=1e-12)


def test_per_class_has_every_class_and_no_ap_without_a_positive(make_run_dir: Callable[..., Path]) -> None:
    """The AP of the others is scikit-learn's, as every score is kept."""
    rng = np.random.default_rng(3)
    hot = rng.random((30, 6)) < 0.4
    hot[:, 2] = False
    scores = rng.permutation(180).reshape(30, 6) / 256
    labels = [np.flatnonzero(row).tolist() for row in hot]
    run_dir = make_run_dir([9, 8, 7, 6, 5, 0], 40, labels, scores)
    result = evaluation.evaluate(run_dir, "test")
    entries = result["per_class"]
    assert [entry["class"] for entry in entries] == list(range(6))
    assert [entry["name"] for entry in entries] == [f"class {c}" for c in range(6)]
    assert [entry["train_count"] for entry in entries] == [9, 8, 7, 6, 5, 0]
    assert [entry["count"] for entry in entries] == hot.sum(axis=0).tolist()
    assert entries[2]["ap"] is None
    for c in (0, 1, 3, 4, 5):
        assert entries[c]["ap"] == pytest.approx(average_precision_score(hot[:, c], scores[:, c]), rel=1e-9)
    known = [entry["ap"] for entry in entries if entry["ap"] is not None]
    assert result["metrics"]["map"] == pytest.approx(math.fsum(known) / 5, rel=1e-12)


def test_result_is_written_and_says_what_was_scored(make_run_dir: Callable[..., Path]) -> None:
    run_dir = make_run_dir([1, 1], 2, [[0], [1], []], np.array([[0.9, 0.1], [0.2, 0.3], [0.1, 0.4]]))
    result = evaluation.evaluate(run_dir, "test")
    assert json.loads((run_dir / "evaluation" / "test.json").read_text()) == result
    assert result["split"] == "test"
    assert result["rows"] == 3
    assert result["checkpoint"] == "checkpoints/step-00000040"
    assert result["metrics"]["hit_at_1"] == pytest.approx(2 / 3)  # a video without labels counts as a miss


def test_folder_that_holds_other_rows_than_it_says_fails(make_run_dir: Callable[..., Path]) -> None:
    scores = np.random.default_rng(0).permutation(18).reshape(9, 2) / 32
    run_dir = make_run_dir([1, 1], 2, [[0]] * 9, scores)
    evaluation.evaluate(run_dir, "test")
    (run_dir / "evaluation" / "test.json").unlink()
    (run_dir / "predictions" / "test" / "part-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"predictions/test should hold 9 rows and holds 5; predict again"):
        evaluation.evaluate(run_dir, "test")
    assert not (run_dir / "evaluation" / "test.json").exists()


def test_split_that_was_not_predicted_is_named(make_run_dir: Callable[..., Path]) -> None:
    run_dir = make_run_dir([1, 1], 2, [[0]], np.array([[0.9, 0.1]]))
    with pytest.raises(ValueError, match=r"predictions/val holds no predictions; make them with mmray predict"):
        evaluation.evaluate(run_dir, "val")


def test_predictions_without_labels_are_refused(make_run_dir: Callable[..., Path]) -> None:
    run_dir = make_run_dir([1, 1], 2, [[0]], np.array([[0.9, 0.1]]), labelled=False)
    with pytest.raises(ValueError, match="predictions without labels"):
        evaluation.evaluate(run_dir, "test")


def test_folder_that_lost_all_its_rows_fails_alike(make_run_dir: Callable[..., Path]) -> None:
    """No metric is defined then, but the message must still be about the folder."""
    run_dir = make_run_dir([1, 1], 2, [[0]], np.array([[0.9, 0.1]]))
    (run_dir / "predictions" / "test" / "part-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"predictions/test should hold 1 rows and holds 0; predict again"):
        evaluation.evaluate(run_dir, "test")
