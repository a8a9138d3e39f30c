"""Made-up album covers of up to 20 genres, in either layout of the real corpus.

`generate` writes `blues/blues_00001.jpg` ... (`layout: folder`) or `data/train-00000-of-00004.parquet` ... with the
metadata that Hugging Face's datasets have (`layout: parquet`). Both layouts hold the very same files. Genres take
turns, so that they are balanced; rows of the Parquet files are shuffled.

A cover is drawn from seven cues: palette, ground, motif, how the motif is repeated, lettering, texture, frame. A genre
has a few choices for each (`GENRES`), of which a cover takes one; with the probability `overlap` a cue is that of
another genre instead. Everything else is drawn for each cover: colours around the palette's, places, sizes, turns, the
name of the band. Related genres share choices: no cue alone tells heavy metal from doom metal, or techno from
electronic.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from mmray.datasets.synthetic import Progress, Summary, summary, write_pieces
from mmray.datasets.synthetic._cover_styles import GENRES, MOTIFS, PALETTES
from mmray.datasets.synthetic._drawing import (
    Canvas,
    Colour,
    clouds,
    gradient,
    grain,
    hsv,
    jpeg,
    mixed,
    squares,
    word,
)
from mmray.files import written_whole

IMAGES_A_PIECE = 50  # of a folder's layout: one task of one process


class Config(BaseModel):
    """What to make. The defaults of size and classes are the real corpus's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["album_covers"] = "album_covers"
    num_images: int = Field(2_000, ge=1, description="all genres together; the real corpus has 20,000")
    num_classes: int = Field(20, ge=2, le=20, description="the first so many genres of the alphabet")
    size: int = Field(300, ge=32, le=2048, description="height and width in pixels")
    layout: Literal["folder", "parquet"] = "folder"
    images_per_shard: int = Field(1_000, ge=1, description="parquet: about")
    overlap: float = Field(0.35, ge=0, le=1, description="how often a cue is another genre's; 0: never")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Piece:
    """Covers to write together: their numbers, and for Parquet the file that holds them."""

    numbers: tuple[int, ...]
    shard: str = ""


def generate(out: Path, config: Config, progress: Progress, num_processes: int = 1) -> Summary:
    """Write the corpus into the folder `out`; what is there is kept, so that a stopped run goes on.

    Raises ValueError when `out` holds anything but a run, whole or not, of the same configuration.
    """
    plan = piece_plan(config)
    files = write_pieces(
        out, config, plan, lambda piece: piece_files(out, config, piece), write_piece, progress, num_processes
    )
    return summary(out, config.num_images, files)


def genres(config: Config) -> list[str]:
    """The classes, in order of their labels."""
    return sorted(GENRES)[: config.num_classes]


def piece_plan(config: Config) -> list[Piece]:
    """Every piece of the corpus, in order."""
    if config.layout == "folder":
        numbers = range(config.num_images)
        return [Piece(tuple(numbers[i : i + IMAGES_A_PIECE])) for i in range(0, len(numbers), IMAGES_A_PIECE)]
    order = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(1,))).permutation(config.num_images)
    num_shards = max(1, round(config.num_images / config.images_per_shard))
    return [
        Piece(tuple(part.tolist()), f"data/train-{number:05d}-of-{num_shards:05d}.parquet")
        for number, part in enumerate(np.array_split(order, num_shards))
    ]


def piece_files(out: Path, config: Config, piece: Piece) -> tuple[Path, ...]:
    """The files of a piece."""
    if piece.shard:
        return (out / piece.shard,)
    return tuple(out / _file_name(config, number) for number in piece.numbers)


def _file_name(config: Config, number: int) -> str:
    turn, label = divmod(number, config.num_classes)
    genre = genres(config)[label]
    return f"{genre}/{genre}_{turn + 1:05d}.jpg"


def write_piece(config: Config, piece: Piece, out: Path) -> None:
    """Write the files of a piece into the folder `out`: their bytes depend on `config` and `piece` alone."""
    if piece.shard:
        _write_shard(config, piece, out / piece.shard)
        return
    for number in piece.numbers:
        with written_whole(out / _file_name(config, number)) as aside:
            aside.write_bytes(draw_cover(config, number))


