"""What every model of words promises; a new one is found by its file and held to the same."""

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

pytestmark = pytest.mark.parametrize("name", checks.taking("words"))
one_thread = checks.one_thread

VECTOR_SIZE, NUM_CLASSES, NUM_WORDS = 6, 5, 30
LENGTHS = [4, 0, 1, 11, 2]
SMALL = {"num_widths": 3, "channels": 4, "hidden_size": 7, "max_pairs": 200}  # each model has some of them


def small(name: str, **config: Any) -> dict[str, Any]:
    return {k: v for k, v in SMALL.items() if k in lookup.load("model", name).Config.model_fields} | config


def words(name: str, lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Words as the model takes them, offsets and labels."""
    random = torch.Generator().manual_seed(seed)
    numbers = torch.randint(NUM_WORDS, (sum(lengths),), generator=random)
    table = torch.randn(NUM_WORDS, VECTOR_SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.rand(len(lengths), NUM_CLASSES, generator=random) < 0.4
    x = table[numbers] if lookup.load("model", name).Config.words == "vectors" else numbers
    return x, torch.tensor([0, *lengths]).cumsum(0), labels


def trained(name: str, seed: int = 0, **config: Any) -> nn.Module:
    """A small model in eval mode that has seen rows, with no parameter at 0."""
    model = checks.build(name, VECTOR_SIZE, NUM_CLASSES, seed=seed, **small(name, **config))
    rows = [words(name, [3, 9, 0, 2, 5, 5], seed=5 + i + 10 * seed) for i in range(3)]
    if hasattr(model, "fit"):
        model.fit(rows)
        return model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        for x, offsets, _ in rows:  # where there are statistics
            model(x, offsets)
    return model.eval()


def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    checks.check_config(name)
    Config = lookup.load("model", name).Config
    assert Config.words in ("vectors", "numbers")
    assert Config().inputs == ("title_words",)


def test_builds_on_the_meta_device(name: str) -> None:
    Config = lookup.load("model", name).Config
    checks.check_meta(lambda: Config(**small(name)).build(VECTOR_SIZE, NUM_CLASSES))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [0], [0, 0, 3], []], ids=str)
def test_any_number_of_rows_and_words_gives_logits(name: str, lengths: list[int], training: bool) -> None:
    model = trained(name).train(training)
    x, offsets, labels = words(name, lengths)
    logits = model(x, offsets)
    assert logits.shape == labels.shape
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    if hasattr(model, "embed"):
        embedding = model.embed(x, offsets)
        assert embedding.shape == (len(lengths), model.embedding_size)
        assert embedding.dtype == torch.float32


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(0, 4), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_a_row_gives_the_same_whatever_stands_beside_it(name: str, others: list[int], place: int, length: int) -> None:
    model, (own, alone, _) = trained(name), words(name, [length], seed=3)
    place = min(place, len(others))
    rows = list(words(name, others, seed=4)[0].split(others))
    rows.insert(place, own)
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    with torch.no_grad():
        together = model(torch.cat(rows), offsets)
        torch.testing.assert_close(together[place], model(own, alone)[0], rtol=1e-6, atol=2e-6)


def test_every_word_counts(name: str) -> None:
    model, (x, offsets, _) = trained(name), words(name, [5])
    with torch.no_grad():
        whole = model(x, offsets)
        for left_out in range(5):
            rest = torch.cat([x[:left_out], x[left_out + 1 :]])
            assert not torch.allclose(model(rest, torch.tensor([0, 4])), whole)


def test_state_dict_comes_back_through_safetensors(name: str, tmp_path: Path) -> None:
    x, offsets, _ = words(name, LENGTHS)
    checks.check_round_trip(trained(name), trained(name, seed=1), lambda model: model(x, offsets), tmp_path)


def test_every_parameter_has_a_gradient(name: str) -> None:
    """An optimiser and a data-parallel wrapper ask for as much, also of a model that counts."""
    model, (x, offsets, labels) = trained(name).train(), words(name, LENGTHS)
    own = getattr(model, "loss", None)
    loss = own(x, offsets, labels) if own else binary_cross_entropy(model(x, offsets), labels)
    loss.backward()
    checks.check_gradients(model, nonzero=not hasattr(model, "fit"))
    torch.testing.assert_close(loss, binary_cross_entropy(model(x, offsets), labels)) if own else None


def test_what_does_not_fit_is_refused(name: str) -> None:
    model, (x, offsets, _) = trained(name), words(name, LENGTHS)
    with pytest.raises(ValueError, match=r"x (is|has shape) \(18, 3, 2\)"):
        model(torch.zeros(18, 3, 2), offsets)
    for wrong in (offsets[1:], offsets[:-1], offsets.flip(0)):
        with pytest.raises(ValueError, match="offsets must ascend from 0 to the 18 words"):
            model(x, wrong)
    with pytest.raises(ValueError, match=r"it must be \(B \+ 1,\) whole numbers"):
        model(x, offsets.float())
