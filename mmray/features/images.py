"""Image files to pixels of one size: any of the usual formats, told by content, and what is stored of them.

`decode` gives RGB as it would be seen: an EXIF rotation is applied, palettes and grey become RGB, CMYK is converted
without a colour profile, what is transparent is laid over white, 16 bits are rounded to 8, and an animation is its
first frame. Colour profiles are not applied: neither are they by the libraries whose pretrained weights are about.

JPEG and plain PNG are decoded by torchvision, everything else by Pillow, in one thread. Resizing is antialiased, on
uint8: bilinear differs from Pillow by no more than 1 level, bicubic by a few at sharp edges, where Pillow clips twice.

torch and torchvision are imported where they are first needed: listing a corpus takes neither.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field, PositiveInt, field_validator

from mmray.config import Section
from mmray.schema import Column

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 1 << 27  # more than this is an attack or a mistake: 400 MB decoded

# Signatures of formats: place, bytes, name, formats of Pillow that may read it.
_FORMATS: tuple[tuple[int, bytes, str, tuple[str, ...]], ...] = (
    (0, b"\xff\xd8\xff", "JPEG", ("JPEG", "MPO")),
    (0, b"\x89PNG\r\n\x1a\n", "PNG", ("PNG",)),
    (0, b"GIF87a", "GIF", ("GIF",)),
    (0, b"GIF89a", "GIF", ("GIF",)),
    (8, b"WEBP", "WebP", ("WEBP",)),
    (0, b"II*\0", "TIFF", ("TIFF",)),
    (0, b"MM\0*", "TIFF", ("TIFF",)),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000", ("JPEG2000",)),
    (4, b"ftypavif", "AVIF", ("AVIF",)),
    (0, b"BM", "BMP", ("BMP",)),
    *((0, b"P%d" % kind, "PNM", ("PPM",)) for kind in range(1, 7)),
)
# What else is found where images should be, so that the reason can name it.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"MATLAB", "MATLAB data"),
    (0, b"\x89HDF", "HDF5 data"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (4, b"ftyp", "HEIC or video, which is not read"),
)
_WEBS = (b"<!doctype", b"<html", b"<?xml", b"<svg")


class Settings(Section):
    """What is stored of an image."""

    size: tuple[PositiveInt, PositiveInt] = Field(
        (224, 224), description="height and width in pixels; one number: both"
    )
    resize: Literal["stretch", "crop", "pad"] = Field(
        "stretch", description="crop: the largest middle piece of that shape; pad: all of it, between black bars"
    )
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    store: Literal["uint8", "jpeg"] = Field("uint8", description="jpeg: a tenth of the bytes, decoded when read")
    jpeg_quality: int = Field(95, ge=1, le=100)

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, size: Any) -> Any:
        return (size, size) if isinstance(size, int) else size


def column(settings: Settings) -> Column:
    """The column `image`: rows of RGB pixels, or an encoded file."""
    if settings.store == "jpeg":
        return Column(name="image", dtype="bytes")
    return Column(name="image", dtype="uint8", shape=(None, settings.size[1], 3))


def identify(data: bytes) -> str:
    """The format of an image file, such as "JPEG", by its first bytes; ValueError that says what it is instead."""
    return _format(data)[0]


def _format(data: bytes) -> tuple[str, tuple[str, ...]]:
    if not data:
        raise ValueError("the file is empty")
    for place, signature, name, readers in _FORMATS:
        if data.startswith(signature, place) and (name not in ("BMP", "PNM") or _has_header(data, name)):
            return name, readers
    raise ValueError(f"not an image: {_what(data)}")


def _has_header(data: bytes, name: str) -> bool:
    """Two letters may begin anything: whether they begin a BMP (size of its header) or PNM (white space)."""
    return data[2:3].isspace() if name == "PNM" else len(data) > 17 and data[14] in (12, 40, 52, 56, 64, 108, 124)


def _what(data: bytes) -> str:
    for place, signature, name in _OTHERS:
        if data.startswith(signature, place):
            return name
    head = data[:512]
    if head.lstrip().lower().startswith(_WEBS):
        return "a web page or XML"
    if not any(head):
        return "null bytes"
    text = head.decode("utf-8", "replace").rstrip("\ufffd")  # its last letter may be cut
    if "\ufffd" not in text and all(c.isprintable() or c.isspace() for c in text):
        return f"text, beginning {text[:20]!r}"
    return f"unknown content, beginning {head[:8].hex(' ')}"


def decode(data: bytes) -> torch.Tensor:
    """The pixels of an image file: uint8 of shape (3, height, width), RGB.

    ValueError with the reason for what is no image, is damaged or truncated as far as its format lets one know, or
    has more than `MAX_PIXELS`.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_image

    name, readers = _format(data)
    if _is_plain(data, name):
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        try:
            image: torch.Tensor = decode_image(encoded, ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError as error:
            if name == "PNG":
                raise ValueError(f"damaged or truncated {name}: {error}") from None
        else:
            return image if image.dtype == torch.uint8 else _from_16_bits(image.numpy())
    return _decode_by_pillow(data, name, readers)


def _is_plain(data: bytes, name: str) -> bool:
    """Whether torchvision decodes it right; ValueError where there are too many pixels or the end is missing."""
    if name == "JPEG":
        header = _jpeg_header(data)
        if header is None:
            return False
        width, height, num_channels = header
    elif name == "PNG" and len(data) > 33:
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        if b"IEND" not in data:
            raise ValueError("damaged or truncated PNG: its end is missing")
        transparent = data[25] in (4, 6) or data.find(b"tRNS", 33, data.find(b"IDAT", 33)) >= 0
        num_channels = 4 if transparent else 3
    else:
        return False
    _check_size(width, height)
    return num_channels < 4


def _jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """Width, height and number of channels, from the frame header; None where there is none."""
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[place + 5 : place + 7], "big"), data[place + 7] << 8 | data[place + 8]
            return width, height, data[place + 9]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width:,} x {height:,} pixels are more than {MAX_PIXELS:,}; make it smaller")


