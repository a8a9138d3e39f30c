"""Run files: what is read is what was written, and each mistake is named with its remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
        ("train.phases=[{name: a, epochs: 3}, {name: b, epochs: 4}]", "train", "epochs", 7),
        ("train.ema_decay=0.999", "train", "ema_decay", 0.999),
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
        ("train.schedule={name: step, every_steps: 2, every_epochs: 2}", ["one of", "every_steps", "every_epochs"]),
        ("train.schedule.every_steps=3", ["every_steps has no effect with name: constant; it is for step"]),
        ("train.schedule={name: cosine, min_lr: 1e-6}", ["min_lr has no effect with name: cosine", "plateau"]),
        ("train.schedule={name: step, every_epochs: 1, monitor: val/loss}", ["monitor has no effect with name: step"]),
        ("train.schedule.weight_decay_gamma=2", ["it is for step and plateau"]),
        ("train.schedule={name: plateau, weight_decay_gamma: 2}", ["no effect without optimizer.weight_decay"]),
        ("train.schedule={name: plateau, min_lr: 0.1}", ["schedule.min_lr=0.1 is above its lr=0.001; lower it"]),
        ("train.optimizer.layer_lr={head.weight: 0}", ["train.optimizer.layer_lr", "greater than 0"]),
        ("train.ema_decay=1", ["train.ema_decay='1'", "less than 1"]),
        ("train.penalties=[{parameters: w}]", ["train.penalties.0={'parameters': 'w'}", "neither l1 nor l2"]),
        ("train.penalties=[{parameters: w, l3: 1}]", ["train.penalties.0.l3: unknown key", "l1, l2, parameters"]),
        ("train.penalties=[{parameters: w, l1: -1}]", ["train.penalties.0.l1=-1", "greater than or equal to 0"]),
        ("train.phases=[{name: a, epoch: 1}]", ["train.phases.0.epoch: unknown key", "'epochs'", "from_layer"]),
        ("train.phases=[{name: a, epochs: 0}]", ["train.phases.0.epochs=0", "greater than 0"]),
        ("train.phases=[{name: a, epochs: 1, train: [x], freeze: []}]", ["train.phases.0=", "train and freeze cannot"]),
        ("train.phases=[{name: a, epochs: 1}, {name: a, epochs: 2}]", ["train.phases=", "'a' stands 2 times"]),
        ("train.phases=[{name: a, epochs: 1, start_from: best}]", ["phase 'a' is the first", "no best checkpoint"]),
        (
            "train.phases=[{name: a, epochs: 1, lr: 0.01, schedule: {name: plateau, min_lr: 0.1}}]",
            ["schedule.min_lr=0.1 of phase 'a' is above its lr=0.01"],
        ),
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


def test_epochs_that_are_not_those_of_the_phases(run_file: Path) -> None:
    phases = "train.phases=[{name: a, epochs: 3}, {name: b, epochs: 4}]"
    assert config.load(run_file, [phases, "train.epochs=7"]).train.epochs == 7
    with pytest.raises(ValueError, match=r"train\.epochs='8': those of train\.phases add up to 7; leave train\.epochs"):
        config.load(run_file, [phases, "train.epochs=8"])


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


def test_examples_of_the_page_on_training_are_valid() -> None:
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    examples = [yaml.safe_load(block.partition("```")[0]) for block in page.split("```yaml\n")[1:]]
    assert len(examples) == 4
    for example in examples:
        config.section_from_dict(config.Train, example["train"])


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
