"""Images: every format against Pillow or pixels known beforehand, sizes by hand, damage of every kind; near copies."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from PIL.ExifTags import Base

from mmray.features import image_hash, images
from mmray.features.images import Settings, decode, decode_stored, encode, identify, resize


def picture(height: int = 90, width: int = 120, seed: int = 0) -> Image.Image:
    """Smooth blobs of colour: like a photograph to a resampler."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def file(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(image: torch.Tensor) -> np.ndarray:
    """(H, W, 3), as Pillow has them."""
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# ---- Formats


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}], ids=str)
def test_jpeg_is_as_pillow_has_it(mode: str, options: dict[str, Any]) -> None:
    data = file(picture().convert(mode), "JPEG", **options)
    assert identify(data) == "JPEG"
    assert np.abs(pixels(decode(data)).astype(int) - by_pillow(data)).max() <= 1


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("PNG", mode) for mode in ("RGB", "L", "P", "1")),
        *(("TIFF", mode) for mode in ("RGB", "CMYK")),
        *((form, mode) for form in ("GIF", "BMP", "PPM") for mode in ("L", "RGB") if (form, mode) != ("GIF", "RGB")),
    ],
)
def test_lossless_formats_are_exact(form: str, mode: str) -> None:
    image = picture().convert(mode)
    np.testing.assert_array_equal(pixels(decode(file(image, form))), np.asarray(image.convert("RGB")))


def test_webp_is_as_pillow_has_it() -> None:
    np.testing.assert_array_equal(pixels(decode(data := file(picture(), "WEBP"))), by_pillow(data))
    assert identify(data) == "WebP"


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_is_white(form: str) -> None:
    color = np.array([[[200, 40, 0]] * 3], np.uint8)
    alpha = np.array([[[255], [0], [102]]], np.uint8)
    image = Image.fromarray(np.concatenate([color, alpha], axis=2), "RGBA")
    found = pixels(decode(file(image, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))))
    # 0.4 of the colour, 0.6 of white
    np.testing.assert_allclose(found[0], [[200, 40, 0], [255, 255, 255], [233, 169, 153]], atol=1)


def test_transparent_palettes_and_greys_are_white_too() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putdata([0, 1])
    for form in ("PNG", "GIF"):
        assert pixels(decode(file(palette, form, transparency=0))).tolist() == [[[255] * 3, [10, 20, 30]]]
    grey = Image.fromarray(np.array([[[7, 0], [7, 255]]], np.uint8), "LA")
    assert pixels(decode(file(grey, "PNG"))).tolist() == [[[255] * 3, [7] * 3]]
    keyed = file(Image.fromarray(np.array([[5, 6]], np.uint8)), "PNG", transparency=5)  # one grey stands for none
    assert pixels(decode(keyed)).tolist() == [[[255] * 3, [6] * 3]]


