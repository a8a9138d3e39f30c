"""A made-up Oxford-IIIT Pet: faces of its 37 breeds in its own layout.

`generate` writes `images/Abyssinian_1.jpg` ... (cats have a capital, dogs have none), `annotations/list.txt`,
`trainval.txt` and `test.txt` with the real header and columns, and what lies about in the real folder, too: MATLAB
files, and under the name of a JPEG some grey and CMYK ones, PNGs and GIFs (`oddities: false` leaves them out).

A pet is drawn from seven traits: ears, head, muzzle, coat, pattern, fur and eyes, of which a breed has one to three
choices each (`_pet_breeds`); with the probability `overlap` a trait is that of another breed of the same species. What
tells a cat from a dog are muzzle, nose, pupils and whiskers; both have breeds with ears that stand. Everything else is
drawn for each picture: size, place, turn, sides, light, coat, what is behind, what is in front, noise.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field

from mmray.datasets.synthetic import Progress, Summary, summary, write_pieces
from mmray.datasets.synthetic._drawing import Canvas, Colour, clouds, gradient, grain, hsv, jpeg
from mmray.datasets.synthetic._pet_breeds import BREEDS, draw_animal, draw_face, far_off
from mmray.files import write_text, written_whole

IMAGES_A_PIECE = 50
FORMS = ("grey", "CMYK", "PNG", "GIF")  # of the first images of every hundred
HEADER = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n#SPECIES: 1:Cat 2:Dog\n#BREED ID: 1-25:Cat 1:12:Dog\n"


class Config(BaseModel):
    """What to make. The real corpus has 37 breeds, 200 images each, some 500 x 375 pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["pets"] = "pets"
    num_images: int = Field(1_480, ge=1, description="all breeds together; the real corpus has 7,390")
    num_classes: int = Field(37, ge=2, le=37, description="breeds; fewer: a third of them cats, too")
    size: int = Field(375, ge=48, le=2048, description="longer side in pixels, about")
    overlap: float = Field(0.15, ge=0, le=1, description="how often a trait is another breed's; 0: never")
    oddities: bool = True
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Pet:
    """One image to draw: its number in the corpus, its breed, and its number within the breed, from 1."""

    number: int
    breed: str
    turn: int

    @property
    def stem(self) -> str:
        """The name of its file without a suffix."""
        return f"{self.breed}_{self.turn}"


def generate(out: Path, config: Config, progress: Progress, num_processes: int = 1) -> Summary:
    """Write the corpus into the folder `out`; what is there is kept, so that a stopped run goes on.

    Raises ValueError when `out` holds anything but a run, whole or not, of the same configuration.
    """
    everyone = pet_plan(config)
    plan = [everyone[i : i + IMAGES_A_PIECE] for i in range(0, len(everyone), IMAGES_A_PIECE)]
    files = write_pieces(
        out, config, plan, lambda pets: tuple(_path(out, pet) for pet in pets), write_pets, progress, num_processes
    )
    return summary(
        out, config.num_images, [*files, *_write_lists(out, config, everyone), *_write_companions(out, config)]
    )


def breeds(config: Config) -> list[str]:
    """The breeds, in the order of their class numbers: that of the alphabet, whatever the case."""
    cats = [name for name in BREEDS if name[0].isupper()]
    dogs = [name for name in BREEDS if name[0].islower()]
    num_cats = round(config.num_classes * len(cats) / len(BREEDS))
    return sorted(cats[:num_cats] + dogs[: config.num_classes - num_cats], key=str.lower)