def _write_shard(config: Config, piece: Piece, path: Path) -> None:
    images = [
        {"bytes": draw_cover(config, number), "path": _file_name(config, number).rpartition("/")[2]}
        for number in piece.numbers
    ]
    labels = [number % config.num_classes for number in piece.numbers]
    features = {"image": {"_type": "Image"}, "label": {"names": genres(config), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    with written_whole(path) as aside:
        pq.write_table(pa.table([images, labels], schema=schema), aside, row_group_size=100)


# ---- One cover


def draw_cover(config: Config, number: int) -> bytes:
    """Cover number `number`, of genre `number` modulo the classes, as a JPEG file."""
    random = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0, number)))
    names = genres(config)
    own = names[number % len(names)]

    def cue(name: str) -> str:
        genre = own if random.random() >= config.overlap else names[random.integers(len(names))]
        choices: tuple[str, ...] = getattr(GENRES[genre], name)
        return choices[random.integers(len(choices))]

    colours = _colours(cue("palette"), random)
    canvas = Canvas(_GROUNDS[cue("ground")](config.size, colours, random))
    motif = MOTIFS[cue("motif")]
    repeat, lettering, texture, frame = cue("repeat"), cue("lettering"), cue("texture"), cue("frame")
    _draw_motif(canvas, motif, repeat, colours, random)
    canvas = Canvas(_symmetric(canvas.image, repeat))
    _LETTERINGS[lettering](canvas, word(random), colours, random)
    _draw_frame(canvas, frame, colours, random)
    image = _textured(canvas.image, texture, random)
    return jpeg(image, int(random.integers(80, 93)))


def _colours(palette: str, random: np.random.Generator) -> list[Colour]:
    """A ground, a second ground, two of the motif, one of the letters; light on dark or dark on light."""
    hues, saturation, value = PALETTES[palette]
    hue = hues[random.integers(len(hues))] + random.normal(0, 0.04)
    saturation = saturation + random.normal(0, 0.12)
    value = value + random.normal(0, 0.12)
    far = value + (0.55 if value < 0.5 else -0.55) + random.normal(0, 0.08)
    other = hues[random.integers(len(hues))] + random.normal(0, 0.06) + (0.5 if random.random() < 0.3 else 0)
    return [
        hsv(hue, saturation, value),
        hsv(hue + random.normal(0, 0.05), saturation + 0.1, value * random.uniform(0.6, 1.3)),
        hsv(other, saturation + random.normal(0.1, 0.15), far),
        hsv(other + random.normal(0, 0.08), saturation * random.uniform(0.5, 1.2), (far + value) / 2),
        hsv(random.random(), random.uniform(0, 0.4), 0.97 if value < 0.5 else 0.08),
    ]


Ground = Callable[[int, list[Colour], np.random.Generator], Image.Image]


def _flat(size: int, colours: list[Colour], random: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (size, size), colours[0])


def _graded(size: int, colours: list[Colour], random: np.random.Generator) -> Image.Image:
    image = gradient(size, size, colours[0], colours[1])
    return image.transpose(Image.Transpose.ROTATE_90) if random.random() < 0.3 else image


def _clouded(size: int, colours: list[Colour], random: np.random.Generator) -> Image.Image:
    return clouds(
        size, size, int(random.integers(3, 8)), [colours[0], colours[1], mixed(colours[0], colours[2], 0.4)], random
    )


def _striped(size: int, colours: list[Colour], random: np.random.Generator) -> Image.Image:
    canvas, number = Canvas(_flat(size, colours, random)), int(random.integers(5, 14))
    canvas.place(0, 0, 1.5, random.choice([0, np.pi / 2, np.pi / 4, random.uniform(0, np.pi)]))
    for i in range(number):
        left = (i + random.uniform(0, 0.1)) / number - 0.5
        canvas.rectangle(left, -0.5, left + 0.5 / number, 0.5, colours[1])
    return canvas.image


def _rays(size: int, colours: list[Colour], random: np.random.Generator) -> Image.Image:
    canvas, number = Canvas(_flat(size, colours, random)), int(random.integers(8, 20))
    canvas.place(random.uniform(-0.25, 0.25), random.uniform(-0.1, 0.4), 1.5, random.uniform(0, 1))
    at = np.pi / number * np.arange(2 * number + 1)
    for low, high in zip(at[::2], at[1::2], strict=False):
        canvas.polygon([(0, 0), (np.cos(low), np.sin(low)), (np.cos(high), np.sin(high))], colours[1])
    return canvas.image