def test_sixteen_bits_are_rounded_to_eight() -> None:
    values = np.array([[0, 128, 129, 257, 32767, 32768, 65406, 65407, 65535]], np.uint16)
    expected = np.rint(values[0] / 257).astype(int)
    for form in ("PNG", "TIFF"):
        assert pixels(decode(file(Image.fromarray(values), form)))[0, :, 0].tolist() == expected.tolist()
    # RGB, which Pillow does not write: by hand
    rows = np.stack([values, values[:, ::-1], values // 2], axis=2).astype(">u2")
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 9, 1, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + rows.tobytes())),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in [*chunks, (b"IEND", b"")]
    )
    np.testing.assert_array_equal(pixels(decode(data)), np.rint(rows.astype(float) / 257))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotations_are_applied(form: str) -> None:
    """Written turned as each of the eight tells to undo: all are seen as the same upright picture."""
    upright = np.asarray(picture(16, 24))
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }  # fmt: skip
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[Base.Orientation] = orientation
        lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
        found = pixels(decode(file(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **lossless)))
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).max() <= (6 if form == "JPEG" else 0), orientation


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = file(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert pixels(decode(data))[0, 0].tolist() == [255, 0, 0]


# ---- What is no image


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (bytes(3000), "not an image: null bytes"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "not an image: MATLAB data"),
        (b"Images by their owners.\n" * 99, "not an image: text, beginning 'Images by their owne'"),
        ("Größe und Länge".encode(), "not an image: text"),
        (b" <!DOCTYPE html><html>404", "not an image: a web page or XML"),
        (b"%PDF-1.7", "not an image: a PDF"),
        (b"\0\0\0\x18ftypheic", "not an image: HEIC or video"),
        (b"BM and not a bitmap at all", "not an image: text"),
        (b"P5x", "not an image: text"),
        (b"\x01\xfe\x02\xfd" * 9, "not an image: unknown content, beginning 01 fe 02 fd"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff", "truncated"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_truncated_files_are_refused(form: str, share: float) -> None:
    data = file(picture(), form)
    with pytest.raises(ValueError, match=r"truncated|empty"):
        decode(data[: int(share * len(data))])


@given(
    place=st.floats(0, 1, exclude_max=True),
    change=st.binary(min_size=1, max_size=40),
    form=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]),
)
@settings(max_examples=150, deadline=None)
def test_damage_gives_pixels_or_a_reason(place: float, change: bytes, form: str) -> None:
    data = bytearray(file(picture(20, 30), form))
    start = int(place * len(data))
    data[start : start + len(change)] = change
    try:
        image = decode(bytes(data))
    except ValueError as error:
        assert str(error)  # noqa: PT017
    else:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    for form, place, size in (("PNG", 16, ">II"), ("BMP", 18, "<ii")):
        data = bytearray(file(Image.new("RGB", (8, 8)), form))
        struct.pack_into(size, data, place, 60_000, 60_000)
        with pytest.raises(ValueError, match="more than 134,217,728"):
            decode(bytes(data))
    data = bytearray(file(Image.new("RGB", (8, 8)), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 60_000, 60_000)
    with pytest.raises(ValueError, match="60,000 x 60,000 pixels"):
        decode(bytes(data))
    with pytest.raises(ValueError, match="floating point"):
        decode(file(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


# ---- Sizes


@pytest.mark.parametrize("size", [(224, 224), (64, 48), (150, 200)])
@pytest.mark.parametrize(
    ("name", "filter", "most"), [("bilinear", Image.Resampling.BILINEAR, 1), ("bicubic", Image.Resampling.BICUBIC, 4)]
)
def test_resizing_is_as_pillow_does_it(size: tuple[int, int], name: str, filter: int, most: int) -> None:
    for height, width in ((300, 300), (375, 500), (40, 30)):
        data = file(picture(height, width), "JPEG", quality=95)
        found = pixels(images.read(data, Settings(size=size, interpolation=name))).astype(int)
        expected = np.asarray(Image.open(io.BytesIO(data)).resize(size[::-1], filter))
        assert np.abs(found - expected).max() <= most
        assert np.abs(found - expected).mean() < 0.3


def ramp(height: int, width: int) -> torch.Tensor:
    """Row number in red, column number in green."""
    rows, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, across, torch.full_like(rows, 9)]).to(torch.uint8)


@pytest.mark.parametrize(
    ("shape", "size", "rows", "across"),
    [
        ((100, 200), (50, 50), (0, 100), (50, 150)),
        ((200, 100), (50, 50), (50, 150), (0, 100)),
        ((90, 160), (30, 40), (0, 90), (20, 140)),
        ((100, 100), (25, 50), (25, 75), (0, 100)),
    ],
)
def test_crop_takes_the_middle(shape: tuple[int, int], size: tuple[int, int], rows: Any, across: Any) -> None:
    image = ramp(*shape)
    cut = image[:, slice(*rows), slice(*across)]
    found = resize(image, Settings(size=size, resize="crop"))
    assert torch.equal(found, resize(cut, Settings(size=size)))
    assert found.shape == (3, *size)


def test_pad_keeps_all_of_it_between_black_bars() -> None:
    found = resize(ramp(100, 200), Settings(size=(60, 60), resize="pad"))
    assert torch.equal(found[:, 15:45], resize(ramp(100, 200), Settings(size=(30, 60))))
    assert not found[:, :15].any()
    assert not found[:, 45:].any()


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (32, 32), (7, 3)])
def test_any_shape_comes_to_the_size(how: str, shape: tuple[int, int]) -> None:
    found = resize(ramp(*shape), Settings(size=32, resize=how))
    assert found.shape == (3, 32, 32)
    assert found.dtype == torch.uint8
    if shape == (32, 32):
        assert torch.equal(found, ramp(32, 32))


