"""From a name in a run file to the module that implements it: the only dynamic import of the package.

A dataset, model or task is one module of `mmray.datasets`, `mmray.models` or `mmray.tasks`. Its file name is its
name in YAML; there is no registry to edit.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

KINDS = {"dataset": "mmray.datasets", "model": "mmray.models", "task": "mmray.tasks"}


def names(kind: str) -> list[str]:
    """Every name that `kind` (dataset, model or task) offers, sorted."""
    package = importlib.import_module(KINDS[kind])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg and m.name[0] != "_")


def load(kind: str, name: str) -> ModuleType:
    """Import the module called `name`; ValueError with the choices when there is none."""
    choices = names(kind)
    if name not in choices:
        raise ValueError(f"{name!r} is not a {kind}; {suggest(name, choices)}")
    return importlib.import_module(f"{KINDS[kind]}.{name}")


def suggest(wrong: str, choices: list[str]) -> str:
    """The half-sentence that follows a wrong name: the nearest choice if one is near, and all choices."""
    near = difflib.get_close_matches(wrong, choices, n=1, cutoff=0.6)
    listed = "choose from " + ", ".join(choices) if choices else "there is none to choose from"
    return f"did you mean {near[0]!r}? {listed}" if near else listed
