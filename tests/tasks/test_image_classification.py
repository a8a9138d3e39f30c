"""Image classification on hand-made rows: batches, loss, changes, scores, files and heat."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, top_k_accuracy_score
from torch import nn
from torchvision.transforms.v2 import functional as V

from mmray import config
from mmray.datasets import image_folder
from mmray.features import image_augment, images
from mmray.predictions import PredictionsInfo
from mmray.schema import DatasetInfo, SplitInfo, arrow_schema
from mmray.tasks import _grad_cam, build
from mmray.tasks.image_classification import Task

CPU = torch.device("cpu")
NAMES = ["bengal", "beagle", "boxer", "birman"]
TRAIN_COUNTS = [10, 20, 40, 10]
CHANGES = {"rotation_degrees": 20, "horizontal_flip": True, "brightness": 0.2}
SIZE = (16, 20)
MEAN, MEAN_SQUARE = [0.5, 0.4, 0.3], [0.30, 0.25, 0.10]


def make_task(store: str = "uint8", names: Sequence[str] = NAMES, **of_task: Any) -> Task:
    """The task over made-up images in four classes, with `of_task` settings of its own."""
    run = config.from_dict(
        {
            "name": "pets",
            "seed": 3,
            "task": {"name": "image_classification", **of_task},
            "dataset": {"name": "image_folder", "path": "corpus", "image": {"size": SIZE, "store": store}},
            "model": {"name": "timm", "architecture": "resnet10t"},
        }
    )
    sums = {"channel_mean": [80 * m for m in MEAN], "channel_mean_square": [80 * s for s in MEAN_SQUARE]}
    train = SplitInfo(rows=80, num_bytes=0, files=[], labelled_rows=80, label_counts=TRAIN_COUNTS, sums=sums)
    info = DatasetInfo(
        id="made-by-hand", columns=image_folder.columns(run.dataset), class_names=list(names),  # type: ignore[arg-type]
        splits={"train": train}, split_rule="", group_key="group", rows_in=0, rows_out=0, rejected=0,
        rejected_reasons={},
    )  # fmt: skip
    task = build(run, info)
    assert isinstance(task, Task)
    return task


def pixels(num: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(rng.uniform(60, 200, 3), 20, (*SIZE, 3)) for _ in range(num)]).clip(0, 255).astype("u1")


def table_of(task: Task, stored: NDArray[np.uint8], labels: Sequence[list[int]]) -> pa.Table:
    values = [
        {
            "id": f"{i}.jpg", "group": f"{i}.jpg", "labels": of_row, "channel_mean": [0, 0, 0],
            "channel_mean_square": [0, 0, 0],
            "image": images.encode(torch.from_numpy(image).permute(2, 0, 1), task.stored),
        }
        for i, (image, of_row) in enumerate(zip(stored, labels, strict=True))
    ]  # fmt: skip
    return pa.Table.from_pylist(values, schema=arrow_schema(task.info.columns)).select(task.columns(labelled=True))


class Fixed(nn.Module):
    """In place of a model: these logits, whatever comes; keeps what came."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = torch.tensor(logits, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x.clone()
        return self.logits[: len(x)]


LOGITS = np.array([[2.0, 0.5, -1.0, 0.1], [0.0, 1.0, 3.0, -1], [-1.0, -2.0, 0.5, 2], [1.0, 1.0, 1.0, 1.0]])


# ---- Batches


def test_stored_pixels_become_a_batch() -> None:
    task, stored = make_task(), pixels(4)
    table = table_of(task, stored, [[0], [2], [1], [3]])
    batch = task.collate(table.slice(1, 2))
    assert (batch.num_rows, batch.ids) == (2, ("1.jpg", "2.jpg"))
    assert batch.tensors["labels"].tolist() == [2, 1]
    np.testing.assert_array_equal(batch.tensors["images"], stored[1:3])


