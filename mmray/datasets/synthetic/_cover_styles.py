"""What genres of made-up album covers look like: choices for each cue, palettes, and the motifs that are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmray.datasets.synthetic._drawing import Canvas, Colour, ellipse, mixed, ragged


@dataclass(frozen=True)
class Style:
    """The choices of a genre, as names: of `PALETTES`, `MOTIFS` and what `album_covers` draws."""

    palette: tuple[str, ...]
    ground: tuple[str, ...]
    motif: tuple[str, ...]
    repeat: tuple[str, ...]
    lettering: tuple[str, ...]
    texture: tuple[str, ...]
    frame: tuple[str, ...]


PALETTES: dict[str, tuple[tuple[float, ...], float, float]] = {  # hues, saturation, value of the ground
    "night": ((0.6, 0.65, 0.7), 0.6, 0.2),
    "black": ((0.0, 0.05, 0.6), 0.2, 0.08),
    "blood": ((0.97, 0.0, 0.03), 0.75, 0.3),
    "earth": ((0.06, 0.09, 0.12), 0.5, 0.45),
    "paper": ((0.1, 0.12, 0.14), 0.15, 0.88),
    "white": ((0.0, 0.55), 0.05, 0.93),
    "neon": ((0.5, 0.83, 0.9, 0.3), 0.85, 0.5),
    "acid": ((0.08, 0.25, 0.8, 0.45), 0.8, 0.7),
    "pastel": ((0.0, 0.55, 0.75, 0.95), 0.3, 0.85),
    "reggae": ((0.0, 0.15, 0.35), 0.8, 0.55),
    "gold": ((0.11, 0.13, 0.08), 0.7, 0.6),
    "steel": ((0.55, 0.58, 0.62), 0.15, 0.4),
    "forest": ((0.3, 0.36, 0.42), 0.45, 0.35),
}

# Palette; ground; motif; repeat; lettering; texture; frame.
_CHOICES = {
    "blues": "night earth; gradient flat; guitar figure; one; blocks script; grain worn; none border",
    "classical": "paper gold; flat gradient; strings keys; one mirror; small bar; none; border lines",
    "country": "earth gold; gradient rays; hills guitar figure; one; slanted blocks; worn none; none border",
    "deathmetal": "black blood; clouds flat; skull thorns; mirror one; spiky; grain; none",
    "doommetal": "black forest steel; clouds gradient; hills thorns; one mirror; spiky small; grain soft; none lines",
    "drumnbass": "neon steel; stripes flat; shards bars; scattered one; slanted bar; none dots; none",
    "electronic": "neon white pastel; gradient flat stars; rings bars; one grid; small none; none soft; none",
    "folk": "paper forest; flat clouds; tree guitar; one scattered; script; worn none; border none",
    "grime": "black steel; flat gradient; skyline figure; one; bar blocks; grain dots; none",
    "heavymetal": "black blood steel; rays clouds; skull bolt; one mirror; spiky slanted; none grain; none",
    "hiphop": "gold black; flat stripes; figure skyline; one mirror; blocks slanted; none; none border",
    "jazz": "night gold paper; flat checks; keys strings rings; one scattered; small bar; grain none; none",
    "lofi": "pastel night; gradient clouds stars; skyline tree; one; small none; soft; none border",
    "pop": "pastel neon white; flat gradient; figure flower; one; blocks script; none; none",
    "psychedelicrock": "acid; clouds rays checks; flower rings; quarters mirror; script slanted; none; none lines",
    "punk": "white neon blood; flat stripes; shards skull; scattered one; bar blocks; dots worn; none",
    "reggae": "reggae; stripes rays; figure tree flower; one; blocks slanted; none worn; none border",
    "rock": "steel earth black; flat gradient; bolt guitar; one scattered; slanted blocks; grain none; none",
    "soul": "gold earth pastel; rays gradient; figure flower; one; script blocks; soft none; none border",
    "techno": "black white steel; flat checks; rings bars shards; grid quarters; small none; none dots; none lines",
}
GENRES = {genre: Style(*(tuple(cue.split()) for cue in choices.split(";"))) for genre, choices in _CHOICES.items()}

Motif = Callable[[Canvas, list[Colour], np.random.Generator], None]


def _guitar(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    canvas.rectangle(-0.03, -0.48, 0.03, 0.1, colours[3])
    canvas.rectangle(-0.05, -0.5, 0.05, -0.4, colours[2])
    canvas.ellipse(0, 0.08, random.uniform(0.12, 0.17), 0.14, colours[2])
    canvas.ellipse(0, 0.28, random.uniform(0.17, 0.22), 0.19, colours[2])
    canvas.ellipse(0, 0.14, 0.06, 0.06, colours[0])
    canvas.line([(0, -0.45), (0, 0.35)], 0.01, colours[4])


def _strings(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    """A violin: two bouts and a waist, and the bow."""
    canvas.ellipse(0, 0.25, 0.18, 0.16, colours[2])
    canvas.ellipse(0, 0.02, 0.14, 0.13, colours[2])
    for side in (-1, 1):
        canvas.ellipse(0.17 * side, 0.13, 0.06, 0.07, colours[0])
        canvas.line([(0.06 * side, 0.08), (0.05 * side, 0.22)], 0.015, colours[0])
    canvas.rectangle(-0.02, -0.45, 0.02, 0.2, colours[3])
    canvas.line([(-0.4, 0.4), (0.4, -0.35 + random.normal(0, 0.05))], 0.015, colours[3])


def _keys(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    number = int(random.integers(7, 12))
    for i in range(number):
        left = i / number - 0.5
        canvas.rectangle(left, -0.2, left + 0.92 / number, 0.3, (240, 236, 225))
        if i % 7 not in (2, 6):
            canvas.rectangle(left + 0.65 / number, -0.2, left + 1.3 / number, 0.1, (20, 18, 18))


def _figure(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    """Head and shoulders, with a hat or without."""
    lean, wide = random.normal(0, 0.03), random.uniform(0.24, 0.36)
    canvas.polygon([(-wide, 0.5), (-0.8 * wide, 0.15), (0, 0.05), (0.8 * wide, 0.15), (wide, 0.5)], colours[3])
    canvas.rectangle(-0.06, -0.05, 0.06, 0.12, colours[2])
    canvas.ellipse(lean, -0.14, random.uniform(0.12, 0.16), 0.18, colours[2])
    hair = random.random()
    if hair < 0.4:
        canvas.ellipse(lean, -0.26, 0.25, 0.05, colours[1])
        canvas.rectangle(lean - 0.13, -0.42, lean + 0.13, -0.26, colours[1])
    elif hair < 0.7:
        canvas.polygon(ragged(ellipse(lean, -0.25, 0.19, 0.14), 0.15, random), colours[1])
    for side in (-1, 1):
        canvas.ellipse(lean + 0.055 * side, -0.15, 0.025, 0.015, colours[0])


def _hills(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    canvas.ellipse(random.uniform(-0.3, 0.3), random.uniform(-0.3, -0.1), 0.1, 0.1, colours[4])
    for layer in range(3):
        xs = np.linspace(-0.9, 0.9, 9)
        ys = 0.12 * layer - 0.05 - random.uniform(0, 0.28 - 0.06 * layer, 9)
        edge = np.stack([xs, ys], axis=1)
        canvas.polygon(np.concatenate([edge, [(0.9, 0.9), (-0.9, 0.9)]]), mixed(colours[3], colours[1], layer / 2))


def _skull(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    canvas.ellipse(0, -0.1, random.uniform(0.24, 0.29), 0.26, colours[2])
    canvas.rectangle(-0.14, 0.05, 0.14, 0.32, colours[2])
    for side in (-1, 1):
        canvas.ellipse(0.11 * side, -0.06, 0.075, random.uniform(0.06, 0.1), colours[0], angle=0.4 * side)
    canvas.polygon([(0, 0.04), (-0.04, 0.13), (0.04, 0.13)], colours[0])
    for x in np.linspace(-0.1, 0.1, 5):
        canvas.line([(x, 0.2), (x, 0.31)], 0.012, colours[0])


def _thorns(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    """Bare branches from the ground up."""
    for _ in range(int(random.integers(5, 9))):
        x, y, angle = random.uniform(-0.4, 0.4), 0.5, -np.pi / 2
        for step in range(6):
            angle += random.normal(0, 0.5)
            nx, ny = x + 0.17 * np.cos(angle), y + 0.17 * np.sin(angle)
            canvas.line([(x, y), (nx, ny)], 0.03 - 0.004 * step, colours[2])
            canvas.polygon([(x, y), (nx, ny), (x + 0.05 * np.sin(angle), y - 0.05 * np.cos(angle))], colours[2])
            x, y = nx, ny


def _shards(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    for i in range(int(random.integers(4, 8))):
        middle, angle = random.uniform(-0.35, 0.35, 2), random.uniform(0, 6.3)
        corners = [
            middle + random.uniform(0.08, 0.4) * np.array([np.cos(a), np.sin(a)])
            for a in angle + np.array([0, 1.9, 4.4])
        ]
        canvas.polygon(np.array(corners), colours[2 + i % 2])


def _bars(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    number = int(random.integers(7, 16))
    for i, height in enumerate(random.uniform(0.05, 0.42, number).tolist()):
        left = 0.9 * i / number - 0.45
        canvas.rectangle(left, -height, left + 0.6 / number, height, mixed(colours[2], colours[3], i / number))


def _rings(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    number = int(random.integers(3, 8))
    for i in range(number, 0, -1):
        canvas.ellipse(0, 0, 0.45 * i / number, 0.45 * i / number, colours[2] if i % 2 else colours[1])


def _tree(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    canvas.polygon([(-0.05, 0.5), (-0.02, -0.05), (0.02, -0.05), (0.05, 0.5)], colours[3])
    for x, y in random.normal(0, 0.11, (7, 2)).tolist():
        canvas.polygon(
            ragged(ellipse(x, y - 0.18, 0.16, 0.13), 0.12, random), mixed(colours[2], colours[3], random.random() / 2)
        )


def _skyline(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    left = -0.75
    while left < 0.75:
        width, height = random.uniform(0.08, 0.18), random.uniform(0.15, 0.6)
        canvas.rectangle(left, 0.5 - height, left + width, 0.9, colours[3])
        for row in np.arange(0.54 - height, 0.48, 0.06):
            for column in np.arange(left + 0.02, left + width - 0.02, 0.045):
                if random.random() < 0.5:
                    canvas.rectangle(column, row, column + 0.02, row + 0.03, colours[2])
        left += width + 0.01


def _flower(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    number = int(random.integers(5, 10))
    for i in range(number):
        angle = 2 * np.pi * i / number
        canvas.ellipse(0.22 * np.cos(angle), 0.22 * np.sin(angle), 0.18, 0.08, colours[2 + i % 2], angle)
    canvas.ellipse(0, 0, 0.1, 0.1, colours[4])


def _bolt(canvas: Canvas, colours: list[Colour], random: np.random.Generator) -> None:
    shift = random.normal(0, 0.04)
    points = [(0.1, -0.5), (-0.2, 0.05 + shift), (-0.02, 0.05), (-0.12, 0.5), (0.22, -0.1 + shift), (0.03, -0.1)]
    canvas.polygon(np.array(points) + 0.02, colours[3])
    canvas.polygon(points, colours[2])


MOTIFS: dict[str, Motif] = {
    "guitar": _guitar, "strings": _strings, "keys": _keys, "figure": _figure, "hills": _hills, "skull": _skull,
    "thorns": _thorns, "shards": _shards, "bars": _bars, "rings": _rings, "tree": _tree, "skyline": _skyline,
    "flower": _flower, "bolt": _bolt,
}  # fmt: skip
