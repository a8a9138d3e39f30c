"""Run files: what is read is what was written, and each mistake is named with its remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmray import config, lookup

MINIMAL = """
name: a-run
task: video_classification
dataset: {name: youtube8m, path: data, num_classes: 10, level: video}
model: logistic
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_resolved_run_reads_back_as_itself(run_file: Path, tmp_path: Path) -> None:
    run = config.load(run_file, ["train.epochs=3"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(run.to_yaml())
    assert config.load(resolved).to_dict() == run.to_dict()
    assert config.from_dict(json.loads(json.dumps(run.to_dict()))).to_dict() == run.to_dict()


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.epochs=7", "train", "epochs", 7),
        ("train.clip_norm=null", "train", "clip_norm", None),
        ("train.clip_norm=1e-1", "train", "clip_norm", 0.1),
        ("train.compile=true", "train", "compile", True),
        ("resources.use_gpu=auto", "resources", "use_gpu", "auto"),
        ("resources.use_gpu=false", "resources", "use_gpu", False),
        ("model.inputs=[mean_rgb]", "model", "inputs", ["mean_rgb"]),
        ("predict.top_k=null", "predict", "top_k", None),
    ],
)
def test_override_is_typed_by_the_schema(run_file: Path, override: str, section: str, key: str, value: object) -> None:
    assert config.load(run_file, [override]).to_dict()[section][key] == value


def test_override_of_a_section_written_in_short(run_file: Path) -> None:
    assert config.load(run_file, ["model.name=moe", "model.num_experts=3"]).to_dict()["model"]["num_experts"] == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", ["train.epoch", "unknown key", "'epochs'", "batch_size"]),
        ("trian.epochs=3", ["trian", "unknown key", "'train'"]),
        ("train.optimizer.lrr=3", ["train.optimizer.lrr", "'lr'", "weight_decay"]),
        ("model.experts=3", ["model.experts", "unknown key", "inputs"]),
        ("dataset.pathh=x", ["dataset.pathh", "'path'"]),
        ("train.epochs=0", ["train.epochs='0'", "greater than 0"]),
        ("resources.use_gpu=maybe", ["resources.use_gpu='maybe'", "valid boolean", "'auto'"]),
        ("train.optimizer.betas=[0.9, 1.0]", ["train.optimizer.betas.1=1.0", "less than 1"]),
        ("train.optimizer.name=adamm", ["train.optimizer.name='adamm'", "'adam'", "'sgd'"]),
        ("model.name=creppe", ["model.name='creppe'", "is not a model", "logistic", "moe"]),
        ("model.name=logistc", ["did you mean 'logistic'?"]),
        ("task.name=melody", ["'melody' is not a task", "video_classification"]),
        ("train.schedule.name=step", ["schedule.every_steps"]),
        ("prepare.split.fractions={train: 0.5, val: 0.1, test: 0.1}", ["sum to 0.7"]),
        ("name=a b", ["name='a b'"]),
        ("train", ["expected key=value"]),
        ("name.x=1", ["'name'"]),
    ],
)
def test_mistake_is_named_with_its_remedy(run_file: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        config.load(run_file, [override])
    for word in words:
        assert word in str(caught.value)


def test_every_mistake_is_listed_at_once(run_file: Path) -> None:
    with pytest.raises(ValueError, match="3 wrong value") as caught:
        config.load(run_file, ["train.epoch=3", "train.batch_size=-1", "seed=x"])
    assert str(run_file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", ["line 2", "'a' stands twice"]),
        ("- 1\n", ["top level"]),
        ("{[1, 2]: 3}\n", ["a key must be a word"]),
        ("a: [1\n", ["not a run file"]),
        ("name: x\n", ["task.name is missing", "video_classification"]),
        ("!!python/object/apply:os.system [true]\n", ["not a run file"]),
    ],
)
def test_file_that_is_no_run(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        config.load(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml: cannot be read: No such file"):
        config.load(tmp_path / "none.yaml")


def test_json_schema_knows_every_module() -> None:
    text = json.dumps(config.json_schema())
    for kind in lookup.KINDS:
        for name in lookup.names(kind):
            assert f'"{name}"' in text


def test_nothing_outside_on_ray_imports_ray() -> None:
    """A process in which `import ray` fails imports every other module."""
    code = """
import pkgutil, sys, importlib
sys.modules["ray"] = sys.modules["optuna"] = None
import mmray
for module in pkgutil.walk_packages(mmray.__path__, "mmray."):
    if not module.name.startswith("mmray.on_ray"):
        importlib.import_module(module.name)
assert "mmray.training.loop" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_command_line_starts_without_torch_and_ray() -> None:
    code = "import sys, mmray.cli; assert not {'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