def test_stored_jpegs_are_decoded() -> None:
    task, stored = make_task("jpeg"), pixels(3)
    batch = task.collate(table_of(task, stored, [[0], [2], [1]]))
    assert batch.tensors["images"].shape == (3, *SIZE, 3)
    means = stored.mean((1, 2))
    np.testing.assert_allclose(batch.tensors["images"].numpy().mean((1, 2)), means, atol=2)


def test_an_image_without_a_label_is_named() -> None:
    task = make_task()
    table = table_of(task, pixels(3), [[0], [], [1]])
    with pytest.raises(ValueError, match=r"image 1\.jpg has no label"):
        task.collate(table)
    batch = task.collate(table.select(task.columns(labelled=False)))
    scores, loss = task.evaluate(Fixed(LOGITS), batch)
    assert (scores.shape, loss) == ((3, 4), 0.0)


# ---- What the model sees


@pytest.mark.parametrize(
    ("normalize", "mean", "deviation"),
    [
        ("none", [0, 0, 0], [1, 1, 1]),
        ("imagenet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("dataset", MEAN, np.sqrt([0.30 - 0.25, 0.25 - 0.16, 0.10 - 0.09])),
    ],
)
def test_normalisation(normalize: str, mean: Any, deviation: Any) -> None:
    task, stored, model = make_task(normalize=normalize), pixels(4), Fixed(LOGITS)
    batch = task.collate(table_of(task, stored, [[0], [2], [1], [3]]))
    expected = ((stored / 255 - mean) / deviation).transpose(0, 3, 1, 2)
    task.evaluate(model, batch)
    np.testing.assert_allclose(model.x, expected, atol=1e-5)
    task.loss(model, batch)
    np.testing.assert_allclose(model.x, expected, atol=1e-5)
    np.testing.assert_array_equal(batch.tensors["images"], stored)


def test_crop_is_the_centre_in_evaluation_and_anywhere_in_training() -> None:
    task, stored, model = make_task(normalize="none", crop=[11, 8]), pixels(4), Fixed(LOGITS)
    table = table_of(task, stored, [[0], [2], [1], [3]])
    task.evaluate(model, task.collate(table))
    np.testing.assert_allclose(model.x, stored[:, 2:13, 6:14].transpose(0, 3, 1, 2) / 255, atol=1e-6)
    assert task.build_model().image_size == (11, 8)
    seen = set()
    for epoch in range(8):
        task.loss(model, task.collate(task.augmented(table, epoch)))
        first = (255 * model.x[0]).round().numpy().transpose(1, 2, 0)
        places = [(y, x) for y in range(6) for x in range(13) if (stored[0, y : y + 11, x : x + 8] == first).all()]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 3


def test_training_sees_changes_by_seed_image_and_epoch_and_evaluation_none() -> None:
    task, plain, model = make_task(augment=CHANGES, normalize="none"), make_task(normalize="none"), Fixed(LOGITS)
    table = table_of(task, pixels(4), [[0], [2], [1], [3]])
    assert plain.augmented(table, 0) is table
    task.loss(model, task.collate(task.augmented(table, epoch=5)))
    whole = model.x
    shared = []
    for i in (2, 0, 3, 1):
        task.loss(model, task.collate(task.augmented(table.slice(i, 1), epoch=5)))
        shared.append(model.x[0])
    torch.testing.assert_close(torch.stack(shared), whole[[2, 0, 3, 1]], rtol=0, atol=1e-6)
    drawn = image_augment.draw(
        image_augment.Settings(**CHANGES), image_augment.seeds_of(3, [f"{i}.jpg" for i in range(4)], 5), SIZE, SIZE
    )
    expected = image_augment.augment(torch.from_numpy(pixels(4)), drawn, image_augment.Settings(**CHANGES), SIZE)
    torch.testing.assert_close(whole, expected)
    task.loss(model, task.collate(task.augmented(table, epoch=6)))
    assert not torch.allclose(model.x, whole)
    task.evaluate(model, task.collate(table))
    np.testing.assert_allclose(model.x, pixels(4).transpose(0, 3, 1, 2) / 255, atol=1e-6)


# ---- Loss


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_weighted_smoothed_cross_entropy(weighted: bool, smoothing: float) -> None:
    """80 training rows in 4 classes: N / (K n_c) is 80 / 40, 80 / 80, 80 / 160, 80 / 40."""
    task = make_task(class_weights="inverse_frequency" if weighted else "none", label_smoothing=smoothing)
    batch = task.collate(table_of(task, pixels(4), [[0], [2], [1], [3]]))
    weights = np.array([2, 1, 0.5, 2]) if weighted else np.ones(4)
    targets = (1 - smoothing) * np.eye(4)[[0, 2, 1, 3]] + smoothing / 4
    rows = -(weights * targets * log_softmax(LOGITS)).sum(axis=1)
    assert float(task.loss(Fixed(LOGITS), batch)) == pytest.approx(rows.mean(), rel=1e-6)
    assert task.evaluate(Fixed(LOGITS), batch)[1] == pytest.approx(rows.sum(), rel=1e-6)


@pytest.mark.parametrize("mixed", [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}])
def test_mixtures_are_drawn_from_torch_s_generator_and_not_in_evaluation(mixed: dict[str, float]) -> None:
    task, model = make_task(normalize="none", **mixed), Fixed(LOGITS)
    batch = task.collate(table_of(task, pixels(4), [[0], [2], [1], [3]]))
    seen, losses = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(float(task.loss(model, batch)))
        seen.append(model.x)
    assert torch.equal(seen[0], seen[1])
    assert losses[0] == losses[1]
    assert not torch.equal(seen[0], seen[2])
    mix = image_augment.mixup if "mixup_alpha" in mixed else image_augment.cutmix
    torch.manual_seed(1)
    x, targets = mix(torch.from_numpy(pixels(4)).permute(0, 3, 1, 2) / 255, torch.eye(4)[[0, 2, 1, 3]], *mixed.values())
    torch.testing.assert_close(x, seen[2])
    assert losses[2] == pytest.approx(-(targets.numpy() * log_softmax(LOGITS)).sum() / 4, rel=1e-5)
    assert task.evaluate(model, batch)[1] == make_task(normalize="none").evaluate(model, batch)[1]


