"""Stored predictions: what was predicted comes back, scores the same, and makes the challenge's file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmray import class_scores, predictions
from mmray.files import write_json
from mmray.metrics.ranking import RankingMetrics, labels_of_multi_hot
from mmray.prepared import ragged_column, tensor_column
from mmray.schema import Column, arrow_schema


def random_rows(rows: int = 61, classes: int = 30, seed: int = 0) -> tuple[list[str], list[list[int]], np.ndarray]:
    """Ids, labels (a few rows have none) and scores, float32 (rows, classes), some of them equal."""
    rng = np.random.default_rng(seed)
    labels = [sorted(rng.choice(classes, rng.integers(0, 6), replace=False).tolist()) for _ in range(rows)]
    scores = (rng.integers(0, 200, (rows, classes)) / np.float32(256)).astype(np.float32)
    return [f"v{i:03d}" for i in range(rows)], labels, scores


def store(
    folder: Path,
    ids: list[str],
    labels: list[list[int]] | None,
    scores: np.ndarray,
    k: int | None,
    part_rows: int = 25,
) -> Path:
    """Write predictions as `mmray predict` does, in parts of `part_rows`."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(ids), part_rows)):
        part = slice(start, start + part_rows)
        known = None if labels is None else pa.array(labels[part], pa.list_(pa.int32()))
        table = class_scores.to_table(pa.array(ids[part]), known, scores[part], k)
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=10)
    info = predictions.PredictionsInfo(
        run="r", dataset="d", split="test", step=7, rows=len(ids), labelled=labels is not None,
        columns=class_scores.columns_of(scores.shape[1], k, labels is not None),
    )  # fmt: skip
    write_json(folder / "predictions.json", info.model_dump(mode="json"))
    assert predictions.read_info(folder) == info
    return folder


def read(folder: Path, batch_rows: int = 8192) -> pa.Table:
    return pa.concat_tables(predictions.read_tables(folder, batch_rows))


def multi_hot(labels: list[list[int]], classes: int) -> np.ndarray:
    hot = np.zeros((len(labels), classes), int)
    for row, of_row in zip(hot, labels, strict=True):
        row[of_row] = 1
    return hot


@pytest.mark.parametrize("batch_rows", [1, 7, 8192])
def test_dense_scores_come_back_bit_for_bit(tmp_path: Path, batch_rows: int) -> None:
    ids, labels, scores = random_rows()
    table = read(store(tmp_path / "p", ids, labels, scores, None), batch_rows)
    assert table.schema.equals(arrow_schema(class_scores.columns_of(30, None, labelled=True)))
    assert table.column("id").to_pylist() == ids
    assert table.column("labels").to_pylist() == labels
    dense = class_scores.dense_scores(table, class_scores.columns_of(30, None, labelled=True)[-1])
    np.testing.assert_array_equal(dense, scores)


def test_top_k_are_the_best_scores_in_order(tmp_path: Path) -> None:
    """Against a sort of Python tuples: falling score, the lower class first among equals."""
    ids, labels, scores = random_rows()
    table = read(store(tmp_path / "p", ids, labels, scores, 4), 9)
    assert table.schema.equals(arrow_schema(class_scores.columns_of(30, 4, labelled=True)))
    expected = [sorted((-s, c) for c, s in enumerate(row.tolist()))[:4] for row in scores]
    np.testing.assert_array_equal(tensor_column(table, "top_classes"), [[c for _, c in row] for row in expected])
    np.testing.assert_array_equal(tensor_column(table, "top_scores"), [[-s for s, _ in row] for row in expected])


def test_rows_without_labels_have_no_such_column(tmp_path: Path) -> None:
    ids, _, scores = random_rows()
    folder = store(tmp_path / "p", ids, None, scores, 4)
    assert read(folder).column_names == ["id", "top_classes", "top_scores"]
    with pytest.raises(ValueError, match="predictions without labels: there is nothing to compare"):
        class_scores.ranking_metrics(folder, 30)


def test_scores_that_are_no_contiguous_array(tmp_path: Path) -> None:
    """A model's output may be a transposed view."""
    ids, _, scores = random_rows()
    view = np.asfortranarray(scores)
    for k in (None, 4):
        ours, plain = (class_scores.to_table(pa.array(ids), None, s, k) for s in (view, scores))
        assert ours.equals(plain)


def test_parts_are_read_in_their_order(tmp_path: Path) -> None:
    ids, labels, scores = random_rows(rows=121)
    folder = store(tmp_path / "p", ids, labels, scores, 3, part_rows=11)
    (folder / ".part-00000.parquet.partial").write_bytes(b"left by a writer that was killed")
    assert read(folder).column("id").to_pylist() == ids


