"""Ensembles on stored predictions, without Ray: against naive loops, scikit-learn and values worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray import class_scores, config, predictions
from mmray.ensembling import blocks, contours, fitting, forest
from mmray.ensembling.blocks import Ensemble
from mmray.ensembling.fitting import Candidates
from mmray.ensembling.inputs import Inputs, Member, match, open_member, require_same_classes
from mmray.ensembling.pooling import Rule, Scores, pool
from mmray.ensembling.soup import mean_state
from mmray.files import write_json
from mmray.metrics.melody import clip_scores
from mmray.metrics.ranking import RankingMetrics
from mmray.prepared import ragged_column, tensor_column
from mmray.schema import Column, DatasetInfo, SplitInfo

C = 6  # classes
FLOOR = 2.0**-24


def scores_like(rng: np.random.Generator, rows: int, exclusive: bool = False) -> np.ndarray:
    p = rng.random((rows, C)) ** 3
    return (p / p.sum(1, keepdims=True) if exclusive else p).astype(np.float32)


def store(
    root: Path,
    name: str,
    scores: np.ndarray,
    k: int | None,
    labels: list[list[int]] | None,
    ids: list[str] | None = None,
    row_group: int = 7,
) -> Member:
    """Write predictions as `mmray predict` does, in small row groups of two files."""
    folder = root / name / "predictions" / "test"
    folder.mkdir(parents=True)
    ids = ids or [f"v{i:03d}" for i in range(len(scores))]
    known = None if labels is None else pa.array(labels, pa.list_(pa.int32()))
    table = class_scores.to_table(pa.array(ids), known, scores, k)
    columns = class_scores.columns_of(C, k, labels is not None)
    half = len(ids) // 2 + 3
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        with predictions.open_writer(folder / f"part-{number:05d}.parquet", columns) as writer:
            writer.write_table(part, row_group_size=row_group)
    info = predictions.PredictionsInfo(
        run=name, dataset="d", split="test", step=1, rows=len(ids), labelled=labels is not None, columns=columns
    )
    write_json(folder / "predictions.json", info.model_dump(mode="json"))
    return open_member(name, folder)


def dataset_info(columns: list[Column], class_names: list[str]) -> DatasetInfo:
    train = SplitInfo(rows=10, num_bytes=1, files=[], labelled_rows=10, label_counts=[1] * len(class_names))
    return DatasetInfo(
        id="d", columns=columns, class_names=class_names, splits={"train": train}, split_rule="", group_key="id",
        rows_in=10, rows_out=10, rejected=0, rejected_reasons={},
    )  # fmt: skip


def videos(members: tuple[Member, ...]) -> Ensemble:
    run = config.from_dict(
        {
            "name": "tiny", "task": "video_classification", "model": "logistic",
            "dataset": {"name": "youtube8m", "path": "nowhere", "num_classes": C, "level": "video"},
        }
    )  # fmt: skip
    columns = [Column(name="id", dtype="string"), Column(name="mean_rgb", dtype="float32", shape=(3,))]
    return Ensemble(members, "classes", run.to_dict(), dataset_info(columns, [f"class {c}" for c in range(C)]))


def emotions(members: tuple[Member, ...]) -> Ensemble:
    run = config.from_dict(
        {
            "name": "tiny", "task": "audio_classification", "model": "audio_cnn",
            "dataset": {"name": "audio_folder", "path": "nowhere"},
        }
    )  # fmt: skip
    columns = [Column(name="id", dtype="string"), Column(name="features", dtype="float32", shape=(None, 27))]
    return Ensemble(members, "classes", run.to_dict(), dataset_info(columns, [f"class {c}" for c in range(C)]))


def written(ensemble: Ensemble, inputs: Inputs, rule: Any, root: Path, block_mb: float = 128) -> pa.Table:
    """The rows of all blocks, as they are stored."""
    columns, tables = ensemble.columns(inputs), []
    for block in inputs.blocks(block_mb):
        path = root / f"{block_mb}-{block.index}.parquet"
        path.unlink(missing_ok=True)
        assert blocks.write(ensemble, rule, block, columns, path) == block.stop - block.start
        tables.append(pa.parquet.read_table(path))
    return pa.concat_tables(tables).combine_chunks()


def naive(rule: Rule, members: list[np.ndarray]) -> np.ndarray:
    """The table of `mmray.ensembling.pooling`, in float64, row by row and class by class."""
    result = np.zeros((len(members[0]), C))
    for row in range(len(result)):
        for c in range(C):
            p = [float(m[row, c]) for m in members]
            if rule.kind == "rank":
                places = [sorted(range(C), key=lambda i: (-m[row, i], i)).index(c) for m in members]
                k = rule.places or C
                p = [(k - place) / k if place < k and q > 0 else 0 for place, q in zip(places, p, strict=True)]
            logs = [np.log(max(q, FLOOR)) for q in p]
            if rule.kind == "logistic" and not rule.exclusive:
                logs = [x - np.log(1 - min(max(q, FLOOR), 1 - FLOOR)) for x, q in zip(logs, p, strict=True)]
            mixed = rule.bias + sum(w * x for w, x in zip(rule.weights, logs, strict=True))
            result[row, c] = {
                "linear": sum(w * q for w, q in zip(rule.weights, p, strict=True)),
                "rank": sum(w * q for w, q in zip(rule.weights, p, strict=True)),
                "max": max(q for w, q in zip(rule.weights, p, strict=True) if w),
                "geometric": np.exp(mixed),
                "logistic": np.exp(mixed) if rule.exclusive else 1 / (1 + np.exp(-mixed)),
            }[rule.kind]
    if rule.exclusive and rule.kind != "linear":
        result /= result.sum(1, keepdims=True)
    return result


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("kind", ["linear", "max", "geometric", "rank", "logistic"])
def test_every_rule_is_the_naive_one(kind: Any, exclusive: bool) -> None:
    rng = np.random.default_rng(0)
    members = [scores_like(rng, 50, exclusive) for _ in range(4)]
    members[0][3, 2], members[1][3, 2] = 0, 1
    members[2] = members[2].astype(np.float16)
    best = np.argsort(-members[3], axis=1, kind="stable")[:, :3].astype(np.int32)
    top = np.take_along_axis(members[3], best, axis=1)
    stored = [*(Scores(m) for m in members[:3]), Scores(top, best)]
    dense_of_top = np.zeros_like(members[3])
    np.put_along_axis(dense_of_top, best, top, axis=1)
    rule = Rule(kind, (0.4, 0.3, 0.0, 0.3), 0.5 if kind == "logistic" and not exclusive else 0, exclusive, places=4)
    expected = naive(rule, [m.astype(np.float64) for m in (*members[:3], dense_of_top)])
    np.testing.assert_allclose(pool(rule, stored, C), expected, rtol=2e-5, atol=2e-7)


def test_float16_is_widened_exactly() -> None:
    """Every float16 there is, subnormal ones too."""
    bits = np.arange(0x7C00, dtype=np.uint16)
    numbers = np.concatenate([bits, bits | 0x8000]).view(np.float16).reshape(-1, 8)
    ours = pool(Rule("linear", (1.0, 1.0)), [Scores(numbers), Scores(np.zeros_like(numbers))], 8)
    np.testing.assert_array_equal(ours, numbers.astype(np.float32))


@pytest.mark.parametrize("types", ["eee", "fff", "fef", "eft"])
def test_sums_are_of_float32_in_the_order_of_the_members(types: str) -> None:
    """To the bit, whether compiled or by numpy: float16 (e), float32 (f), and best classes (t)."""
    members = [scores_like(np.random.default_rng(m), 40).astype("f" if t == "t" else t) for m, t in enumerate(types)]
    classes = np.broadcast_to(np.arange(C, dtype=np.int32), (40, C))
    stored = [Scores(x, classes if t == "t" else None) for x, t in zip(members, types, strict=True)]
    weights, total = (0.2, 0.3, 0.5), np.zeros((40, C), np.float32)
    for weight, x in zip(weights, members, strict=True):
        total = total + np.float32(weight) * x.astype(np.float32)
    np.testing.assert_array_equal(pool(Rule("linear", weights), stored, C), total)


RULES = st.sampled_from(
    [
        Rule("linear", (1 / 3,) * 3), Rule("max", (1 / 3,) * 3), Rule("geometric", (1 / 3,) * 3, exclusive=True),
        Rule("rank", (1 / 3,) * 3), Rule("logistic", (0.4, 0.9, -0.1), 0.2),
    ]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(rule=RULES, rows=st.integers(1, 150), seed=st.integers(0, 99), cuts=st.sets(st.integers(0, 150), max_size=6))
def test_a_row_has_the_same_bits_wherever_it_stands(rule: Rule, rows: int, seed: int, cuts: set[int]) -> None:
    rng = np.random.default_rng(seed)
    members = [scores_like(rng, rows) for _ in range(3)]
    whole = pool(rule, [Scores(m) for m in members], C)
    bounds = [0, *sorted(c for c in cuts if 0 < c < rows), rows]
    parts = [pool(rule, [Scores(m[a:b]) for m in members], C) for a, b in pairwise(bounds)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = rng.permutation(rows)
    np.testing.assert_array_equal(pool(rule, [Scores(m[order]) for m in members], C), whole[order])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), k=st.sampled_from([None, 3]), block_mb=st.sampled_from([0.0005, 0.002, 128]))
def test_blocks_and_orders_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, k: int | None, block_mb: float
) -> None:
    """Any number of blocks, any order of the members, rows of one of them in another order: the same table."""
    root, rng = tmp_path_factory.mktemp("orders"), np.random.default_rng(seed)
    labels = [[int(c) for c in np.flatnonzero(rng.random(C) < 0.3)] for _ in range(61)]
    members = [store(root, f"m{i}", scores_like(rng, 61), k, labels, row_group=5 + 2 * i) for i in range(3)]
    rule = Rule("linear", (0.2, 0.3, 0.5))
    inputs = match(members)
    assert inputs.rows == (None, None, None)
    whole = written(videos(inputs.members), inputs, rule, root)
    shuffled = match([members[i] for i in rng.permutation(3)])
    assert written(videos(shuffled.members), shuffled, rule, root, block_mb).equals(whole)
    order = rng.permutation(61)
    table = pa.concat_tables(predictions.read_tables(members[2].folder)).take(order)
    (root / "other").mkdir()
    scores = np.zeros((61, C), np.float32)
    if k is None:
        scores = class_scores.dense_scores(table, members[2].info.columns[-1])
    else:
        np.put_along_axis(scores, tensor_column(table, "top_classes"), tensor_column(table, "top_scores"), axis=1)
    moved = store(root / "other", "m2", scores, k, table["labels"].to_pylist(), table["id"].to_pylist())
    by_id = match([*members[:2], moved])
    assert by_id.rows[2] is not None
    assert written(videos(by_id.members), by_id, rule, root, block_mb).equals(whole)


def test_missing_ids_are_an_error_or_left_out_and_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = store(tmp_path, "a", scores_like(rng, 30), None, None)
    b = store(tmp_path, "b", scores_like(rng, 29), None, None, ids=[f"v{i:03d}" for i in range(30) if i != 4])
    with pytest.raises(ValueError, match=r"lacks 1 of 30 ids .* such as v004; .*--missing intersect"):
        match([a, b])
    inputs = match([a, b], "intersect")
    assert (inputs.num_rows, inputs.dropped) == (29, {"a": 1})
    table = written(videos(inputs.members), inputs, Rule("linear", (0.5, 0.5)), tmp_path)
    assert table["id"].to_pylist() == [f"v{i:03d}" for i in range(30) if i != 4]
    c = store(tmp_path, "c", scores_like(rng, 9), None, None, ids=[f"w{i}" for i in range(9)])
    with pytest.raises(ValueError, match="no id in common"):
        match([a, c], "intersect")


def test_what_does_not_fit_together_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = [[1]] * 20
    a = store(tmp_path, "a", scores_like(rng, 20), None, labels)
    other = store(tmp_path, "b", scores_like(rng, 20), None, [*labels[:-1], [2, 1]])
    inputs = match([a, other])
    with pytest.raises(ValueError, match=r"'v019' has labels \[1\] in .*a/.* and \[2, 1\] in .*b/"):
        written(videos(inputs.members), inputs, Rule("max", (1, 1)), tmp_path)
    unlabelled = store(tmp_path, "c", scores_like(rng, 20), None, None)
    with pytest.raises(ValueError, match=r"has labels and .* has none"):
        match([a, unlabelled])
    with pytest.raises(ValueError, match="needs 2 members"):
        match([a])
    with pytest.raises(ValueError, match="given twice"):
        match([a, a])
    twice = store(
        tmp_path, "d", scores_like(rng, 20), None, labels, ids=["v000"] * 2 + [f"v{i:03d}" for i in range(18)]
    )
    with pytest.raises(ValueError, match="has 'v000' 3 times"):
        match([a, twice])
    info, run = videos((a, other)).info, config.from_dict(videos((a, other)).run)
    changed = info.model_copy(update={"class_names": [*info.class_names[:-1], "another"]})
    with pytest.raises(ValueError, match="class 5 is 'class 5' for one and 'another' for two"):
        require_same_classes([("one", info), ("two", changed)], [run, run])
    with pytest.raises(ValueError, match="does video_classification, two does audio_classification"):
        require_same_classes([("one", info), ("two", info)], [run, config.from_dict(emotions((a,)).run)])
    with pytest.raises(ValueError, match="method median is of contours"):
        blocks.kind_of([a, other], "median")


def test_one_class_a_row_is_combined_and_measured_by_its_task(tmp_path: Path) -> None:
    from sklearn.metrics import accuracy_score

    rng = np.random.default_rng(3)
    labels = rng.integers(C, size=40)
    scores = [scores_like(rng, 40, exclusive=True) for _ in range(3)]
    members = match([store(tmp_path, f"m{i}", s, None, [[int(c)] for c in labels]) for i, s in enumerate(scores)])
    ensemble = emotions(members.members)
    rule = Rule("geometric", (1 / 3,) * 3, exclusive=ensemble.exclusive)
    assert ensemble.exclusive
    metrics = blocks.new_metrics(ensemble)
    for block in members.blocks(0.001):
        metrics.merge(blocks.measure(ensemble, [rule], block)[0])
    expected = np.prod(scores, axis=0, dtype=np.float64).argmax(1)
    assert metrics.compute()["weighted_accuracy"] == pytest.approx(accuracy_score(labels, expected))


def test_metrics_of_blocks_are_those_of_the_stored_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    labels = [[int(c) for c in np.flatnonzero(rng.random(C) < 0.3)] for _ in range(50)]
    scores = [scores_like(rng, 50) for _ in range(2)]
    inputs = match([store(tmp_path, f"m{i}", s, None, labels) for i, s in enumerate(scores)])
    ensemble, rules = videos(inputs.members), [Rule("linear", (0.5, 0.5)), Rule("linear", (1.0, 0.0))]
    found = [blocks.new_metrics(ensemble) for _ in rules]
    for block in inputs.blocks(0.001):
        for metrics, state in zip(found, blocks.measure(ensemble, rules, block), strict=True):
            metrics.merge(state)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in labels])])
    for metrics, dense in zip(found, ((scores[0] + scores[1]) * np.float32(0.5), scores[0]), strict=True):
        expected = RankingMetrics(C, 20)
        expected.update(dense, (np.concatenate(labels).astype(int), offsets))
        assert metrics.compute() == pytest.approx(expected.compute(), abs=1e-12)


def random_candidates(
    rng: np.random.Generator, rows: int = 300, members: int = 3, exclusive: bool = False
) -> Candidates:
    """Members that know the labels each to another degree."""
    hits, scores, offsets = [], [], [0]
    for _ in range(rows):
        num = int(rng.integers(2, 7))
        hit = np.eye(num, dtype=bool)[rng.integers(num)] if exclusive else rng.random(num) < 0.4
        logits = rng.normal(0, 1.0, (num, members)) + hit[:, None] * np.linspace(0.3, 2.5, members)
        p = np.exp(logits) / np.exp(logits).sum(0) if exclusive else 1 / (1 + np.exp(-logits))
        hits.append(hit)
        scores.append(p)
        offsets.append(offsets[-1] + num)
    every = np.concatenate(scores).astype(np.float32)
    return Candidates(every, np.zeros(len(every), np.int32), np.concatenate(hits), np.array(offsets))


@pytest.mark.parametrize("exclusive", [False, True])
def test_fitted_weights_are_the_best_of_all(exclusive: bool) -> None:
    found = random_candidates(np.random.default_rng(5), exclusive=exclusive)
    weights = np.array(fitting.fit_weights(found, exclusive))
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert (weights >= 0).all()

    def loss(w: np.ndarray) -> float:
        q = found.scores.astype(np.float64) @ w
        return float(-np.log(q[found.hits] if exclusive else np.where(found.hits, q, 1 - q)).mean())

    grid = [np.array([i, j, 100 - i - j]) / 100 for i in range(101) for j in range(101 - i)]
    assert loss(weights) <= min(map(loss, grid)) + 1e-9
    assert loss(weights) < loss(np.full(3, 1 / 3)) - 1e-4


def test_stack_is_scikit_learns_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    found = random_candidates(np.random.default_rng(6))
    rule = fitting.fit_stack(found, Rule("logistic", (0.0,) * 3))
    p = found.scores.astype(np.float64)
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(np.log(p / (1 - p)), found.hits)
    np.testing.assert_allclose(rule.weights, peer.coef_[0], atol=2e-5)
    assert rule.bias == pytest.approx(peer.intercept_[0], abs=2e-5)
    np.testing.assert_allclose(
        pool(rule, [Scores(p[:, [m]].astype(np.float32)) for m in range(3)], 1)[:, 0],
        peer.predict_proba(np.log(p / (1 - p)))[:, 1],
        atol=2e-5,
    )


def test_stack_of_one_class_a_row_has_no_better_neighbour() -> None:
    """The penalised loss by plain loops; the fitted weights lie at its minimum."""
    found = random_candidates(np.random.default_rng(7), exclusive=True)
    rule = fitting.fit_stack(found, Rule("logistic", (0.0,) * 3, exclusive=True))

    def loss(w: np.ndarray) -> float:
        total = 0.5 * float(w @ w)
        for a, b in pairwise(found.offsets.tolist()):
            z = np.log(found.scores[a:b].astype(np.float64)) @ w
            total += np.log(np.exp(z).sum()) - z[found.hits[a:b]][0]
        return total

    best = np.array(rule.weights)
    for step in np.concatenate([np.eye(3), -np.eye(3)]) * 1e-3:
        assert loss(best) < loss(best + step)


def test_greedy_selection_by_hand() -> None:
    """A toy metric, best at weights 3/4, 1/4, 0: member 0 first, then again, and member 1 once."""
    target = np.array([0.75, 0.25, 0.0])
    asked = []

    def score(weightings: list[tuple[float, ...]]) -> list[float]:
        asked.append(weightings)
        return [-float(np.abs(np.array(w) - target).sum()) for w in weightings]

    weights, best = fitting.fit_greedy(3, score, rounds=30)
    assert weights == (0.75, 0.25, 0.0)
    assert best == 0.0
    assert asked[0] == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    assert len(asked) == 4 + 3  # three rounds that brought nothing


def test_candidates_are_the_union_of_the_best() -> None:
    a = np.array([[0.9, 0.8, 0.1, 0, 0, 0]], np.float32)
    b = np.array([[0.1, 0.2, 0.0, 0.7, 0, 0]], np.float32)
    found = fitting.candidates_of([Scores(a), Scores(b)], C, 2, (np.array([1, 5]), np.array([0, 2])))
    assert found.classes.tolist() == [0, 1, 3]
    assert found.hits.tolist() == [False, True, False]  # label 5 is among nobody's best
    np.testing.assert_array_equal(found.scores, np.array([[0.9, 0.1], [0.8, 0.2], [0, 0.7]], np.float32))
    assert found.offsets.tolist() == [0, 3]


def test_a_share_of_val_is_picked_by_id(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    labels = [[int(c)] for c in rng.integers(C, size=400)]
    inputs = match([store(tmp_path, f"m{i}", scores_like(rng, 400), 3, labels) for i in range(2)])
    ensemble = videos(inputs.members)
    whole = fitting.concatenated([blocks.gather(ensemble, b, 3, 1.0) for b in inputs.blocks()])
    some = fitting.concatenated([blocks.gather(ensemble, b, 3, 0.25) for b in inputs.blocks(0.001)])
    assert len(whole.offsets) == 401
    assert 60 < len(some.offsets) < 140
    with pytest.raises(ValueError, match=r"0 of .* are labels"):
        fitting.require_both(fitting.Candidates(whole.scores, whole.classes, whole.hits & False, whole.offsets))


def test_forest_in_chunks_is_scikit_learns_forest(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    found = random_candidates(np.random.default_rng(9), rows=150)
    new = random_candidates(np.random.default_rng(10), rows=60)
    peer = RandomForestClassifier(n_estimators=23, random_state=3, n_jobs=1).fit(found.scores, found.hits)
    files = []
    for first, count in forest.chunks_of(23, 10):
        chunk = forest.grow(found.scores, found.hits, first, count, seed=3)
        trees = [tree.tree_ for tree in peer.estimators_[first : first + count]]
        thresholds = np.concatenate([tree.threshold[tree.feature >= 0] for tree in trees])
        np.testing.assert_array_equal(chunk["split"][chunk["feature"] >= 0], thresholds)
        files.append(str(tmp_path / f"trees-{first}.safetensors"))
        forest.save(Path(files[-1]), chunk)
    grown = forest.Forest(tuple(files), 23, k=20, exclusive=False)
    np.testing.assert_array_equal(forest.predict(grown, new.scores), peer.predict_proba(new.scores)[:, 1])


def test_likeness_is_numpys_correlation_and_a_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    scores = [scores_like(rng, 45) for _ in range(3)]
    inputs = match([store(tmp_path, f"m{i}", s, None, None) for i, s in enumerate(scores)])
    ensemble = videos(inputs.members)
    sums = [blocks.compare(ensemble, block, 20) for block in inputs.blocks(0.001)]
    assert len(sums) > 2
    found = blocks.likeness({key: np.sum([s[key] for s in sums], axis=0) for key in sums[0]})
    np.testing.assert_allclose(found["correlation"], np.corrcoef([s.ravel() for s in scores]), atol=2e-6)
    first = [s.argmax(1) for s in scores]
    apart = [[float((a != b).mean()) for b in first] for a in first]
    np.testing.assert_allclose(found["disagreement"], apart, atol=1e-6)


def test_median_contour_by_hand() -> None:
    f0_hz = np.array([[220.0, 220, 0, 100, 0], [230, 0, 0, 400, 0], [440, 0, 300, 0, 0]])
    found = contours.median_pitch(f0_hz)
    np.testing.assert_allclose(found, [230, 0, 0, 200, 0])
    # Two of four is no majority.
    np.testing.assert_array_equal(contours.median_pitch(np.array([[200.0], [200], [0], [0]])), [0])


class Melody:
    """Posteriors of three members for clips of different lengths, and what a melody task needs to read them."""

    PITCHES = 61

    def __init__(self, root: Path) -> None:
        rng = np.random.default_rng(12)
        cfp = {"bins_per_octave": 15, "min_hz": 80.0, "max_hz": 1250.0, "hop": 512}
        self.run = config.from_dict(
            {
                "name": "tiny", "task": "melody_extraction", "model": "dense_aspp",
                "dataset": {"name": "mir1k", "path": "nowhere", "cfp": cfp},
            }
        )  # fmt: skip
        settings: Any = self.run.dataset.cfp  # type: ignore[attr-defined]
        self.hz, self.width = settings.pitches_hz(), settings.num_bins + 1
        self.lengths = [12, 7, 20, 9]
        self.posteriors = [
            [rng.dirichlet(np.full(self.width, 0.05), n).astype(np.float16) for n in self.lengths] for _ in range(3)
        ]
        self.times = [settings.frame_times_s(n) for n in self.lengths]
        self.columns = [
            Column(name="id", dtype="string"), Column(name="group", dtype="string"),
            Column(name="ref_times_s", dtype="float64", shape=(None,)),
            Column(name="ref_f0_hz", dtype="float64", shape=(None,)),
            Column(name="est_f0_hz", dtype="float64", shape=(None,)),
            Column(name="confidence", dtype="float32", shape=(None,)),
            Column(name="posteriors", dtype="float16", shape=(None, self.width)),
        ]  # fmt: skip
        map_column = Column(name="cfp", dtype="float16", shape=(None, 3, settings.num_bins))
        self.info = dataset_info([*self.columns[:4], map_column], [])
        self.truth = [np.where(rng.random(n) < 0.6, rng.choice(self.hz, n), 0.0) for n in self.lengths]
        self.estimates = [[self.argmax(p) for p in of_member] for of_member in self.posteriors]
        self.members = [self._store(root, f"m{m}", m) for m in range(3)]

    def argmax(self, posteriors: np.ndarray) -> np.ndarray:
        best = posteriors.argmax(1)
        return np.where(best > 0, self.hz[np.maximum(best, 1) - 1], 0.0)

    def _store(self, root: Path, name: str, m: int) -> Member:
        folder = root / name
        folder.mkdir()
        values = {
            "id": [f"clip{i}" for i in range(4)],
            "group": ["singer"] * 4,
            "ref_times_s": self.times,
            "ref_f0_hz": self.truth,
            "est_f0_hz": self.estimates[m],
            "confidence": [(1 - p[:, 0]).astype(np.float32) for p in self.posteriors[m]],
            "posteriors": [p.tobytes() for p in self.posteriors[m]],
        }
        table = pa.table({c.name: pa.array(values[c.name], c.arrow_type()) for c in self.columns})
        with predictions.open_writer(folder / "part-00000.parquet", self.columns) as writer:
            writer.write_table(table, row_group_size=2 + m)
        info = predictions.PredictionsInfo(
            run=name, dataset="d", split="test", step=1, rows=4, labelled=True, columns=self.columns
        )
        write_json(folder / "predictions.json", info.model_dump(mode="json"))
        return open_member(name, folder)

    def ensemble(self, method: str) -> tuple[Ensemble, Inputs]:
        inputs = match(self.members)
        return Ensemble(inputs.members, blocks.kind_of(inputs.members, method), self.run.to_dict(), self.info), inputs


@pytest.mark.parametrize("method", ["mean", "median"])
def test_melodies_are_combined_frame_by_frame(tmp_path: Path, method: str) -> None:
    melody = Melody(tmp_path)
    ensemble, inputs = melody.ensemble(method)
    rule = Rule("linear", (1 / 3,) * 3, exclusive=ensemble.exclusive)
    table = written(ensemble, inputs, rule, tmp_path)
    assert written(ensemble, inputs, rule, tmp_path, block_mb=0.002).equals(table)
    estimates, offsets = ragged_column(table, "est_f0_hz")
    assert "posteriors" not in table.column_names
    metrics = blocks.new_metrics(ensemble)
    for block in inputs.blocks():
        metrics.merge(blocks.measure(ensemble, [rule], block)[0])
    accuracies = []
    for i, (a, b) in enumerate(pairwise(offsets.tolist())):
        if method == "mean":
            expected = melody.argmax(np.mean([m[i].astype(np.float64) for m in melody.posteriors], axis=0))
        else:
            voiced = np.array([m[i] for m in melody.estimates])
            medians = [np.exp(np.median(np.log(f[f > 0]))) if (f > 0).sum() >= 2 else 0 for f in voiced.T]
            expected = np.array(medians)
        np.testing.assert_allclose(estimates[a:b], expected, rtol=1e-12)
        accuracies.append(clip_scores(melody.times[i], melody.truth[i], melody.times[i], expected)["overall_accuracy"])
    assert metrics.compute()["overall_accuracy"] == pytest.approx(np.mean(accuracies))


def test_weights_of_melodies_are_learned_from_frames(tmp_path: Path) -> None:
    """The candidates' hits are the rows of the model's output nearest to the true pitches."""
    melody = Melody(tmp_path)
    ensemble, inputs = melody.ensemble("weighted")
    found = fitting.concatenated([blocks.gather(ensemble, block, melody.width, 1.0) for block in inputs.blocks()])
    assert len(found.offsets) - 1 == sum(melody.lengths)
    frame = 0
    for i, n in enumerate(melody.lengths):
        for t in range(n):
            span = slice(found.offsets[frame], found.offsets[frame + 1])
            f0_hz = melody.truth[i][t]
            row = 0 if f0_hz == 0 else 1 + int(np.abs(np.log(melody.hz / f0_hz)).argmin())
            assert found.classes[span][found.hits[span]].tolist() in ([row], [])
            frame += 1


def test_members_with_other_frames_or_without_posteriors_are_named(tmp_path: Path) -> None:
    melody = Melody(tmp_path)
    tables = [pa.concat_tables(predictions.read_tables(m.folder)) for m in melody.members]
    other = tables[1].set_column(
        tables[1].schema.get_field_index("posteriors"),
        "posteriors",
        pa.array([p[:-1].tobytes() for p in melody.posteriors[1]], pa.large_binary()),
    )
    with pytest.raises(ValueError, match=r"clip 'clip0' has 12 frames in .*m0 and 11 in .*m1"):
        contours.frames_of(melody.members[:2], [tables[0], other])
    info = melody.members[0].info.model_copy(update={"columns": melody.columns[:-1]})
    without = Member("x", melody.members[0].folder, info, melody.members[0].parts)
    with pytest.raises(ValueError, match=r"has no posteriors; .*predict\.posteriors=true"):
        contours.frames_of([without], tables[:1])


def test_soup_is_the_mean_of_every_tensor() -> None:
    states = [{"w": torch.tensor([1.0, 2.0]) * s, "seen": torch.tensor(7 * s)} for s in (1, 2)]
    mean = mean_state(states)
    assert mean["w"].tolist() == [1.5, 3.0]
    assert mean["w"].dtype == torch.float32
    assert mean["seen"].item() == 7
