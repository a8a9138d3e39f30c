"""What every module of mmray.tasks promises, shown with each model it can train on a small synthetic corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from mmray import config, lookup, preparation
from mmray.datasets.synthetic import mir1k, music_emotion, pets, youtube8m
from mmray.predictions import PredictionsInfo
from mmray.prepared import SplitReader
from mmray.schema import DatasetInfo, arrow_schema
from mmray.tasks import Batch, Task, build

EIGHT = 8


def synthetic_youtube8m(folder: Path, kind: str) -> dict[str, Any]:
    """Make 8 videos to train on and 9 more; return the dataset section that reads vectors, frames or text of them."""
    level = "video" if kind == "text" else kind
    num_videos = 3 * 17 if kind == "text" else 17  # not every video has a title
    made = youtube8m.Config(
        num_videos=num_videos, num_classes=12, rgb_size=12, audio_size=10, level=level, min_frames=1, max_frames=7,
        train_fraction=EIGHT / 17, val_fraction=0.3,
    )  # fmt: skip
    youtube8m.generate(folder, made, lambda done, total: None)
    names = ("mean_rgb", "mean_audio") if level == "video" else ("rgb", "audio")
    features = dict(zip(names, (12, 10), strict=True))
    section = {"name": "youtube8m", "path": str(folder), "level": level, "num_classes": 12, "features": features}
    if kind == "text":
        files = {"path": str(folder / "text.csv"), "vectors": str(folder / "word_vectors.bin"), "vector_size": 32}
        names_file = {"class_names_file": str(folder / "vocabulary.csv")}
        section |= {
            "text": {**files, "clusters": 4, "videos": "with_title", "cache": str(folder / "cache")}
        } | names_file
    return section


def synthetic_mir1k(folder: Path, kind: str) -> dict[str, Any]:
    """Make 29 short clips, 18 of them to train on; return the dataset section that reads them in coarse bins."""
    made = mir1k.Config(num_clips=29, min_clip_s=1.0, max_clip_s=1.2, clips_per_song=1)
    mir1k.generate(folder, made, lambda done, total: None)
    cfp = {"bins_per_octave": 15, "min_hz": 80.0, "max_hz": 1250.0, "hop": 512}
    if kind == "pooled":  # its model needs a multiple of 64 bins
        cfp |= {"bins_per_octave": 16, "min_hz": 76.0}
    return {"name": "mir1k", "path": str(folder), "cfp": cfp}


def synthetic_music_emotion(folder: Path, kind: str) -> dict[str, Any]:
    """Make 12 short recordings; return the dataset section that cuts them into segments of 2 s."""
    made = music_emotion.Config(num_tracks=12, minutes=0.2, length_spread=0)
    music_emotion.generate(folder, made, lambda done, total: None)
    features = {"mfcc": 8, "contrast_bands": 0, "n_fft": 1024, "hop": 512}
    cut = {"segment_s": 2, "hop_s": 2, "tail": "drop", "store": kind}
    split = {"by": "track", "fractions": {"train": 0.5, "val": 0.25, "test": 0.25}}
    return {"name": "audio_folder", "path": str(folder), "features": features, "split": split, **cut}


def synthetic_pets(folder: Path, kind: str) -> dict[str, Any]:
    """Make 30 small images, 18 of them to train on; return the dataset section that tells what `kind` begins with."""
    pets.generate(folder, pets.Config(num_images=30, num_classes=4, size=80, oddities=False), lambda done, total: None)
    target, store, side = kind.split()
    image = {"size": [int(side), int(side)], "store": store, "jpeg_quality": 100}
    return {"name": "oxford_pets", "path": str(folder), "target": target, "image": image}


@dataclass(frozen=True)
class Case:
    """A task with one of its models on a small corpus that `make_corpus` writes, in one of its kinds.

    It learns `num_rows` training rows by heart in `steps` steps at the learning rate `lr`: its loss falls to
    `final_loss` of what it was, and the metric that picks checkpoints rises above `good`.
    """

    task: str
    model: dict[str, Any]
    kind: str
    make_corpus: Callable[[Path, str], dict[str, Any]] = synthetic_youtube8m
    num_rows: int = EIGHT
    steps: int = 600
    lr: float = 0.05
    final_loss: float = 0.01
    good: float = 0.999
    labels: tuple[str, ...] = ("labels",)


MELODY: dict[str, Any] = {
    "task": "melody_extraction", "make_corpus": synthetic_mir1k,
    "steps": 60, "lr": 0.01, "final_loss": 0.3, "good": 0.75, "labels": ("f0_hz", "ref_times_s", "ref_f0_hz"),
}  # fmt: skip

EMOTION: dict[str, Any] = {
    "task": "audio_classification", "make_corpus": synthetic_music_emotion, "num_rows": 36,
    "steps": 60, "lr": 0.005, "final_loss": 0.2, "good": 0.95,
}  # fmt: skip

IMAGES: dict[str, Any] = {
    "task": "image_classification", "make_corpus": synthetic_pets,
    "steps": 40, "lr": 0.003, "final_loss": 0.2, "good": 0.95,
}  # fmt: skip

CASES = [
    Case("video_classification", {"name": "logistic"}, "video"),
    Case("video_classification", {"name": "logistic", "inputs": ["audio"]}, "frame"),
    Case("video_classification", {"name": "moe", "num_experts": 3, "inputs": ["mean_audio", "mean_rgb"]}, "video"),
    Case("video_classification", {"name": "moe"}, "frame"),
    Case("video_classification", {"name": "mlp", "hidden_size": 64, "dropout": 0}, "video", lr=0.01),
    Case("video_classification", {"name": "lstm", "hidden_size": 32, "num_layers": 1}, "frame", lr=0.01),
    Case("video_classification", {"name": "dbof", "num_frames": 7, "projection_size": 64, "hidden_size": 32}, "frame"),
    Case("video_classification", {"name": "nextvlad", "clusters": 4, "groups": 2, "hidden_size": 32}, "frame"),
    Case(
        "video_classification", {"name": "text_cnn", "channels": 16, "hidden_size": 32, "dropout": 0}, "text", lr=0.01
    ),
    Case(model={"name": "dense_aspp", "growth": 4, "dilations": [1, 2, 4]}, kind="clips", **MELODY),
    Case(model={"name": "segnet"}, kind="pooled", **MELODY),
    Case(model={"name": "audio_cnn"}, kind="features", **EMOTION),
    Case(model={"name": "audio_cnn", "channels": [16]}, kind="audio", **EMOTION),
    Case(model={"name": "audio_cnn_lstm"}, kind="features", **EMOTION),
    Case(model={"name": "audio_cnn_gru"}, kind="features", **EMOTION),
    Case(model={"name": "audio_transformer"}, kind="features", **EMOTION),
    Case(model={"name": "timm", "architecture": "test_resnet"}, kind="breed uint8 32", **IMAGES),
    Case(model={"name": "torchvision", "architecture": "resnet18"}, kind="breed jpeg 32", **IMAGES),
    Case(model={"name": "resnet32_cifar"}, kind="breed uint8 16", **IMAGES),
    Case(model={"name": "pets_cnn"}, kind="species uint8 32", **IMAGES),
    Case(model={"name": "pets_cnn_multiclass", "conv_dropout": 0, "dropout": 0}, kind="breed uint8 32", **IMAGES),
    Case(
        model={"name": "inception_v3", "cut": "Mixed_5b", "hidden": 16, "dropout": 0}, kind="breed uint8 75", **IMAGES
    ),
]


COUNTED = {"unigram"}  # descends no gradient; tests/models/test_text_models.py has it


@dataclass(frozen=True)
class Prepared:
    """A case with its task over a prepared dataset."""

    case: Case
    run: config.Run
    task: Task
    folder: Path

    def table(self, split: str, labelled: bool = True) -> pa.Table:
        """The first rows of a split, as many as the case says, as the task asks for them."""
        rows = np.arange(min(self.case.num_rows, self.task.info.split(split).rows))
        return SplitReader(self.folder, self.task.info.split(split), self.task.columns(labelled)).take(rows)

    def model(self, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        return self.task.build_model()


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.task}-{case.model['name']}-{case.kind}")
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    case: Case = request.param
    root = tmp_path_factory.mktemp("task")
    values = {
        "name": "contract",
        "task": case.task,
        "dataset": case.make_corpus(root / "corpus", case.kind),
        "model": case.model,
        "prepare": {"out": str(root / "prepared")},
    }
    run = config.from_dict(values)
    plan = preparation.plan(run)
    info = preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    return Prepared(case, run, build(run, info), plan.folder)


def test_every_task_and_every_model_has_a_case() -> None:
    assert {case.task for case in CASES} == set(lookup.names("task"))
    assert {case.model["name"] for case in CASES} | COUNTED == set(lookup.names("model"))


@pytest.mark.parametrize("name", lookup.names("task"))
def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    Config = lookup.load("task", name).Config
    assert Config().name == name
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Config(no_such_key=1)


def test_columns_are_of_the_dataset_and_labels_only_where_asked_for(prepared: Prepared) -> None:
    task = prepared.task
    names = {column.name for column in task.info.columns}
    assert set(task.columns(labelled=True)) <= names
    assert set(task.columns(labelled=True)) - set(task.columns(labelled=False)) == set(prepared.case.labels)


def test_input_that_the_dataset_lacks_is_named_with_those_it_has(prepared: Prepared) -> None:
    values = prepared.run.to_dict()
    if "inputs" not in values["model"]:
        pytest.skip("takes one input")
    values["model"]["inputs"] = ["mean_rbg"]
    choice = "title_words" if prepared.case.kind == "text" else "audio"
    with pytest.raises(ValueError, match=rf"model\.inputs: 'mean_rbg' is not a feature; .*choose from .*{choice}"):
        build(config.from_dict(values), prepared.task.info)


def test_a_model_of_another_kind_is_refused_with_those_that_fit(prepared: Prepared) -> None:
    other = "logistic" if prepared.case.task != "video_classification" else "dense_aspp"
    run = config.from_dict(prepared.run.to_dict() | {"model": other})
    with pytest.raises(
        ValueError, match=rf"model.name={other} is not for .* choose from .*{prepared.case.model['name']}"
    ):
        build(run, prepared.task.info)


def test_learns_a_few_rows_by_heart(prepared: Prepared) -> None:
    """By plain torch: the loss falls to a fraction, the metric that picks checkpoints becomes good."""
    case, task, model = prepared.case, prepared.task, prepared.model()
    batch = task.collate(prepared.table("train"))
    assert batch.num_rows == case.num_rows
    before = score(task, model, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=case.lr)
    losses = []
    for step in range(case.steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] * case.final_loss
    assert score(task, model, batch) > case.good > before + 0.1


def score(task: Task, model: torch.nn.Module, batch: Batch) -> float:
    metrics = task.new_metrics()
    with torch.no_grad():
        metrics.update(task.evaluate(model.eval(), batch)[0], batch)
    model.train()
    assert task.monitor.startswith("val/")
    return metrics.compute()[task.monitor.removeprefix("val/")]


def test_scores_are_probabilities(prepared: Prepared) -> None:
    """Of each row and class; or of each frame and pitch, which sum to 1."""
    task, model = prepared.task, prepared.model().eval()
    batch = task.collate(prepared.table("train"))
    scores, _ = task.evaluate(model, batch)
    if task.info.class_names:
        assert scores.shape == (prepared.case.num_rows, len(task.info.class_names))
    else:
        assert scores.sum(dim=1).tolist() == pytest.approx([1.0] * len(scores), rel=1e-5)
    assert scores.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 1)).all()


def test_rows_count_the_same_in_any_batch(prepared: Prepared) -> None:
    """Scores row by row, and the loss summed over rows, don't depend on how rows are batched."""
    task, model, table = prepared.task, prepared.model().eval(), prepared.table("train")
    scores, loss = task.evaluate(model, task.collate(table))
    parts = [task.evaluate(model, task.collate(table.slice(start, 3))) for start in range(0, table.num_rows, 3)]
    torch.testing.assert_close(torch.cat([part for part, _ in parts]), scores, rtol=1e-5, atol=1e-6)
    assert sum(loss for _, loss in parts) == pytest.approx(loss, rel=1e-5)
    assert loss > 0


