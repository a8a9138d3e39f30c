"""Several corpora as one: `corpora` lists their sections, each with its own name, path and settings.

Every row keeps the split that its own corpus gives it; before its id and group stands the corpus's name. The corpora
must have the same cfp.

    dataset:
      name: union
      corpora:
        - {name: mir1k, path: data/mir1k}
        - {name: ikala, path: data/ikala}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, Field, SerializeAsAny, field_validator, model_validator

from mmray import lookup
from mmray.config import Section, section_from_dict
from mmray.datasets import Reject, Source
from mmray.schema import Column

GROUP_KEY = "group"
LABEL_KEY = "ref_times_s"


class Config(Section):
    """The corpora, in this order."""

    name: Literal["union"] = "union"
    corpora: tuple[SerializeAsAny[BaseModel], ...] = Field(min_length=1)

    @field_validator("corpora", mode="before")
    @classmethod
    def _sections(cls, sections: Any) -> Any:
        if not isinstance(sections, list | tuple):
            raise ValueError("expected a list of dataset sections, each with a name and a path")
        return tuple(section if isinstance(section, BaseModel) else _validated(section) for section in sections)

    @model_validator(mode="after")
    def _corpora_are_alike(self) -> Config:
        first = self.corpora[0]
        for section in self.corpora:
            module = _module(section)
            if isinstance(section, Config):
                raise ValueError("a union can't stand within a union; list its corpora among the others")
            if (module.GROUP_KEY, module.LABEL_KEY) != (GROUP_KEY, LABEL_KEY):
                raise ValueError(f"corpus {_name(section)!r} can't be joined: only melody corpora have what it takes")
            if section.cfp != first.cfp:  # type: ignore[attr-defined]
                raise ValueError(f"{_name(section)!r} has another cfp than {_name(first)!r}; give both the same")
        return self

    @property
    def path(self) -> str:
        """Where the corpora lie."""
        return ", ".join(section.path for section in self.corpora)  # type: ignore[attr-defined]

    @property
    def cfp(self) -> Any:
        """The feature's settings, which all have in common."""
        return self.corpora[0].cfp  # type: ignore[attr-defined]

    @property
    def mix(self) -> str:
        """How the first corpus's channels become one."""
        return str(self.corpora[0].mix)  # type: ignore[attr-defined]

    @property
    def why_corpus_split(self) -> str | None:
        """Why only the corpora's own splits will do, where that is so for one of them."""
        reasons = (getattr(section, "why_corpus_split", None) for section in self.corpora)
        return next((reason for reason in reasons if reason), None)


def sources(config: Config) -> list[Source]:
    """Those of all corpora, one corpus after another; ValueError where a file belongs to two of them."""
    found = [
        replace(source, note=json.dumps([place, source.note]))
        for place, section in enumerate(config.corpora)
        for source in _module(section).sources(section)
    ]
    twice = [path for path, times in Counter(source.path for source in found).items() if times > 1]
    if twice:
        raise ValueError(f"{twice[0]} belongs to more than one of dataset.corpora; give each corpus its own folder")
    return found


def columns(config: Config) -> list[Column]:
    """Those of each corpus."""
    found: list[Column] = _module(config.corpora[0]).columns(config.corpora[0])
    return found


def class_names(config: Config) -> list[str]:
    """Those of each corpus."""
    names: list[str] = _module(config.corpora[0]).class_names(config.corpora[0])
    return names


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of one source, by its own corpus."""
    place, note = json.loads(source.note)
    section = config.corpora[place]
    names = [_name(each) for each in config.corpora]
    prefix = names[place] if names.count(names[place]) == 1 else f"{names[place]}-{place + 1}"
    for batch in _module(section).read(section, replace(source, note=note), reject):
        for key in ("id", GROUP_KEY):  # each corpus names its own without knowing of the others
            column = batch.schema.get_field_index(key)
            named = pa.array([f"{prefix}/{name}" for name in batch.column(column).to_pylist()])
            batch = batch.set_column(column, key, named)
        yield batch


def _validated(section: Any) -> BaseModel:
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        raise ValueError("each corpus needs a name and a path")
    schema: type[BaseModel] = lookup.load("dataset", section["name"]).Config
    return section_from_dict(schema, section, where=f"corpus {section['name']!r}")


def _module(section: BaseModel) -> ModuleType:
    return lookup.load("dataset", _name(section))


def _name(section: BaseModel) -> str:
    return str(section.name)  # type: ignore[attr-defined]