@pytest.mark.parametrize("k", [None, 20, 25, 30], ids=str)
def test_metrics_of_stored_equal_those_of_dense_scores(tmp_path: Path, k: int | None) -> None:
    _, labels, scores = rows = random_rows()
    dense = RankingMetrics(30)
    dense.update(scores, labels_of_multi_hot(multi_hot(labels, 30)))
    stored = class_scores.ranking_metrics(store(tmp_path / "p", *rows, k), 30)
    assert stored.compute() == dense.compute()
    np.testing.assert_array_equal(stored.per_class_ap(), dense.per_class_ap())
    assert set(stored.compute()) == {"gap", "map", "hit_at_1", "perr"}


def test_fewer_stored_than_labels_leave_perr_out(tmp_path: Path) -> None:
    ids, _, scores = random_rows()
    labels = [[0, 1, 2, 3, 4]] * len(ids)
    folder = store(tmp_path / "p", ids, labels, scores, 4)
    metrics = class_scores.ranking_metrics(folder, 30, k=4).compute()
    assert set(metrics) == {"gap", "map", "hit_at_1"}


def test_fewer_stored_than_the_metrics_need_are_refused_with_the_remedy(tmp_path: Path) -> None:
    ids, labels, scores = random_rows()
    folder = store(tmp_path / "p", ids, labels, scores, 4)
    with pytest.raises(ValueError, match=rf"{folder}.*\b4\b.*\b20\b.*predict\.top_k"):
        class_scores.ranking_metrics(folder, 30)


@pytest.mark.parametrize("k", [None, 3, 5], ids=str)
def test_challenge_csv_by_hand(tmp_path: Path, k: int | None) -> None:
    scores = np.array([[0.1, 0.5, 0.25, 0.0, 0.5], [1.0, 2**-20, 0.0, 0.75, 0.3333333]], np.float32)
    folder = store(tmp_path / "p", ["abcd", 'q,"x'], [[1], [0]], scores, k)
    out = tmp_path / "sub" / "file.csv"
    assert class_scores.write_challenge_csv(folder, out, k=3) == 2
    assert out.read_text() == (
        "VideoId,LabelConfidencePairs\n"
        "abcd,1 0.500000 4 0.500000 2 0.250000\n"
        '"q,""x",0 1.000000 3 0.750000 4 0.333333\n'
    )


def test_challenge_csv_has_every_row_once(tmp_path: Path) -> None:
    ids, labels, scores = random_rows(rows=57)
    out = tmp_path / "file.csv"
    assert class_scores.write_challenge_csv(store(tmp_path / "p", ids, labels, scores, None), out) == 57
    lines = out.read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ids
    assert {len(line.split(",")[1].split(" ")) for line in lines} == {40}


def test_folder_without_predictions_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"{folder} holds no predictions; make them with mmray predict"):
            class_scores.ranking_metrics(folder, 30)


def test_folder_without_predictions_gives_no_csv(tmp_path: Path) -> None:
    """A file with a header and no row would look like an answer."""
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no predictions"):
        class_scores.write_challenge_csv(tmp_path, tmp_path / "file.csv")
    assert not (tmp_path / "file.csv").exists()


def test_predictions_of_another_task_give_no_csv(tmp_path: Path) -> None:
    columns = [Column(name="id", dtype="string"), Column(name="est_f0_hz", dtype="float64", shape=(None,))]
    info = predictions.PredictionsInfo(
        run="r", dataset="d", split="test", step=1, rows=0, labelled=False, columns=columns
    )
    (tmp_path / "predictions.json").write_text(info.model_dump_json())
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no scores of classes"):
        class_scores.write_challenge_csv(tmp_path, tmp_path / "file.csv")
    assert not (tmp_path / "file.csv").exists()


def test_folder_that_lost_a_part_gives_no_csv(tmp_path: Path) -> None:
    ids, labels, scores = random_rows()
    folder = store(tmp_path / "p", ids, labels, scores, None)
    (folder / "part-00001.parquet").unlink()
    with pytest.raises(ValueError, match=rf"{folder} should hold 61 rows and holds 36; predict again"):
        class_scores.write_challenge_csv(folder, tmp_path / "file.csv")
    assert not (tmp_path / "file.csv").exists()


def test_labels_come_back_as_rows(tmp_path: Path) -> None:
    """Also from a batch that begins within a row group."""
    ids, labels, scores = random_rows()
    for table in predictions.read_tables(store(tmp_path / "p", ids, labels, scores, 4), 6):
        values, offsets = ragged_column(table, "labels")
        rows = [values[a:b].tolist() for a, b in pairwise(offsets)]
        first = ids.index(table.column("id")[0].as_py())
        assert rows == labels[first : first + table.num_rows]
