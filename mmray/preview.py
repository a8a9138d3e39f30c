"""`mmray preview`: how training will see its images: a sheet of some, as they are stored and as epochs change them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmray import config, prepared
from mmray.files import written_whole
from mmray.prepared import SplitReader, ragged_column
from mmray.tasks import build

if TYPE_CHECKING:
    from PIL import Image

MARGIN, TEXT_HEIGHT = 4, 16
_MAX_SIDE = 224  # of an image on the sheet


def sheet(run: config.Run, data: Path, out: Path, rows: int = 8, epochs: int = 6) -> Path:
    """Draw `rows` training images of a run, spread over the classes, and write the sheet as a PNG file `out`.

    A row is an image as it is stored, below its class, and then as each of the first `epochs` epochs changes it.
    ValueError where the task has no images to show.
    """
    info = prepared.read_info(data)
    task: Any = build(run, info)
    if not hasattr(task, "views"):
        raise ValueError(f"task.name={run.task.name} has no images to preview")  # type: ignore[attr-defined]
    reader = SplitReader(data, info.split("train"), task.columns(labelled=True))
    table = reader.take(_spread(reader, info.split("train").rows, rows))
    stored = task.collate(table).tensors["images"].numpy()
    with torch.no_grad():
        views = [task.views(task.collate(task.augmented(table, epoch))) for epoch in range(epochs)]
    columns = [stored, *((view.permute(0, 2, 3, 1) * 255).round().byte().numpy() for view in views)]
    labels, offsets = ragged_column(table, "labels")
    names = [info.class_names[c] for c in labels[offsets[:-1]]]
    ids = table.column("id").to_pylist()
    titles = ["as stored", *(f"epoch {epoch + 1}" for epoch in range(epochs))]
    with written_whole(out) as aside:
        _drawn(columns, titles, [f"{name}: {row}" for name, row in zip(names, ids, strict=True)]).save(aside, "PNG")
    return out


def _spread(reader: SplitReader, num_rows: int, wanted: int) -> NDArray[np.int64]:
    """Rows of as many classes as there can be: one of each in turn, those first that stand first."""
    labels, offsets = ragged_column(
        SplitReader(reader.folder, reader.split, ("labels",)).take(np.arange(num_rows)), "labels"
    )
    of_row = labels[offsets[:-1]]
    turn = np.zeros(num_rows, np.int64)
    for c in np.unique(of_row):
        turn[of_row == c] = np.arange(np.count_nonzero(of_row == c))
    return np.lexsort((of_row, turn))[:wanted]


def _drawn(columns: list[NDArray[np.uint8]], titles: list[str], captions: list[str]) -> Image.Image:
    """The images (rows, H, W, 3) of each column side by side, titles above, a caption above each row."""
    from PIL import Image, ImageDraw

    scale = min(1.0, _MAX_SIDE / max(columns[0].shape[1:3]))
    height, width = (max(1, round(scale * side)) for side in columns[0].shape[1:3])
    step_y, step_x = height + TEXT_HEIGHT + MARGIN, width + MARGIN
    drawn = Image.new("RGB", (MARGIN + step_x * len(columns), TEXT_HEIGHT + step_y * len(captions)), "white")
    pen = ImageDraw.Draw(drawn)
    for column, (images, title) in enumerate(zip(columns, titles, strict=True)):
        x = MARGIN + column * step_x
        pen.text((x, 2), title, "black")
        for row, image in enumerate(images):
            size = (round(scale * image.shape[1]), round(scale * image.shape[0]))
            y = TEXT_HEIGHT + row * step_y + TEXT_HEIGHT
            drawn.paste(Image.fromarray(image).resize(size), (x, y))
    for row, caption in enumerate(captions):
        pen.text((MARGIN, TEXT_HEIGHT + row * step_y + 2), caption, "black")
    return drawn