def test_settings() -> None:
    assert Settings(size=64).size == (64, 64)
    for wrong in ({"size": 0}, {"size": [3]}, {"resize": "squash"}, {"jpeg_quality": 101}, {"sise": 3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)


# ---- What is stored


def test_pixels_are_stored_row_by_row() -> None:
    image = ramp(4, 5)
    settings = Settings(size=(4, 5))
    stored = encode(image, settings)
    np.testing.assert_array_equal(np.frombuffer(stored, np.uint8).reshape(4, 5, 3), pixels(image))
    assert torch.equal(decode_stored(stored, settings), image)
    assert images.column(settings).shape == (None, 5, 3)


def test_a_jpeg_is_stored_nearly() -> None:
    settings = Settings(size=(90, 120), store="jpeg", jpeg_quality=95)
    image = decode(file(picture(), "PNG"))
    stored = encode(image, settings)
    assert len(stored) < 90 * 120
    np.testing.assert_array_equal(pixels(decode_stored(stored, settings)), by_pillow(stored))
    assert np.abs(by_pillow(stored).astype(int) - pixels(image)).mean() < 2
    assert images.column(settings).dtype == "bytes"


def test_channel_means_are_exact() -> None:
    image = decode(file(picture(37, 53), "PNG"))
    mean, mean_square = images.channel_means(image)
    scaled = image.numpy().astype(np.float64) / 255
    np.testing.assert_array_equal(mean, scaled.mean((1, 2)).astype(np.float32))
    np.testing.assert_allclose(mean_square, (scaled**2).mean((1, 2)), rtol=1e-7)
    white = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    assert [values.tolist() for values in images.channel_means(white)] == [[1, 1, 1]] * 2


# ---- Near copies


def drawing(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = picture(300, 300, seed)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, 240, 2)
        draw.rectangle([x, y, x + rng.integers(20, 120), y + rng.integers(20, 120)], tuple(rng.integers(0, 256, 3)))
    return image


def bits_apart(one: int | None, other: int | None) -> int:
    assert one is not None
    assert other is not None
    return (one ^ other).bit_count()


def test_copies_are_near_and_others_are_far() -> None:
    originals = [drawing(seed) for seed in range(30)]
    words = [image_hash.perceptual_hash(file(image, "PNG")) for image in originals]
    for image, word in zip(originals, words, strict=True):
        assert bits_apart(word, image_hash.perceptual_hash(file(image, "JPEG", quality=60))) <= 6
        smaller = image.resize((190, 170), Image.Resampling.BICUBIC)
        assert bits_apart(word, image_hash.perceptual_hash(file(smaller, "JPEG"))) <= 6
        exif = Image.Exif()
        exif[Base.Orientation] = 6
        turned = image.transpose(Image.Transpose.ROTATE_90)
        assert bits_apart(word, image_hash.perceptual_hash(file(turned, "JPEG", exif=exif))) <= 6
        assert bits_apart(word, image_hash.perceptual_hash(file(turned, "JPEG"))) > 10
    assert min(bits_apart(one, other) for one, other in itertools.combinations(words, 2)) > 10


def test_what_has_no_structure_has_no_hash() -> None:
    for colour in ("black", "white", "red"):
        assert image_hash.perceptual_hash(file(Image.new("RGB", (300, 300), colour), "JPEG")) is None
    assert image_hash.perceptual_hash(b"no image") is None


@given(data=st.data(), max_bits=st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_near_pairs_are_those_of_all_pairs(data: st.DataObject, max_bits: int) -> None:
    seeds = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=0, max_size=8))
    words = [
        seed ^ sum(1 << bit for bit in data.draw(st.sets(st.integers(0, 63), max_size=8)))
        for seed in seeds
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    found = {tuple(pair) for pair in image_hash.near_pairs(np.array(words, np.uint64), max_bits).tolist()}
    near = {
        (i, j) for (i, one), (j, other) in itertools.combinations(enumerate(words), 2)
        if (one ^ other).bit_count() <= max_bits
    }  # fmt: skip
    assert found <= near
    # Among equal words only neighbours are paired, which connects the same ones.
    assert components(len(words), found) == components(len(words), near)


def components(num: int, pairs: set[tuple[int, int]]) -> list[int]:
    label = list(range(num))
    for _ in range(num):
        for i, j in pairs:
            label[i] = label[j] = min(label[i], label[j])
    return label


def test_too_many_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="max_bits=11"):
        image_hash.near_pairs(np.zeros(2, np.uint64), 11)


def test_real_covers_are_as_pillow_has_them(real_data: Path) -> None:
    paths = sorted(real_data.glob("album_covers/*/*"))[::40] + sorted(real_data.glob("oxford_pets/images/*.jpg"))[::20]
    for path in paths:
        found = pixels(images.read(path.read_bytes(), Settings())).astype(int)
        expected = np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
        assert np.abs(found - expected).max() <= 2
