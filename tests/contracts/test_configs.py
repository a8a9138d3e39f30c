"""Every run file under configs/: it loads, builds its model without memory, and its header says what is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from mmray import config, lookup
from mmray.schema import DatasetInfo
from mmray.tasks import build

PROJECT = Path(__file__).parent.parent.parent
PATHS = sorted(path.relative_to(PROJECT) for path in (PROJECT / "configs").rglob("*.yaml"))

pytestmark = pytest.mark.parametrize("path", PATHS, ids=str)

FACTORS = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}


@pytest.fixture(autouse=True)
def _from_the_root_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commands of the headers are meant to be given."""
    monkeypatch.chdir(PROJECT)


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


def model_on_meta(run: config.Run) -> torch.nn.Module:
    """The run's model over the columns that its dataset section announces, with no memory behind it."""
    dataset: Any = lookup.load("dataset", run.dataset.name)  # type: ignore[attr-defined]
    values = run.dataset.model_dump()
    if values.get("class_names_file"):  # stands beside a corpus that is not here; the names don't matter
        values["class_names_file"] = None
    section = type(run.dataset).model_validate(values)
    info = DatasetInfo(
        id="meta", columns=dataset.columns(section), class_names=dataset.class_names(section), splits={},
        split_rule="", group_key=dataset.GROUP_KEY, rows_in=0, rows_out=0, rejected=0, rejected_reasons={},
    )  # fmt: skip
    with torch.device("meta"):
        return build(run, info).build_model()


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
        assert verb in ("prepare", "train")
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
