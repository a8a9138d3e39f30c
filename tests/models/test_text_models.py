"""The models of text: convolutions against PyTorch's over padded titles, the unigram model against its formula."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmray.models import mlp, text_cnn, unigram


def padded_maxima(model: text_cnn.WordConvolutions, title: Tensor) -> Tensor:
    """By `conv1d`: one title, zeros behind it, the maxima over windows that begin with a word of it."""
    maxima = []
    for width, linear in enumerate(model.filters, 1):
        kernel = linear.weight.view(-1, width, title.shape[1]).transpose(1, 2)
        if not len(title):
            maxima.append(torch.zeros(len(linear.bias)))
            continue
        answers = F.conv1d(F.pad(title.T, (0, width - 1)).unsqueeze(0), kernel, linear.bias)
        maxima.append(answers[0].amax(1))
    return torch.cat(maxima)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_convolutions_are_those_over_padded_titles(lengths: list[int], num_widths: int) -> None:
    torch.manual_seed(0)
    model = text_cnn.WordConvolutions(5, num_widths, channels=4)
    x, offsets = torch.randn(sum(lengths), 5), torch.tensor([0, *lengths]).cumsum(0)
    expected = torch.stack([padded_maxima(model, title) for title in x.split(lengths)])
    torch.testing.assert_close(model(x, offsets), expected, rtol=1e-5, atol=1e-6)


def test_the_paper_sizes() -> None:
    """4,096 numbers from eight widths of 512 filters, 4,096 hidden units."""
    with torch.device("meta"):
        model = text_cnn.Config().build(300, 4716)
    assert model.hidden.in_features == model.hidden.out_features == model.embedding_size == 4096
    assert [f.in_features for f in model.convolutions.filters] == [300 * width for width in range(1, 9)]


def test_a_title_without_words_is_nothing_and_changes_nothing() -> None:
    torch.manual_seed(0)
    model = text_cnn.Config(num_widths=2, channels=3, hidden_size=4, dropout=0).build(5, 2).train()
    x = torch.randn(7, 5)
    with_gap = model.embed(x, torch.tensor([0, 3, 3, 7]))
    mean = model.norm.running_mean.clone()
    model.norm.reset_running_stats()
    without = model.embed(x, torch.tensor([0, 3, 7]))
    torch.testing.assert_close(with_gap, torch.stack([without[0], torch.zeros(4), without[1]]))
    torch.testing.assert_close(model.norm.running_mean, mean)
    logits = model(x[:0], torch.tensor([0, 0]))
    torch.testing.assert_close(logits[0], model.classifier.bias)


def test_hidden_layer_is_batch_norm_then_relu() -> None:
    torch.manual_seed(0)
    model = text_cnn.Config(num_widths=2, channels=3, hidden_size=4, dropout=0.9).build(5, 2).eval()
    model.norm.running_mean.uniform_()
    model.norm.running_var.uniform_(0.5, 2)
    x, offsets = torch.randn(6, 5), torch.tensor([0, 2, 6])
    hidden = model.convolutions(x, offsets) @ model.hidden.weight.T + model.hidden.bias
    normed = (hidden - model.norm.running_mean) / (model.norm.running_var + model.norm.eps).sqrt()
    torch.testing.assert_close(model.embed(x, offsets), normed.clamp(min=0))


def test_the_order_of_words_matters() -> None:
    torch.manual_seed(0)
    model = text_cnn.Config(num_widths=3, channels=4, hidden_size=4).build(5, 2).eval()
    x, offsets = torch.randn(6, 5), torch.tensor([0, 6])
    assert not torch.allclose(model(x, offsets), model(x.flip(0), offsets))


def test_mlp_is_two_dense_layers() -> None:
    torch.manual_seed(0)
    model, x = mlp.Config(hidden_size=3).build(4, 2), torch.randn(5, 4)
    hidden = (x @ model.hidden.weight.T + model.hidden.bias).clamp(min=0)
    torch.testing.assert_close(model.embed(x), hidden)
    torch.testing.assert_close(model(x), hidden @ model.classifier.weight.T + model.classifier.bias)


# A tiny corpus: (words, labels) of the training videos. Word 7 stands in no title; label 3 has no video.
CORPUS = [([0, 1], [0]), ([0, 0, 2], [0, 1]), ([], [2]), ([3], []), ([2, 3], [1]), ([1], [1, 2])]
NUM_LABELS, ALPHA = 4, 0.001


def by_hand(title: list[int]) -> list[float]:
    """P(l | title) of every label, by counting with loops."""
    scores = []
    for label in range(NUM_LABELS):
        of_label = [words for words, labels in CORPUS if label in labels]
        score = len(of_label) / len(CORPUS)
        for word in title:
            both = sum(word in words for words in of_label)
            score *= (both + ALPHA) / (len(of_label) + ALPHA * NUM_LABELS)
        scores.append(score)
    return [score / math.fsum(scores) for score in scores]


def rows(videos: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    words = torch.tensor([word for title, _ in videos for word in title], dtype=torch.int64)
    offsets = torch.tensor([0, *(len(title) for title, _ in videos)]).cumsum(0)
    labels = torch.tensor([[label in of_video for label in range(NUM_LABELS)] for _, of_video in videos])
    return words, offsets, labels.view(-1, NUM_LABELS)


def fitted(pieces: list[int], max_pairs: int = 20) -> unigram.Unigram:
    """Fitted to the corpus, cut after so many rows."""
    model = unigram.Config(max_pairs=max_pairs).build(300, NUM_LABELS)
    bounds = [0, *pieces, len(CORPUS)]
    model.fit(rows(CORPUS[low:high]) for low, high in itertools.pairwise(bounds))
    return model


TITLES = [[0], [0, 1], [1, 0], [2, 3], [0, 0], [], [7], [0, 7, 2], [3]]


@pytest.mark.parametrize("pieces", [[], [1, 2, 5], [0, 0, 3]], ids=str)
def test_unigram_is_the_formula(pieces: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "_PAIRS_AT_ONCE", 3)
    model = fitted(pieces)
    words, offsets, _ = rows([(title, []) for title in TITLES])
    expected = torch.tensor([by_hand(title) for title in TITLES], dtype=torch.float64)
    logits = model(words, offsets).double()
    torch.testing.assert_close(logits.sigmoid(), expected, rtol=2e-6, atol=1e-12)
    # Log-odds tell more than probabilities where these are nearly 1.
    seen = expected[:, :3]
    torch.testing.assert_close(logits[:, :3], (seen / (1 - seen)).log(), rtol=1e-5, atol=1e-5)


def test_unigram_by_hand_to_the_last_digit() -> None:
    """Title "1": n(0) = 2, n(1) = 3, n(2) = 2, n(3) = 0; of them with word 1: 1, 1, 1, 0."""
    scores = [2 / 6 * 1.001 / 2.004, 3 / 6 * 1.001 / 3.004, 2 / 6 * 1.001 / 2.004, 0.0]
    assert by_hand([1]) == pytest.approx([score / sum(scores) for score in scores], rel=1e-12)


def test_unigram_keeps_its_counts_as_sorted_pairs() -> None:
    model = fitted([])
    stored = {
        divmod(pair, NUM_LABELS): n
        for pair, n in zip(model.pairs.tolist(), model.pair_counts.tolist(), strict=True)
        if n
    }
    assert stored == {(0, 0): 2, (0, 1): 1, (1, 0): 1, (1, 1): 1, (1, 2): 1, (2, 0): 1, (2, 1): 2, (3, 1): 1}
    assert model.pairs.diff().ge(0).all()
    assert (int(model.num_rows), model.label_counts.tolist()) == (6, [2, 3, 2, 0])


def test_unigram_says_what_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"model\.max_pairs=7, but the training rows have 8 different pairs"):
        fitted([], max_pairs=7)
    assert fitted([], max_pairs=8).is_fitted
    empty = unigram.Config().build(300, NUM_LABELS)
    assert not empty.is_fitted
    with pytest.raises(ValueError, match="counted nothing yet"):
        empty(torch.tensor([1]), torch.tensor([0, 1]))


def test_unigram_is_sure_of_long_texts_without_overflow() -> None:
    model = fitted([])
    words = torch.tensor([0] * 5000)
    logits = model(words, torch.tensor([0, 5000]))
    assert torch.isfinite(logits).all()
    assert logits[0].argmax() == 0
    loss = model.loss(words, torch.tensor([0, 5000]), torch.tensor([[True, False, False, False]])).detach()
    assert float(loss) < 1e-3
