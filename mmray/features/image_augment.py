"""Random changes of images for training: drawn for each row from its seed, applied to a batch on its device.

What is drawn for a row depends on its seed and the settings alone, not on the batch, the worker or torch's generator;
a setting that is switched on changes nothing of what others draw. `seeds_of` makes seeds of run, row and epoch.

Geometry follows Keras's ImageDataGenerator: a rotation, a shift, a shear and a zoom about the centre of the image, in
this order of matrices, then a crop, then flips. All of it is one affine map and one bilinear resampling; crops and
flips alone move pixels as they are. Then come colours (brightness, contrast, saturation, hue, as torchvision defines
them and in this order), RandAugment, and erasing.

Shapes: B rows, stored images uint8 (B, H, W, 3); they come out as floats (B, 3, h, w) from 0 to 1.

Sources: E. D. Cubuk et al., "RandAugment", 2020 (arXiv:1909.13719), with torchvision's operations and strengths.
Z. Zhong et al., "Random Erasing Data Augmentation", 2017 (arXiv:1708.04896). C. Szegedy et al., "Going Deeper with
Convolutions", 2014 (crops of random area and aspect). H. Zhang et al., "mixup", 2017 (arXiv:1710.09412). S. Yun et
al., "CutMix", 2019 (arXiv:1905.04899).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from mmray.config import Fraction, Section
from mmray.features._rand_augment import MAX_MAGNITUDE, OPERATIONS, rand_augmented

Size = tuple[int, int]
Doubles = NDArray[np.float64]

_PADDING = {"nearest": "border", "reflect": "reflection", "constant": "zeros"}
_GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
_JITTERS = ("brightness", "contrast", "saturation")


class _Ranges(Section):
    @field_validator("area", "aspect", check_fields=False)
    @classmethod
    def _ascends(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError(f"[{value[0]:g}, {value[1]:g}] is not [lowest, highest]; turn it round")
        return value


class ResizedCrop(_Ranges):
    """A part of the image, stretched to its full size."""

    area: tuple[Fraction, Fraction] = Field((0.08, 1.0), description="lowest and highest share of the image's area")
    aspect: tuple[PositiveFloat, PositiveFloat] = Field((3 / 4, 4 / 3), description="of its width to its height")


class Erasing(_Ranges):
    """A rectangle that takes the mean colour of the image."""

    probability: Fraction = 0.25
    area: tuple[Fraction, Fraction] = Field((0.02, 0.33), description="lowest and highest share of the image's area")
    aspect: tuple[PositiveFloat, PositiveFloat] = Field((0.3, 3.3), description="of its height to its width")


class RandAugment(Section):
    """Some operations of a fixed strength, chosen from fourteen."""

    num_ops: PositiveInt = Field(2, description="operations, one after another")
    magnitude: int = Field(9, ge=0, le=MAX_MAGNITUDE, description="strength, 0 to 30")


class Settings(Section):
    """What may be done to an image; nothing, by default. Every number is the largest change either way."""

    rotation_degrees: float = Field(0.0, ge=0, le=180)
    shift: tuple[Fraction, Fraction] = Field((0.0, 0.0), description="fractions of height and of width")
    shear_degrees: float = Field(
        0.0, ge=0, lt=90, description="Keras's shear_range: columns lean by an angle in degrees, not in radians"
    )
    zoom: float = Field(0.0, ge=0, lt=1, description="0.2: height and width, each by its own factor of 0.8 to 1.2")
    horizontal_flip: bool = False
    vertical_flip: bool = False
    fill: Literal["nearest", "reflect", "constant"] = Field("nearest", description="beyond the edge; constant: black")
    brightness: Fraction = Field(0.0, description="0.2: a factor of 0.8 to 1.2")
    contrast: Fraction = Field(0.0, description="a factor, as of brightness")
    saturation: Fraction = Field(0.0, description="a factor, as of brightness")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="a share of the colour circle")
    rand_augment: RandAugment | None = None
    random_erasing: Erasing | None = None
    random_resized_crop: ResizedCrop | None = None

    @property
    def resamples(self) -> bool:
        """Whether pixels come to lie between pixels."""
        return self.random_resized_crop is not None or any(
            (self.rotation_degrees, *self.shift, self.shear_degrees, self.zoom)
        )

    @property
    def changes_colours(self) -> bool:
        """Whether brightness, contrast, saturation or hue may change."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def changes(self) -> bool:
        """Whether anything may be done."""
        return self != Settings(fill=self.fill)


