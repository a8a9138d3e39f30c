"""The run file: one flat YAML for prepare, train, predict and report.

`load` reads it, applies `--set a.b=c` overrides and validates everything at once. The sections `task`, `dataset` and
`model` are checked by the `Config` of the module they name; the others are defined here. Unknown keys are errors.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    create_model,
    model_validator,
)

from mmray import lookup

S = TypeVar("S", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the run file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Split(Section):
    """How rows are divided into train, val and test.

    `corpus`: by the corpus's own files. `hash`: by a hash of the group key and the run's seed, in the shares of
    `fractions`; the same item is in the same split whatever order or machine reads it. `none`: all rows in one split
    called `all`.
    """

    by: Literal["corpus", "hash", "none"] = "corpus"
    fractions: dict[Literal["train", "val", "test"], Fraction] = {"train": 0.8, "val": 0.1, "test": 0.1}
    seed: int = 0

    @model_validator(mode="after")
    def _fractions_sum_to_one(self) -> Split:
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"fractions sum to {total:g}, not 1")
        return self


class Prepare(Section):
    """From corpus to prepared dataset."""

    out: str = "prepared"
    split: Split = Split()
    on_bad_input: Literal["fail", "skip"] = "fail"
    max_bad_fraction: Fraction = Field(0.01, description="with skip: more than this share fails the stage")
    part_mb: PositiveInt = Field(64, description="corpus bytes read by one task, which writes one Parquet file a split")
    row_group_mb: PositiveFloat = Field(4, description="size of a Parquet row group, the unit of reading and shuffling")


class Optimizer(Section):
    """Update rule; `lr` is the peak learning rate."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: float = Field(0.0, ge=0)
    momentum: Momentum = Field(0.0, description="sgd and rmsprop")
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class Schedule(Section):
    """Learning rate over time: linear warm-up, then the named shape."""

    name: Literal["constant", "cosine", "step", "plateau"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    final_fraction: Fraction = Field(0.0, description="cosine: share of lr that is left at the end")
    every_steps: PositiveInt | None = Field(None, description="step: lr is multiplied by gamma every so many steps")
    gamma: PositiveFloat = Field(0.5, description="step and plateau: the factor")
    patience: int = Field(2, ge=0, description="plateau: epochs without a better monitored metric before the factor")

    @model_validator(mode="after")
    def _step_needs_a_length(self) -> Schedule:
        if self.name == "step" and self.every_steps is None:
            raise ValueError("schedule.name: step needs schedule.every_steps")
        return self


class EarlyStopping(Section):
    """Stop when the monitored metric has not improved by `min_delta` for `patience` epochs."""

    patience: PositiveInt = 3
    min_delta: float = Field(0.0, ge=0)


class Train(Section):
    """The training loop."""

    epochs: PositiveInt = 5
    batch_size: PositiveInt = Field(512, description="rows per optimiser step, over all workers together")
    accumulate: PositiveInt = Field(1, description="micro-batches a step is computed in, to save memory")
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16", "auto"] = Field("auto", description="auto: bf16 where it is fast")
    compile: bool = False
    shuffle_mb: PositiveFloat = Field(256, description="data held and mixed at a time, over all workers together")
    shuffle_lanes: PositiveInt = Field(16, description="places of the split that every batch is drawn from")
    monitor: str | None = Field(None, description="metric that picks the best checkpoint; default: the task's own")
    early_stopping: EarlyStopping | None = None
    keep_best: PositiveInt = 1
    checkpoint_every_steps: PositiveInt | None = Field(None, description="also within an epoch")
    log_every_steps: PositiveInt = 20


class Predict(Section):
    """Predictions on a split or on new files."""

    batch_size: PositiveInt = 1024
    top_k: PositiveInt | None = Field(20, description="classes kept a row; null keeps every score")
    posteriors: bool = Field(False, description="melody: keep the probability of every pitch in every frame too")


class Published(Section):
    """Scores that others have published for this run, to stand beside the measured ones in a report."""

    source: str = Field(description="paper and table")
    scores: dict[str, dict[str, float]] = Field(description="evaluation (test, val, a corpus) -> metric -> value")


class Resources(Section):
    """What the run asks of the cluster."""

    num_workers: PositiveInt = Field(1, description="data-parallel training processes")
    cpus_per_worker: PositiveFloat | None = Field(None, description="default: an equal share of the CPUs, at most 1")
    use_gpu: bool | Literal["auto"] = "auto"
    feed: Literal["thread", "ray_data"] = Field(
        "thread", description="who reads training rows: a thread of the worker, or Ray Data tasks in the cluster"
    )
    max_failures: int = Field(
        2, ge=0, description="how often lost workers are replaced, going on from the last checkpoint"
    )


class Run(Section):
    """A whole run file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: str = Field("runs", description="folder that holds run folders")
    seed: int = Field(0, ge=0)
    task: SerializeAsAny[BaseModel]
    dataset: SerializeAsAny[BaseModel]
    model: SerializeAsAny[BaseModel]
    prepare: Prepare = Prepare()
    train: Train = Train()
    predict: Predict = Predict()
    resources: Resources = Resources()
    published: Published | None = None

    MODULES: ClassVar[tuple[str, ...]] = ("task", "dataset", "model")

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return Path(self.out) / self.name

    def to_dict(self) -> dict[str, Any]:
        """The resolved run as plain JSON values; `from_dict` takes it back."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved run as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=110)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, with a repeated key an error instead of the last one winning in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value  # as it is written; a merge key (<<) is not one of the mapping's own
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, str):
                raise ValueError(f"line {key_node.start_mark.line + 1}: a key must be a word")
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice")
            seen.add(key)
        self.flatten_mapping(node)
        return super().construct_mapping(node, deep)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a run file and apply `a.b=c` overrides. ValueError names the file and each wrong key, value and choice."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a run file: {error}") from None
    try:
        # A subclass of SafeLoader: plain values only.
        values = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not a run file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a run file: the top level must be keys and values, as in configs/")
    for override in overrides:
        _apply(values, override)
    return from_dict(values, where=str(path))