def test_both_mixtures_take_turns_at_random() -> None:
    task = make_task(normalize="none", mixup_alpha=0.4, cutmix_alpha=1.0)
    model = Fixed(LOGITS)
    stored = np.stack([np.full((*SIZE, 3), 60 * i, np.uint8) for i in range(4)])
    batch = task.collate(table_of(task, stored, [[0], [1], [2], [3]]))
    kinds = []
    for seed in range(30):
        torch.manual_seed(seed)
        task.loss(model, batch)
        kinds.append(bool(torch.isin((model.x * 255).round(), torch.tensor([0.0, 60, 120, 180])).all()))
    assert 5 < sum(kinds) < 25


# ---- Scores


def write_predictions(folder: Path, task: Task, labels: Sequence[list[int]], scores: NDArray[Any]) -> pa.Table:
    split = SplitInfo(rows=len(labels), num_bytes=0, files=[], labelled_rows=1)
    columns = task.prediction_columns(split)
    rows = table_of(task, pixels(len(labels)), labels)
    rows = rows.append_column("group", rows.column("id"))
    stored = task.predictions(columns, rows, torch.from_numpy(scores.astype(np.float32)))
    assert stored.schema.equals(arrow_schema(columns))
    folder.mkdir(exist_ok=True)
    pq.write_table(stored, folder / "part-00000.parquet")
    info = PredictionsInfo(run="r", dataset="d", split="test", step=0, rows=len(labels), labelled=True, columns=columns)
    (folder / "predictions.json").write_text(info.model_dump_json())
    return rows


