"""What made-up pets look like: the real corpus's 37 breeds, and how a face is drawn from its traits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmray.datasets.synthetic._drawing import Canvas, Colour, ellipse, mixed, ragged


@dataclass(frozen=True)
class Breed:
    """The choices of a breed, as names."""

    ears: tuple[str, ...]
    head: tuple[str, ...]
    muzzle: tuple[str, ...]
    coat: tuple[str, ...]
    pattern: tuple[str, ...]
    fur: tuple[str, ...]
    eyes: tuple[str, ...]


# Ears; head; muzzle; coat; pattern; fur; eyes.
_CHOICES = {
    "Abyssinian": "tall; wedge; cat; red tan; solid; short; gold green",
    "Bengal": "upright; round; cat; gold tan; spots; short; green gold",
    "Birman": "upright; round; cat; cream; points; long; blue",
    "Bombay": "upright; round; cat; black; solid; short; gold",
    "British_Shorthair": "small; round; cat; blue grey; solid; short; gold",
    "Egyptian_Mau": "tall; wedge; cat; grey; spots; short; green",
    "Maine_Coon": "tufted; square; cat; brown grey; tabby; long; green gold",
    "Persian": "small; wide; flatcat; white cream grey; solid; long; gold",
    "Ragdoll": "upright; round; cat; white cream; points blaze; long; blue",
    "Russian_Blue": "tall; wedge; cat; blue; solid; short; green",
    "Siamese": "tall; wedge; cat; cream; points; short; blue",
    "Sphynx": "bat; wedge; cat; pink; solid; bald; green blue",
    "american_bulldog": "rose; square; medium; white; patches; short; brown",
    "american_pit_bull_terrier": "rose; square; medium; blue brown; blaze; short; brown",
    "basset_hound": "long; tall; long; tan red; saddle blaze; short; brown",
    "beagle": "drop; round; medium; tan; saddle blaze; short; brown",
    "boxer": "rose; square; flat; tan red; mask; short; brown",
    "chihuahua": "bat; round; short; tan cream black; solid; short; brown",
    "english_cocker_spaniel": "long; round; medium; gold black liver; solid; curly; brown",
    "english_setter": "long; tall; long; white; spots; long; brown",
    "german_shorthaired": "drop; tall; long; liver; solid spots; short; brown",
    "great_pyrenees": "drop; square; medium; white cream; solid; long; brown",
    "havanese": "drop; round; short; black cream white; patches solid; long; brown",
    "japanese_chin": "drop; wide; flat; white; patches; long; brown",
    "keeshond": "prick; wedge; medium; grey; mask; long; brown",
    "leonberger": "drop; square; medium; gold red; mask; long; brown",
    "miniature_pinscher": "prick; wedge; long; black liver; brows; short; brown",
    "newfoundland": "drop; square; medium; black brown; solid; long; brown",
    "pomeranian": "prick; round; short; red cream; solid; long; brown",
    "pug": "button; wide; flat; cream; mask; short; brown",
    "saint_bernard": "drop; square; medium; red; blaze mask; long; brown",
    "samoyed": "prick; wedge; medium; white; solid; long; brown",
    "scottish_terrier": "prick; tall; long; black; solid; curly; brown",
    "shiba_inu": "prick; round; medium; red; cheeks; short; brown",
    "staffordshire_bull_terrier": "rose; square; medium; brown black blue; tabby solid; short; brown",
    "wheaten_terrier": "button; square; medium; wheat; solid; curly; brown",
    "yorkshire_terrier": "prick; round; short; blue; brows cheeks; long; brown",
}
BREEDS = {name: Breed(*(tuple(trait.split()) for trait in choices.split(";"))) for name, choices in _CHOICES.items()}

COATS: dict[str, Colour] = {
    "red": (184, 98, 46), "tan": (190, 142, 92), "gold": (205, 158, 82), "cream": (230, 208, 172),
    "white": (238, 235, 228), "black": (38, 34, 34), "blue": (108, 118, 132), "grey": (150, 150, 148),
    "brown": (104, 72, 48), "liver": (92, 52, 36), "pink": (224, 176, 160), "wheat": (214, 184, 134),
}  # fmt: skip
EYES: dict[str, Colour] = {
    "gold": (216, 168, 40), "green": (120, 176, 88), "blue": (92, 152, 214), "brown": (74, 44, 24),
}  # fmt: skip
HEADS = {
    "round": (0.27, 0.26),
    "wedge": (0.24, 0.27),
    "tall": (0.22, 0.3),
    "square": (0.29, 0.28),
    "wide": (0.31, 0.26),
}
MUZZLES = {  # half width, half height, place below the eyes
    "cat": (0.09, 0.06, 0.12), "flatcat": (0.08, 0.04, 0.07), "short": (0.09, 0.09, 0.13), "medium": (0.12, 0.12, 0.16),
    "long": (0.1, 0.17, 0.19), "flat": (0.16, 0.09, 0.11),
}  # fmt: skip

_WHITE, _DARK, _NOSE = (242, 240, 234), (36, 28, 26), (40, 30, 30)


@dataclass(frozen=True)
class Face:
    """One animal: the drawn traits, and its own colours and sizes."""

    ears: str
    muzzle: str
    pattern: str
    fur: str
    coat: Colour
    eye: Colour
    rx: float  # of the head
    ry: float

    @property
    def is_cat(self) -> bool:
        """Cats have a muzzle of their own."""
        return self.muzzle.endswith("cat")


def draw_face(breed: Breed, others: Breed | None, overlap: float, random: np.random.Generator) -> Face:
    """An animal of a breed; each trait is of one of the `others` with the probability `overlap`."""

    def trait(name: str) -> str:
        source = others if others is not None and random.random() < overlap else breed
        choices: tuple[str, ...] = getattr(source, name)
        return choices[random.integers(len(choices))]

    coat = np.array(COATS[trait("coat")]) * random.uniform(0.78, 1.12) + random.normal(0, 9, 3)
    red, green, blue = np.clip(coat, 12, 250).astype(int).tolist()
    rx, ry = np.array(HEADS[trait("head")]) * random.uniform(0.9, 1.1, 2)
    return Face(
        ears=trait("ears"),
        muzzle=trait("muzzle"),
        pattern=trait("pattern"),
        fur=trait("fur"),
        coat=(red, green, blue),
        eye=EYES[trait("eyes")],
        rx=float(rx),
        ry=float(ry),
    )


def draw_animal(canvas: Canvas, face: Face, random: np.random.Generator) -> None:
    """Chest and head around (0, 0), some 0.9 units high."""
    lower = mixed(face.coat, (0, 0, 0), 0.18)
    chest = _WHITE if face.pattern in ("blaze", "cheeks") else face.coat
    canvas.polygon(_furry(ellipse(0, 0.48, 0.34, 0.36), face, random), lower)
    canvas.polygon(_furry(ellipse(0, 0.42, 0.17, 0.22), face, random), mixed(chest, lower, 0.3))
    if face.ears in ("upright", "tall", "small", "tufted", "bat", "prick"):
        _standing_ears(canvas, face)
    canvas.polygon(_furry(ellipse(0, 0, face.rx, face.ry), face, random), face.coat)
    if face.fur == "long":
        for side in (-1, 1):
            cheek = ellipse(0.8 * face.rx * side, 0.12, 0.13, 0.15)
            canvas.polygon(_furry(cheek, face, random), mixed(face.coat, _WHITE, 0.08))
    _marks(canvas, face, random)
    if face.ears in ("drop", "long", "rose", "button"):
        _hanging_ears(canvas, face, random)
    _features(canvas, face, random)


def _furry(points: np.ndarray, face: Face, random: np.random.Generator) -> np.ndarray:
    depth = {"bald": 0.0, "short": 0.01, "curly": 0.07, "long": 0.11}[face.fur]
    return ragged(points, depth, random) if depth else points


def _standing_ears(canvas: Canvas, face: Face) -> None:
    height = {"upright": 0.2, "tall": 0.27, "small": 0.12, "tufted": 0.25, "bat": 0.34, "prick": 0.18}[face.ears]
    width = {"bat": 0.15, "tall": 0.12, "small": 0.1}.get(face.ears, 0.11)
    dark = face.pattern in ("points", "mask")
    outer = mixed(face.coat, _DARK, 0.75 if dark else 0.1)
    for side in (-1, 1):
        x, lean = 0.62 * face.rx * side, (0.05 if face.ears != "bat" else 0.14) * side
        base = -0.6 * face.ry
        canvas.polygon([(x - width, base + 0.06), (x + lean, base - height), (x + width, base + 0.06)], outer)
        inner = [(x - 0.5 * width, base), (x + lean, base - 0.7 * height), (x + 0.5 * width, base)]
        canvas.polygon(inner, mixed((226, 168, 160), outer, 0.5 if dark else 0.25))
        if face.ears == "tufted":
            canvas.line([(x + lean, base - height), (x + 1.6 * lean, base - height - 0.07)], 0.018, outer)


def _hanging_ears(canvas: Canvas, face: Face, random: np.random.Generator) -> None:
    dark = mixed(face.coat, _DARK, {"mask": 0.7, "saddle": 0.15, "patches": 0.8}.get(face.pattern, 0.25))
    for side in (-1, 1):
        x, y = 0.86 * face.rx * side, -0.55 * face.ry
        if face.ears == "rose":
            points = np.array([(x - 0.09 * side, y), (x + 0.13 * side, y - 0.07), (x + 0.07 * side, y + 0.08)])
        elif face.ears == "button":
            points = np.array([(x - 0.14 * side, y - 0.08), (x + 0.06 * side, y - 0.07), (x + 0.03 * side, y + 0.12)])
        else:
            length = 0.3 if face.ears == "long" else 0.2
            points = ellipse(x + 0.05 * side, y + 0.8 * length, 0.08, length, -0.2 * side)
        canvas.polygon(_furry(points, face, random) if len(points) > 3 else points, dark)


def _marks(canvas: Canvas, face: Face, random: np.random.Generator) -> None:
    dark = mixed(face.coat, _DARK, 0.65)
    rx, ry = face.rx, face.ry
    match face.pattern:
        case "points" | "mask":
            canvas.ellipse(0, 0.45 * ry, 0.55 * rx, 0.5 * ry, mixed(face.coat, _DARK, 0.6))
        case "blaze":
            canvas.polygon([(-0.025, -ry), (0.025, -ry), (0.1, 0.9 * ry), (-0.1, 0.9 * ry)], _WHITE)
        case "cheeks":
            for side in (-1, 1):
                canvas.ellipse(0.42 * rx * side, 0.45 * ry, 0.42 * rx, 0.4 * ry, mixed(_WHITE, face.coat, 0.2))
        case "brows":
            light = (176, 112, 56)
            for side in (-1, 1):
                canvas.ellipse(0.4 * rx * side, -0.42 * ry, 0.035, 0.025, light)
            canvas.ellipse(0, 0.55 * ry, 0.5 * rx, 0.35 * ry, light)
        case "saddle":
            canvas.ellipse(0, -0.72 * ry, 0.5 * rx, 0.3 * ry, dark)
            canvas.ellipse(0, 0.55, 0.26, 0.16, dark)
        case "patches":
            for side in (-1, 1):
                if random.random() < 0.75:
                    canvas.ellipse(0.5 * rx * side, -0.25 * ry, 0.4 * rx, 0.5 * ry, dark, 0.4 * side)
        case "spots":
            for x, y in random.normal(0, 0.5, (26, 2)).tolist():
                if x * x + y * y < 0.8:
                    canvas.ellipse(x * rx, y * ry, random.uniform(0.012, 0.03), random.uniform(0.01, 0.022), dark)
            for x, y in random.uniform(-0.22, 0.22, (14, 2)).tolist():
                canvas.ellipse(x, 0.48 + y, 0.03, 0.02, dark)
        case "tabby":
            for i in range(-2, 3):
                canvas.line([(0.07 * i, -0.95 * ry), (0.045 * i, -0.45 * ry)], 0.02, dark)
            for side in (-1, 1):
                for y in (0.05, 0.2, 0.35):
                    canvas.line([(0.95 * rx * side, y * ry), (0.5 * rx * side, (y + 0.12) * ry)], 0.016, dark)
                canvas.line([(0.12 * side, 0.34), (0.25 * side, 0.55)], 0.025, dark)


def _features(canvas: Canvas, face: Face, random: np.random.Generator) -> None:
    width, height, below = (value * random.uniform(0.9, 1.1) for value in MUZZLES[face.muzzle])
    light = {"mask": mixed(face.coat, _DARK, 0.75), "points": mixed(face.coat, _DARK, 0.68)}.get(
        face.pattern, mixed(face.coat, _WHITE, 0.3)
    )
    if face.is_cat:
        for side in (-1, 1):
            canvas.ellipse(0.045 * side, below + 0.02, 0.06, height, light)
    else:
        canvas.ellipse(0, below, width, height, light)
    apart, open_ = 0.46 * face.rx, random.uniform(0.8, 1.15)
    for side in (-1, 1):
        if face.is_cat:
            canvas.ellipse(apart * side, -0.04, 0.055, 0.045 * open_, face.eye, 0.25 * side)
            canvas.ellipse(apart * side, -0.04, 0.012, 0.038 * open_, (16, 14, 14))
        else:
            canvas.ellipse(apart * side, -0.05, 0.036, 0.034 * open_, face.eye)
            canvas.ellipse(apart * side, -0.05, 0.02, 0.02, (16, 12, 12))
        canvas.ellipse(apart * side - 0.012, -0.055, 0.008, 0.008, (250, 250, 250))
    nose = below - (0.02 if face.is_cat else 0.55 * height)
    if face.is_cat:
        canvas.polygon([(-0.028, nose - 0.02), (0.028, nose - 0.02), (0, nose + 0.018)], (206, 130, 126))
        for side in (-1, 1):
            for droop in (-0.03, 0.0, 0.035):
                canvas.line([(0.05 * side, below + 0.02), (0.27 * side, below + droop)], 0.004, (235, 235, 230))
    else:
        canvas.ellipse(0, nose, 0.045, 0.035, _NOSE)
        canvas.line([(0, nose), (0, below + 0.6 * height)], 0.008, _NOSE)
        if random.random() < 0.35:
            canvas.ellipse(0, below + 1.05 * height, 0.04, 0.065, (214, 98, 108))
    mouth = below + (0.05 if face.is_cat else 0.55 * height)
    canvas.line([(-0.06, mouth + 0.02), (0, mouth), (0.06, mouth + 0.02)], 0.008, _NOSE)


def far_off(face: Face, share: float) -> Face:
    """The face with its coat moved towards grey, as light and cameras do."""
    return replace(face, coat=mixed(face.coat, (128, 128, 128), share))