def test_training_loss_is_the_mean_of_the_evaluated_loss(prepared: Prepared) -> None:
    """Up to the penalty, which is made small enough here to be lost in rounding; of rows that are equally long."""
    task, model = prepared.task, prepared.model().eval()
    batch = task.collate(prepared.table("train").slice(0, 1))
    torch.manual_seed(0)
    _, summed = task.evaluate(model, batch)
    loss = task.loss(model, batch)
    assert loss.shape == ()
    assert float(loss.detach()) == pytest.approx(summed, rel=1e-4)


def test_rows_without_labels_have_scores_and_no_loss(prepared: Prepared) -> None:
    task, model = prepared.task, prepared.model().eval()
    with_labels, _ = task.evaluate(model, task.collate(prepared.table("test")))
    batch = task.collate(prepared.table("test", labelled=False))
    scores, loss = task.evaluate(model, batch)
    assert torch.equal(scores, with_labels)
    assert loss == 0


def test_merged_metrics_are_those_of_one_pass(prepared: Prepared) -> None:
    """Three parts, merged in another order, the last by way of its plain state."""
    task, model, table = prepared.task, prepared.model().eval(), prepared.table("train")
    whole = task.new_metrics()
    parts = [task.new_metrics() for _ in range(3)]
    for start, part in zip((0, 3, 6), parts, strict=True):
        batch = task.collate(table.slice(start, 3))
        scores, _ = task.evaluate(model, batch)
        whole.update(scores.detach(), batch)
        part.update(scores.detach(), batch)
    merged = task.new_metrics()
    for part in (parts[2], parts[0], parts[1]):
        merged.merge(part.state())
    assert merged.compute() == whole.compute()
    assert task.monitor.removeprefix("val/") in whole.compute()
    assert parts[0].compute() != whole.compute(), "the parts say the same: the test shows nothing"


