"""What every model of a feature sequence promises; a new one is found by its file and held to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_checks as checks
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_checks import one_thread  # noqa: F401  (for every test here)
from torch import Tensor, nn

from mmray import lookup

pytestmark = pytest.mark.parametrize("name", checks.taking("feature_sequence"))

NUM_FEATURES, NUM_CLASSES = 6, 3


def build(name: str, seed: int = 0, **config: Any) -> nn.Module:
    return checks.build(name, NUM_FEATURES, NUM_CLASSES, seed=seed, **config)


def in_use(name: str, **config: Any) -> nn.Module:
    """A model in eval mode that has seen batches of features far from standardised."""
    model = build(name, **config).train()
    with torch.no_grad():
        for seed in (7, 8):
            model(frames([40, 40, 40], seed=seed), torch.tensor([40, 33, 21]))
    return model.eval()


def frames(lengths: list[int], beyond: float | None = None, longer: int = 0, seed: int = 1) -> Tensor:
    """Features (B, max of lengths + longer, D) of mean 20 and spread 100, or `beyond` behind the end of a row."""
    generator = torch.Generator().manual_seed(seed)
    x = 20 + 100 * torch.randn(len(lengths), max(lengths), NUM_FEATURES, generator=generator)
    x = F.pad(x, (0, 0, 0, longer))
    if beyond is not None:
        for row, length in zip(x, lengths, strict=True):
            row[length:] = beyond
    return x


def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    checks.check_config(name)


def test_initial_weights_depend_on_the_global_generator_alone(name: str) -> None:
    checks.check_seeded(lambda seed: build(name, seed).state_dict())


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9, 61])
@pytest.mark.parametrize("training", [False, True])
def test_any_number_of_frames_gives_logits_and_an_embedding(name: str, num_frames: int, training: bool) -> None:
    model = build(name).train(training)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    x, lengths = frames([num_frames] * 2), torch.tensor([num_frames, 1])
    logits, embedding = model(x, lengths), model.embed(x, lengths)
    assert logits.shape == (2, NUM_CLASSES)
    assert embedding.shape == (2, model.embedding_size)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(embedding).all()


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    longer=st.integers(0, 40),
    beyond=st.sampled_from([0.0, 1e30, torch.inf, torch.nan]),
)
@settings(max_examples=12, deadline=None)
def test_a_row_gives_what_it_gives_alone_whatever_lies_beyond_it(
    name: str, lengths: list[int], longer: int, beyond: float
) -> None:
    model = in_use(name)
    x = frames(lengths, beyond, longer)
    with torch.no_grad():
        together = model(x, torch.tensor(lengths))
        alone = [model(x[i : i + 1, :length], torch.tensor([length]))[0] for i, length in enumerate(lengths)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=2e-6)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_content_of_the_padding_changes_no_bit(name: str, mode: str) -> None:
    lengths = torch.tensor([20, 1, 13])
    logits = []
    for beyond in (0.0, torch.nan):
        model = getattr(in_use(name), mode)()
        torch.manual_seed(5)  # of dropout
        with torch.no_grad():
            logits.append(model(frames(lengths.tolist(), beyond, longer=9), lengths))
    assert torch.equal(*logits)


def test_training_knows_nothing_of_padding(name: str) -> None:
    """Loss, every gradient and every statistic are those of the batch without the frames that no row has."""
    lengths, labels = torch.tensor([20, 1, 13]), torch.tensor([0, 2, 1])
    trained = []
    for longer, beyond in ((0, 0.0), (23, torch.nan)):
        model = build(name, dropout=0.0)
        F.cross_entropy(model(frames(lengths.tolist(), beyond, longer), lengths), labels).backward()
        trained.append(model)
    bare, padded = trained
    for key, parameter in bare.named_parameters():
        torch.testing.assert_close(padded.get_parameter(key).grad, parameter.grad, rtol=1e-4, atol=1e-6)
    buffers = dict(bare.named_buffers())
    assert buffers
    for key, buffer in buffers.items():
        torch.testing.assert_close(padded.get_buffer(key), buffer, rtol=1e-5, atol=1e-4)


def test_scale_and_offset_of_a_feature_do_not_matter_in_training(name: str) -> None:
    """Cepstral coefficients and contrasts differ a hundredfold: the model sees to it."""
    model, lengths = build(name, dropout=0.0), torch.tensor([20, 13])
    x = frames(lengths.tolist())
    scale, offset = torch.tensor([1e-1, 1, 10, 1e2, 1e3, 2.0]), torch.tensor([0.0, 5, -300, 10, 1e3, -2])
    with torch.no_grad():
        torch.testing.assert_close(model(x * scale + offset, lengths), model(x, lengths), rtol=1e-3, atol=1e-4)


def test_a_feature_that_never_changes_is_borne(name: str) -> None:
    model, lengths = build(name), torch.tensor([20, 13])
    x = frames(lengths.tolist())
    x[..., 2] = -500.0
    x[1] = 0.0
    loss = F.cross_entropy(model(x, lengths), torch.tensor([0, 1]))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert torch.isfinite(model.eval()(x, lengths)).all()


def test_other_memory_layouts_and_types_give_the_same(name: str) -> None:
    model, lengths = in_use(name), torch.tensor([20, 13], dtype=torch.int32)
    x = frames([20, 13]).half()
    with torch.no_grad():
        expected = model(x.float(), lengths)
        torch.testing.assert_close(model(x, lengths), expected, rtol=0, atol=2e-6)
        transposed = x.float().mT.contiguous().mT
        torch.testing.assert_close(model(transposed, lengths), expected, rtol=0, atol=2e-6)


def test_state_dict_comes_back_through_safetensors(name: str, tmp_path: Path) -> None:
    x, lengths = frames([20]), torch.tensor([20])
    checks.check_round_trip(in_use(name), build(name, seed=9), lambda model: model(x, lengths), tmp_path)


def test_every_parameter_has_a_gradient(name: str) -> None:
    model, lengths = build(name), torch.tensor([20, 13])
    F.cross_entropy(model(frames(lengths.tolist()), lengths), torch.tensor([0, 1])).backward()
    checks.check_gradients(model)


def test_autocast_gives_about_the_same_and_float32(name: str) -> None:
    model, lengths = in_use(name), torch.tensor([20, 13])
    x = frames(lengths.tolist())
    with torch.autocast("cpu", torch.bfloat16):
        assert model.embed(x, lengths).dtype == torch.float32
    rounded = checks.check_autocast(model, lambda model: model(x, lengths), atol=0.02)
    assert rounded.dtype == torch.float32
    F.cross_entropy(rounded, torch.tensor([0, 1])).backward()
    checks.check_gradients(model)


def test_builds_and_runs_on_the_meta_device(name: str) -> None:
    meta = checks.check_meta(lambda: build(name))
    with torch.device("meta"):
        logits = meta(torch.empty(2, 938, NUM_FEATURES), torch.empty(2, dtype=torch.int64))
    assert logits.shape == (2, NUM_CLASSES)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_does_not_fit_is_refused(name: str) -> None:
    model, x = build(name), frames([20, 13])
    for wrong in (x[..., :5], x[0], x[:, :0]):
        with pytest.raises(ValueError, match=rf"x has shape .* needs \(B, T, {NUM_FEATURES}\)"):
            model(wrong, torch.tensor([1, 1]))
    for lengths in (torch.tensor([20]), torch.tensor([[20, 13]]), torch.tensor([20.0, 13.0])):
        with pytest.raises(ValueError, match=r"lengths is .*; x needs whole numbers, \(2,\) of them"):
            model(x, lengths)
    for lengths in (torch.tensor([20, 0]), torch.tensor([21, 13])):
        with pytest.raises(ValueError, match="each must be from 1 to the 20 frames of x"):
            model(x, lengths)
    Config = lookup.load("model", name).Config
    for sizes in ((0, 3), (6, 0)):
        with pytest.raises(ValueError, match=rf"{sizes[0]} features and {sizes[1]} classes"):
            Config().build(*sizes)