def made_scores(num: int = 60) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 4, num)
    scores = rng.dirichlet(np.ones(4), num)
    scores[np.arange(num), labels] += 0.2
    return labels, (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def test_scores_are_scikit_learn_s(tmp_path: Path) -> None:
    labels, scores = made_scores()
    write_predictions(tmp_path, make_task(), [[int(c)] for c in labels], scores)
    result, predicted = make_task().score(tmp_path), scores.argmax(1)
    assert list(result["metrics"])[:3] == ["accuracy", "top_3_accuracy", "macro_f1"]
    assert result["metrics"]["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert result["metrics"]["top_3_accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=3))
    assert result["metrics"]["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert result["confusion"] == confusion_matrix(labels, predicted).tolist()
    commonest = result["baselines"]["most frequent class"]
    assert commonest["accuracy"] == pytest.approx((labels == 2).mean())
    assert [c["train_count"] for c in result["per_class"]] == TRAIN_COUNTS
    low, high = result["intervals"]["accuracy"]
    assert low < result["metrics"]["accuracy"] < high
    json.dumps(result, allow_nan=False)


def test_top_k_only_where_there_are_more_classes() -> None:
    found = {}
    for num in (2, 4, 6):
        task = make_task(names=[f"class {c}" for c in range(num)])
        metrics = task.new_metrics()
        batch = task.collate(table_of(task, pixels(2), [[0], [1]]))
        metrics.update(torch.full((2, num), 1 / num), batch)
        found[num] = [name for name in metrics.compute() if name.startswith("top")]
    assert found == {2: [], 4: ["top_3_accuracy"], 6: ["top_3_accuracy", "top_5_accuracy"]}


def test_confused_pairs_are_the_largest_off_the_diagonal(tmp_path: Path) -> None:
    labels, scores = made_scores()
    write_predictions(tmp_path, make_task(), [[int(c)] for c in labels], scores)
    result = make_task().score(tmp_path)
    confusion = np.array(result["confusion"])
    np.fill_diagonal(confusion, 0)
    pairs = result["confused_pairs"]
    assert [pair["count"] for pair in pairs] == sorted(confusion.ravel().tolist(), reverse=True)[: len(pairs)]
    for pair in pairs:
        assert confusion[pair["true"], pair["predicted"]] == pair["count"]
        rows = [int(name.removesuffix(".jpg")) for name in pair["ids"]]
        assert len(rows) == min(4, pair["count"])
        assert (labels[rows] == pair["true"]).all()
        assert (scores[rows].argmax(1) == pair["predicted"]).all()
        others = (labels == pair["true"]) & (scores.argmax(1) == pair["predicted"])
        assert scores[rows[0], pair["predicted"]] == scores[others, pair["predicted"]].max()
    right = [int(name.removesuffix(".jpg")) for name in result["right"]]
    assert (scores[right].argmax(1) == labels[right]).all()
    assert len(set(labels[right])) == len(right) == 4
    ids, columns, facts = make_task().examples(result)
    assert len(ids) == len(set(ids)) == len({*result["right"], *(i for pair in pairs for i in pair["ids"])})
    assert columns == ("image",)
    assert json.loads(facts["image"]) == {"size": list(SIZE), "store": "uint8"}


def test_no_pair_is_confused_where_all_is_right(tmp_path: Path) -> None:
    write_predictions(tmp_path, make_task(), [[0], [1], [0]], np.eye(4)[[0, 1, 0]])
    result = make_task().score(tmp_path)
    assert result["confused_pairs"] == []
    assert len(result["right"]) == 2


# ---- Files


def test_a_file_is_classified_as_a_prepared_row_is(tmp_path: Path) -> None:
    task = make_task(normalize="dataset", crop=[12, 12])
    torch.manual_seed(0)
    model = task.build_model().eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 45, 3), dtype=np.uint8))
    picture.save(tmp_path / "cat.png")
    (table,) = task.outputs([tmp_path / "cat.png"], tmp_path / "cat.csv", frozenset())
    with torch.inference_mode():
        said = task.predict_file(model, CPU, tmp_path / "cat.png", table)
        resized = V.resize(torch.from_numpy(np.array(picture)).permute(2, 0, 1), list(SIZE), antialias=True)
        middle = resized[:, 2:14, 4:16].float() / 255
        mean, square = torch.tensor(MEAN)[:, None, None], torch.tensor(MEAN_SQUARE)[:, None, None]
        expected = model(((middle - mean) / (square - mean**2).sqrt())[None]).softmax(1)[0]
    (row,) = csv.DictReader((tmp_path / "cat.csv").open())
    assert row["file"] == "cat.png"
    assert row["predicted"] == NAMES[int(expected.argmax())]
    np.testing.assert_allclose([float(row[name]) for name in NAMES], expected, atol=1e-5)
    assert said.startswith(f"{tmp_path / 'cat.csv'}: {row['predicted']} (")


