"""The shared losses against hand computation and float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mmray.losses import binary_cross_entropy, multilabel_loss, pitch_loss


def test_mean_over_rows_of_the_sum_over_classes() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, -math.log(3)]])
    labels = torch.tensor([[True, True], [False, True]])
    expected = (2 * math.log(2) + math.log(4 / 3) + math.log(4)) / 2
    assert binary_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_float64_over_the_whole_range(dtype: torch.dtype) -> None:
    logits = torch.linspace(-200, 200, 4001, dtype=dtype).view(-1, 1).requires_grad_()
    for label in (False, True):
        labels = torch.full_like(logits, label, dtype=torch.bool)
        exact = [math.log1p(math.exp(-abs(z))) + max(0.0, -z if label else z) for z in logits.flatten().tolist()]
        loss = binary_cross_entropy(logits, labels)
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(math.fsum(exact) / 4001, rel=2e-7 if dtype == torch.float32 else 1e-14)
        (gradient,) = torch.autograd.grad(loss, logits)
        wanted = (torch.sigmoid(logits.detach().double()) - float(label)) / 4001
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-10)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    loss = binary_cross_entropy(logits, torch.zeros(1, 4096, dtype=torch.bool))
    assert loss.item() == pytest.approx(4096 * math.log(2), rel=1e-6)


def test_empty_batch_and_wrong_shape() -> None:
    assert binary_cross_entropy(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).item() == 0
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        binary_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.bool))


def test_a_models_own_loss_comes_first() -> None:
    class WithOwnLoss(nn.Linear):
        def loss(self, x: Tensor, labels: Tensor) -> Tensor:
            return 42 + 0 * self(x).sum()

    x, labels = torch.randn(2, 3), torch.tensor([[True, False], [False, False]])
    plain = nn.Linear(3, 2)
    assert torch.equal(multilabel_loss(plain, labels, x), binary_cross_entropy(plain(x), labels))
    assert multilabel_loss(WithOwnLoss(3, 2), labels, x).item() == 42


def naive_pitch_loss(logits: Tensor, rows: Tensor, counted: Tensor) -> float:
    """torch's binary cross-entropy of the softmax against one-hot targets, in float64, frame by frame."""
    means = []
    for clip in range(len(logits)):
        frames = []
        for t in range(logits.shape[2]):
            if counted[clip, t]:
                p = logits[clip, :, t].double().softmax(0)
                target = nn.functional.one_hot(rows[clip, t], logits.shape[1]).double()
                frames.append(float(nn.functional.binary_cross_entropy(p, target, reduction="sum")))
        means.append(sum(frames) / len(frames) if frames else 0.0)
    return sum(means) / len(means)


def test_pitch_loss_is_the_cross_entropy_of_the_softmax_over_counted_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 6, 5, generator=generator)
    rows = torch.randint(0, 6, (3, 5), generator=generator)
    counted = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = naive_pitch_loss(logits, rows, counted)
    assert float(pitch_loss(logits, rows, counted)) == pytest.approx(expected, rel=1e-5)
    changed = torch.where(counted[:, None], logits, torch.full_like(logits, 50.0))
    assert torch.equal(pitch_loss(changed, rows, counted), pitch_loss(logits, rows, counted))


def test_pitch_loss_by_hand() -> None:
    """Two rows with probabilities 1/4 and 3/4, the second is right: -ln(3/4) for it and for the other's complement."""
    logits = torch.tensor([[[0.0], [math.log(3)]]])
    loss = pitch_loss(logits, torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.bool))
    assert float(loss) == pytest.approx(-2 * math.log(3 / 4), rel=1e-6)


def test_pitch_loss_has_a_finite_gradient_where_it_is_certain() -> None:
    """Right and wrong beyond what float32 can tell from 1."""
    logits = torch.tensor([[[300.0, 300.0], [0.0, 0.0]]], requires_grad=True)
    loss = pitch_loss(logits, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad[0, 0, 1]) > 0