def seeds_of(run_seed: int, ids: Sequence[str], epoch: int) -> NDArray[np.int64]:
    """The seeds (B,) of rows in an epoch of a run: the same in every process."""
    digests = (hashlib.blake2b(f"{run_seed}:{epoch}:{name}".encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def draw(settings: Settings, seeds: NDArray[np.int64], stored: Size, size: Size) -> dict[str, Tensor]:
    """What is to be done to each row, for `augment`: images of `stored` (height, width) become images of `size`.

    A `size` below `stored` is a crop at a random place. ValueError for one that is larger.
    """
    if size[0] > stored[0] or size[1] > stored[1]:
        raise ValueError(f"a crop of {size[0]} x {size[1]} does not fit into images of {stored[0]} x {stored[1]}")
    u = _Uniform(seeds)
    drawn = {"map": torch.from_numpy(_map(settings, u, stored, size))}
    jitters = (settings.brightness, settings.contrast, settings.saturation)
    factors = [u.between(name, 1 - most, 1 + most) for name, most in zip(_JITTERS, jitters, strict=True)]
    factors.append(u.between("hue", -settings.hue, settings.hue))
    drawn["colour"] = torch.from_numpy(np.stack(factors, 1).astype(np.float32))
    if (erasing := settings.random_erasing) is not None:
        drawn["erased"] = torch.from_numpy(_erased(erasing, u, size))
    if (rand_augment := settings.rand_augment) is not None:
        rounds = range(rand_augment.num_ops)
        codes = [2 * u.below(f"operation {i}", len(OPERATIONS)) + u.below(f"sign {i}", 2) for i in rounds]
        drawn["operations"] = torch.from_numpy(np.stack(codes, 1).astype(np.int64))
    return drawn


def augment(images: Tensor, drawn: Mapping[str, Tensor], settings: Settings, size: Size) -> Tensor:
    """Images uint8 (B, H, W, 3), changed as `draw` says, as float32 (B, 3, h, w) from 0 to 1, on their device."""
    if settings.resamples:
        x = _resampled(images, drawn["map"], settings, size)
    else:
        flips = settings.horizontal_flip or settings.vertical_flip
        x = _moved(images, drawn["map"], size) if flips or size != images.shape[1:3] else images
        x = x.permute(0, 3, 1, 2)  # on 8 bits, until a colour is changed
    if settings.changes_colours:
        x = _coloured(_floats(x), drawn["colour"], settings)
    if settings.rand_augment is not None:
        x = rand_augmented(_bytes(x), drawn["operations"], settings.rand_augment.magnitude)
    x = _floats(x)
    if settings.random_erasing is not None:
        x = torch.where(_inside(drawn["erased"], size), x.mean((2, 3), keepdim=True), x)
    return x


def mixup(x: Tensor, shares: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """`(x, shares)`, each image (B, 3, H, W) and its shares of the classes (B, K) blended with another's of the batch.

    Every image draws its own weight w from Beta(alpha, alpha). Numbers come from torch's global generator on the CPU.
    """
    own, partner = _pairs(len(x), alpha)
    own, partner = own.to(x.device), partner.to(x.device)
    return torch.lerp(x[partner], x, own[:, None, None, None]), torch.lerp(shares[partner], shares, own[:, None])


def cutmix(x: Tensor, shares: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """`(x, shares)`, a rectangle of each image (B, 3, H, W) replaced by another's of the batch, at the same place.

    The rectangle has the image's aspect, 1 - w of its area, w from Beta(alpha, alpha), and a centre anywhere in it; it
    is cut at the edges, and shares (B, K) go by the area that is left. Numbers as in `mixup`.
    """
    height, width = x.shape[2:]
    own, partner = _pairs(len(x), alpha)
    sides = (1 - own).sqrt()[:, None] * torch.tensor([height, width])
    centres = torch.rand(len(x), 2) * torch.tensor([height, width])
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], 1).round().to(torch.int64).to(x.device)
    partner = partner.to(x.device)
    other = _inside(boxes, (height, width))
    own = 1 - other.float().mean((1, 2, 3))
    return torch.where(other, x[partner], x), torch.lerp(shares[partner], shares, own[:, None])


def _pairs(num_rows: int, alpha: NonNegativeFloat) -> tuple[Tensor, Tensor]:
    """Of each row the share (B,) that it keeps, and its partner (B,)."""
    own = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((num_rows,))
    return own, torch.randperm(num_rows)


class _Uniform:
    """Numbers from 0 to 1 by name, (B,), of each row's seed and the name alone: SplitMix64's hash of both."""

    def __init__(self, seeds: NDArray[np.int64]) -> None:
        self._seeds = seeds.view(np.uint64)

    def __call__(self, name: str) -> Doubles:
        place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        z = self._seeds + np.uint64(place)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(11), np.float64) * 2.0**-53

    def between(self, name: str, low: float, high: float) -> Doubles:
        """Numbers from `low` to `high`."""
        return low + (high - low) * self(name)

    def below(self, name: str, stop: Doubles | float) -> Doubles:
        """Whole numbers from 0 to `stop` - 1."""
        return np.asarray(np.floor(stop * self(name)))


def _map(settings: Settings, u: _Uniform, stored: Size, size: Size) -> Doubles:
    """Of each row the matrix (3, 3) from places (x, y, 1) of the changed image to places of the stored one, in pixels.

    The centre of the first pixel is at 0.
    """
    height, width = stored
    angle = np.radians(u.between("rotation", -settings.rotation_degrees, settings.rotation_degrees))
    lean = np.radians(u.between("shear", -settings.shear_degrees, settings.shear_degrees))
    down, right = settings.shift
    shift_y, shift_x = u.between("shift y", -down, down) * height, u.between("shift x", -right, right) * width
    zoom_y = u.between("zoom y", 1 - settings.zoom, 1 + settings.zoom)
    zoom_x = u.between("zoom x", 1 - settings.zoom, 1 + settings.zoom)
    cos, sin = np.cos(angle), np.sin(angle)
    linear = _matrix(cos, sin, 0, -sin, cos, 0) @ _matrix(1, 0, shift_x, 0, 1, shift_y)
    linear = linear @ _matrix(np.cos(lean), 0, 0, -np.sin(lean), 1, 0) @ _matrix(zoom_x, 0, 0, 0, zoom_y, 0)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    centred = _matrix(1, 0, centre_x, 0, 1, centre_y) @ linear @ _matrix(1, 0, -centre_x, 0, 1, -centre_y)
    return np.asarray(centred @ _crop(settings.random_resized_crop, u, stored, size) @ _flip(settings, u, size))


def _crop(settings: ResizedCrop | None, u: _Uniform, stored: Size, size: Size) -> Doubles:
    """From places of a crop, which is stretched to `size`, to places of the image that it is cut out of."""
    if settings is None:
        top, left = (
            u.below(f"crop {axis}", all_ - part + 1) for axis, all_, part in zip("yx", stored, size, strict=True)
        )
        return _matrix(1, 0, left, 0, 1, top)
    area = u.between("crop area", *settings.area) * stored[0] * stored[1]
    aspect = np.exp(u.between("crop aspect", *np.log(settings.aspect)))
    part_y, part_x = np.minimum(np.sqrt(area / aspect), stored[0]), np.minimum(np.sqrt(area * aspect), stored[1])
    top, left = u("crop y") * (stored[0] - part_y), u("crop x") * (stored[1] - part_x)
    scale_y, scale_x = part_y / size[0], part_x / size[1]
    # The edge of the first pixel, half a pixel before its centre, is what comes to lie at the edge of the crop.
    return _matrix(scale_x, 0, left + (scale_x - 1) / 2, 0, scale_y, top + (scale_y - 1) / 2)


def _flip(settings: Settings, u: _Uniform, size: Size) -> Doubles:
    turned_x = settings.horizontal_flip * u.below("horizontal flip", 2)
    turned_y = settings.vertical_flip * u.below("vertical flip", 2)
    return _matrix(1 - 2 * turned_x, 0, turned_x * (size[1] - 1), 0, 1 - 2 * turned_y, turned_y * (size[0] - 1))


def _matrix(*rows: Doubles | float) -> Doubles:
    """Matrices (B, 3, 3) or (3, 3) from the six numbers of their first two rows; the third is 0, 0, 1."""
    entries = np.broadcast_arrays(*rows, 0.0, 0.0, 1.0)
    return np.stack(entries, -1).reshape(*entries[0].shape, 3, 3)


def _erased(settings: Erasing, u: _Uniform, size: Size) -> NDArray[np.int64]:
    """Of each row the rectangle (top, left, bottom, right) to erase; an empty one for most."""
    area = u.between("erased area", *settings.area) * size[0] * size[1]
    aspect = np.exp(u.between("erased aspect", *np.log(settings.aspect)))
    sides = np.stack([np.sqrt(area * aspect), np.sqrt(area / aspect)], 1)
    sides = np.minimum(np.rint(sides), size) * (u("erased") < settings.probability)[:, None]
    start = np.stack(
        [u.below("erased y", size[0] - sides[:, 0] + 1), u.below("erased x", size[1] - sides[:, 1] + 1)], 1
    )
    return np.concatenate([start, start + sides], 1).astype(np.int64)


def _moved(images: Tensor, maps: Tensor, size: Size) -> Tensor:
    """Crops and flips: whole pixels, where the maps have them; uint8 (B, h, w, 3)."""
    height, width = size
    moved = []
    for image, ((step_x, _, x), (_, step_y, y), _) in zip(images, maps.tolist(), strict=True):
        turned = [dim for dim, step in enumerate((step_y, step_x)) if step < 0]
        top, left = int(y) - (height - 1) * (step_y < 0), int(x) - (width - 1) * (step_x < 0)
        part = image[top : top + height, left : left + width]
        moved.append(part.flip(turned) if turned else part)
    return torch.stack(moved)


def _resampled(images: Tensor, maps: Tensor, settings: Settings, size: Size) -> Tensor:
    """Bilinear samples at the places that the maps give: float32 (B, 3, h, w) from 0 to 1."""
    height, width = images.shape[1:3]
    # torch has the first edge of an image at -1 and its last at 1.
    to_unit = torch.tensor([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1]], dtype=maps.dtype)
    across, down, start = (to_unit.to(maps.device) @ maps).float()[..., None, None].unbind(2)
    y, x = (torch.arange(side, dtype=torch.float32, device=images.device) for side in size)
    places = across * x + (down * y[:, None] + start)
    found = F.grid_sample(
        images.permute(0, 3, 1, 2).float(), places.permute(0, 2, 3, 1), "bilinear", _PADDING[settings.fill],
        align_corners=False,
    )  # fmt: skip
    return found.div_(255)


