"""The models of audio features against the same layers as usually written, a row at a time; and what they can learn."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mmray.models import audio_cnn, audio_cnn_gru, audio_cnn_lstm, audio_transformer
from mmray.models._sequence import InputNorm, Recurrent, SequenceClassifier
from mmray.models.audio_transformer import sinusoids

MODULES = (audio_cnn, audio_cnn_lstm, audio_cnn_gru, audio_transformer)
LENGTHS = [23, 1, 40, 16]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of so few numbers are faster without threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(num_features: int, lengths: list[int] = LENGTHS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 3 + 2 * torch.randn(len(lengths), max(lengths), num_features, generator=generator)
    return x, torch.tensor(lengths)


def scrambled(model: SequenceClassifier) -> SequenceClassifier:
    """In eval mode, with scales and shifts that are no longer 1 and 0, and statistics of the input."""
    model(*batch(model.input_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def naive(model: SequenceClassifier, frames: Tensor) -> Tensor:
    """The logits (K,) of one row (T, D), layer after layer."""
    state = model.state_dict()
    x = (frames - state["norm.running_mean"]) / (state["norm.running_var"] + 1e-5).sqrt()
    if isinstance(model.encoder, audio_transformer.Transformer):
        x = naive_transformer(model.encoder, x)
    elif isinstance(model.encoder, nn.Module) and hasattr(model.encoder, "convs"):
        x = naive_convolutions(model.encoder, x)
    else:
        x = naive_recurrence(model.encoder.second, naive_convolutions(model.encoder.first, x))
    return F.linear(torch.cat([x.mean(0), x.amax(0)]), state["classifier.weight"], state["classifier.bias"])


def naive_convolutions(stack: nn.Module, x: Tensor) -> Tensor:
    for conv, norm in zip(stack.convs, stack.norms, strict=True):
        kernel = conv.weight.squeeze(2)
        x = F.conv1d(x.T[None], kernel, conv.bias, stride=stack.stride, padding=kernel.shape[2] // 2)[0].T
        x = F.relu(F.layer_norm(x, x.shape[1:], norm.weight, norm.bias))
    return x


def naive_recurrence(recurrent: Recurrent, x: Tensor) -> Tensor:
    """PyTorch's own layers in both directions at once, which hold the same weights under other names."""
    first = recurrent.forwards[0]
    layers = type(first)(
        first.input_size, first.hidden_size, len(recurrent.forwards), bidirectional=len(recurrent.backwards) > 0
    )
    layers.load_state_dict(
        {
            f"{key}{number}{suffix}": value
            for suffix, direction in (("", recurrent.forwards), ("_reverse", recurrent.backwards))
            for number, layer in enumerate(direction)
            for key, value in ((key[:-1], value) for key, value in layer.state_dict().items())
        }
    )
    outputs: Tensor = layers(x[:, None])[0][:, 0]
    return outputs


