"""Where in an image a classifier saw what it predicted: Grad-CAM, or attention roll-out for vision transformers.

Grad-CAM: the activations of a layer, each channel weighted by the mean gradient of the class's log-odds (a logit alone
is known but for what all classes share); negative sums count as 0 (R. Selvaraju et al., "Grad-CAM: Visual Explanations
from Deep Networks via Gradient-based Localization", ICCV 2017, arXiv:1610.02391). Roll-out: the product of all layers'
attention, each averaged over its heads and then with the identity, from the class token, or from all tokens, to the
patches (S. Abnar and W. Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928).

Shapes: B images of H x W, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_AT_ONCE = 4  # images, whose activations are all held for the gradient


def heat(model: nn.Module, x: Tensor) -> tuple[Tensor, str] | None:
    """Heat (B, H, W) from 0 to 1 of the classes predicted for images (B, 3, H, W), and how it was found.

    The model is in evaluation mode. Where it has a `feature_layer` the heat is Grad-CAM's, where it has attention the
    roll-out's; None where it has neither. An image's largest heat is 1; all of it is 0 where nothing speaks for the
    class.
    """
    layer: str | None = getattr(model, "feature_layer", None)
    parts = []
    for part in torch.split(x, _AT_ONCE):
        found = attention_rollout(model, part) if layer is None else grad_cam(model, layer, part)
        if found is None:
            return None
        parts.append(found)
    warm = F.interpolate(torch.cat(parts)[:, None], x.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    most = warm.amax((1, 2), keepdim=True)
    how = "attention roll-out" if layer is None else f"Grad-CAM of {layer}"
    return (warm / torch.where(most > 0, most, 1)).clamp(0, 1), how


def grad_cam(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """Heat (B, h, w), 0 or more, of the classes predicted for x, from the output (B, C, h, w) of a named layer."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept.append(output)

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            # The input has a gradient, so that one flows also through layers that are frozen.
            logits = model(x.clone().requires_grad_())
            best = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
            log_odds = logits[best] - logits.masked_fill(best, -math.inf).logsumexp(1)
            (gradient,) = torch.autograd.grad(log_odds.sum(), kept[-1])
    finally:
        handle.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * kept[-1].detach()).sum(1).relu()


def attention_rollout(model: nn.Module, x: Tensor) -> Tensor | None:
    """Heat (B, h, w) of the patches, from attention matrices; None where a model has none over a grid of patches."""
    with _attention(model) as matrices, torch.no_grad():
        model(x)
    if not matrices or len({matrix.shape for matrix in matrices}) != 1:
        return None
    num_tokens = matrices[0].shape[-1]
    identity = torch.eye(num_tokens, device=x.device)
    rolled = identity
    for matrix in matrices:
        rolled = (matrix.mean(1).float() + identity) / 2 @ rolled
    height = math.isqrt(num_tokens * x.shape[2] // x.shape[3])
    width = height * x.shape[3] // x.shape[2]
    num_others = num_tokens - height * width  # class and register tokens, which come first
    seen = rolled[:, 0, num_others:] if num_others else rolled.mean(1)
    return seen.reshape(-1, height, width)


@contextmanager
def _attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """The attention matrices (B, heads, N, N) of each layer of a forward pass, in timm's and in torch's own layers."""
    matrices: list[Tensor] = []

    def ask(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return inputs, options | {"need_weights": True, "average_attn_weights": False}

    def keep_second(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        matrices.append(output[1])

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        matrices.append(output)

    with ExitStack() as undo:
        module: Any
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                undo.callback(module.register_forward_pre_hook(ask, with_kwargs=True).remove)
                undo.callback(module.register_forward_hook(keep_second).remove)
            elif hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module):
                undo.callback(setattr, module, "fused_attn", module.fused_attn)
                module.fused_attn = False  # the fused kernel never forms the matrix
                undo.callback(module.attn_drop.register_forward_hook(keep).remove)
        yield matrices
