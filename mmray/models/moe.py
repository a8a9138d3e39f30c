"""Mixture of experts over a vector: per class, a softmax gate over logistic experts and one dummy expert.

With gate logits a_0 .. a_E (no bias) and expert logits e_1 .. e_E (with bias) of one class, and g = softmax(a),

    p = sum over k = 1 .. E of g_k sigmoid(e_k).

The dummy, k = 0, always predicts 0: a class can be turned off by its gate alone. This is the video-level classifier
of Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark" (arXiv:1609.08675), section 4.2,
after Jordan and Jacobs, "Hierarchical Mixtures of Experts and the EM Algorithm" (Neural Computation 6(2), 1994).

Training never holds the (B, C, 2E+1) activations. `loss` walks over blocks of classes; it computes a block's
activations, turns them in place into their gradients, multiplies those out into the gradients of x, weight and bias,
and goes on. The activations lie class by class with the batch innermost, so that a block of classes is one matrix
product with contiguous rows of `weight`, and every sum over experts runs along vectors of the batch.

The gradient of one class and row, with label y. Let expert k be wrong with probability w_k = sigmoid(e_k) if y is 0,
sigmoid(-e_k) if y is 1; the dummy is wrong with probability w_0 = y. The mixture is wrong with probability
P = sum g_k w_k and right with R = 1 - P = sum g_k (1 - w_k). With the posterior r_k = g_k (1 - w_k) / R, the loss
-log R has

    dL/da_k = g_k - r_k = g_k (w_k - P) / R        dL/de_k = r_k w_k if y is 0, -r_k w_k if y is 1.

For dL/da_k the second form is exact where P is small (nearly every class of nearly every row), the first where R is.
R is summed relative to its largest term, so that it can't underflow however large the logits are.

Shapes: B rows, C classes, D inputs, E experts, G = 2E + 1 units a class, N classes of one block.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Config(BaseModel):
    """Hyper-parameters. The paper's video-level models have 8 and 32 experts, its frame-level ones 2, 4 and 16."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "vectors"

    name: Literal["moe"] = "moe"
    inputs: list[str] | None = None
    """The modalities that are concatenated, in this order; None = all that the dataset has."""
    num_experts: int = Field(default=2, ge=1)
    """E, the dummy not counted."""
    l2_penalty: float = Field(default=1e-8, ge=0)
    """Half of this times the sum of the squared weights (not the biases) is part of the training loss."""

    def build(self, input_size: int, num_classes: int) -> MixtureOfExperts:
        """The model for vectors of `input_size` (D) numbers and `num_classes` (C) labels."""
        return MixtureOfExperts(input_size, num_classes, self.num_experts, self.l2_penalty)


class MixtureOfExperts(nn.Module):
    """Per class, p = sum of gate times expert.

    weight (C, G, D): of class c, the gates 0 .. E and then the experts 1 .. E. bias (C, E): of the experts.
    """

    def __init__(self, input_size: int, num_classes: int, num_experts: int, l2_penalty: float = 1e-8) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.l2_penalty = l2_penalty
        self.weight = nn.Parameter(torch.empty(num_classes, 2 * num_experts + 1, input_size))
        self.bias = nn.Parameter(torch.empty(num_classes, num_experts))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, as of one layer D -> C (E + 1) of gates and one D -> C E of experts; biases 0."""
        num_classes, _, input_size = self.weight.shape
        gates, experts = torch.split(self.weight.detach(), [self.num_experts + 1, self.num_experts], dim=1)
        for units in (gates, experts):
            bound = math.sqrt(6 / (input_size + num_classes * units.shape[1]))
            nn.init.uniform_(units, -bound, bound)
        nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        num_classes, _, input_size = self.weight.shape
        return f"input_size={input_size}, num_classes={num_classes}, num_experts={self.num_experts}"

    def forward(self, x: Tensor) -> Tensor:
        """The log-odds log p - log(1 - p), shape (B, C), of every class for the vectors x, shape (B, D)."""
        classes = _classes_per_block(x, self.weight)
        blocks = [
            _log_odds((w.flatten(0, 1) @ x.T).view(*w.shape[:2], -1), b)
            for w, b in zip(torch.split(self.weight, classes), torch.split(self.bias, classes), strict=True)
        ]
        return torch.cat(blocks).T

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean over rows of the binary cross-entropy summed over classes, plus the L2 penalty: a scalar.

        x: (B, D); labels: (B, C), bool. The gradients are ready when this returns, and take the memory of the
        parameters once; `backward` scales them, and can be called once. Under autocast to bfloat16 the matrix products
        are bfloat16 and all else is float32; float16 is not used, for most gradients of a rare class are below its
        range before a gradient scaler sees them. An empty batch has loss 0 (and the penalty).
        """
        expected = (x.shape[0], self.weight.shape[0])
        if labels.shape != expected:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; x and the model need (B, C) = {expected}")
        device = x.device.type
        lowered = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        dtype = torch.bfloat16 if lowered else self.weight.dtype
        loss: Tensor = _FusedLoss.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, labels.bool(), self.l2_penalty, dtype, torch.is_grad_enabled()
        )
        return loss


