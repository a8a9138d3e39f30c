"""What every model of a pitch map promises; a new one is found by its file and held to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_checks as checks
import pytest
import torch
from torch import Tensor, nn

from mmray import lookup
from mmray.losses import pitch_loss

pytestmark = pytest.mark.parametrize("name", checks.taking("pitch_map"))

NUM_BINS, NUM_FRAMES = 320, 9


def build(name: str, seed: int = 0, **settings: Any) -> nn.Module:
    return checks.build(name, NUM_BINS, seed=seed, **settings)


def maps(rows: int = 2, frames: int = NUM_FRAMES) -> Tensor:
    return torch.rand(rows, 3, NUM_BINS, frames, generator=torch.Generator().manual_seed(1))


def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    checks.check_config(name)


def test_initial_weights_depend_on_the_global_generator_alone(name: str) -> None:
    checks.check_seeded(lambda seed: build(name, seed).state_dict())


@pytest.mark.parametrize("frames", [1, 2, 31])
def test_logits_have_a_row_more_than_bins_and_as_many_frames(name: str, frames: int) -> None:
    model = build(name).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        logits = model(maps(2, frames))
    assert logits.shape == (2, NUM_BINS + 1, frames)
    assert torch.isfinite(logits).all()


def test_clips_do_not_depend_on_one_another(name: str) -> None:
    checks.check_rows_apart(build(name), maps(3), rtol=1e-4, atol=1e-5)


def test_no_frame_further_away_than_context_frames_bears_on_an_output(name: str) -> None:
    model = build(name).eval()
    reach = model.context_frames
    x = maps(1, 2 * reach + 3)
    changed = x.clone()
    changed[..., 0] += 1
    with torch.no_grad():
        before, after = model(x), model(changed)
    assert torch.equal(before[..., reach + 1 :], after[..., reach + 1 :])
    assert not torch.equal(before[..., reach], after[..., reach]), "context_frames is wider than it needs to be"


def test_state_dict_comes_back_through_safetensors(name: str, tmp_path: Path) -> None:
    x = maps(1)
    checks.check_round_trip(build(name), build(name, seed=9), lambda model: model(x), tmp_path)


def test_every_parameter_has_a_gradient(name: str) -> None:
    model, x = build(name), maps()
    rows = torch.randint(0, NUM_BINS + 1, (2, NUM_FRAMES), generator=torch.Generator().manual_seed(2))
    pitch_loss(model(x), rows, torch.ones_like(rows, dtype=torch.bool)).backward()
    checks.check_gradients(model)


def test_autocast_gives_about_the_same(name: str) -> None:
    x = maps(1)
    with torch.no_grad():
        checks.check_autocast(build(name).eval(), lambda model: model(x), atol=0.05)


def test_builds_on_the_meta_device(name: str) -> None:
    checks.check_meta(lambda: build(name))


def test_published_weights_of_another_model_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        lookup.load("model", name).rename_published({"conv1.weight": torch.zeros(2)})