def test_predictions_have_the_columns_announced_and_are_scored(prepared: Prepared, tmp_path: Path) -> None:
    """Stored as `mmray predict` does, read back and scored: the metric is what validation finds."""
    task, model = prepared.task, prepared.model().eval()
    info = task.info.split("train")
    columns = task.prediction_columns(info)
    carried = [c.name for c in columns if c.name in {column.name for column in task.info.columns}]
    names = tuple(dict.fromkeys([*carried, *task.columns(labelled=True)]))
    rows = SplitReader(prepared.folder, info, names).take(np.arange(info.rows))
    batch = task.collate(rows.select(list(task.columns(labelled=True))))
    with torch.no_grad():
        scores, _ = task.evaluate(model, batch)
    table = task.predictions(columns, rows, scores)
    assert table.schema.equals(arrow_schema(columns))
    assert table.column("id").equals(rows.column("id"))
    pq.write_table(table, tmp_path / "part-00000.parquet")
    stored = PredictionsInfo(
        run="r", dataset=task.info.id, split="train", step=0, rows=info.rows, labelled=True, columns=columns
    )
    (tmp_path / "predictions.json").write_text(stored.model_dump_json())
    scored = task.score(tmp_path)
    metrics = task.new_metrics()
    metrics.update(scores, batch)
    name = task.monitor.removeprefix("val/")
    assert scored["metrics"][name] == pytest.approx(metrics.compute()[name], rel=1e-6)
    assert all(name in baseline for baseline in scored["baselines"].values())
    ids, of_dataset, _ = task.examples(scored)
    assert set(ids) <= set(rows.column("id").to_pylist())
    assert set(of_dataset) <= {column.name for column in task.info.columns}


