"""The space of a search: what it takes, what it refuses, and the runs that its values make."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray import config, tuning
from mmray.tuning import Choice, Numbers, Param, combinations, data_variants, grid, points, run_of, space_of, walk

RUN: dict[str, Any] = {
    "name": "base",
    "task": "video_classification",
    "dataset": {"name": "youtube8m", "path": "data", "num_classes": 10, "level": "video"},
    "model": {"name": "moe", "num_experts": 4},
    "train": {"optimizer": {"lr": 0.003}},
}
EXPERTS = {"model": {"choice": ["logistic", "moe"], "when": {"moe": {"model.num_experts": {"int": [1, 8]}}}}}


def run_with(space: dict[str, Any], **settings: Any) -> config.Run:
    return config.from_dict(RUN | {"tune": {"space": space, **settings}})


def space(values: dict[str, Any]) -> tuning.Space:
    return space_of(run_with(values))


def test_ranges_are_read_as_written() -> None:
    found = space(
        {
            "train.optimizer.lr": {"loguniform": ["1e-4", 0.1]},  # YAML reads 1e-4 as text
            "train.clip_norm": {"uniform": [0.5, 2], "step": 0.5},
            "train.schedule.warmup_steps": {"int": [0, 100], "step": 50},
            "train.shuffle_lanes": {"logint": [1, 64]},
            "train.batch_size": {"choice": [128, 256]},
            "train.accumulate": 2,
        }
    )
    assert found == (
        Param("train.optimizer.lr", "train.optimizer.lr", Numbers(1e-4, 0.1, log=True)),
        Param("train.clip_norm", "train.clip_norm", Numbers(0.5, 2, 0.5)),
        Param("train.schedule.warmup_steps", "train.schedule.warmup_steps", Numbers(0, 100, 50, whole=True)),
        Param("train.shuffle_lanes", "train.shuffle_lanes", Numbers(1, 64, log=True, whole=True)),
        Param("train.batch_size", "train.batch_size", Choice({128: 128, 256: 256})),
        Param("train.accumulate", "train.accumulate", Choice({2: 2})),
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train.optimizer.lrr": {"uniform": [0.1, 1]}}, ["train.optimizer.lrr", "did you mean 'lr'?"]),
        ({"trian.epochs": {"int": [1, 2]}}, ["trian", "did you mean 'train'?"]),
        ({"train.optimizer.lr": {"uniform": [0, 1]}}, ["train.optimizer.lr=0.0", "greater than 0"]),
        ({"train.batch_size": {"choice": [128, "many"]}}, ["train.batch_size='many'", "valid integer"]),
        ({"train.optimizer.lr": {"unifrom": [0.1, 1]}}, ["train.optimizer.lr", "uniform, loguniform, int"]),
        ({"train.optimizer.lr": {"uniform": [1, 0.1]}}, ["the lowest comes first"]),
        ({"train.optimizer.lr": {"uniform": ["a", 1]}}, ["'a' is not a number"]),
        ({"train.epochs": {"int": [1, 2.5]}}, ["2.5 is not a whole number"]),
        ({"train.optimizer.lr": {"loguniform": [0, 1]}}, ["no logarithm at 0"]),
        ({"train.optimizer.lr": {"loguniform": [0.1, 1], "step": 2}}, ["loguniform knows no 'step'"]),
        ({"train.clip_norm": {"uniform": [1, 2], "step": 0.3}}, ["no whole number of steps of 0.3", "1.9"]),
        ({"train.batch_size": {"choice": [128, 128]}}, ["a value twice"]),
        ({"train.batch_size": {"choice": 128}}, ["must be a list"]),
        ({"model": {"choice": ["moe"], "when": {"mo": {}}}}, ["when.mo", "did you mean 'moe'?"]),
        ({"model": {"choice": ["logistic", "creppe"]}}, ["'creppe' is not a model"]),
        (
            {"model": {"choice": ["logistic", "moe"], "when": {"logistic": {"model.num_experts": {"int": [1, 2]}}}}},
            ["model.num_experts", "unknown key"],
        ),
        (EXPERTS | {"model.num_experts": {"int": [1, 2]}}, ["model.num_experts: stands both under moe and above"]),
        ({"resources.num_workers": {"int": [1, 2]}}, ["can't be searched: all trials have the same processes"]),
        ({"seed": {"int": [1, 2]}}, ["tune.seeds"]),
        ({"train.optimizer.lr.x": 1}, ["'lr' is a value, not a section"]),
    ],
)
def test_mistake_in_the_space_is_named_with_its_remedy(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"base: wrong tune\.space") as caught:
        space(values)
    for word in words:
        assert word in str(caught.value)


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(ValueError, match="lowest comes first") as caught:
        space({"train.epochs": {"int": [3, 1]}, "train.optimizer.lr": {"uniform": ["x", 1]}})
    assert "'x' is not a number" in str(caught.value)


def test_another_model_keeps_nothing_of_the_run_s() -> None:
    found = space(EXPERTS)
    run = run_with(EXPERTS)
    assert run_of(run, found, {"model.name": "logistic"}).model.model_dump()["name"] == "logistic"
    moe = run_of(run, found, {"model.name": "moe", "model.num_experts": 7}, name="seven")
    assert (moe.model.model_dump()["num_experts"], moe.name, moe.tune) == (7, "seven", None)
    assert run.model.model_dump()["num_experts"] == 4


def test_keys_of_another_model_are_set_whatever_their_names() -> None:
    values = {"model": {"choice": ["logistic"], "when": {"logistic": {"model.inputs": {"choice": [["a"]]}}}}}
    (found,) = grid(space(values))
    assert run_of(run_with(values), space(values), found).model.model_dump()["inputs"] == ["a"]


def test_section_that_the_run_lacks_comes_into_being() -> None:
    values = {"train.early_stopping.patience": {"int": [2, 4]}}
    found = run_of(run_with(values), space(values), {"train.early_stopping.patience": 3})
    assert found.train.early_stopping == config.EarlyStopping(patience=3)


def test_key_under_several_choices_has_a_name_for_each() -> None:
    lr = {name: {"train.optimizer.lr": {"loguniform": [low, 1]}} for name, low in (("logistic", 0.1), ("moe", 0.01))}
    values = {"model": {"choice": ["logistic", "moe"], "when": lr}}
    found = space(values)
    assert [param.name for param in tuning.params(found)] == [
        "model.name", "train.optimizer.lr@logistic", "train.optimizer.lr@moe"
    ]  # fmt: skip
    picked = walk(found, lambda param: "moe" if param.key == "model.name" else 0.5)
    assert picked == {"model.name": "moe", "train.optimizer.lr@moe": 0.5}
    assert run_of(run_with(values), found, picked).train.optimizer.lr == 0.5


def test_choice_of_lists_goes_by_its_json() -> None:
    values = {"train.optimizer.betas": {"choice": [[0.9, 0.99], [0.8, 0.9]]}}
    (param,) = space(values)
    assert param.range.values() == ["[0.9, 0.99]", "[0.8, 0.9]"]
    assert json.loads(str(param.range.values()[1])) == [0.8, 0.9]
    run = run_of(run_with(values), (param,), {param.name: "[0.8, 0.9]"})
    assert run.train.optimizer.betas == (0.8, 0.9)


def test_grid_is_every_point_of_every_branch() -> None:
    found = space(EXPERTS | {"train.clip_norm": {"uniform": [0.1, 0.3], "step": 0.1}})
    every = list(grid(found))
    assert len(every) == (1 + 8) * 3
    assert len({json.dumps(values, sort_keys=True) for values in every}) == len(every)
    assert {values["train.clip_norm"] for values in every} == {0.1, 0.2, 0.3}
    assert len(list(grid(space({"train.shuffle_lanes": {"logint": [1, 64]}})))) == 64
    with pytest.raises(ValueError, match=r"tune\.space\.train\.optimizer\.lr has no end of values"):
        list(grid(space({"train.optimizer.lr": {"uniform": [0.1, 1]}})))


def test_data_is_prepared_for_each_way_to_have_it() -> None:
    values = EXPERTS | {"dataset.verify_crc": {"choice": [True, False]}, "prepare.split.seed": {"int": [1, 3]}}
    found = data_variants(run_with(values), space(values))
    assert [(run.dataset.model_dump()["verify_crc"], run.prepare.split.seed) for run in found] == [
        (crc, seed) for crc in (True, False) for seed in (1, 2, 3)
    ]
    assert len(data_variants(run_with(EXPERTS), space(EXPERTS))) == 1
    endless = {"prepare.max_bad_fraction": {"uniform": [0, 1]}}
    with pytest.raises(ValueError, match="each value needs a prepared dataset"):
        data_variants(run_with(endless), space(endless))


def test_points_are_checked_and_the_default_is_the_run_s_own() -> None:
    values = EXPERTS | {"train.optimizer.lr": {"loguniform": [0.01, 1]}}
    found = space(values)
    run = run_with(values, points=["default", {"model": "logistic", "train.optimizer.lr": 0.1}])
    assert points(run, found) == [  # 0.003 is not within the range
        {"model.name": "moe", "model.num_experts": 4}, {"model.name": "logistic", "train.optimizer.lr": 0.1}
    ]  # fmt: skip
    for point, message in (
        ({"train.optimiser.lr": 0.1}, "is not in tune.space; did you mean 'train.optimizer.lr'"),
        ({"train.optimizer.lr": 2}, "is not in its range"),
        ({"model": "logistic", "model.num_experts": 4}, "does not exist with the other values"),
    ):
        with pytest.raises(ValueError, match=r"tune\.points\.0") as caught:
            points(run_with(values, points=[point]), found)
        assert message in str(caught.value)


def test_default_of_a_library_s_architecture_goes_by_its_name() -> None:
    values = RUN | {"task": "image_classification", "model": {"name": "timm/resnet18", "drop_rate": 0.5}}
    values["dataset"] = {"name": "album_covers", "path": "data"}
    choices = {"model": {"choice": ["timm/resnet10t", "timm/resnet18", "pets_cnn"]}}
    run = config.from_dict(values | {"tune": {"space": choices, "points": ["default"]}})
    found = space_of(run)
    assert points(run, found) == [{"model.name": "timm/resnet18"}]
    other = run_of(run, found, {"model.name": "timm/resnet10t"}).model.model_dump()
    assert (other["architecture"], other["drop_rate"]) == ("resnet10t", 0.5)  # of the same library
    assert "drop_rate" not in run_of(run, found, {"model.name": "pets_cnn"}).model.model_dump()


@given(st.integers(-50, 50), st.integers(0, 40), st.integers(1, 9))
def test_values_of_numbers_are_what_they_hold(low: int, steps: int, step: int) -> None:
    numbers = Numbers(low, low + steps * step, step, whole=True)
    assert numbers.values() == list(range(low, low + steps * step + 1, step))
    assert all(numbers.holds(value) for value in numbers.values())
    assert not numbers.holds(low - 1)
    assert not numbers.holds(low + steps * step + 1)
    assert step == 1 or steps == 0 or not numbers.holds(low + 1)
    assert not numbers.holds(True)
    assert not numbers.holds(math.nan)


@given(st.recursive(st.just(()), lambda inner: st.lists(inner, min_size=1, max_size=3).map(tuple), max_leaves=6))
def test_walks_of_a_nested_space_are_its_combinations(shape: tuple[Any, ...]) -> None:
    """A walk that picks what one combination has gives that combination, and their number is a sum of products."""
    found = nested(shape, "x")
    every = list(combinations(found, lambda param: param.range.values()))
    assert len(every) == count(shape)
    for values in every:
        assert walk(found, lambda param, values=values: values[param.name]) == values


def nested(shape: tuple[Any, ...], name: str) -> tuning.Space:
    """A choice of two for each member of `shape`; the second brings in what the member holds."""
    return tuple(
        Param(f"{name}{i}", f"{name}{i}", Choice({"a": "a", "b": "b"}, {"b": nested(inner, f"{name}{i}.")}))
        for i, inner in enumerate(shape)
    )


def count(shape: tuple[Any, ...]) -> int:
    return math.prod(1 + count(inner) for inner in shape)


def test_values_for_people_are_short_but_never_the_same() -> None:
    assert tuning.describe({"train.optimizer.lr": 0.00123456, "model.name": "moe"}) == "lr 0.001235, model moe"
    assert tuning.describe({"a.seed": 1, "b.seed": 2}) == "a.seed 1, b.seed 2"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tune.sampler=tpee", ["tune.sampler.name='tpee'", "'tpe'"]),
        ("tune.stopper.factor=1", ["tune.stopper.factor='1'"]),
        ("tune.objectives={val/gap: maximum}", ["'max' or 'min'"]),
        ("tune.sample=3", ["tune.sample: unknown key; did you mean 'samples'?"]),
    ],
)
def test_mistake_in_the_section_is_named(tmp_path: Any, override: str, words: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(run_with(EXPERTS).to_yaml())
    with pytest.raises(ValueError, match=r"run\.yaml") as caught:
        config.load(path, [override])
    for word in words:
        assert word in str(caught.value)
