"""Every run file under configs/: it loads, builds its model without memory, and its header says what is so."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmray import config, lookup
from mmray.schema import DatasetInfo, SplitInfo, arrow_schema
from mmray.tasks import Task, build
from mmray.training.phases import check_patterns, penalties_of, total_penalty, trained_parameters

PROJECT = Path(__file__).parent.parent.parent
PATHS = sorted(path.relative_to(PROJECT) for path in (PROJECT / "configs").rglob("*.yaml"))

pytestmark = pytest.mark.parametrize("path", PATHS, ids=str)

FACTORS = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}


@pytest.fixture(autouse=True)
def _from_the_root_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commands of the headers are meant to be given."""
    monkeypatch.chdir(PROJECT)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """So small a batch is done sooner by one thread than by several that wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def header(path: Path) -> str:
    """The comment at the head of a run file, without its marks; a line that goes on is joined to the one before."""
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        if text.startswith("  ") and lines:
            lines[-1] += " " + text.strip()
        else:
            lines.append(text)
    return "\n".join(lines)


def task_of(run: config.Run, **splits: SplitInfo) -> Task:
    """The run's task over the columns that its dataset section announces."""
    dataset: Any = lookup.load("dataset", run.dataset.name)  # type: ignore[attr-defined]
    values = run.dataset.model_dump()
    if values.get("class_names_file"):  # stands beside a corpus that is not here; the names don't matter
        values["class_names_file"] = None
    section = type(run.dataset).model_validate(values)
    info = DatasetInfo(
        id="meta", columns=dataset.columns(section), class_names=dataset.class_names(section), splits=splits,
        split_rule="", group_key=dataset.GROUP_KEY, rows_in=0, rows_out=0, rejected=0, rejected_reasons={},
    )  # fmt: skip
    return build(run, info)


def model_on_meta(run: config.Run) -> torch.nn.Module:
    """The run's model, with no memory behind it."""
    with torch.device("meta"):
        return task_of(run).build_model()


def test_loads_and_reads_back(path: Path) -> None:
    run = config.load(path)
    assert config.from_dict(run.to_dict()).to_dict() == run.to_dict()


def test_names_are_unique(path: Path) -> None:
    """Two runs of one name would share a run folder."""
    name = config.load(path).name
    assert [other for other in PATHS if config.load(other).name == name] == [path]


def test_builds_its_model_on_the_meta_device(path: Path) -> None:
    model = model_on_meta(config.load(path))
    parameters = list(model.parameters())
    assert parameters
    assert all(p.is_meta for p in parameters)


def test_patterns_name_parameters_of_the_model(path: Path) -> None:
    """Those of phases, penalties, learning rates and weight decay."""
    run = config.load(path)
    check_patterns(run.train, model_on_meta(run))


@pytest.mark.usefixtures("_one_thread")
def test_each_phase_has_a_gradient_for_what_it_trains(path: Path) -> None:
    """By the loss of two small made-up images, without pretrained weights."""
    values = config.load(path).to_dict()
    if values["task"]["name"] != "image_classification":
        pytest.skip("only models of images are too many for the contract of tasks")
    values["model"]["pretrained"] = False
    values["dataset"]["image"]["size"] = side, _ = 80, 80
    run = config.from_dict(values)
    num_classes = len(task_of(run).info.class_names)
    sums = {"channel_mean": [1.0] * 3, "channel_mean_square": [0.6] * 3}
    train = SplitInfo(rows=2, num_bytes=0, files=[], label_counts=[1] * num_classes, sums=sums)
    task = task_of(run, train=train)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3 * side * side), dtype=np.uint8)
    rows = [{"id": f"{i}.jpg", "labels": [i], "image": pixels[i].tobytes()} for i in range(2)]
    columns = [task.info.column(name) for name in task.columns(labelled=True)]
    batch = task.collate(task.augmented(pa.Table.from_pylist(rows, schema=arrow_schema(columns)), epoch=0))
    torch.manual_seed(0)
    model = task.build_model()
    for phase in run.train.each_phase:
        trained = trained_parameters(phase, model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        loss = task.loss(model, batch) + total_penalty(penalties_of(run.train, model))
        loss.backward()
        assert torch.isfinite(loss)
        moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert moved == trained
        model.zero_grad()


def test_paths_are_relative(path: Path) -> None:
    for key in ("out", "dataset", "prepare"):
        assert not re.search(r":\s*['\"]?(/|~)", str(config.load(path).to_dict()[key])), key


def test_header_tells_corpus_and_command(path: Path) -> None:
    text = header(path)
    assert re.search(r"^Corpus +\S", text, re.MULTILINE), text
    (command,) = re.findall(r"^Command +(.+)$", text, re.MULTILINE)
    assert str(path) in shlex.split(command)


def test_commands_of_the_header_load(path: Path) -> None:
    """Each `mmray <verb> configs/… --set …` in it names a run file that takes these overrides."""
    commands = re.findall(r"^\w+ +(mmray \w+ configs/.+)$", header(path), re.MULTILINE)
    assert commands
    for command in commands:
        _, verb, run_file, *options = shlex.split(command)
        assert verb in ("plan", "prepare", "preview", "train", "tune")
        assert options[::2] == ["--set"] * (len(options) // 2)
        model_on_meta(config.load(run_file, options[1::2]))


def test_number_of_parameters_is_as_said(path: Path) -> None:
    """Within 1 %."""
    said = re.search(r"([\d.,]+) ?([kMB]?) parameters", header(path))
    if said is None:
        assert "smoke" in path.parts, "a published model says how many parameters it has"
        return
    count = float(said[1].replace(",", "")) * FACTORS[said[2]]
    assert sum(p.numel() for p in model_on_meta(config.load(path)).parameters()) == pytest.approx(count, rel=0.01)