# Float32 bytes of one block's weights and activations. One core works best from its second-level cache and the next;
# many cores, or a GPU, on blocks large enough to keep them all busy between two waits for the slowest.
_BLOCK_BYTES_ONE_CORE = 8 << 20
_BLOCK_BYTES = 64 << 20


def _classes_per_block(x: Tensor, weight: Tensor) -> int:
    """N, at least 1."""
    one_core = x.device.type == "cpu" and torch.get_num_threads() == 1
    bytes_per_class = 4 * weight.shape[1] * (weight.shape[2] + x.shape[0])
    return max(1, (_BLOCK_BYTES_ONE_CORE if one_core else _BLOCK_BYTES) // bytes_per_class)


def _log_odds(units: Tensor, bias: Tensor) -> Tensor:
    """log p - log(1 - p), shape (N, B), of units (N, G, B) and bias (N, E). The softmax's denominator cancels."""
    num_experts = bias.shape[1]
    units = units.to(torch.promote_types(units.dtype, torch.float32))
    dummy, gates, experts = torch.split(units, [1, num_experts, num_experts], dim=1)
    experts = experts + bias.unsqueeze(2)
    log_p = torch.logsumexp(gates + F.logsigmoid(experts), dim=1)
    log_not_p = torch.logsumexp(torch.cat([dummy, gates + F.logsigmoid(-experts)], dim=1), dim=1)
    return log_p - log_not_p


class _FusedLoss(torch.autograd.Function):
    """The loss, with the gradients computed along the way."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        l2_penalty: float,
        dtype: torch.dtype,
        with_gradient: bool,
    ) -> Tensor:
        """`dtype` is that of the matrix products; sums over blocks are kept in the parameters' dtype."""
        scale = 1 / max(1, x.shape[0])
        needs = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        x_gradient = torch.zeros(x.shape, dtype=weight.dtype, device=x.device) if needs[0] else None
        weight_gradient = torch.empty_like(weight) if needs[1] else None
        bias_gradient = torch.empty_like(bias) if needs[2] else None
        loss = torch.zeros((), dtype=torch.float64, device=x.device)
        inputs = x.to(dtype)

        step = _classes_per_block(x, weight)
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(weight), step):
                block = slice(start, start + step)
                rows = weight[block].flatten(0, 1)  # (N G, D), a view
                factors = rows.to(dtype)
                products = factors @ inputs.T  # (N G, B)
                units = products.to(torch.promote_types(dtype, torch.float32)).view(*weight[block].shape[:2], -1)
                units[:, -bias.shape[1] :] += bias[block].unsqueeze(2)
                loss += scale * _to_gradient_(units, labels[:, block].T.contiguous(), scale)
                if l2_penalty:
                    loss += l2_penalty / 2 * torch.dot(rows.flatten(), rows.flatten())

                gradient = units.flatten(0, 1).to(dtype)  # (N G, B)
                if x_gradient is not None:
                    if dtype == x_gradient.dtype:
                        x_gradient.addmm_(gradient.T, factors)
                    else:
                        x_gradient += gradient.T @ factors
                if weight_gradient is not None:
                    out = weight_gradient[block].flatten(0, 1)
                    if dtype == out.dtype:
                        torch.addmm(rows, gradient, inputs, beta=l2_penalty, out=out)
                    else:
                        out.copy_(gradient @ inputs)
                        if l2_penalty:
                            out.add_(rows, alpha=l2_penalty)
                if bias_gradient is not None:
                    torch.sum(units[:, -bias.shape[1] :], dim=2, out=bias_gradient[block])

        ctx.gradients = (None if x_gradient is None else x_gradient.to(x.dtype), weight_gradient, bias_gradient)
        return loss.to(torch.promote_types(weight.dtype, torch.float32))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients, and let go of them: autograd then keeps them as they are instead of copying them."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this MixtureOfExperts.loss has been differentiated before; compute it anew")
        if loss_gradient.item() != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient *= loss_gradient
        return (*gradients, None, None, None, None)


