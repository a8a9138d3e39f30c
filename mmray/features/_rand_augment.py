"""RandAugment's operations on batches, with the strengths of torchvision's `v2.RandAugment`."""

from __future__ import annotations

import math

from torch import Tensor

MAX_MAGNITUDE = 30
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_ONE_WAY = ("posterize", "solarize", "autocontrast", "equalize")


def rand_augmented(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    """Each row's operations, one after another, on images uint8 (B, 3, H, W); black comes in where they are moved.

    codes: (B, rounds), int64, twice the operation's number, and one more for the other direction, where it has one;
    magnitude: 0 to `MAX_MAGNITUDE`. Rows of one operation and direction go together.
    """
    images = images.clone()
    for of_round in codes.cpu().T:
        for code in of_round.unique().tolist():
            name, strength = OPERATIONS[code // 2], magnitude / MAX_MAGNITUDE
            if name != "identity":
                rows = (of_round == code).nonzero()[:, 0].to(images.device)
                back = code % 2 == 1 and name not in _ONE_WAY
                images[rows] = operate(images[rows], name, -strength if back else strength)
    return images


def operate(images: Tensor, name: str, strength: float) -> Tensor:
    """One of the `OPERATIONS` on uint8 images (B, 3, H, W), at a strength of -1 to 1 of the largest."""
    from torchvision.transforms.v2 import functional as V

    height, width = images.shape[2:]
    found: Tensor
    match name:
        case "shear_x" | "shear_y":
            angle = math.degrees(math.atan(0.3 * strength))
            shear = [angle, 0.0] if name == "shear_x" else [0.0, angle]
            found = V.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
        case "translate_x" | "translate_y":
            pixels = int(150 / 331 * (width if name == "translate_x" else height) * strength)
            translate = [pixels, 0] if name == "translate_x" else [0, pixels]
            found = V.affine(images, angle=0.0, translate=translate, scale=1.0, shear=[0.0, 0.0])
        case "rotate":
            found = V.rotate(images, angle=30.0 * strength)
        case "brightness":
            found = V.adjust_brightness(images, 1 + 0.9 * strength)
        case "color":
            found = V.adjust_saturation(images, 1 + 0.9 * strength)
        case "contrast":
            found = V.adjust_contrast(images, 1 + 0.9 * strength)
        case "sharpness":
            found = V.adjust_sharpness(images, 1 + 0.9 * strength)
        case "posterize":
            found = V.posterize(images, bits=8 - round(4 * strength))
        case "solarize":
            found = V.solarize(images, threshold=255 * (1 - strength))
        case "autocontrast":
            found = V.autocontrast(images)
        case "equalize":
            found = V.equalize(images)
        case _:
            raise ValueError(f"{name!r} is no operation of RandAugment; choose from {', '.join(OPERATIONS)}")
    return found
