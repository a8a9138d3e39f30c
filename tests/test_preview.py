"""The sheet of changed training images: which images, in which places, changed as training changes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_runs import COLOURS, SIZE, image_run, prepared_folder, write_corpus
from numpy.typing import NDArray
from PIL import Image

from mmray import preview
from mmray.preview import MARGIN, TEXT_HEIGHT


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    write_corpus(folder / "corpus")
    return folder


def cells(path: Path, rows: int, columns: int) -> NDArray[np.uint8]:
    """The images on a sheet, (rows, columns, H, W, 3)."""
    drawn = np.array(Image.open(path))
    height, width = SIZE
    tops = [2 * TEXT_HEIGHT + row * (height + TEXT_HEIGHT + MARGIN) for row in range(rows)]
    lefts = [MARGIN + column * (width + MARGIN) for column in range(columns)]
    assert drawn.shape == (tops[-1] + height + MARGIN, lefts[-1] + width + MARGIN, 3)
    return np.array([[drawn[y : y + height, x : x + width] for x in lefts] for y in tops])


def test_the_first_column_is_what_is_stored_and_the_others_are_changed(root: Path) -> None:
    changes = {"rotation_degrees": 30, "horizontal_flip": True}
    run = image_run(root, task={"name": "image_classification", "augment": changes})
    path = preview.sheet(run, prepared_folder(run), root / "sheet.png", rows=5, epochs=3)
    found = cells(path, 5, 4)
    nearest = [np.abs(image.mean((0, 1)) - np.array(list(COLOURS.values()))).sum(1).argmin() for image in found[:, 0]]
    assert sorted(nearest[:4]) == [0, 1, 2, 3], "one of each class"
    for of_row in found:
        assert len({image.tobytes() for image in of_row}) == 4
        np.testing.assert_allclose(of_row.mean((1, 2)), np.tile(of_row[0].mean((0, 1)), (4, 1)), atol=20)


def test_without_changes_all_columns_are_alike(root: Path) -> None:
    run = image_run(root)
    path = preview.sheet(run, prepared_folder(run), root / "plain.png", rows=2, epochs=2)
    found = cells(path, 2, 3)
    assert (found == found[:, :1]).all()


def test_columns_are_the_epochs_of_training(root: Path) -> None:
    """The very pixels that `loss` will see."""
    run = image_run(root, task={"name": "image_classification", "augment": {"brightness": 0.4}, "normalize": "none"})
    data = prepared_folder(run)
    found = cells(preview.sheet(run, data, root / "bright.png", rows=3, epochs=2), 3, 3)

    class Seen(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.x = x.clone()
            return torch.zeros(len(x), len(COLOURS))

    from mmray.prepared import SplitReader, read_info
    from mmray.tasks import build

    info = read_info(data)
    task, model = build(run, info), Seen()
    reader = SplitReader(data, info.split("train"), task.columns(labelled=True))
    whole = reader.take(np.arange(info.split("train").rows))
    stored = task.collate(whole).tensors["images"].numpy()
    for epoch in range(2):
        task.loss(model, task.collate(task.augmented(whole, epoch)))
        trained_on = (model.x.permute(0, 2, 3, 1) * 255).round().numpy()
        for row in found:
            (place,) = np.flatnonzero((stored == row[0]).all((1, 2, 3)))
            np.testing.assert_array_equal(row[1 + epoch], trained_on[place])


def test_a_task_without_images_is_refused(root: Path, make_run: object, make_dataset: object) -> None:
    data = make_dataset()  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"task.name=video_classification has no images to preview"):
        preview.sheet(make_run(), data, root / "none.png")  # type: ignore[operator]