def pet_plan(config: Config) -> list[Pet]:
    """Every image of the corpus; breeds take turns."""
    names = breeds(config)
    return [Pet(number, names[number % len(names)], number // len(names) + 1) for number in range(config.num_images)]


def _path(out: Path, pet: Pet) -> Path:
    return out / "images" / f"{pet.stem}.jpg"


def write_pets(config: Config, pets: Sequence[Pet], out: Path) -> None:
    """Write some images into the folder `out`: their bytes depend on `config` and their numbers alone."""
    for pet in pets:
        with written_whole(_path(out, pet)) as aside:
            aside.write_bytes(_file(config, pet))


def _file(config: Config, pet: Pet) -> bytes:
    image, random = draw_pet(config, pet), _random(config, 1, pet.number)
    form = FORMS[pet.number % 100] if config.oddities and pet.number % 100 < len(FORMS) else ""
    if form in ("PNG", "GIF"):
        buffer = io.BytesIO()
        image.save(buffer, form)
        return buffer.getvalue()
    if form:
        image = image.convert("L" if form == "grey" else form)
    return jpeg(image, int(random.integers(82, 95)))


def _write_lists(out: Path, config: Config, pets: Sequence[Pet]) -> list[Path]:
    """list.txt with every image, and half of each breed, at random, on each of the other two."""
    names = breeds(config)
    within: dict[str, int] = {}
    for species in ("cat", "dog"):
        of_species = [name for name in names if name[0].isupper() == (species == "cat")]
        within |= {name: number for number, name in enumerate(of_species, 1)}
    lines = {
        pet: f"{pet.stem} {names.index(pet.breed) + 1} {1 if pet.breed[0].isupper() else 2} {within[pet.breed]}\n"
        for pet in sorted(pets, key=lambda pet: (pet.breed.lower(), pet.turn))
    }
    in_test: set[Pet] = set()
    for number, name in enumerate(names):
        of_breed = [pet for pet in lines if pet.breed == name]
        order = _random(config, 2, number).permutation(len(of_breed))
        in_test |= {of_breed[place] for place in order[: len(of_breed) // 2]}
    lists = {
        "list": HEADER + "".join(lines.values()),
        "trainval": "".join(line for pet, line in lines.items() if pet not in in_test),
        "test": "".join(line for pet, line in lines.items() if pet in in_test),
    }
    for name, text in lists.items():
        write_text(out / "annotations" / f"{name}.txt", text)
    return [out / "annotations" / f"{name}.txt" for name in lists]


def _write_companions(out: Path, config: Config) -> list[Path]:
    """Two MATLAB files, as the real folder of images has some: a header and no data."""
    if not config.oddities:
        return []
    header = b"MATLAB 5.0 MAT-file, Platform: GLNX86".ljust(116) + bytes(8) + b"\x00\x01IM"
    paths = [out / "images" / f"{name}_{turn}.mat" for name in breeds(config)[:1] for turn in (1, 2)]
    for path in paths:
        with written_whole(path) as aside:
            aside.write_bytes(header)
    return paths


def _random(config: Config, *purpose: int) -> np.random.Generator:
    """The stream of one purpose: (0, i) what image i shows, (1, i) its file, (2, i) the lists of breed i."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=purpose))


# ---- One picture


def draw_pet(config: Config, pet: Pet) -> Image.Image:
    """The picture of a pet, in RGB."""
    random = _random(config, 0, pet.number)
    like = [name for name in breeds(config) if name[0].isupper() == pet.breed[0].isupper() and name != pet.breed]
    other = BREEDS[like[random.integers(len(like))]] if like else None
    face = draw_face(BREEDS[pet.breed], other, config.overlap, random)
    long_side = config.size * random.uniform(0.85, 1.0)
    short_side = long_side * random.uniform(0.65, 1.0)
    width, height = (long_side, short_side) if random.random() < 0.7 else (short_side, long_side)
    canvas = Canvas(_behind(round(width), round(height), random))
    x, y = random.normal(0, 0.09, 2)
    canvas.place(x, y - 0.03, random.uniform(0.65, 1.15), random.normal(0, 0.16), flip=bool(random.random() < 0.5))
    draw_animal(canvas, far_off(face, random.uniform(0, 0.25)), random)
    if random.random() < 0.3:
        _in_front(canvas, random)
    return _photographed(canvas.image, random)


def _colour(random: np.random.Generator) -> Colour:
    return hsv(random.random(), random.uniform(0.05, 0.5), random.uniform(0.25, 0.9))


def _behind(width: int, height: int, random: np.random.Generator) -> Image.Image:
    """A room, a lawn, a cloth, or something out of focus."""
    one, other, third = (_colour(random) for _ in range(3))
    kind = random.integers(4)
    if kind == 0:
        canvas = Canvas(gradient(width, height, one, other))
        floor = random.uniform(0.1, 0.35)
        canvas.rectangle(-1, floor, 1, 1, third)
        left = random.uniform(-0.7, 0.4)
        canvas.rectangle(left, -0.45, left + 0.35, random.uniform(-0.2, floor), other)
        return canvas.image
    if kind == 1:
        green = hsv(random.uniform(0.2, 0.38), random.uniform(0.3, 0.6), random.uniform(0.3, 0.65))
        return grain(clouds(width, height, 12, [green, one], random), 22, random)
    if kind == 2:
        canvas, number = Canvas(Image.new("RGB", (width, height), one)), int(random.integers(4, 12))
        canvas.place(0, 0, 2, random.uniform(0, 3.1))
        for i in range(number):
            canvas.rectangle((i + 0.1) / number - 0.5, -0.5, (i + 0.5) / number - 0.5, 0.5, other)
        return canvas.image
    return clouds(width, height, int(random.integers(3, 7)), [one, other, third], random)


def _in_front(canvas: Canvas, random: np.random.Generator) -> None:
    """A bar of a fence or a ball before the animal."""
    canvas.place(random.uniform(-0.4, 0.4), random.uniform(0.1, 0.5), 1, random.uniform(-0.4, 0.4))
    if random.random() < 0.5:
        canvas.rectangle(-0.02, -1, 0.02, 1, _colour(random))
    else:
        canvas.ellipse(0, 0, 0.1, 0.1, _colour(random))


def _photographed(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """With the light from somewhere, a tint, a little blur, and noise."""
    image = Image.blend(image, ImageChops.offset(image, 1, 1), random.uniform(0.2, 0.5))
    light = clouds(image.width, image.height, 2, [hsv(random.random(), 0.12, v) for v in (0.55, 1.0)], random)
    lit = ImageChops.multiply(image, light)
    levels = np.minimum(np.arange(256) * random.uniform(1.02, 1.4), 255).astype(int).tolist()
    return grain(lit.point(levels * 3), int(random.integers(3, 14)), random)