def test_several_files_have_a_table_each(tmp_path: Path) -> None:
    task = make_task()
    for name in ("a.jpg", "b.PNG", "notes.txt"):
        (tmp_path / name).touch()
    files = task.files(str(tmp_path))
    assert files == [tmp_path / "a.jpg", tmp_path / "b.PNG"]
    assert task.outputs(files, tmp_path / "out", frozenset()) == [
        {"classes": tmp_path / "out" / "a.classes.csv"}, {"classes": tmp_path / "out" / "b.classes.csv"},
    ]  # fmt: skip
    with pytest.raises(ValueError, match="one table, but there are 2 image files"):
        task.outputs(files, tmp_path / "all.csv", frozenset())
    with pytest.raises(ValueError, match="'midi' is nothing that task image_classification writes"):
        task.outputs(files, tmp_path, frozenset(["midi"]))
    with pytest.raises(ValueError, match="1 files, none of them image; give an image file"):
        task.files(f"{tmp_path}/*.txt")
    with pytest.raises(ValueError, match=r"a\.jpg: the file is empty"):
        task.predict_file(Fixed(LOGITS), CPU, files[0], {"classes": tmp_path / "a.csv"})


def test_operations_are_those_of_the_layers() -> None:
    """By hand: 11 x 14 places of a 6 x 7 kernel over three colours, and a product of 308 by 4; two a multiply-add."""
    task = make_task()
    model = nn.Sequential(nn.Conv2d(3, 2, (6, 7)), nn.Flatten(), nn.Linear(2 * 11 * 14, 4))
    assert task.describe(model) == {"flops_per_image": 2 * (2 * 11 * 14 * 3 * 6 * 7 + 308 * 4)}
    assert not next(model.parameters()).is_meta


# ---- Settings that do not fit


def test_a_crop_larger_than_the_stored_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task\.crop=\[20, 8\] is larger .* dataset\.image\.size=\[16, 20\]"):
        make_task(crop=[20, 8])


def test_a_corpus_without_images_is_refused() -> None:
    task = make_task()
    without = task.info.model_copy(update={"columns": [c for c in task.info.columns if c.name != "image"]})
    run = config.from_dict(
        {"name": "x", "task": "image_classification", "dataset": {"name": "image_folder", "path": "x"}, "model": "timm"}
    )
    with pytest.raises(ValueError, match="needs images, and prepared dataset made-by-hand has none"):
        build(run, without)


# ---- Heat


class Spots(nn.Module):
    """Class 0 is the red in an image, class 1 the green: what speaks for each is known."""

    feature_layer = "colours"

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 2, 1, bias=False)
        self.colours.weight.data = torch.eye(3)[:2, :, None, None].clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.colours(x).mean((2, 3))