def _floats(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.float().div_(255)


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round_().to(torch.uint8) if x.is_floating_point() else x


def _coloured(x: Tensor, factors: Tensor, settings: Settings) -> Tensor:
    """Floats (B, 3, H, W) by the factors (B, 4) of brightness, contrast and saturation, and the turn of the hue."""
    brightness, contrast, saturation, turn = factors[:, :, None, None, None].unbind(1)
    if settings.brightness:
        x = (x * brightness).clamp_(0, 1)
    if settings.contrast:
        x = torch.lerp(_grey(x.mean((2, 3), keepdim=True)), x, contrast).clamp_(0, 1)
    if settings.saturation:
        x = torch.lerp(_grey(x), x, saturation).clamp_(0, 1)
    return _turn_hue(x, turn) if settings.hue else x


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[:, None]


def _turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Colours (B, 3, H, W) turned by a share (B, 1, 1, 1) of the colour circle, value and saturation kept."""
    red, green, blue = x.unbind(1)
    value, most = x.max(1)
    chroma = value - x.amin(1)
    scale = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(most == 0, (green - blue) / scale, (blue - red) / scale + 2)
    sextant = torch.where(most == 2, (red - green) / scale + 4, sextant) + 6 * turn[:, 0]
    k = (sextant[:, None] + torch.tensor([5.0, 3.0, 1.0], device=x.device)[:, None, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _inside(boxes: Tensor, size: Size) -> Tensor:
    """Which pixels lie in the rectangles (B, 4), (top, left, bottom, right): bool (B, 1, H, W)."""
    top, left, bottom, right = boxes[:, :, None].unbind(1)
    y, x = (torch.arange(side, device=boxes.device) for side in size)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
