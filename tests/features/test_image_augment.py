"""Changed images: geometry against Keras's own formulas by scipy, colours and RandAugment against torchvision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from mmray.features import _rand_augment, image_augment
from mmray.features.image_augment import Settings, augment, cutmix, draw, mixup, seeds_of

SIZE = (24, 36)
EVERYTHING: dict[str, Any] = {
    "rotation_degrees": 30, "shift": [0.2, 0.1], "shear_degrees": 12, "zoom": 0.2, "horizontal_flip": True,
    "vertical_flip": True, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1, "rand_augment": {},
    "random_erasing": {"probability": 0.5}, "random_resized_crop": {},
}  # fmt: skip


def images(num: int = 3, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    """Smooth pictures, so that a bilinear sample says something of its place."""
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=(num, *size, 3)), (0, 2.5, 2.5, 0))
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return torch.from_numpy((255 * noise).round().astype(np.uint8))


def changed(x: torch.Tensor, of: Settings, ids: str = "abcdefgh", epoch: int = 0, size: Any = None) -> torch.Tensor:
    size = size or tuple(x.shape[1:3])
    drawn = draw(of, seeds_of(7, ids[: len(x)], epoch), (x.shape[1], x.shape[2]), size)
    return augment(x, drawn, of, size)


def floats(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2).float() / 255


# ---- What all changes have in common


def test_settings_of_zero_change_nothing() -> None:
    x = images()
    assert not Settings().changes
    assert not Settings(fill="reflect").changes
    assert torch.equal(changed(x, Settings()), floats(x))


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_setting_is_a_change(name: str) -> None:
    of = Settings(**{name: EVERYTHING[name]})
    x = images(8)
    assert of.changes
    assert not torch.equal(changed(x, of), floats(x))


@pytest.mark.parametrize("of", [Settings(**EVERYTHING), *(Settings(**{n: v}) for n, v in EVERYTHING.items())], ids=str)
def test_a_row_is_changed_by_its_seed_alone(of: Settings) -> None:
    """The same again; the same in another batch; not the same in another epoch, run or row."""
    x, ids = images(8), "abcdefgh"
    whole = changed(x, of)
    assert torch.equal(whole, changed(x, of))
    mixed = [5, 0, 3]
    torch.testing.assert_close(changed(x[mixed], of, "".join(ids[i] for i in mixed)), whole[mixed], rtol=0, atol=1e-6)
    assert not torch.equal(whole, changed(x, of, epoch=1))
    assert whole.dtype == torch.float32
    assert whole.shape == (8, 3, *SIZE)
    assert whole.min() >= 0
    assert whole.max() <= 1 + 1e-6


def test_seeds_are_of_run_row_and_epoch() -> None:
    """The same on every machine: `b2sum -l 64` of `run:epoch:id`, its first byte the lowest."""
    found = {int(s) for run in (0, 1) for epoch in (0, 1) for s in seeds_of(run, ["a", "b"], epoch)}
    assert len(found) == 8
    assert seeds_of(3, ["cat/1.jpg"], 12).tolist() == [7787357272833550669]


def test_a_setting_changes_nothing_of_what_others_draw() -> None:
    few = draw(Settings(brightness=0.2, rotation_degrees=20), seeds_of(0, "abc", 0), SIZE, SIZE)
    many = draw(
        Settings(brightness=0.2, rotation_degrees=20, hue=0.1, rand_augment={}), seeds_of(0, "abc", 0), SIZE, SIZE
    )
    assert torch.equal(few["map"], many["map"])
    assert torch.equal(few["colour"][:, :3], many["colour"][:, :3])


def test_draws_are_uniform_and_independent() -> None:
    seeds = seeds_of(0, [str(i) for i in range(20_000)], 0)
    drawn = draw(Settings(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5), seeds, SIZE, SIZE)["colour"].numpy()
    shares = drawn - [0.5, 0.5, 0.5, -0.5]
    for column in shares.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(shares.T) - np.eye(4)).max() < 0.03


# ---- Geometry


def keras_transform(
    image: NDArray[np.float64], theta: float, down: float, right: float, shear: float, zx: float, zy: float, mode: str
) -> NDArray[np.float64]:
    """One image (H, W, 3) as `keras.preprocessing.image.apply_affine_transform` does it: rows first, then columns."""
    theta, shear = math.radians(theta), math.radians(shear)
    rotation = np.array([[math.cos(theta), -math.sin(theta), 0], [math.sin(theta), math.cos(theta), 0], [0, 0, 1]])
    shift = np.array([[1, 0, down], [0, 1, right], [0, 0, 1]])
    lean = np.array([[1, -math.sin(shear), 0], [0, math.cos(shear), 0], [0, 0, 1]])
    zoom = np.diag([zx, zy, 1])
    centre = (np.array(image.shape[:2]) - 1) / 2
    to_centre, back = np.eye(3), np.eye(3)
    to_centre[:2, 2], back[:2, 2] = centre, -centre
    matrix = to_centre @ rotation @ shift @ lean @ zoom @ back
    return np.stack(
        [
            scipy.ndimage.affine_transform(image[..., c], matrix[:2, :2], matrix[:2, 2], order=1, mode=mode)
            for c in range(3)
        ]
    )


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-60, 60), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3), st.floats(-40, 40), st.floats(0.6, 1.5),
    st.floats(0.6, 1.5), st.sampled_from(["nearest", "reflect"]),
)  # fmt: skip
def test_geometry_is_keras_s(
    theta: float, down: float, right: float, shear: float, zx: float, zy: float, fill: str
) -> None:
    """Of drawn numbers put in place of the ranges, so that they are known."""
    x = images(1)

    class Given(image_augment._Uniform):
        def between(self, name: str, low: float, high: float) -> Any:
            values = {
                "rotation": theta, "shear": shear, "shift y": down, "shift x": right, "zoom y": zx, "zoom x": zy,
            }  # fmt: skip
            return np.array([values[name]])

    of = Settings(rotation_degrees=1, fill=fill)
    maps = image_augment._map(of, Given(np.zeros(1, np.int64)), SIZE, SIZE)
    drawn = {"map": torch.from_numpy(maps), "colour": torch.ones(1, 4)}
    expected = keras_transform(
        x[0].numpy().astype(np.float64), theta, down * SIZE[0], right * SIZE[1], shear, zx, zy, fill
    )
    np.testing.assert_allclose(255 * augment(x, drawn, of, SIZE)[0], expected, atol=0.02)


def test_ranges_are_keras_s() -> None:
    """Each number lies within its range, and comes near both its ends."""
    ids = [str(i) for i in range(4000)]
    of = Settings(rotation_degrees=30, shift=(0.25, 0.1), shear_degrees=0, zoom=0)
    maps = draw(of, seeds_of(0, ids, 0), (100, 100), (100, 100))["map"].numpy()
    degrees = np.degrees(np.arctan2(maps[:, 0, 1], maps[:, 0, 0]))
    assert -30 <= degrees.min() < -29.9
    assert 29.9 < degrees.max() <= 30
    of = Settings(shift=(0.25, 0.1), zoom=0)
    offsets = draw(of, seeds_of(0, ids, 0), (100, 200), (100, 200))["map"].numpy()[:, :2, 2]
    assert np.abs(offsets).max(0) == pytest.approx([20, 25], rel=0.01)
    zooms = draw(Settings(zoom=0.2), seeds_of(0, ids, 0), SIZE, SIZE)["map"].numpy()
    assert zooms[:, 0, 0].min() == pytest.approx(0.8, abs=0.002)
    assert zooms[:, 1, 1].max() == pytest.approx(1.2, abs=0.002)
    assert abs(np.corrcoef(zooms[:, 0, 0], zooms[:, 1, 1])[0, 1]) < 0.06


def test_rotation_is_torchvision_s_in_the_interior() -> None:
    x = images(1, (41, 41))
    of = Settings(rotation_degrees=30)
    drawn = draw(of, seeds_of(0, "a", 0), (41, 41), (41, 41))
    maps = drawn["map"][0]
    degrees = math.degrees(math.atan2(maps[0, 1], maps[0, 0]))
    expected = V.rotate(floats(x), -degrees, V.InterpolationMode.BILINEAR)
    found = augment(x, drawn, of, (41, 41))
    torch.testing.assert_close(found[:, :, 12:-12, 12:-12], expected[:, :, 12:-12, 12:-12], rtol=0, atol=1e-4)
    assert abs(degrees) > 3


def test_flips_are_exact_and_every_second() -> None:
    x = images(8)
    for of, axis in ((Settings(horizontal_flip=True), 2), (Settings(vertical_flip=True), 1)):
        flipped = [torch.equal(row, floats(x.flip(axis))[i]) for i, row in enumerate(changed(x, of))]
        kept = [torch.equal(row, floats(x)[i]) for i, row in enumerate(changed(x, of))]
        assert all(a != b for a, b in zip(flipped, kept, strict=True))
        assert 0 < sum(flipped) < 8
    with_geometry = Settings(horizontal_flip=True, rotation_degrees=1e-9)
    torch.testing.assert_close(changed(x, with_geometry), changed(x, Settings(horizontal_flip=True)), rtol=0, atol=1e-4)


def test_crops_are_pieces_of_the_image_anywhere_in_it() -> None:
    x = images(1, (7, 9))
    places = set()
    for epoch in range(400):
        found = (255 * changed(x, Settings(), epoch=epoch, size=(5, 6))[0]).round()
        for top in range(3):
            for left in range(4):
                if torch.equal(found, x[0, top : top + 5, left : left + 6].permute(2, 0, 1).float()):
                    places.add((top, left))
    assert len(places) == 12
    with pytest.raises(ValueError, match="a crop of 8 x 6 does not fit into images of 7 x 9"):
        changed(x, Settings(), size=(8, 6))


def test_resized_crop_is_torchvision_s_crop_and_resize() -> None:
    """Of known boxes: a crop of whole pixels, stretched without antialiasing as it only grows."""
    x = images(6, (32, 48))
    of = Settings(random_resized_crop={"area": [0.2, 0.6]}, fill="nearest")
    drawn = draw(of, seeds_of(1, "abcdef", 0), (32, 48), (32, 48))
    found = augment(x, drawn, of, (32, 48))
    for row, maps in enumerate(drawn["map"].numpy()):
        height, width = 32 * maps[1, 1], 48 * maps[0, 0]
        left, top = maps[0, 2] - (maps[0, 0] - 1) / 2, maps[1, 2] - (maps[1, 1] - 1) / 2
        assert 0.2 * 32 * 48 * 0.999 <= height * width <= 0.6 * 32 * 48 * 1.001
        assert 3 / 4 * 0.999 <= width / height <= 4 / 3 * 1.001
        assert 0 <= left <= 48 - width
        assert 0 <= top <= 32 - height
        y = (np.arange(32) + 0.5) * height / 32 + top - 0.5
        columns = (np.arange(48) + 0.5) * width / 48 + left - 0.5
        expected = [
            scipy.ndimage.map_coordinates(
                x[row, ..., c].double().numpy(), np.meshgrid(y, columns, indexing="ij"), order=1, mode="nearest"
            )
            for c in range(3)
        ]
        np.testing.assert_allclose(255 * found[row], expected, atol=0.02)


# ---- Colours


@pytest.mark.parametrize(
    ("name", "adjust"),
    [
        ("brightness", V.adjust_brightness),
        ("contrast", V.adjust_contrast),
        ("saturation", V.adjust_saturation),
        ("hue", V.adjust_hue),
    ],
)
def test_colours_are_torchvision_s(name: str, adjust: Any) -> None:
    x = torch.cat([images(6), torch.zeros(1, *SIZE, 3, dtype=torch.uint8), torch.full((1, *SIZE, 3), 255).byte()])
    of = Settings(**{name: 0.4})
    factors = draw(of, seeds_of(7, "abcdefgh", 0), SIZE, SIZE)["colour"][
        :, ("brightness", "contrast", "saturation", "hue").index(name)
    ]
    expected = torch.stack([adjust(row, float(f)) for row, f in zip(floats(x), factors, strict=True)])
    torch.testing.assert_close(changed(x, of), expected, rtol=0, atol=2e-6)
    middle = 0 if name == "hue" else 1
    assert float((factors - middle).abs().max()) > 0.2


@pytest.mark.parametrize("name", _rand_augment.OPERATIONS)
def test_operations_are_those_of_rand_augment(name: str) -> None:
    """At three strengths in both directions, against torchvision's own transform and its table of strengths."""
    x = images(4).permute(0, 3, 1, 2).contiguous()
    peer = v2.RandAugment()
    transform = "".join(part.capitalize() for part in name.split("_")).replace("Autocontrast", "AutoContrast")
    magnitudes, signed = peer._AUGMENTATION_SPACE[transform]
    assert signed == (name not in (*_rand_augment._ONE_WAY, "identity"))
    table = magnitudes(_rand_augment.MAX_MAGNITUDE + 1, *SIZE)
    for strength in (0, 9, 30):
        for sign in (1, -1) if signed else (1,):
            value = 0.0 if table is None else sign * float(table[strength])
            expected = peer._apply_image_or_video_transform(
                x, transform, value, interpolation=V.InterpolationMode.NEAREST, fill={}
            )
            code = 2 * _rand_augment.OPERATIONS.index(name) + (sign < 0)
            found = _rand_augment.rand_augmented(x, torch.tensor([[code]]).expand(4, 1), strength)
            levels = (found.int() - expected.int()).abs()
            assert levels.max() <= 1, strength  # torchvision's strengths are rounded to float32
            assert (levels > 0).float().mean() < 0.01, strength