def naive_transformer(encoder: audio_transformer.Transformer, x: Tensor) -> Tensor:
    """Positions number by number, then PyTorch's encoder layers with the same weights."""
    size, width = encoder.patch_frames, encoder.output_size
    num_tokens = math.ceil(len(x) / size)
    x = torch.cat([x, torch.zeros(num_tokens * size - len(x), x.shape[1])]).view(num_tokens, -1)
    x = F.linear(x, encoder.tokens.weight, encoder.tokens.bias)
    for n in range(num_tokens):
        for i in range(width // 2):
            angle = n / 10_000 ** (2 * i / width)
            x[n, i] += math.sin(angle)
            x[n, width // 2 + i] += math.cos(angle)
    for ours in encoder.layers:
        hidden = ours.feedforward[0].out_features
        layer = nn.TransformerEncoderLayer(width, ours.num_heads, hidden, activation="gelu", norm_first=True)
        names = {
            "self_attn.in_proj_weight": "queries_keys_values.weight",
            "self_attn.in_proj_bias": "queries_keys_values.bias",
            "self_attn.out_proj.weight": "attention_out.weight",
            "self_attn.out_proj.bias": "attention_out.bias",
            "linear1.weight": "feedforward.0.weight",
            "linear1.bias": "feedforward.0.bias",
            "linear2.weight": "feedforward.2.weight",
            "linear2.bias": "feedforward.2.bias",
            "norm1.weight": "attention_norm.weight",
            "norm1.bias": "attention_norm.bias",
            "norm2.weight": "feedforward_norm.weight",
            "norm2.bias": "feedforward_norm.bias",
        }
        layer.load_state_dict({theirs: ours.state_dict()[name] for theirs, name in names.items()})
        x = layer.eval()(x[:, None])[:, 0]
    return F.layer_norm(x, (width,), encoder.norm.weight, encoder.norm.bias)


@pytest.mark.parametrize(
    "config",
    [
        *[module.Config() for module in MODULES],
        audio_cnn.Config(channels=(4,), kernel=1, stride=1),
        audio_cnn.Config(channels=(4, 6), kernel=7, stride=3),
        audio_cnn_lstm.Config(channels=(5,), hidden_size=3, num_layers=3),
        audio_cnn_gru.Config(channels=(5,), hidden_size=3, num_layers=2, bidirectional=False),
        audio_transformer.Config(patch_frames=1, width=6, num_heads=1, num_layers=1, feedforward=5),
    ],
    ids=lambda config: config.name,
)
def test_a_batch_gives_what_the_layers_give_row_by_row(config: audio_cnn.Config) -> None:
    torch.manual_seed(0)
    model = scrambled(config.build(7, 3))
    x, lengths = batch(7)
    with torch.no_grad():
        expected = torch.stack([naive(model, row[:length]) for row, length in zip(x, LENGTHS, strict=True)])
        torch.testing.assert_close(model(x, lengths), expected, rtol=1e-4, atol=2e-5)


def test_input_is_normalised_as_by_batch_norm_over_the_frames_that_count() -> None:
    ours, theirs = InputNorm(5), nn.BatchNorm1d(5, affine=False, momentum=None)
    generator = torch.Generator().manual_seed(2)
    for lengths in ([9, 4], [1, 1, 7], [12]):
        x = 50 + 10 * torch.randn(len(lengths), 12, 5, generator=generator)
        frames = torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])
        for mode in (True, False):
            ours.train(mode), theirs.train(mode)
            actual = ours(x, torch.tensor(lengths))
            kept = torch.cat([row[:length] for row, length in zip(actual, lengths, strict=True)])
            torch.testing.assert_close(kept, theirs(frames), rtol=1e-4, atol=1e-4)
            assert all((row[length:] == 0).all() for row, length in zip(actual, lengths, strict=True))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_recurrence_in_both_directions_is_that_of_packed_sequences(cell: type[nn.LSTM | nn.GRU]) -> None:
    torch.manual_seed(0)
    ours = Recurrent(cell, 6, 4, num_layers=1, bidirectional=True, dropout=0.0)
    theirs = cell(6, 4, batch_first=True, bidirectional=True)
    reverse = {f"{key}_reverse": value for key, value in ours.backwards[0].state_dict().items()}
    theirs.load_state_dict({**ours.forwards[0].state_dict(), **reverse})
    x, lengths = batch(6)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    actual, _ = ours(x, lengths)
    valid = torch.arange(x.shape[1]) < lengths[:, None]
    torch.testing.assert_close(actual[valid], expected[valid])


def test_with_one_direction_a_frame_knows_only_those_before_it() -> None:
    x, lengths = batch(6, [12, 12])
    changed = x.clone()
    changed[:, 7] += 1
    for bidirectional in (False, True):
        layers = Recurrent(nn.GRU, 6, 4, num_layers=2, bidirectional=bidirectional, dropout=0.0)
        before, after = layers(x, lengths)[0], layers(changed, lengths)[0]
        assert torch.equal(before[:, :7], after[:, :7]) is not bidirectional
        assert not torch.equal(before[:, 7:], after[:, 7:])