def test_grad_cam_shows_what_speaks_for_the_predicted_class() -> None:
    """By hand: of two classes the log-odds is the difference of the logits, and its gradient +-1 / pixels."""
    x = torch.zeros(5, 3, 8, 10)
    x[:, 0, :4], x[:, 1, :, 7:] = 1.0, 0.5
    x[2, 0] = 0
    found = _grad_cam.heat(Spots(), x)
    assert found is not None
    warm, how = found
    assert how == "Grad-CAM of colours"
    red, green = x[:, 0], x[:, 1]
    expected = torch.where(red.mean((1, 2), keepdim=True) > green.mean((1, 2), keepdim=True), red - green, green - red)
    expected = expected.clamp(min=0)
    torch.testing.assert_close(warm, expected / expected.amax((1, 2), keepdim=True))


def test_grad_cam_reaches_through_frozen_layers_and_leaves_no_trace() -> None:
    model = Spots()
    model.requires_grad_(False)
    with torch.inference_mode():
        found = _grad_cam.heat(model, torch.rand(2, 3, 4, 4))
    assert found is not None
    assert not model.colours._forward_hooks
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_roll_out_is_the_product_of_attention(library: str) -> None:
    """Against attention computed from the weights by hand, of both libraries' own layers."""
    torch.manual_seed(0)
    if library == "timm":
        from timm.models.vision_transformer import VisionTransformer as Timm

        model: Any = Timm((32, 48), 16, embed_dim=12, depth=2, num_heads=3, num_classes=4)
        blocks = [(b.norm1, b.attn.qkv.weight, b.attn.qkv.bias, b) for b in model.blocks]
    else:
        from torchvision.models import VisionTransformer as Torchvision

        model = Torchvision(32, 16, 2, 3, 12, 24, num_classes=4)
        blocks = [
            (b.ln_1, b.self_attention.in_proj_weight, b.self_attention.in_proj_bias, b) for b in model.encoder.layers
        ]
    model.eval()
    grid = (2, 3) if library == "timm" else (2, 2)
    x = torch.randn(2, 3, 16 * grid[0], 16 * grid[1])
    tokens: dict[int, torch.Tensor] = {}
    for number, (*_, block) in enumerate(blocks):
        block.register_forward_pre_hook(lambda m, inputs, n=number: tokens.__setitem__(n, inputs[0]))
    found = _grad_cam.attention_rollout(model, x)
    assert found is not None
    rolled = torch.eye(grid[0] * grid[1] + 1)
    for number, (norm, weight, bias, _) in enumerate(blocks):
        q, k, _ = (norm(tokens[number]) @ weight.T + bias).reshape(2, -1, 3, 3, 4).unbind(2)
        matrix = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 2).softmax(-1).mean(1)
        rolled = (0.5 * matrix + 0.5 * torch.eye(matrix.shape[1])) @ rolled
    torch.testing.assert_close(found, rolled[:, 0, 1:].reshape(2, *grid).detach(), rtol=1e-4, atol=1e-6)
    if library == "timm":
        assert all(block.attn.fused_attn for block in model.blocks) or not model.blocks[0].attn.fused_attn


def test_a_model_that_cannot_tell_has_no_heat() -> None:
    assert _grad_cam.heat(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), torch.rand(1, 3, 4, 4)) is None


def test_heat_lies_over_the_stored_image() -> None:
    """Of the crop that the model sees; beyond it there is none."""
    task = make_task(normalize="none", crop=[8, 10])
    table = table_of(task, pixels(5), [[0]] * 5)
    found = task.heat(Spots(), table)
    assert found is not None
    heat, _ = found
    assert (heat.shape, heat.dtype) == ((5, *SIZE), np.uint8)
    inside = np.zeros(SIZE, bool)
    inside[4:12, 5:15] = True
    assert not heat[:, ~inside].any()
    assert (heat.max((1, 2)) == 255).all()
