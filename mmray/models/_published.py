"""Weights that authors have released, under our names."""

from __future__ import annotations

from torch import Tensor


def renamed(state: dict[str, Tensor], ours: dict[str, Tensor], names: dict[str, str], model: str) -> dict[str, Tensor]:
    """The tensors of `state` under the keys of `ours`, whose tensors say which shapes are right.

    `names`: our name of a layer -> theirs; in theirs, a layer is a sequence of a batch norm, 0, and a convolution, 1,
    and in ours it has `norm` and `conv`. `model` says in errors what `ours` is. ValueError if a key is missing or
    unknown, or a shape is wrong.
    """
    parts = {"norm": "0", "conv": "1"}
    theirs = {}
    for key in ours:
        layer, part, tensor = key.rsplit(".", 2)
        theirs[key] = f"{names[layer]}.{parts[part]}.{tensor}"
    missing = [name for name in theirs.values() if name not in state]
    unexpected = sorted(state.keys() - set(theirs.values()))
    if missing or unexpected:
        raise ValueError(
            f"not the released weights of {model}: missing keys {_some(missing)}, unexpected keys {_some(unexpected)}"
        )
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(ours[key].shape)}"
        for key, name in theirs.items()
        if state[name].shape != ours[key].shape
    ]
    if wrong:
        raise ValueError(f"not the released weights of {model}: {'; '.join(wrong)}")
    return {key: state[name] for key, name in theirs.items()}


def _some(names: list[str]) -> str:
    """The first few as a list."""
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return f"[{', '.join([*map(repr, names[:3]), *more])}]"
