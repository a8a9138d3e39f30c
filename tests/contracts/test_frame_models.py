"""What every model of quantised frames promises; a new one is found by its file and held to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_checks as checks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmray import lookup
from mmray.losses import binary_cross_entropy
from mmray.models import _frames

pytestmark = pytest.mark.parametrize("name", checks.taking("frames"))
one_thread = checks.one_thread

INPUT_SIZE, NUM_CLASSES = 8, 5
LENGTHS = [9, 0, 4, 1, 13]
# What makes a model small; each one has some of them.
SMALL = {"hidden_size": 12, "num_layers": 2, "projection_size": 20, "num_frames": 6, "clusters": 3, "groups": 4}


def small(name: str, **config: Any) -> dict[str, Any]:
    return {k: v for k, v in SMALL.items() if k in lookup.load("model", name).Config.model_fields} | config


def build(name: str, seed: int = 0, **config: Any) -> nn.Module:
    """A small model with every parameter away from 0, so that none is without effect by chance."""
    model = checks.build(name, INPUT_SIZE, NUM_CLASSES, seed=seed, **small(name, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def in_use(name: str, **config: Any) -> nn.Module:
    """A model in eval mode that has seen a batch, and has statistics where it keeps some."""
    model = build(name, **config).train()
    with torch.no_grad():
        model(*batch([20, 20, 11], seed=7)[:2])
    return model.eval()


def batch(lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Frames, offsets and labels."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (sum(lengths), INPUT_SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.rand(len(lengths), NUM_CLASSES, generator=generator) < 0.4
    return frames, torch.tensor([0, *lengths]).cumsum(0), labels


def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    checks.check_config(name)


def test_initial_weights_depend_on_the_global_generator_alone(name: str) -> None:
    checks.check_seeded(lambda seed: checks.build(name, INPUT_SIZE, NUM_CLASSES, seed=seed, **small(name)).state_dict())


def test_builds_on_the_meta_device(name: str) -> None:
    Config = lookup.load("model", name).Config
    checks.check_meta(lambda: Config(**small(name)).build(INPUT_SIZE, NUM_CLASSES))
    with torch.device("meta"):
        assert sum(p.numel() for p in Config().build(1152, 4716).parameters()) > 1e6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [0], [0, 0], []], ids=str)
def test_any_number_of_rows_and_frames_gives_logits_and_an_embedding(
    name: str, lengths: list[int], training: bool
) -> None:
    model = build(name).train(training)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    frames, offsets, _ = batch(lengths)
    logits, embedding = model(frames, offsets), model.embed(frames, offsets)
    assert logits.shape == (len(lengths), NUM_CLASSES)
    assert embedding.shape == (len(lengths), model.embedding_size)
    assert logits.dtype == embedding.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert torch.isfinite(embedding).all()


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 4), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_a_row_gives_the_same_whatever_stands_beside_it(name: str, others: list[int], place: int, length: int) -> None:
    """Alone, or between rows of other lengths and other content."""
    model, (own, alone, _) = in_use(name), batch([length], seed=3)
    place = min(place, len(others))
    rows = list(batch(others, seed=4)[0].split(others))
    rows.insert(place, own)
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    with torch.no_grad():
        together = model(torch.cat(rows), offsets)
    torch.testing.assert_close(together[place], model(own, alone).detach()[0], rtol=0, atol=5e-6)


def test_a_frame_counts_in_its_own_row_and_in_no_other(name: str) -> None:
    model, (frames, offsets, _) = in_use(name), batch(LENGTHS)
    changed = frames.clone()
    changed[offsets[2] : offsets[3]] = 255 - changed[offsets[2] : offsets[3]]
    with torch.no_grad():
        before, after = model(frames, offsets), model(changed, offsets)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False, True, True]


def test_memory_is_bounded_by_blocks_of_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients rows go through block by block; with them, whole."""
    model, (frames, offsets, _) = in_use(name), batch([5, 0, 3, 30, 8, 0, 1, 1])
    whole, seen = model(frames, offsets).detach(), []
    model.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[1].tolist()))
    monkeypatch.setattr(_frames, "_BLOCK_FRAMES", 9)
    with torch.no_grad():
        torch.testing.assert_close(model(frames, offsets), whole, rtol=0, atol=5e-6)
    assert seen == [[0, 5, 5, 8], [0, 30], [0, 8, 8, 9], [0, 1]]


def test_only_training_draws_and_from_the_global_generator(name: str) -> None:
    model, (frames, offsets, _) = in_use(name, dropout=0.3), batch(LENGTHS)

    def logits(seed: int) -> Tensor:
        torch.manual_seed(seed)
        drawn: Tensor = model(frames, offsets).detach()
        return drawn

    assert torch.equal(logits(1), logits(2))
    model.train()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


@pytest.mark.parametrize("lengths", [LENGTHS, [0, 0], [1]], ids=str)
def test_every_parameter_has_a_gradient(name: str, lengths: list[int]) -> None:
    """Also where no row has a frame: processes that train together wait for every one."""
    model = build(name)
    model.loss(*batch(lengths)).backward()
    checks.check_gradients(model, nonzero=lengths == LENGTHS)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_loss_is_the_cross_entropy_of_the_logits_and_the_penalty(name: str, penalty: float) -> None:
    model, (frames, offsets, labels) = in_use(name, l2_penalty=penalty), batch(LENGTHS)
    expected = binary_cross_entropy(model(frames, offsets), labels)
    expected = expected + penalty / 2 * model.mixture.weight.square().sum()
    torch.testing.assert_close(model.loss(frames, offsets, labels), expected, rtol=1e-5, atol=1e-6)


def test_state_dict_comes_back_through_safetensors(name: str, tmp_path: Path) -> None:
    frames, offsets, _ = batch(LENGTHS)
    checks.check_round_trip(in_use(name), build(name, seed=9), lambda model: model(frames, offsets), tmp_path)


@pytest.mark.parametrize("training", [False, True])
def test_autocast_gives_about_the_same_and_float32(name: str, training: bool) -> None:
    model, (frames, offsets, labels) = in_use(name).train(training), batch(LENGTHS)
    answers = []
    for lowered in (False, True):
        model.zero_grad()
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            logits, loss = model(frames, offsets), model.loss(frames, offsets, labels)
        assert logits.dtype == loss.dtype == torch.float32
        loss.backward()
        checks.check_gradients(model)
        answers.append(logits.detach().sigmoid())
    assert (answers[0] - answers[1]).abs().max() < 0.05


def test_what_does_not_fit_is_refused(name: str) -> None:
    model, (frames, offsets, labels) = build(name), batch(LENGTHS)
    for wrong in (frames.float(), frames[:, :-1], frames[0]):
        with pytest.raises(ValueError, match=r"needed is \(N, 8\) torch\.uint8"):
            model(wrong, offsets)
    for bad in (offsets.int(), offsets[:0], offsets.unsqueeze(0)):
        with pytest.raises(ValueError, match=r"must be \(B \+ 1,\) torch\.int64"):
            model(frames, bad)
    for bad in (offsets[:-1], offsets + 1, offsets.flip(0), torch.tensor([0, 9, 4, 27])):
        with pytest.raises(ValueError, match="must ascend from 0 to the 27 frames"):
            model(frames, bad)
    with pytest.raises(ValueError, match="labels"):
        model.loss(frames, offsets, labels[:, :-1])
