"""One class an image: genres of album covers, breeds of pets, and anything alike.

A batch has `images`, uint8 (B, H, W, 3), as they are stored, and, where they are labelled, `labels` (B,) int64. Pixels
stay 8 bits wide up to the device; there they are changed (in training), scaled to 0 to 1, and normalised.
"""

from __future__ import annotations

import copy
import functools
import json
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import nn
from torch.utils.dlpack import from_dlpack
from torch.utils.flop_counter import FlopCounterMode

from mmray import config
from mmray.config import Section
from mmray.features import image_augment, images, traced_resize
from mmray.metrics.classification import ClassificationMetrics
from mmray.prepared import frames_column, ragged_column
from mmray.schema import Column, DatasetInfo, SplitInfo
from mmray.tasks import Batch, _classification, _grad_cam, require_model
from mmray.tasks._files import named_files

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_PAIRS, IDS_A_PAIR, MAX_RIGHT = 6, 4, 6  # of what a report shows
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


class Config(Section):
    """Settings of the task."""

    name: Literal["image_classification"] = "image_classification"
    normalize: Literal["imagenet", "none", "dataset"] = Field(
        "imagenet",
        description="by ImageNet's mean and deviation, not at all (0 to 1), or by those of the training rows",
    )
    crop: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="(height, width) that the model sees: anywhere in the image in training, else the centre"
    )
    class_weights: _classification.ClassWeights = "none"
    label_smoothing: config.Fraction = 0.0
    augment: image_augment.Settings = Field(
        image_augment.Settings(), description="new random changes of each image in every epoch"
    )
    mixup_alpha: NonNegativeFloat = Field(0.0, description="0 = no mixup; with cutmix_alpha, each on every second step")
    cutmix_alpha: NonNegativeFloat = Field(0.0, description="0 = no CutMix")


class ImageModel(Protocol):
    """What this task needs of a model's config."""

    def build(self, image_size: tuple[int, int], num_classes: int) -> nn.Module:
        """A module from images (B, 3, H, W) to logits (B, num_classes)."""