def _decode_by_pillow(data: bytes, name: str, readers: tuple[str, ...]) -> torch.Tensor:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; and of sizes, which are checked here
            opened = Image.open(io.BytesIO(data), formats=readers)
            _check_size(*opened.size)
            opened.load()
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                return _from_16_bits(np.asarray(image).astype(np.int64)[None].repeat(3, axis=0))
            if image.mode == "F":
                raise ValueError("grey in floating point, whose range is unknown; store it in 8 or 16 bits")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.array(image.convert("RGB"))
    except Image.DecompressionBombError:  # a limit of its own, which is higher
        raise ValueError(f"there are more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # a decoder raises whatever its code meets in a damaged file
        message = " ".join(str(error).split())
        raise ValueError(message if type(error) is ValueError else f"damaged or truncated {name}: {message}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _from_16_bits(pixels: NDArray[Any]) -> torch.Tensor:
    """(3, H, W) from 0 to 65535, to uint8."""
    import torch

    levels = (np.clip(pixels.astype(np.int64), 0, 65535) * 255 + 32767) // 65535
    return torch.from_numpy(levels.astype(np.uint8))


def resize(image: torch.Tensor, settings: Settings) -> torch.Tensor:
    """uint8 (3, H, W) to (3, *size): stretched, cut to the shape and scaled, or scaled and padded with black."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as v2

    height, width = settings.size
    if settings.resize == "crop":
        image = _middle(image, height, width)
    inner = _within(image, height, width) if settings.resize == "pad" else (height, width)
    if tuple(image.shape[1:]) != inner:
        image = v2.resize(image, list(inner), InterpolationMode(settings.interpolation), antialias=True)
    if inner != (height, width):
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        padded = image.new_zeros(height, width, 3).permute(2, 0, 1)
        padded[:, top : top + inner[0], left : left + inner[1]] = image
        image = padded
    return image


def _middle(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The largest piece in the middle with the shape height : width, to a pixel."""
    have_height, have_width = image.shape[1:]
    cut_height = max(1, min(have_height, round(have_width * height / width)))
    cut_width = max(1, min(have_width, round(have_height * width / height)))
    top, left = (have_height - cut_height) // 2, (have_width - cut_width) // 2
    return image[:, top : top + cut_height, left : left + cut_width]


def _within(image: torch.Tensor, height: int, width: int) -> tuple[int, int]:
    """The largest size within (height, width) of the image's own shape."""
    scale = min(height / image.shape[1], width / image.shape[2])
    return max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[2]))


def read(data: bytes, settings: Settings) -> torch.Tensor:
    """The pixels of an image file at the size wanted: uint8 (3, *size). ValueError as in `decode`."""
    return resize(decode(data), settings)


def encode(image: torch.Tensor, settings: Settings) -> bytes:
    """What a row stores of an image (3, *size): its pixels row by row (H, W, 3), or a JPEG file."""
    if settings.store == "uint8":
        return image.permute(1, 2, 0).contiguous().numpy().tobytes()
    from torchvision.io import encode_jpeg

    return bytes(encode_jpeg(image.contiguous(), settings.jpeg_quality).numpy())


def decode_stored(stored: bytes | memoryview, settings: Settings) -> torch.Tensor:
    """The pixels that a row has: uint8 (3, *size), contiguous in the order height, width, channel."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(stored), dtype=torch.uint8)
    if settings.store == "uint8":
        return encoded.view(*settings.size, 3).permute(2, 0, 1)
    image: torch.Tensor = decode_jpeg(encoded, ImageReadMode.RGB)
    return image


def channel_means(image: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and mean square of each channel, (3,) each, of a uint8 image (3, H, W) taken as 0 to 1."""
    from mmray.features._channel_sums import channel_sums

    pixels = image.permute(1, 2, 0).contiguous().numpy()
    sums, squares = channel_sums(pixels).astype(np.float64)
    num_pixels = pixels.shape[0] * pixels.shape[1]
    return (sums / (255 * num_pixels)).astype(np.float32), (squares / (255**2 * num_pixels)).astype(np.float32)