def from_dict(values: dict[str, Any], where: str = "run") -> Run:
    """Validate plain values as a run. `where` stands at the head of the error."""
    values = dict(values)
    fields: dict[str, Any] = {}
    for kind in Run.MODULES:
        section = values.get(kind)
        if isinstance(section, str):  # `model: logistic` is short for `model: {name: logistic}`
            section = values[kind] = {"name": section}
        if isinstance(section, dict) and isinstance(section.get("name"), str) and "/" in section["name"]:
            # `timm/resnet18` is the architecture resnet18 of the library timm.
            name, _, architecture = section["name"].partition("/")
            section = values[kind] = {**section, "name": name, "architecture": architecture}
        if not isinstance(section, dict) or not isinstance(section.get("name"), str):
            raise ValueError(f"{where}: {kind}.name is missing; {lookup.suggest('', lookup.names(kind))}")
        try:
            fields[kind] = (lookup.load(kind, section["name"]).Config, ...)
        except ValueError as error:
            raise ValueError(f"{where}: {kind}.name={error}") from None
    schema: type[Run] = create_model("Run", __base__=Run, **fields)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _wrong_values(where, error, Run, fields) from None


def with_overrides(run: Run, overrides: Sequence[str], sections: Sequence[str]) -> Run:
    """The run with `a.b=c` overrides of some of its sections; ValueError for a key of another section."""
    values = run.to_dict()
    for override in overrides:
        if override.partition(".")[0] not in sections:
            raise ValueError(f"--set {override}: a trained run may be changed in {', '.join(sections)} alone")
        _apply(values, override)
    return from_dict(values, where=run.name)


def section_from_dict(
    schema: type[S], values: dict[str, Any], overrides: Sequence[str] = (), where: str = "settings"
) -> S:
    """Validate one section on its own, with overrides; errors as of a whole run."""
    for override in overrides:
        _apply(values, override)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _wrong_values(where, error, schema, {}) from None


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run file over every task, dataset and model, for editors."""
    fields: dict[str, Any] = {}
    for kind in Run.MODULES:
        configs = tuple(lookup.load(kind, name).Config for name in lookup.names(kind))
        union = Annotated[Union[configs], Field(discriminator="name")] if len(configs) > 1 else configs[0]  # noqa: UP007
        fields[kind] = (union | str, ...)
    return create_model("Run", __base__=Run, **fields).model_json_schema()


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key. The value stays text, which the schema converts, unless it is a list, a mapping or null."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {override}: expected key=value, such as train.epochs=3")
    try:
        value = yaml.safe_load(text) if text[:1] in ("[", "{", "'", '"') or text in ("null", "~") else text
    except yaml.YAMLError:
        raise ValueError(f"--set {override}: {text!r} is not valid YAML") from None
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if isinstance(child, str):
            child = values[parent] = {"name": child}
        if not isinstance(child, dict):
            raise ValueError(f"--set {override}: {parent!r} is a value, not a section")
        values = child
    values[last] = value


def _wrong_values(where: str, error: ValidationError, schema: type[BaseModel], modules: dict[str, Any]) -> ValueError:
    """One line a wrong key: the dotted key, what is wrong, the value given and what would be right."""
    lines: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        location = _keys(problem["loc"], schema, modules)
        key = ".".join(str(part) for part in location)
        if problem["type"] == "extra_forbidden":
            section = _section_at(location[:-1], schema, modules)
            choices = sorted(section.model_fields) if section else []
            lines[key] = f"{key}: unknown key; {lookup.suggest(str(location[-1]), choices)}"
        elif problem["type"] == "missing":
            lines[key] = f"{key}: missing; every run must set it"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines[key] = f"{lines[key]}, or: {message}" if key in lines else f"{key}={problem['input']!r}: {message}"
    listed = "\n".join(f"  {line}" for line in lines.values())
    return ValueError(f"{where}: {len(lines)} wrong value(s)\n{listed}")


def _keys(loc: Sequence[int | str], schema: type[BaseModel], modules: dict[str, Any]) -> list[int | str]:
    """The keys of a place in the file: pydantic also names the members of a union that it tried."""
    keys: list[int | str] = []
    for part in loc:
        section = _section_at(keys, schema, modules)
        if keys and section is None and isinstance(part, str) and not part.isidentifier():
            continue
        if keys and section is None and part in ("bool", "int", "float", "str", "none"):
            continue
        keys.append(part)
    return keys


def _section_at(
    location: Sequence[int | str], schema: type[BaseModel], modules: dict[str, Any]
) -> type[BaseModel] | None:
    """The model class that validates the section at `location`, to list its keys."""
    section = schema
    for part in location:
        if section is Run and part in modules:
            section = modules[str(part)][0]
            continue
        field = section.model_fields.get(str(part))
        found = list(_models_in(field.annotation)) if field else []
        if not found:
            return None
        section = found[0]
    return section


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for inner in get_args(annotation):
            yield from _models_in(inner)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