def _to_gradient_(units: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Turn units (N, G, B) in place into `scale` times their gradient; return the loss summed over labels (N, B)."""
    if units.device.type == "cpu" and units.dtype == torch.float32:
        odds = torch.empty(labels.shape)
        rest = _to_gradient_numba(units.numpy(), labels.numpy(), np.float32(scale), odds.numpy())
        return odds.log1p_().sum(dtype=torch.float64) + rest
    return _to_gradient_torch(units, labels, scale)


def _to_gradient_torch(units: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Any device and float type."""
    num_experts = units.shape[1] // 2
    gates, experts = torch.split(units, [num_experts + 1, num_experts], dim=1)
    labels = labels.unsqueeze(1)
    wrong_logit = torch.where(labels, -experts, experts)
    wrong = torch.cat([labels.to(units.dtype), torch.sigmoid(wrong_logit)], dim=1)
    log_right = torch.cat([torch.log1p(-wrong[:, :1]), F.logsigmoid(-wrong_logit)], dim=1)

    log_gate = torch.log_softmax(gates, dim=1)
    log_joint = log_gate + log_right
    log_mixture_right = torch.logsumexp(log_joint, dim=1, keepdim=True)
    posterior = torch.exp(log_joint - log_mixture_right)
    gate = torch.exp(log_gate)
    mixture_wrong = (gate * wrong).sum(dim=1, keepdim=True)

    often_right = mixture_wrong < 0.5
    gates[:] = scale * torch.where(often_right, gate * (wrong - mixture_wrong) / (1 - mixture_wrong), gate - posterior)
    experts[:] = scale * (torch.where(labels, -1, 1) * posterior[:, 1:] * wrong[:, 1:])
    return -torch.where(often_right, torch.log1p(-mixture_wrong), log_mixture_right).sum(dtype=torch.float64)


# The same in one pass over the cache, for float32 on a CPU. Every innermost loop runs along a vector of rows, without
# branches or calls, so that the compiler can vectorise it; hence an exponential of our own.
_ROWS = 128
_ZERO, _HALF, _ONE, _INFINITY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(np.inf)
_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693145751953125), np.float32(1.42860677e-6)
_ROUND = np.float32(1.5 * 2**23)  # adding and subtracting it rounds a float32 of small magnitude to an integer
_TAYLOR_6, _TAYLOR_5, _TAYLOR_4, _TAYLOR_3 = (np.float32(1 / math.factorial(n)) for n in (6, 5, 4, 3))


@numba.njit(fastmath={"contract"}, inline="always")
def _exp(x: np.float32) -> np.float32:
    """e^x for x <= 0, to 2.5e-7; never below e^-87, the end of float32's normal range."""
    x = max(x, np.float32(-87))
    exponent = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - exponent * _LN_2_HIGH) - exponent * _LN_2_LOW
    mantissa = _TAYLOR_6 * r + _TAYLOR_5
    mantissa = mantissa * r + _TAYLOR_4
    mantissa = mantissa * r + _TAYLOR_3
    mantissa = mantissa * r + _HALF
    mantissa = mantissa * r + _ONE
    mantissa = mantissa * r + _ONE
    power_of_two = np.int32((np.int32(exponent) + 127) << 23).view(np.float32)
    return mantissa * power_of_two


