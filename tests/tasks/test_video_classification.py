"""What a model of videos is called with: vectors with their flags, frames, words; and what training leaves out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmray import config, preparation
from mmray.datasets.synthetic import youtube8m
from mmray.features.quantization import dequantize
from mmray.prepared import SplitReader
from mmray.schema import Column, DatasetInfo, SplitInfo, arrow_schema
from mmray.tasks import Task, build
from mmray.tasks._common_words import common_words

CLASSES = 5
COLUMNS = [
    Column(name="id", dtype="string"),
    Column(name="labels", dtype="int32", shape=(None,)),
    Column(name="sight", dtype="float32", shape=(2,)),
    Column(name="title", dtype="float16", shape=(3,)),
    Column(name="has_title", dtype="uint8"),
    Column(name="keywords", dtype="uint8", shape=(2,)),
    Column(name="has_keywords", dtype="uint8"),
    Column(name="rgb", dtype="uint8", shape=(None, 2)),
    Column(name="audio", dtype="uint8", shape=(None, 1)),
]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "labels": [0, 3], "sight": [1, 2], "title": [4, 5, 6], "has_title": 1, "keywords": [7, 255]}
    | {"has_keywords": 1, "rgb": bytes([1, 2, 3, 4]), "audio": bytes([5, 6])},
    {"id": "b", "labels": [], "sight": [-1, -2], "title": [0, 0, 0], "has_title": 0, "keywords": [0, 0]}
    | {"has_keywords": 0, "rgb": b"", "audio": b""},
    {"id": "c", "labels": [4], "sight": [3, 0], "title": [1, 0, 2], "has_title": 1, "keywords": [0, 0]}
    | {"has_keywords": 0, "rgb": bytes([9, 8]), "audio": bytes([7])},
]


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """The rows as they are stored."""
    arrays = []
    for column in COLUMNS:
        values = [row[column.name] for row in rows]
        is_vector = len(column.shape) == 1 and column.shape[0] is not None
        arrays.append(
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(values, column.dtype))
            if is_vector
            else pa.array(values, column.arrow_type())
        )
    return pa.table(arrays, schema=arrow_schema(COLUMNS))


def task_of(model: dict[str, Any], **task: Any) -> Task:
    run = config.from_dict(
        {
            "name": "x",
            "task": {"name": "video_classification", **task},
            "dataset": {"name": "youtube8m", "path": "nowhere", "level": "video", "num_classes": CLASSES},
            "model": model,
        }
    )
    info = DatasetInfo(
        id="x", columns=COLUMNS, class_names=list("abcde"), splits={"train": SplitInfo(rows=3, num_bytes=1, files=[])},
        split_rule="", group_key="id", rows_in=3, rows_out=3, rejected=0, rejected_reasons={},
    )  # fmt: skip
    return build(run, info)


class Seen(torch.nn.Module):
    """Keeps what it is called with."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.inputs = inputs
        rows = len(inputs[0]) if len(inputs) == 1 else len(inputs[1]) - 1
        return torch.zeros(rows, CLASSES, requires_grad=True)


def seen(task: Task, rows: list[dict[str, Any]] = ROWS, train: bool = False) -> tuple[torch.Tensor, ...]:
    model = Seen()
    batch = task.collate(table_of(rows).select(task.columns(labelled=train)))
    if train:
        task.loss(model, batch)
    else:
        task.evaluate(model, batch)
    return model.inputs


def test_vectors_stand_in_the_order_of_inputs_with_the_flags_that_the_dataset_has_behind_them() -> None:
    task = task_of({"name": "moe", "inputs": ["keywords", "sight", "title"]})
    (x,) = seen(task)
    assert x.tolist() == [
        [7, 255, 1, 2, 4, 5, 6, 1, 1],
        [0, 0, -1, -2, 0, 0, 0, 0, 0],
        [0, 0, 3, 0, 1, 0, 2, 0, 1],
    ]
    assert task.build_model().weight.shape[2] == 9  # type: ignore[index]
    assert task.columns(labelled=False) == ("keywords", "sight", "title", "has_keywords", "has_title")
    (x,) = seen(task_of({"name": "logistic", "inputs": ["sight"]}))
    assert x.shape == (3, 2)