def test_rand_augment_does_each_row_s_operations_in_turn() -> None:
    x = images(5).permute(0, 3, 1, 2).contiguous()
    codes = torch.tensor([[5, 20], [20, 5], [0, 1], [26, 27], [5, 5]])
    found = _rand_augment.rand_augmented(x, codes, 12)
    for row, of_row in enumerate(codes.tolist()):
        one = x[row : row + 1]
        for code in of_row:
            one = _rand_augment.rand_augmented(one, torch.tensor([[code]]), 12)
        assert torch.equal(found[row], one[0])
    assert torch.equal(found[2], x[2])


def test_erasing_hides_a_rectangle_of_the_right_area() -> None:
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    of = Settings(random_erasing={"probability": 1, "area": [0.1, 0.3], "aspect": [0.5, 2]})
    for before, after in zip(floats(x), changed(x, of), strict=True):
        hidden = (before != after).any(0)
        rows, columns = hidden.any(1).nonzero()[:, 0], hidden.any(0).nonzero()[:, 0]
        assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0.09 < hidden.float().mean() < 0.31
        assert 0.45 < len(rows) / len(columns) < 2.1
        mean = before.mean((1, 2))
        torch.testing.assert_close(after[:, hidden], mean[:, None].expand(-1, int(hidden.sum())), rtol=0, atol=1e-6)
    never = Settings(random_erasing={"probability": 0})
    assert torch.equal(changed(x, never), floats(x))


