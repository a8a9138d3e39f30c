"""Drawing with Pillow for the made-up images: shapes in coordinates of their own, grounds, grain, letters."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
Points = NDArray[np.float64]

# Capital letters on 3 by 5 squares: a digit a row, whose bits are its squares from left to right.
_LETTERS = {
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644", "G": "34553", "H": "55755",
    "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555", "O": "25552", "P": "65644",
    "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247",
}  # fmt: skip
_CONSONANTS, _VOWELS = "BCDFGHKLMNPRSTVXZ", "AEIOUY"
_CIRCLE = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 37)[:-1]), np.sin(t)], axis=1)


class Canvas:
    """An image to draw on. Shapes are given in units that `place` maps to pixels; at first a unit is the smaller side
    and (0, 0) the middle, with y down.
    """

    def __init__(self, ground: Image.Image) -> None:
        self.image = ground
        self._draw = ImageDraw.Draw(ground)
        self.place(0, 0, 1, 0)

    def place(self, x: float, y: float, scale: float, angle: float, flip: bool = False) -> None:
        """Put (0, 0) at (x, y) of the image, in shares of its smaller side from its middle; turn by `angle` radians."""
        side = min(self.image.size)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._matrix = side * scale * turn * np.array([[-1.0 if flip else 1.0, 1.0]])
        self._offset = np.array(self.image.size) / 2 + side * np.array([x, y])
        self._scale = side * scale

    def polygon(self, points: Points | Sequence[tuple[float, float]], colour: Colour) -> None:
        """A filled polygon."""
        placed = np.asarray(points) @ self._matrix.T + self._offset
        self._draw.polygon(placed.ravel().tolist(), fill=colour)

    def line(self, points: Points | Sequence[tuple[float, float]], width: float, colour: Colour) -> None:
        """A line of at least one pixel."""
        placed = np.asarray(points) @ self._matrix.T + self._offset
        self._draw.line(placed.ravel().tolist(), fill=colour, width=max(1, round(width * self._scale)), joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, angle: float = 0.0) -> None:
        """A filled ellipse, turned by `angle` radians."""
        self.polygon(ellipse(x, y, rx, ry, angle), colour)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Points:
    """Points of an ellipse (36, 2)."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points: Points = (_CIRCLE * [rx, ry]) @ turn.T + [x, y]
    return points


def ragged(points: Points, depth: float, random: np.random.Generator) -> Points:
    """A closed outline with points pulled out and in by up to `depth`, as fur or torn paper."""
    middle = points.mean(axis=0)
    dense = np.repeat(points, 2, axis=0)
    dense[1::2] = (points + np.roll(points, -1, axis=0)) / 2
    found: Points = middle + (dense - middle) * (1 + depth * random.uniform(-1, 1, (len(dense), 1)))
    return found


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour; the hue goes round from 0 to 1, the others are clipped to 0 to 1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of `other`; below 0 and above 1 beyond the two, clipped."""
    values = (round(min(max(a + share * (b - a), 0), 255)) for a, b in zip(one, other, strict=True))
    red, green, blue = values
    return red, green, blue


def clouds(width: int, height: int, cells: int, colours: Sequence[Colour], random: np.random.Generator) -> Image.Image:
    """Soft spots between the colours, about `cells` of them across."""
    rows = max(2, round(cells * height / width))
    weights = random.random((rows, max(2, cells), len(colours)))
    weights /= weights.sum(axis=2, keepdims=True)
    small = (weights @ np.array(colours, float)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def gradient(width: int, height: int, top: Colour, bottom: Colour) -> Image.Image:
    """From one colour above to another below."""
    return Image.fromarray(np.array([[top], [bottom]], np.uint8)).resize((width, height), Image.Resampling.BILINEAR)


def grain(image: Image.Image, levels: int, random: np.random.Generator) -> Image.Image:
    """The image with noise of up to so many levels, the same in all channels."""
    noise = Image.frombytes("L", image.size, random.bytes(image.width * image.height))
    noise = noise.point([value * (2 * levels + 1) // 256 for value in range(256)])
    return ImageChops.add(image, Image.merge("RGB", [noise] * 3), 1, -levels)


def word(random: np.random.Generator) -> str:
    """A name that can be said, of 4 to 8 letters."""
    letters = [str(random.choice(list(_CONSONANTS if i % 2 == 0 else _VOWELS))) for i in range(random.integers(4, 9))]
    return "".join(letters)


def squares(text: str) -> list[tuple[int, int]]:
    """The squares (column, row) that write a word in capital letters: 4 columns a letter, 5 rows."""
    return [
        (4 * place + column, row)
        for place, letter in enumerate(text)
        for row, bits in enumerate(_LETTERS[letter])
        for column in range(3)
        if int(bits) & (4 >> column)
    ]


def jpeg(image: Image.Image, quality: int) -> bytes:
    """The image as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