def test_frames_are_taken_by_their_mean_beside_vectors() -> None:
    (x,) = seen(task_of({"name": "logistic", "inputs": ["rgb", "sight"]}))
    mean = dequantize(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)).mean(0)
    torch.testing.assert_close(x[0], torch.cat([mean, torch.tensor([1.0, 2.0])]))
    assert x[1].tolist() == [0, 0, -1, -2]


def test_rows_with_nothing_but_missing_inputs_are_not_filled() -> None:
    def filled(model: dict[str, Any]) -> list[bool]:
        task = task_of(model)
        found: list[bool] = task.filled(task.collate(table_of(ROWS))).tolist()  # type: ignore[attr-defined]
        return found

    assert filled({"name": "mlp", "inputs": ["keywords"]}) == [True, False, False]
    assert filled({"name": "mlp", "inputs": ["keywords", "title"]}) == [True, False, True]
    assert filled({"name": "mlp", "inputs": ["keywords", "sight"]}) == [True, True, True]
    assert filled({"name": "lstm"}) == [True, False, True]


def test_an_input_that_is_dropped_is_as_one_that_is_missing() -> None:
    task = task_of({"name": "moe", "inputs": ["sight", "title"]}, modality_dropout={"title": 1.0})
    (x,) = seen(task, train=True)
    assert x.tolist() == [[1, 2, 0, 0, 0, 0], [-1, -2, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]]
    (x,) = seen(task)  # to be evaluated
    assert x[0].tolist() == [1, 2, 4, 5, 6, 1]


def test_each_row_loses_an_input_with_its_probability_as_the_generator_says() -> None:
    rows = [ROWS[0]] * 4000
    task = task_of({"name": "moe", "inputs": ["sight", "title"]}, modality_dropout={"sight": 0.25, "title": 0.5})
    torch.manual_seed(3)
    (x,) = seen(task, rows, train=True)
    torch.manual_seed(3)
    assert torch.equal(x, seen(task, rows, train=True)[0])
    assert not torch.equal(x, seen(task, rows, train=True)[0])
    lost = torch.stack([(x[:, :2] == 0).all(1), (x[:, 2:] == 0).all(1)])
    assert torch.equal(x[:, 5] == 0, lost[1])
    deviation = (np.array([0.25 * 0.75, 0.25, 0.125 * 0.875]) / 4000) ** 0.5
    shares = [*lost.float().mean(1).tolist(), float(lost.all(0).float().mean())]  # independently of each other
    assert np.abs(np.array(shares) - [0.25, 0.5, 0.125]).max() < 4 * deviation.max()


def test_frames_of_all_columns_stand_side_by_side() -> None:
    task = task_of({"name": "lstm", "inputs": ["audio", "rgb"]})
    frames, offsets = seen(task)
    assert frames.tolist() == [[5, 1, 2], [6, 3, 4], [7, 9, 8]]
    assert frames.dtype == torch.uint8
    assert offsets.tolist() == [0, 2, 2, 3]
    assert task.lengths(table_of(ROWS)).tolist() == [2, 0, 1]  # type: ignore[attr-defined]
    assert task_of({"name": "dbof"}).lengths(table_of(ROWS)) is None  # type: ignore[attr-defined]
    assert task_of({"name": "dbof"}).columns(labelled=False) == ("rgb", "audio")


