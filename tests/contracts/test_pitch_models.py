"""What every model of a pitch map promises; a new one is found by its file and held to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmray import lookup
from mmray.losses import pitch_loss

NAMES = [name for name in lookup.names("model") if lookup.load("model", name).Config.takes == "pitch_map"]
pytestmark = pytest.mark.parametrize("name", NAMES)

NUM_BINS, NUM_FRAMES = 320, 9


def build(name: str, seed: int = 0, **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = lookup.load("model", name).Config(**settings).build(NUM_BINS)
    return model


def maps(rows: int = 2, frames: int = NUM_FRAMES) -> Tensor:
    return torch.rand(rows, 3, NUM_BINS, frames, generator=torch.Generator().manual_seed(1))


def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    Config = lookup.load("model", name).Config
    assert Config().name == name
    with pytest.raises(ValidationError, match="name"):
        Config(name="another")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Config(no_such_key=1)
    with pytest.raises(ValidationError, match="frozen"):
        Config().name = name


def test_initial_weights_depend_on_the_global_generator_alone(name: str) -> None:
    first, again, other = (build(name, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("frames", [1, 2, 31])
def test_logits_have_a_row_more_than_bins_and_as_many_frames(name: str, frames: int) -> None:
    model = build(name).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        logits = model(maps(2, frames))
    assert logits.shape == (2, NUM_BINS + 1, frames)
    assert torch.isfinite(logits).all()


def test_clips_do_not_depend_on_one_another(name: str) -> None:
    model, x = build(name).eval(), maps(3)
    with torch.no_grad():
        together = model(x)
        for clip in range(3):
            torch.testing.assert_close(model(x[clip : clip + 1])[0], together[clip], rtol=1e-4, atol=1e-5)


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
    model, other, x = build(name).eval(), build(name, seed=9).eval(), maps(1)
    path = tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    with torch.no_grad():
        assert not torch.equal(model(x), other(x))
        other.load_state_dict(load_file(path))
        assert torch.equal(model(x), other(x))


def test_every_parameter_has_a_gradient(name: str) -> None:
    model, x = build(name), maps()
    rows = torch.randint(0, NUM_BINS + 1, (2, NUM_FRAMES), generator=torch.Generator().manual_seed(2))
    pitch_loss(model(x), rows, torch.ones_like(rows, dtype=torch.bool)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_autocast_gives_about_the_same(name: str) -> None:
    model, x = build(name).eval(), maps(1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = model(x).float().softmax(1)
    with torch.no_grad():
        exact = model(x).softmax(1)
    assert (rounded - exact).abs().max() < 0.05


def test_builds_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        meta = build(name)
    assert all(p.is_meta for p in meta.parameters())
    assert {k: v.shape for k, v in meta.state_dict().items()} == {
        k: v.shape for k, v in build(name).state_dict().items()
    }


def test_published_weights_of_another_model_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"conv1\.weight"):
        lookup.load("model", name).rename_published({"conv1.weight": torch.zeros(2)})