def test_recurrence_and_attention_are_float32_under_autocast() -> None:
    x, lengths = batch(6, [12, 12])
    recurrent = Recurrent(nn.LSTM, 6, 4, num_layers=2, bidirectional=True, dropout=0.0)
    expected = recurrent(x, lengths)[0]
    seen = []
    model = audio_transformer.Config().build(6, 3)
    with torch.autocast("cpu", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        torch.testing.assert_close(recurrent(x, lengths)[0], expected, rtol=0, atol=0)
        attention = F.scaled_dot_product_attention
        patch.setattr(
            F, "scaled_dot_product_attention", lambda *args, **kw: seen.append(attention(*args, **kw)) or seen[-1]
        )
        model(x, lengths)
    assert [heeded.dtype for heeded in seen] == [torch.float32] * 3


def test_positions_extend_to_any_length_and_all_differ() -> None:
    long = sinusoids(5000, 16, torch.device("cpu"))
    torch.testing.assert_close(sinusoids(3, 16, torch.device("cpu")), long[:3], rtol=0, atol=0)
    assert (long.square().sum(1) - 8).abs().max() < 1e-4, "sin^2 + cos^2 = 1, for each of 8 frequencies"
    assert torch.cdist(long, long).fill_diagonal_(1).min() > 0.05


def convolution(inputs: int, outputs: int, kernel: int = 5) -> int:
    """Weights, biases, and the scales and shifts of the layer norm."""
    return kernel * inputs * outputs + outputs + 2 * outputs


def cell(gates: int, inputs: int, hidden: int) -> int:
    """Weights of the input and of the state, and two biases a gate."""
    return gates * hidden * (inputs + hidden + 2)


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_numbers_of_parameters_for_the_features_of_the_paper() -> None:
    """As the documentation of each model says; 20 MFCC and 7 rows of spectral contrast, 3 emotions."""
    front = convolution(27, 64) + convolution(64, 64) + convolution(64, 128)
    layer = linear(96, 3 * 96) + linear(96, 96) + linear(96, 192) + linear(192, 96) + 2 * 2 * 96
    by_hand = {
        audio_cnn: front + convolution(128, 128) + linear(256, 3),
        audio_cnn_lstm: front + 2 * cell(4, 128, 64) + linear(256, 3),
        audio_cnn_gru: front + 2 * cell(3, 128, 64) + linear(256, 3),
        audio_transformer: linear(8 * 27, 96) + 3 * layer + 2 * 96 + linear(192, 3),
    }
    for module, expected in by_hand.items():
        with torch.device("meta"):
            model = module.Config().build(27, 3)
        assert sum(p.numel() for p in model.parameters()) == expected
        assert f"{expected:,} parameters" in " ".join((module.__doc__ or "").split())


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (audio_cnn, {"kernel": 4}, "kernel=4 has no middle; use 3 or 5"),
        (audio_cnn_gru, {"kernel": 3, "stride": 4}, "stride=4 skips frames: it must be at most kernel=3"),
        (audio_cnn, {"channels": ()}, "at least 1 item"),
        (audio_cnn_lstm, {"hidden_size": 0}, "greater than 0"),
        (audio_cnn_lstm, {"dropout": 1.0}, "less than 1"),
        (audio_transformer, {"width": 10}, "width=10 must be even and a multiple of num_heads=4: 8 or 12"),
        (audio_transformer, {"width": 2}, "num_heads=4: 4$"),
        (audio_transformer, {"width": 9, "num_heads": 3}, "num_heads=3: 6 or 12"),
    ],
)
def test_config_refuses_nonsense(module: object, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        module.Config(**settings)
    said = error.value.errors()[0]["msg"]
    assert message.rstrip("$") in said
    assert not message.endswith("$") or said.endswith(message[:-1])


def before_or_after(num_pairs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows in which an event A comes before an event B, class 0, and after it, class 1; (x, lengths, labels).

    Row 2 i + 1 is row 2 i from its end: both have the very same frames. Behind each lies an A, or a B, that doesn't
    count.
    """
    generator = torch.Generator().manual_seed(seed)
    num_frames, num_features = 36, 4
    x = 0.5 * torch.randn(2 * num_pairs, num_frames, num_features, generator=generator)
    lengths = torch.randint(24, num_frames + 1, (num_pairs,), generator=generator).repeat_interleave(2)
    for i in range(num_pairs):
        length = int(lengths[2 * i])
        first = int(torch.randint(0, length // 3, (), generator=generator))
        last = int(torch.randint(2 * length // 3, length - 1, (), generator=generator))
        x[2 * i, first : first + 2, 0] += 4
        x[2 * i, last : last + 2, 1] += 4
        x[2 * i + 1, :length] = x[2 * i, :length].flip(0)
        x[2 * i : 2 * i + 2, length:, i % 2] += 4
    return x, lengths, torch.arange(2 * num_pairs) % 2


@pytest.mark.parametrize(
    "config",
    [
        audio_cnn.Config(channels=(16, 16, 16), dropout=0.0),
        audio_cnn_lstm.Config(channels=(16,), kernel=3, hidden_size=16, dropout=0.0),
        audio_cnn_gru.Config(channels=(16,), kernel=3, hidden_size=16, dropout=0.0),
        audio_transformer.Config(patch_frames=2, width=32, num_layers=2, feedforward=32, dropout=0.0),
    ],
    ids=lambda config: config.name,
)
def test_learns_which_of_two_events_came_first(config: audio_cnn.Config) -> None:
    torch.manual_seed(0)
    model = config.build(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(80):
        x, lengths, labels = before_or_after(16, seed=step)
        loss = F.cross_entropy(model(x, lengths), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    x, lengths, labels = before_or_after(100, seed=1000)
    with torch.no_grad():
        accuracy = (model.eval()(x, lengths).argmax(1) == labels).float().mean()
    assert accuracy > 0.95


def test_without_convolution_or_recurrence_the_order_of_events_cannot_be_told() -> None:
    """Statistics over time of single frames are the same in any order: both rows of a pair get the same logits."""
    torch.manual_seed(0)
    model = scrambled(audio_cnn.Config(channels=(16, 16), kernel=1, stride=1).build(4, 2))
    x, lengths, _ = before_or_after(20, seed=0)
    with torch.no_grad():
        logits = model(x, lengths)
    torch.testing.assert_close(logits[::2], logits[1::2], rtol=0, atol=1e-5)