class Task:
    """Images in, a probability a class out; trained by weighted cross-entropy."""

    monitor: ClassVar[str] = "val/accuracy"
    maximise: ClassVar[bool] = True
    all_labelled: ClassVar[bool] = True

    def __init__(self, run: config.Run, info: DatasetInfo) -> None:
        require_model(run, takes="image")
        self.info = info
        self.num_classes = len(info.class_names)
        self.seed = run.seed
        self._config = cast(Config, run.task)
        self._model_config = cast(ImageModel, run.model)
        if not any(column.name == "image" for column in info.columns):
            raise ValueError(f"task image_classification needs images, and prepared dataset {info.id} has none")
        self.stored: images.Settings = run.dataset.image  # type: ignore[attr-defined]
        self.size = self._config.crop or self.stored.size
        if any(crop > all_ for crop, all_ in zip(self.size, self.stored.size, strict=True)):
            raise ValueError(
                f"task.crop={list(self.size)} is larger than the images, which are stored at "
                f"dataset.image.size={list(self.stored.size)}; lower the one or raise the other"
            )

    def columns(self, labelled: bool) -> tuple[str, ...]:
        """Columns read for a batch."""
        return ("id", "image", *(["labels"] if labelled else []))

    def build_model(self) -> nn.Module:
        """The run's model for images of the size it sees."""
        return self._model_config.build(self.size, self.num_classes)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Operations of the model's convolutions and matrix products for an image; a multiply-add is two."""
        meant = copy.deepcopy(model).to("meta").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            meant(torch.empty(1, 3, *self.size, device="meta"))
        return {"flops_per_image": counter.get_total_flops()}

    def augmented(self, table: pa.Table, epoch: int) -> pa.Table:
        """The rows with a `seed` each, int64, that says how `loss` changes them: of run, row and epoch alone."""
        if not self._config.augment.changes and self.size == self.stored.size:
            return table
        seeds = image_augment.seeds_of(self.seed, table.column("id").to_pylist(), epoch)
        return table.append_column("seed", pa.array(seeds))

    def collate(self, table: pa.Table) -> Batch:
        """Rows to tensors, without a copy of stored pixels; and what is to be done to rows that have a seed."""
        tensors = {"images": self._pixels(table)}
        if "labels" in table.column_names:
            tensors["labels"] = _classification.labels_of(table, "image")
        if "seed" in table.column_names:
            seeds = table.column("seed").to_numpy()
            drawn = image_augment.draw(self._config.augment, seeds, self.stored.size, self.size)
            tensors |= {f"drawn.{name}": tensor for name, tensor in drawn.items()}
        return Batch(table.num_rows, tensors, tuple(table.column("id").to_pylist()))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Weighted cross-entropy, mean over rows, of newly changed and mixed images."""
        targets = F.one_hot(batch.tensors["labels"], self.num_classes).float()
        x = self._normalised(self.views(batch))
        mixup, cutmix = self._config.mixup_alpha, self._config.cutmix_alpha
        if cutmix and (not mixup or float(torch.rand(())) < 0.5):
            x, targets = image_augment.cutmix(x, targets, cutmix)
        elif mixup:
            x, targets = image_augment.mixup(x, targets, mixup)
        return self._cross_entropy(model(x), targets).mean()

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, float]:
        """Probabilities (B, K) float32, and the loss summed over rows; 0 for rows without labels."""
        logits = model(self._normalised(self._centre(batch.tensors["images"]))).float()
        loss = 0.0
        if "labels" in batch.tensors:
            targets = F.one_hot(batch.tensors["labels"], self.num_classes).float()
            loss = float(self._cross_entropy(logits, targets).detach().sum())
        return logits.softmax(1), loss

    def new_metrics(self) -> _classification.BatchMetrics:
        """Accuracy, of the first and of the first few, precision, recall, F1 and calibration."""
        return _classification.BatchMetrics(self.num_classes, _named)

    def prediction_columns(self, split: SplitInfo) -> list[Column]:
        """Image, what it must not be parted from, label where it is known, and every class's probability."""
        names = ["id", "group", *(["labels"] if split.labelled_rows else [])]
        scores = Column(name="scores", dtype="float32", shape=(self.num_classes,), unit="probability")
        return [*(self.info.column(name) for name in names), scores]

    def predictions(self, columns: list[Column], rows: pa.Table, scores: torch.Tensor) -> pa.Table:
        """The images with their probabilities (B, K)."""
        return _classification.with_scores(columns, rows, scores)

    def score(self, folder: Path) -> dict[str, Any]:
        """Images and each class, the confusions, what always the commonest class gets, and who is taken for whom."""
        table, labels, scores = _classification.read_scored(folder)
        groups, ids = (np.array(table.column(name).to_pylist()) for name in ("group", "id"))
        found, predicted = _classification.metrics_of(scores, labels), scores.argmax(1)
        names = {"accuracy": "weighted_accuracy", "macro_f1": "macro_f1"}
        pairs = _confused_pairs(ids, labels, scores)
        return {
            "metrics": _named(found),
            "intervals": _classification.intervals(predicted, labels, groups, self.num_classes, names),
            "baselines": {"most frequent class": _named(_classification.commonest_class(self.info, labels))},
            "per_class": _classification.of_each_class(self.info, found),
            "confusion": found.confusion.tolist(),
            "reliability": found.reliability(),
            "confused_pairs": pairs,
            "right": _surest(
                ids, labels, scores, list(dict.fromkeys(c for p in pairs for c in (p["true"], p["predicted"])))
            ),
        }

    def examples(self, scored: dict[str, Any]) -> tuple[list[str], tuple[str, ...], dict[str, str]]:
        """Images of the classes that are taken for one another most often, and some that are told apart."""
        ids = [name for pair in scored["confused_pairs"] for name in pair["ids"]] + scored["right"]
        facts = {"image": json.dumps({"size": self.stored.size, "store": self.stored.store})}
        return list(dict.fromkeys(ids)), ("image",), facts

    def heat(self, model: nn.Module, rows: pa.Table) -> tuple[NDArray[np.uint8], str] | None:
        """Where the model saw the class that it predicts, (B, H, W) over the stored images, and how that was found.

        0 is nowhere and 255 the most of its image; 0 also beyond the crop. None for a model that cannot tell.
        """
        x = self._normalised(self._centre(self._pixels(rows)))
        found = _grad_cam.heat(model, x)
        if found is None:
            return None
        (top, left), (height, width) = self.corner, self.size
        over = np.zeros((len(x), *self.stored.size), np.uint8)
        over[:, top : top + height, left : left + width] = (found[0] * 255).round().numpy()
        return over, found[1]

    def views(self, batch: Batch) -> torch.Tensor:
        """The images as training sees them, before they are normalised: float32 (B, 3, h, w) from 0 to 1."""
        drawn = {k.removeprefix("drawn."): v for k, v in batch.tensors.items() if k.startswith("drawn.")}
        pixels = batch.tensors["images"]
        if not drawn:
            return self._centre(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            return image_augment.augment(pixels, drawn, self._config.augment, self.size)

    def deployed(self, model: nn.Module) -> Deployed:
        """The model with all that is done to an image before and after it, for export."""
        return Deployed(self, model)

    def files(self, source: str) -> list[Path]:
        """The image files that `source` names."""
        return named_files(source, SUFFIXES, "image")

    def outputs(self, files: list[Path], out: Path, extras: frozenset[str]) -> list[dict[str, Path]]:
        """A table of one row each: `out` (`.csv`) for one file, `<out>/<stem>.classes.csv` for several."""
        if extras:
            raise ValueError(f"{min(extras)!r} is nothing that task image_classification writes; leave it out")
        return [{"classes": table} for table in _classification.class_tables(files, out, "image")]

    def predict_file(self, model: nn.Module, device: torch.device, file: Path, outputs: dict[str, Path]) -> str:
        """Classify an image file, decoded and resized as at preparation."""
        try:
            image = images.read(file.read_bytes(), self.stored)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        batch = Batch(1, {"images": image.permute(1, 2, 0)[None].contiguous()}).to(device)
        scores, _ = self.evaluate(model, batch)
        return _classification.write_class_table(
            outputs["classes"], file, self.info.class_names, scores[0].cpu().numpy()
        )

    @functools.cached_property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each colour, of pixels from 0 to 1, by which the model's input is scaled."""
        if self._config.normalize == "none":
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if self._config.normalize == "imagenet":
            return IMAGENET_MEAN, IMAGENET_STD
        train = self.info.split("train")
        mean, square = (np.array(train.sums[name]) / train.rows for name in ("channel_mean", "channel_mean_square"))
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        if (deviation == 0).any():
            raise ValueError("task.normalize: dataset cannot scale a colour that is the same in all training images")
        return tuple(mean.tolist()), tuple(deviation.tolist())

    @property
    def corner(self) -> tuple[int, int]:
        """Top and left of the centre of a stored image, of the size that the model sees."""
        return (self.stored.size[0] - self.size[0]) // 2, (self.stored.size[1] - self.size[1]) // 2

    def _centre(self, pixels: torch.Tensor) -> torch.Tensor:
        """Stored images (B, H, W, 3) as floats (B, 3, h, w) from 0 to 1."""
        (top, left), (height, width) = self.corner, self.size
        return pixels[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float().div_(255)

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        if self._config.normalize == "none":
            return x
        mean, deviation = (torch.tensor(v, device=x.device)[:, None, None] for v in self.normalization)
        return x.sub_(mean).div_(deviation)

    def _pixels(self, table: pa.Table) -> torch.Tensor:
        """The images of rows as they are stored, uint8 (B, H, W, 3)."""
        height, width = self.stored.size
        if self.stored.store == "uint8":
            rows, _ = frames_column(table, self.info.column("image"))
            shared = from_dlpack(pa.array(rows.reshape(-1)))  # by way of Arrow: NumPy's view is read-only
            return shared.reshape(table.num_rows, height, width, 3)
        data, offsets = ragged_column(table, "image")
        pixels = torch.empty(table.num_rows, height, width, 3, dtype=torch.uint8)
        for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
            pixels[row] = images.decode_stored(data[start:stop].tobytes(), self.stored).permute(1, 2, 0)
        return pixels

    def _cross_entropy(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Of each row, (B,): targets (B, K) sum to 1; a class's share counts by the weight of the class."""
        return _classification.cross_entropy(logits, targets, self._weights, self._config.label_smoothing)

    @functools.cached_property
    def _weights(self) -> torch.Tensor | None:
        return _classification.weights_of(self._config.class_weights, self.info)


class Deployed(nn.Module):
    """Images of any size in, probabilities out, with nothing left to do on either side: what is exported.

    An image is resized as at preparation; where that stores JPEG, the loss of quality is left out. `facts` says how.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._stored, self._corner, self._size = task.stored, task.corner, task.size
        self.facts = {
            "resize": task.stored.model_dump(include={"size", "resize", "interpolation"}),
            "crop": list(task.size),
            "scale": "0 to 1",
            "mean": list(task.normalization[0]),
            "std": list(task.normalization[1]),
        }
        mean, deviation = (torch.tensor(values)[:, None, None] for values in task.normalization)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, K) float32 of RGB images, uint8 (B, height, width, 3)."""
        x = traced_resize.resize(images, self._stored)
        (top, left), (height, width) = self._corner, self._size
        x = x[:, :, top : top + height, left : left + width] / 255
        logits: torch.Tensor = self.model((x - self.mean) / self.deviation)
        return logits.softmax(1)


def _named(found: ClassificationMetrics) -> dict[str, float]:
    """The metrics by name: accuracy, the accuracy of the first k where there are more classes than k, the others."""
    metrics = found.compute()
    accuracy = metrics.pop("weighted_accuracy")
    del metrics["weighted_recall"]  # the same number
    top = {f"top_{k}_accuracy": found.top_k_accuracy(k) for k in (3, 5) if k < found.num_classes}
    return {"accuracy": accuracy, **top, **metrics}


def _confused_pairs(
    ids: NDArray[np.str_], labels: NDArray[np.int64], scores: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """Which class is taken for which, most frequent first, with the surest mistakes of each pair."""
    predicted = scores.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    pairs, counts = np.unique(np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True)
    found = []
    for place in np.argsort(-counts, kind="stable")[:MAX_PAIRS]:
        true, taken_for = (int(c) for c in pairs[:, place])
        rows = wrong[(labels[wrong] == true) & (predicted[wrong] == taken_for)]
        rows = rows[np.argsort(-scores[rows, taken_for], kind="stable")][:IDS_A_PAIR]
        found.append({"true": true, "predicted": taken_for, "count": int(counts[place]), "ids": ids[rows].tolist()})
    return found


def _surest(
    ids: NDArray[np.str_], labels: NDArray[np.int64], scores: NDArray[np.float32], first: list[int]
) -> list[str]:
    """The surest right answer of each class, of those in `first` first, up to `MAX_RIGHT`."""
    right = scores.argmax(1) == labels
    found = []
    for c in dict.fromkeys([*first, *range(scores.shape[1])]):
        rows = np.flatnonzero(right & (labels == c))
        if len(rows):
            found.append(str(ids[rows[scores[rows, c].argmax()]]))
    return found[:MAX_RIGHT]