# ---- Mixtures


def test_mixup_blends_images_and_shares_alike() -> None:
    x = torch.rand(16, 3, 5, 5)
    shares = torch.eye(16)
    torch.manual_seed(0)
    mixed, of_classes = mixup(x, shares, 0.4)
    torch.testing.assert_close(of_classes.sum(1), torch.ones(16))
    torch.testing.assert_close(mixed, torch.einsum("bk,kchw->bchw", of_classes, x))
    assert ((of_classes > 0).sum(1) <= 2).all()
    torch.manual_seed(0)
    assert torch.equal(mixup(x, shares, 0.4)[0], mixed)


def test_cutmix_shares_are_the_areas() -> None:
    """Every image is of one colour of its own, so the share of each in a mixture can be counted."""
    x = torch.arange(12.0)[:, None, None, None].expand(12, 3, 16, 20).contiguous()
    torch.manual_seed(1)
    mixed, of_classes = cutmix(x, torch.eye(12), 1.0)
    counted = torch.stack([(mixed[:, 0] == k).float().mean((1, 2)) for k in range(12)], 1)
    torch.testing.assert_close(of_classes, counted)
    assert ((counted > 0).sum(1) == 2).any()
    torch.manual_seed(1)
    assert torch.equal(cutmix(x, torch.eye(12), 1.0)[0], mixed)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"zoom": 1}, "less than 1"),
        ({"hue": 0.6}, "less than or equal to 0.5"),
        ({"random_erasing": {"area": [0.5, 0.1]}}, r"\[0.5, 0.1\] is not \[lowest, highest\]"),
        ({"random_resized_crop": {"aspect": [2, 1]}}, r"\[2, 1\] is not"),
        ({"rand_augment": {"magnitude": 31}}, "less than or equal to 30"),
        ({"fill": "mirror"}, "'nearest', 'reflect' or 'constant'"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings(**values)