@numba.njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _to_gradient_numba(
    units: NDArray[np.float32], labels: NDArray[np.bool_], scale: np.float32, odds: NDArray[np.float32]
) -> float:
    """Turn units in place into `scale` times their gradient.

    The loss is the sum of log(1 + odds) over odds, shape (N, B), which is written here, plus what is returned.
    """
    num_classes, num_units, num_rows = units.shape
    num_experts = num_units // 2
    gate = np.empty((num_experts + 1, _ROWS), np.float32)  # exp(a - max_gate)
    joint = np.empty((num_experts + 1, _ROWS), np.float32)  # gate times the probability to be right, / exp(max_joint)
    wrong = np.empty((num_experts + 1, _ROWS), np.float32)
    y, sign, max_gate, max_joint, gate_sum, joint_sum, wrong_sum = np.empty((7, _ROWS), np.float32)
    often_wrong, gate_scale, joint_scale, wrong_scale, mixture_wrong = np.empty((5, _ROWS), np.float32)
    rest = np.zeros(_ROWS)
    for c in range(num_classes):
        for start in range(0, num_rows, _ROWS):
            stop = min(start + _ROWS, num_rows)
            rows = range(stop - start)

            a = units[c, 0, start:stop]
            label = labels[c, start:stop]
            for b in rows:
                y[b] = _ONE if label[b] else _ZERO
                sign[b] = _ONE - y[b] - y[b]
                max_gate[b] = a[b]
                max_joint[b] = -_INFINITY if label[b] else a[b]
            for k in range(1, num_experts + 1):
                a, e = units[c, k, start:stop], units[c, num_experts + k, start:stop]
                for b in rows:
                    max_gate[b] = max(max_gate[b], a[b])
                    max_joint[b] = max(max_joint[b], a[b] - max(sign[b] * e[b], _ZERO))

            a = units[c, 0, start:stop]
            gate_k, joint_k, wrong_k = gate[0], joint[0], wrong[0]
            for b in rows:
                gate_k[b] = _exp(a[b] - max_gate[b])
                joint_k[b] = (_ONE - y[b]) * _exp(min(a[b] - max_joint[b], _ZERO))
                wrong_k[b] = y[b]
                gate_sum[b] = gate_k[b]
                joint_sum[b] = joint_k[b]
                wrong_sum[b] = y[b] * gate_k[b]
            for k in range(1, num_experts + 1):
                a, e = units[c, k, start:stop], units[c, num_experts + k, start:stop]
                gate_k, joint_k, wrong_k = gate[k], joint[k], wrong[k]
                for b in rows:
                    z = sign[b] * e[b]
                    t = _exp(-abs(z))
                    larger = _ONE / (_ONE + t)
                    gate_k[b] = _exp(a[b] - max_gate[b])
                    joint_k[b] = _exp(a[b] - max(z, _ZERO) - max_joint[b]) * larger
                    wrong_k[b] = larger if z > _ZERO else t * larger
                    gate_sum[b] += gate_k[b]
                    joint_sum[b] += joint_k[b]
                    wrong_sum[b] += gate_k[b] * wrong_k[b]

            odds_c = odds[c, start:stop]
            for b in rows:
                mixture_wrong[b] = wrong_sum[b] / gate_sum[b]
                mixture_right = _ONE - mixture_wrong[b]
                often_wrong[b] = _ZERO if mixture_wrong[b] < _HALF else _ONE
                if mixture_wrong[b] < _HALF:
                    odds_c[b] = mixture_wrong[b] / mixture_right
                else:
                    odds_c[b] = gate_sum[b] / joint_sum[b] - _ONE
                    rest[b] += max_gate[b] - max_joint[b]
                gate_scale[b] = scale / gate_sum[b]
                joint_scale[b] = scale / joint_sum[b]
                wrong_scale[b] = gate_scale[b] / mixture_right

            for k in range(num_experts + 1):
                a = units[c, k, start:stop]
                gate_k, joint_k, wrong_k = gate[k], joint[k], wrong[k]
                for b in rows:
                    posterior = joint_k[b] * joint_scale[b]
                    if often_wrong[b] > _ZERO:
                        a[b] = gate_k[b] * gate_scale[b] - posterior
                    else:
                        a[b] = gate_k[b] * wrong_scale[b] * (wrong_k[b] - mixture_wrong[b])
            for k in range(1, num_experts + 1):
                e = units[c, num_experts + k, start:stop]
                joint_k, wrong_k = joint[k], wrong[k]
                for b in rows:
                    e[b] = sign[b] * joint_k[b] * joint_scale[b] * wrong_k[b]
    return float(rest.sum())