def test_collated_tensors_are_those_of_the_rows(prepared: Prepared) -> None:
    """Against the Arrow rows as Python values, also of a slice that begins within the table."""
    if prepared.case.task != "video_classification" or prepared.case.kind == "text":
        pytest.skip("has a test of its own: its tensors have other names than the columns")
    task, table = prepared.task, prepared.table("train").slice(2, 5)
    batch = task.collate(table)
    assert batch.num_rows == 5
    for name in task.columns(labelled=True):
        rows = table.column(name).to_pylist()
        offsets = batch.tensors.get(f"{name}.offsets")
        values = batch.tensors[name]
        for i, row in enumerate(rows):
            ours = values[i] if offsets is None else values[int(offsets[i]) : int(offsets[i + 1])]
            wanted = list(row) if isinstance(row, bytes) else np.asarray(row).ravel().tolist()
            assert ours.ravel().tolist() == pytest.approx(wanted), (name, i)
        if offsets is not None:
            assert int(offsets[0]) == 0
            assert int(offsets[-1]) == len(values)


def test_builds_on_the_meta_device(prepared: Prepared) -> None:
    with torch.device("meta"):
        meta = prepared.task.build_model()
    ours = {key: value.shape for key, value in prepared.model().state_dict().items()}
    assert {key: value.shape for key, value in meta.state_dict().items()} == ours
    assert all(p.is_meta for p in meta.parameters())


def test_info_alone_makes_the_task(prepared: Prepared) -> None:
    """`dataset.json` is all that a trained run keeps of its data: read back, it gives a task of the same model."""
    info = DatasetInfo.model_validate_json(prepared.task.info.model_dump_json())
    again = build(config.from_dict(prepared.run.to_dict()), info)
    again.build_model().load_state_dict(prepared.model().state_dict())
    assert again.columns(labelled=True) == prepared.task.columns(labelled=True)