def _starry(size: int, colours: list[Colour], random: np.random.Generator) -> Image.Image:
    canvas = Canvas(gradient(size, size, mixed(colours[0], (0, 0, 0), 0.4), colours[1]))
    for x, y, r in random.random((int(random.integers(40, 120)), 3)).tolist():
        canvas.rectangle(x - 0.5, y - 0.5, x - 0.495 + 0.01 * r**4, y - 0.495 + 0.01 * r**4, colours[4])
    return canvas.image


def _checked(size: int, colours: list[Colour], random: np.random.Generator) -> Image.Image:
    number = int(random.integers(4, 12))
    cells = np.add.outer(np.arange(number), np.arange(number)) % 2
    small = np.array(colours[:2], np.uint8)[cells]
    return Image.fromarray(small).resize((size, size), Image.Resampling.NEAREST)


_GROUNDS: dict[str, Ground] = {
    "flat": _flat, "gradient": _graded, "clouds": _clouded, "stripes": _striped, "rays": _rays, "stars": _starry,
    "checks": _checked,
}  # fmt: skip


def _draw_motif(
    canvas: Canvas,
    motif: Callable[[Canvas, list[Colour], np.random.Generator], None],
    repeat: str,
    colours: list[Colour],
    random: np.random.Generator,
) -> None:
    if repeat in ("scattered", "grid"):
        number = int(random.integers(2, 4))
        for i in range(number * number):
            if repeat == "grid":
                x, y, angle = (i % number + 0.5) / number - 0.5, (i // number + 0.5) / number - 0.5, 0.0
            else:
                x, y, angle = random.uniform(-0.45, 0.45), random.uniform(-0.45, 0.45), random.uniform(-3, 3)
            canvas.place(x, y, random.uniform(0.8, 1.0) / number, angle, flip=bool(random.random() < 0.5))
            motif(canvas, colours, random)
        return
    x, y = (0.0, random.uniform(-0.1, 0.1)) if repeat != "one" else random.uniform(-0.2, 0.2, 2).tolist()
    scale = random.uniform(0.55, 1.1)
    canvas.place(x, y, scale, random.normal(0, 0.15), flip=bool(random.random() < 0.5))
    motif(canvas, colours, random)


def _symmetric(image: Image.Image, repeat: str) -> Image.Image:
    """Mirrored to the right for `mirror`, and downwards too for `quarters`."""
    if repeat not in ("mirror", "quarters"):
        return image
    half = image.crop((0, 0, image.width // 2, image.height))
    image.paste(ImageOps.mirror(half), (image.width - half.width, 0))
    if repeat == "quarters":
        half = image.crop((0, 0, image.width, image.height // 2))
        image.paste(ImageOps.flip(half), (0, image.height - half.height))
    return image


Lettering = Callable[[Canvas, str, list[Colour], np.random.Generator], None]


def _placed(canvas: Canvas, text: str, width: float, random: np.random.Generator, angle: float = 0.0) -> float:
    """Put a word of squares of 1 / (4 n) units somewhere above or below; returns the side of a square."""
    side = 1 / (4 * len(text))
    y = float(random.choice([-0.42, -0.34, 0.28, 0.36]) + random.normal(0, 0.03))
    canvas.place(random.normal(0, 0.02), min(y, 0.47 - 5 * side * width), width, angle)
    return side


def _blocks(canvas: Canvas, text: str, colours: list[Colour], random: np.random.Generator) -> None:
    side = _placed(canvas, text, random.uniform(0.6, 0.95), random)
    for column, row in squares(text):
        x, y = column * side - 0.5, row * side
        canvas.rectangle(x, y, x + side, y + side, colours[4])


def _small(canvas: Canvas, text: str, colours: list[Colour], random: np.random.Generator) -> None:
    side = _placed(canvas, text, random.uniform(0.25, 0.4), random)
    for column, row in squares(text):
        x, y = column * side - 0.5, row * side
        canvas.rectangle(x, y, x + 0.8 * side, y + 0.8 * side, colours[4])


def _spiky(canvas: Canvas, text: str, colours: list[Colour], random: np.random.Generator) -> None:
    side = _placed(canvas, text, random.uniform(0.7, 0.95), random)
    for column, row in squares(text):
        x, y, reach = (column + 0.5) * side - 0.5, (row + 0.5) * side, side * random.uniform(0.8, 2.2)
        canvas.polygon([(x - 0.6 * side, y), (x, y - reach), (x + 0.6 * side, y), (x, y + reach)], colours[4])


def _slanted(canvas: Canvas, text: str, colours: list[Colour], random: np.random.Generator) -> None:
    side = _placed(canvas, text, random.uniform(0.6, 0.9), random, angle=random.uniform(-0.25, -0.05))
    for column, row in squares(text):
        x, y = column * side - 0.5 + 0.4 * (5 - row) * side, row * side
        points = [(x, y), (x + side, y), (x + 0.7 * side, y + side), (x - 0.3 * side, y + side)]
        canvas.polygon(np.array(points) + 0.3 * side, colours[0])
        canvas.polygon(points, colours[4])


def _script(canvas: Canvas, text: str, colours: list[Colour], random: np.random.Generator) -> None:
    side = _placed(canvas, text, random.uniform(0.6, 0.9), random)
    t = np.linspace(0, 2 * np.pi * len(text), 12 * len(text))
    heights = np.repeat(random.uniform(0.6, 2.2, len(text)), 12)
    points = np.stack([t / t[-1] - 0.5 + side * np.sin(t), side * (2.5 - heights * np.cos(t))], axis=1)
    canvas.line(points, 0.6 * side, colours[4])


def _bar(canvas: Canvas, text: str, colours: list[Colour], random: np.random.Generator) -> None:
    y = float(random.choice([-0.4, -0.1, 0.3]) + random.normal(0, 0.04))
    canvas.place(0, y, 1, 0)
    canvas.rectangle(-0.5, -0.09, 0.5, 0.09, colours[4])
    canvas.place(0, y - 0.06, random.uniform(0.4, 0.85), 0)
    side = 1 / (4 * len(text))
    for column, row in squares(text):
        canvas.rectangle(column * side - 0.5, row * side, column * side - 0.5 + side, (row + 1) * side, colours[0])


_LETTERINGS: dict[str, Lettering] = {
    "blocks": _blocks, "small": _small, "spiky": _spiky, "slanted": _slanted, "script": _script, "bar": _bar,
    "none": lambda canvas, text, colours, random: None,
}  # fmt: skip


def _draw_frame(canvas: Canvas, frame: str, colours: list[Colour], random: np.random.Generator) -> None:
    canvas.place(0, 0, 1, 0)
    if frame == "none":
        return
    inner = 0.5 - random.uniform(0.02, 0.07)
    for outer in (0.5,) if frame == "border" else (0.5, inner - 0.01):
        width = 0.5 - inner if outer == 0.5 and frame == "border" else 0.012
        for a, b in ((-outer, -outer + width), (outer - width, outer)):
            canvas.rectangle(a, -outer, b, outer, colours[4])
            canvas.rectangle(-outer, a, outer, b, colours[4])


def _textured(image: Image.Image, texture: str, random: np.random.Generator) -> Image.Image:
    match texture:
        case "grain":
            return grain(image, int(random.integers(12, 45)), random)
        case "soft":
            return image.filter(ImageFilter.BoxBlur(image.width * random.uniform(0.004, 0.012)))
        case "worn":
            canvas, white = Canvas(image), (235, 230, 220)
            for x, y, angle, length in random.random((int(random.integers(12, 40)), 4)).tolist():
                ends = [(x - 0.5, y - 0.5), (x - 0.5 + 0.2 * length * np.cos(7 * angle), y - 0.5 + 0.2 * length)]
                canvas.line(ends, 0.002, white)
            return grain(image, 10, random)
        case "dots":
            step = max(2, round(image.width / random.integers(40, 80)))
            pixels = np.array(image)
            pixels[::step, :] = pixels[::step, :] // 2
            pixels[:, ::step] = pixels[:, ::step] // 2
            return Image.fromarray(pixels)
        case _:
            return image
