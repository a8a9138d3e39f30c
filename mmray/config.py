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
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from mmray import lookup
from mmray.storage import at, check_address

S = TypeVar("S", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
EnsembleMethod = Literal["mean", "max", "geometric", "rank", "median", "weighted", "greedy", "stack", "forest", "soup"]


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
    layer_lr: dict[str, PositiveFloat] = Field(
        {}, description="factor of lr for the parameters that a pattern names; the first pattern that fits counts"
    )
    no_weight_decay: tuple[str, ...] = Field((), description="patterns of parameters without weight decay")


class Schedule(Section):
    """Learning rate over time: linear warm-up, then the named shape. In a phase it counts from the phase's begin."""

    name: Literal["constant", "cosine", "step", "plateau"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    final_fraction: Fraction = Field(0.0, description="cosine: share of lr that is left at the end")
    every_steps: PositiveInt | None = Field(None, description="step: gamma every so many steps after the warm-up")
    every_epochs: PositiveInt | None = Field(None, description="step: or every so many epochs, warm-up counted in")
    gamma: PositiveFloat = Field(0.5, description="step and plateau: what lr is multiplied by each time")
    weight_decay_gamma: PositiveFloat | None = Field(
        None, description="step and plateau: what weight decay is multiplied by at the same times"
    )
    patience: int = Field(2, ge=0, description="plateau: epochs without a better metric that go by before gamma")
    min_lr: float = Field(0.0, ge=0, description="plateau: lr falls no lower")
    monitor: str | None = Field(None, description="plateau: the metric that is to get better; default: train.monitor")

    @model_validator(mode="after")
    def _keys_fit_the_shape(self) -> Schedule:
        if self.name == "step" and (self.every_steps is None) == (self.every_epochs is None):
            raise ValueError("schedule.name: step needs one of schedule.every_steps and schedule.every_epochs")
        meant_for = {
            "every_steps": ("step",),
            "every_epochs": ("step",),
            "weight_decay_gamma": ("step", "plateau"),
            "min_lr": ("plateau",),
            "monitor": ("plateau",),
        }
        for key, names in meant_for.items():
            if getattr(self, key) and self.name not in names:
                raise ValueError(f"{key} has no effect with name: {self.name}; it is for {' and '.join(names)}")
        return self


class EarlyStopping(Section):
    """Stop when the monitored metric has not improved by `min_delta` for `patience` epochs.

    In a run of phases it ends the phase, which the next one follows; each phase counts anew.
    """

    patience: PositiveInt = 3
    min_delta: float = Field(0.0, ge=0)


class Phase(Section):
    """A part of the training that trains some parameters and leaves the others as they are; by default it trains all.

    Parameters go by their dotted names in the model; `*` in a pattern stands for anything, dots too.
    """

    name: str = Field(min_length=1)
    epochs: PositiveInt
    train: tuple[str, ...] | None = Field(None, description="patterns: train these parameters alone")
    freeze: tuple[str, ...] | None = Field(None, description="patterns: train all parameters but these")
    from_layer: str | None = Field(None, description="a module: train it and all that comes after it in the model")
    lr: PositiveFloat | None = Field(None, description="peak learning rate; default: train.optimizer.lr")
    schedule: Schedule | None = Field(None, description="default: train.schedule")
    start_from: Literal["last", "best"] = Field("last", description="which weights of those so far it begins with")

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Phase:
        given = [key for key in ("train", "freeze", "from_layer") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot both say what is trained; keep one of them")
        return self


class Penalty(Section):
    """What is added to the loss for the weights w of some parameters: l1 * sum |w| + l2 * sum w^2, as in Keras."""

    parameters: str = Field(description="pattern of their names")
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _is_one(self) -> Penalty:
        if not self.l1 and not self.l2:
            raise ValueError("it has neither l1 nor l2 above 0; give one, or remove it")
        return self


class Train(Section):
    """The training loop."""

    phases: tuple[Phase, ...] = Field((), description="parts of the training that differ in what is trained and how")
    epochs: PositiveInt = Field(
        None, validate_default=True, description="with phases: the sum of theirs", json_schema_extra={"default": 5}
    )
    batch_size: PositiveInt = Field(512, description="rows per optimiser step, over all workers together")
    accumulate: PositiveInt = Field(1, description="micro-batches a step is computed in, to save memory")
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    penalties: tuple[Penalty, ...] = ()
    ema_decay: Momentum | None = Field(
        None, description="validate and predict with a moving average of the weights, of which so much is kept a step"
    )
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

    @field_validator("phases")
    @classmethod
    def _phases_in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        names = [phase.name for phase in phases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} stands {names.count(name)} times; give each phase its own")
        if phases and phases[0].start_from == "best":
            raise ValueError(f"phase {names[0]!r} is the first: there is no best checkpoint for it to start from")
        return phases

    @field_validator("epochs", mode="before")
    @classmethod
    def _epochs_left_out(cls, epochs: Any, given: ValidationInfo) -> Any:
        total = sum(phase.epochs for phase in given.data.get("phases", ()))
        return (total or 5) if epochs is None else epochs

    @field_validator("epochs")
    @classmethod
    def _epochs_of_the_phases(cls, epochs: int, given: ValidationInfo) -> int:
        total = sum(phase.epochs for phase in given.data.get("phases", ()))
        if total and epochs != total:
            raise ValueError(f"those of train.phases add up to {total}; leave train.epochs out")
        return epochs

    @model_validator(mode="after")
    def _rates_fit_the_schedules(self) -> Train:
        for phase in self.each_phase:
            lr, schedule = phase.lr or self.optimizer.lr, phase.schedule or self.schedule
            of = f" of phase {phase.name!r}" if self.phases else ""
            if schedule.min_lr > lr:
                raise ValueError(f"schedule.min_lr={schedule.min_lr:g}{of} is above its lr={lr:g}; lower it")
            if schedule.weight_decay_gamma and not self.optimizer.weight_decay:
                raise ValueError(f"schedule.weight_decay_gamma{of} has no effect without optimizer.weight_decay")
        return self

    @property
    def each_phase(self) -> tuple[Phase, ...]:
        """The phases; where there are none, the whole training as one that trains all."""
        return self.phases or (Phase(name="train", epochs=self.epochs),)


class Predict(Section):
    """Predictions on a split or on new files."""

    batch_size: PositiveInt = 1024
    top_k: PositiveInt | None = Field(20, description="classes kept a row; null keeps every score")
    posteriors: bool = Field(False, description="melody: keep the probability of every pitch in every frame too")


class Published(Section):
    """Scores that others have published for this run, to stand beside the measured ones in a report."""

    source: str = Field(description="paper and table")
    scores: dict[str, dict[str, float]] = Field(description="evaluation (test, val, a corpus) -> metric -> value")


class Forest(Section):
    """The random forest over candidate classes."""

    trees: PositiveInt = 1000
    min_samples_leaf: PositiveInt = 1
    trees_a_task: PositiveInt = Field(25, description="grown by one task; they are the same trees whatever it is")


class Ensemble(Section):
    """What the folder of an ensemble is made of; `mmray ensemble` writes it.

    The run's `task`, `dataset` and `model` are then those of its first member, by which rows and labels are read; no
    model of its own was trained, but for `soup`, whose weights are the mean of the members'.
    """

    method: EnsembleMethod
    members: tuple[str, ...] = Field(min_length=2, description="run folders, by name")
    missing: Literal["error", "intersect"] = Field("error", description="ids that a member lacks: refuse, or leave out")
    candidates: PositiveInt = Field(20, description="learned methods: best classes of each member that are looked at")
    max_candidates: PositiveInt = Field(2_000_000, description="learned methods: about so many of val are learned from")
    rounds: PositiveInt = Field(30, description="greedy: members chosen at most, the same ones counted again")
    forest: Forest = Forest()


class Place(Section):
    """Which machines: those that have these labels, and custom resources of which each process takes so much."""

    labels: dict[str, str] = Field({}, description="of the node: {pool: gpu}; a leading ! stands for any other value")
    custom: dict[str, PositiveFloat] = Field({}, description="custom resources of the node that one process takes")


class DataPlace(Place):
    """Where rows are prepared, read ahead and predicted on CPUs, and what one task of it takes."""

    cpus: PositiveFloat = Field(1, description="of one task")


class Resources(Section):
    """What the run asks of the cluster."""

    num_workers: PositiveInt = Field(1, description="data-parallel training processes")
    min_workers: PositiveInt | None = Field(
        None, description="train with as few where machines are lost or not there yet; default: num_workers"
    )
    cpus_per_worker: PositiveFloat | None = Field(None, description="default: an equal share of the CPUs, at most 1")
    use_gpu: bool | Literal["auto"] = "auto"
    train: Place = Field(Place(), description="machines that train")
    data: DataPlace = Field(DataPlace(), description="machines that prepare, and with feed: ray_data read")
    feed: Literal["thread", "ray_data"] = Field(
        "thread", description="who reads training rows: a thread of the worker, or Ray Data tasks in the cluster"
    )
    prefetch_steps: PositiveInt = Field(
        2, description="steps whose rows each worker has ready; more of them hide the waits of slow storage"
    )
    max_failures: int = Field(
        2, ge=0, description="how often lost workers are replaced, going on from the last checkpoint"
    )
    max_wait_s: PositiveFloat = Field(600, description="how long to wait for machines in the place of lost ones")
    resize_every_s: PositiveFloat = Field(60, description="with min_workers: how often to look for more machines")

    @model_validator(mode="after")
    def _fewer_is_fewer(self) -> Resources:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than num_workers={self.num_workers}; lower it")
        return self


class _Named(Section):
    """A section of which the name alone will do: `stopper: asha` is short for `stopper: {name: asha}`."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, values: Any) -> Any:
        return {"name": values} if isinstance(values, str) else values


class Sampler(_Named):
    """Who chooses the values of the next trial."""

    name: Literal["tpe", "gp", "cmaes", "nsga2", "random", "grid", "pbt"] = "tpe"
    seed: int = Field(0, ge=0)
    startup_trials: PositiveInt = Field(10, description="tpe and gp: trials drawn at random before the model is asked")
    population: PositiveInt | None = Field(None, description="nsga2 and pbt: trials a generation")
    interval_epochs: PositiveInt = Field(1, description="pbt: epochs a generation")
    quantile: float = Field(0.25, gt=0, le=0.5, description="pbt: share that is replaced by copies of the best")


class Stopper(_Named):
    """Who ends hopeless trials early, by the objective after each epoch."""

    name: Literal["none", "asha", "median", "hyperband"] = "none"
    min_epochs: PositiveInt = Field(1, description="no trial ends before")
    factor: int = Field(4, ge=2, description="asha and hyperband: one in so many goes on, for so many times the epochs")


class Tune(Section):
    """A search over runs that differ from this one in the keys of `space`: see `mmray.tuning`."""

    space: dict[str, Any] = Field(min_length=1, description="dotted key -> range of its values")
    objectives: dict[str, Literal["max", "min"]] | None = Field(
        None, min_length=1, description="metric -> which of its ends is better; default: what the task monitors"
    )
    samples: PositiveInt | None = Field(None, description="trials; default 20, or the whole of a grid")
    time_budget_s: PositiveFloat | None = Field(None, description="of one call; the next one goes on")
    concurrency: PositiveInt | None = Field(None, description="trials at a time; default: as many as fit")
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="each trial trains once a seed and is judged by the mean"
    )
    points: list[Literal["default"] | dict[str, Any]] = Field([], description="tried first; default: the run's values")
    sampler: Sampler = Sampler()
    stopper: Stopper = Stopper()
    keep_best: PositiveInt = Field(3, description="trials whose checkpoints are kept")
    storage: str = Field("sqlite", description="sqlite or journal: a file of the study; or the URL of a database")


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
    ensemble: Ensemble | None = None
    tune: Tune | None = None

    MODULES: ClassVar[tuple[str, ...]] = ("task", "dataset", "model")

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return at(self.out) / self.name

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
        text = at(path).read_text(encoding="utf-8")
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
        run = schema.model_validate(values)
    except ValidationError as error:
        raise _wrong_values(where, error, Run, fields) from None
    for key in ("out", "prepare", "dataset", "model", "ensemble"):
        _check_addresses(f"{where}: {key}", getattr(run, key))
    return run


def _check_addresses(key: str, value: Any) -> None:
    """ValueError, naming the key, for an address that holds a password: it would stand in every log and report."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            _check_addresses(f"{key}.{name}", getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            _check_addresses(key, item)
    elif isinstance(value, str):
        try:
            check_address(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None


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
        if isinstance(part, int):  # one of a list
            continue
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
    if get_origin(annotation) in (Union, UnionType, Annotated, tuple, list):
        for inner in get_args(annotation):
            yield from _models_in(inner)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