def test_dropped_frames_are_the_level_of_zero() -> None:
    frames, _ = seen(task_of({"name": "lstm"}, modality_dropout={"audio": 1.0}), train=True)
    assert frames.tolist() == [[1, 2, 127], [3, 4, 127], [9, 8, 127]]
    assert abs(float(dequantize(frames)[0, 2])) < 1e-4
    torch.manual_seed(0)
    frames, _ = seen(task_of({"name": "lstm"}, modality_dropout={"rgb": 0.5}), [ROWS[0]] * 100, train=True)
    lost = (frames[:, :2] == 127).all(1).view(100, 2)
    assert torch.equal(lost[:, 0], lost[:, 1])  # of a row all frames, or none
    assert 0 < lost[:, 0].sum() < 100


def test_inputs_of_different_lengths_are_refused() -> None:
    task = task_of({"name": "lstm"})
    with pytest.raises(ValueError, match="row 2: audio has another number of frames than rgb"):
        task.collate(table_of([*ROWS[:2], ROWS[2] | {"audio": b"12"}]).select(task.columns(labelled=False)))


@pytest.mark.parametrize(
    ("model", "task", "message"),
    [
        ({"name": "lstm", "inputs": ["sight"]}, {}, r"'sight' is not a feature; .*choose from audio, rgb"),
        ({"name": "moe", "inputs": []}, {}, "model.inputs is empty"),
        ({"name": "text_cnn"}, {}, "model.name=text_cnn reads words, and the dataset has none; set dataset.text"),
        ({"name": "moe"}, {"modality_dropout": {"titel": 0.1}}, "'titel' is no input; did you mean 'title'"),
        ({"name": "moe"}, {"modality_dropout": {"has_title": 0.1}}, "'has_title' is no input"),
        ({"name": "dense_aspp"}, {}, "whose models take vectors or frames or words; choose from .*lstm.*unigram"),
    ],
)
def test_what_does_not_fit_is_refused(model: dict[str, Any], task: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(model, **task)


# Words, of a corpus that has them


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A prepared corpus with text: the sections of a run over it, and the folder."""
    root = tmp_path_factory.mktemp("words")
    made = youtube8m.Config(num_videos=90, num_classes=12, rgb_size=4, audio_size=3, videos_per_shard=20)
    youtube8m.generate(root / "corpus", made, lambda done, total: None)
    text: dict[str, Any] = {"path": str(root / "corpus/text.csv"), "vectors": str(root / "corpus/word_vectors.bin")}
    text |= {"vector_size": 32, "clusters": 8, "cache": str(root / "cache")}
    dataset = {"name": "youtube8m", "path": str(root / "corpus"), "level": "video", "num_classes": 12, "text": text}
    dataset["features"] = {"mean_rgb": 4, "mean_audio": 3}
    values = {"name": "x", "task": "video_classification", "dataset": dataset, "model": "unigram"}
    values |= {"prepare": {"out": str(root / "prepared"), "part_mb": 1}, "predict": {"batch_size": 7}}
    plan = preparation.plan(config.from_dict(values))
    info = preparation.publish(plan, [preparation.write_part(plan.run, part, plan.aside) for part in plan.parts])
    return {"values": values, "info": info, "folder": plan.folder}


def of_corpus(corpus: dict[str, Any], model: dict[str, Any], **task: Any) -> tuple[Task, pa.Table]:
    """A task over the corpus, and its training rows."""
    values = corpus["values"] | {"model": model, "task": {"name": "video_classification", **task}}
    made = build(config.from_dict(values), corpus["info"])
    split = corpus["info"].split("train")
    names = tuple(dict.fromkeys(("title_words", "keyword_words", *made.columns(labelled=True))))
    return made, SplitReader(corpus["folder"], split, names).take(np.arange(split.rows))


def test_words_of_several_columns_follow_one_another_row_by_row(corpus: dict[str, Any]) -> None:
    task, table = of_corpus(corpus, {"name": "text_cnn", "inputs": ["keyword_words", "title_words"]})
    vectors = task.inputs.vectors.matrix  # type: ignore[attr-defined]
    x, offsets = seen_words(task, table)
    start = 0
    for row, (titles, keywords) in enumerate(
        zip(table.column("title_words").to_pylist(), table.column("keyword_words").to_pylist(), strict=True)
    ):
        wanted = [vectors[number] for number in (*keywords, *titles)]
        assert int(offsets[row + 1]) - int(offsets[row]) == len(wanted)
        assert all(np.array_equal(a, b) for a, b in zip(x[start : start + len(wanted)], wanted, strict=True))
        start += len(wanted)
    assert start == len(x) > 100
    assert task.build_model().convolutions.vector_size == 32  # type: ignore[union-attr]
    empty = [not (a or b) for a, b in zip(*(table.column(c).to_pylist() for c in task.columns(False)), strict=True)]
    assert (~task.filled(task.collate(table))).tolist() == empty  # type: ignore[attr-defined]
    assert any(empty)


def seen_words(task: Task, table: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    batch = task.collate(table.select(task.columns(labelled=True)))
    x, offsets = task.inputs.tensors(batch, {})  # type: ignore[attr-defined]
    return x, offsets


def test_a_model_that_counts_is_fitted_to_every_training_row_once(corpus: dict[str, Any]) -> None:
    """Though the first loss is of a few of them, and the second again."""
    task, table = of_corpus(corpus, {"name": "unigram", "inputs": ["title_words"]})
    model = task.build_model()
    batch = task.collate(table.slice(3, 5).select(task.columns(labelled=True)))
    assert torch.equal(task.loss(model, batch), task.loss(model, batch))
    assert int(model.num_rows) == table.num_rows  # type: ignore[arg-type]
    pairs = Counter(
        (word, label)
        for words, labels in zip(*(table.column(c).to_pylist() for c in ("title_words", "labels")), strict=True)
        for word in set(words)
        for label in labels
    )
    counted = model.pair_counts > 0  # type: ignore[operator]
    cells = zip(model.pairs[counted].tolist(), model.pair_counts[counted].tolist(), strict=True)  # type: ignore[index]
    assert {(pair // 12, pair % 12): count for pair, count in cells} == dict(pairs)


def test_dropout_is_refused_for_words(corpus: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="modality_dropout is for models of vectors and frames"):
        of_corpus(corpus, {"name": "text_cnn"}, modality_dropout={"title_words": 0.5})


def test_common_words_are_those_of_the_training_split(corpus: dict[str, Any], tmp_path: Path) -> None:
    task, table = of_corpus(corpus, {"name": "text_cnn"})
    vectors = task.inputs.vectors  # type: ignore[attr-defined]
    found = common_words(corpus["folder"], corpus["info"], vectors)
    assert list(found) == ["title_words", "keyword_words"]
    for name, entries in found.items():
        counts = Counter(vectors.words[n].as_py() for words in table.column(name).to_pylist() for n in words)
        assert [entry["count"] for entry in entries] == [count for _, count in counts.most_common(20)]
        assert all(counts[entry["word"]] == entry["count"] for entry in entries)
    assert common_words(tmp_path, corpus["info"], vectors) == {}
    without = corpus["info"].model_copy(update={"columns": COLUMNS})
    assert common_words(corpus["folder"], without, vectors) == {}


def test_text_is_an_input_like_any_other(corpus: dict[str, Any]) -> None:
    """Every subset of the modalities of a corpus is a model of its own."""
    for names, size in (
        (["mean_rgb"], 4),
        (["mean_audio"], 3),
        (["mean_rgb", "mean_audio"], 7),
        (["keywords"], 8 + 1),
        (["mean_rgb", "mean_audio", "keywords"], 4 + 3 + 8 + 1),
    ):
        task, table = of_corpus(corpus, {"name": "logistic", "inputs": names})
        batch = task.collate(table.select(task.columns(labelled=True)))
        loss = task.loss(task.build_model(), batch)
        assert float(loss.detach()) > 0
        assert task.build_model().linear.weight.shape == (12, size)  # type: ignore[union-attr]
