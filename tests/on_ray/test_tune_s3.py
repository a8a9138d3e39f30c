"""Searches whose `out` is on s3:// are those on a disk, to the digit: on Ray, killed, and handing weights on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_search import LR, searched_here, small_sections

from mmray import config, study
from mmray.on_ray.study_storage import Storage
from mmray.on_ray.tune import tune
from mmray.storage import at
from mmray.study import StudyInfo
from mmray.training.run_folder import read_log

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_runtime")]


@pytest.fixture(scope="module")
def sections(s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Those of all searches, which share one prepared dataset in the store."""
    prepare = {"out": f"{s3_server.url}/prepared-for-searches", "part_mb": 1}
    return small_sections(tmp_path_factory.mktemp("corpus")) | {"prepare": prepare}


@pytest.fixture
def roots(s3_server: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A folder of this machine, and one in a store."""
    return tmp_path, at(s3_server.url) / tmp_path.name


def run_in(root: Path, sections: dict[str, Any], tune: dict[str, Any], **train: Any) -> config.Run:
    own = {"name": "searched", "out": str(root / "runs"), "tune": tune, "train": sections["train"] | train}
    return config.from_dict(sections | own)


def outcome(run: config.Run, info: StudyInfo) -> dict[str, Any]:
    """All that a search found, and what its trials logged, but times."""
    found = info.model_dump(exclude={"disk_bytes", "trials"})
    found["trials"] = [trial.model_copy(update={"seconds": None}) for trial in info.trials]
    for trial in info.trials:
        (run_dir,) = study.trial_dirs(run.run_dir, trial.number)
        epochs = [line for line in read_log(run_dir) if line["event"] == "epoch"]
        found[run_dir.name] = [{key: value for key, value in line.items() if "/" in key} for line in epochs]
    found["kept"] = {file.parents[2].name for file in run.run_dir.glob("trials/*/checkpoints/*/state.json")}
    return found


class Killed(BaseException):
    """What a process that is killed would not survive."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Kill the process where it would have its study in the store for the n-th time."""
    keep, calls = Storage.keep, iter(range(1, 10**9))

    def keep_or_not(storage: Storage) -> None:
        if next(calls) == number:
            monkeypatch.setattr(Storage, "keep", keep)
            raise Killed
        keep(storage)

    monkeypatch.setattr(Storage, "keep", keep_or_not)


def test_population_hands_weights_on_in_a_store(
    roots: tuple[Path, Path], sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Killed on the way, between the end of trial 2 and the upload of the study that knows of it."""
    settings = {"space": LR, "sampler": {"name": "pbt", "population": 2, "interval_epochs": 1, "quantile": 0.5}}
    on_disk, in_store = (run_in(root, sections, settings, epochs=2) for root in roots)
    whole = outcome(on_disk, searched_here(on_disk, {"val/gap": "max"}, monkeypatch, tmp_path))
    assert {trial.parent for trial in whole["trials"]} > {None}
    killed_at(monkeypatch, 1 + 2 * 3)
    with pytest.raises(Killed):
        searched_here(in_store, {"val/gap": "max"}, monkeypatch, tmp_path)
    assert [trial.state for trial in study.read_info(in_store.run_dir).trials] == ["complete"] * 2 + ["running"]
    assert outcome(in_store, searched_here(in_store, {"val/gap": "max"}, monkeypatch, tmp_path)) == whole


GRID = {"space": {"train.optimizer.lr": {"choice": [0.01, 0.02, 0.05, 0.1]}}, "sampler": "grid", "keep_best": 1}


def test_search_on_ray_in_a_store(
    roots: tuple[Path, Path], sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two trials at a time; on the disk one after another, in this process."""
    on_disk, in_store = (run_in(root, sections, GRID, epochs=2) for root in roots)
    assert tune(in_store) == in_store.run_dir
    found = outcome(in_store, study.read_info(in_store.run_dir))
    assert found == outcome(on_disk, searched_here(on_disk, {"val/gap": "max"}, monkeypatch, tmp_path))
    assert found["kept"] == {study.trial_name(found["best"][0])}
    best = config.load(in_store.run_dir / "best.yaml")
    assert best.run_dir == in_store.run_dir.with_name("searched-best")


def num_complete(run: config.Run) -> int:
    with contextlib.suppress(ValueError):  # none yet; or it is being replaced while it is read
        return sum(trial.state == "complete" for trial in study.read_info(run.run_dir).trials)
    return 0


@pytest.mark.slow
def test_killed_search_in_a_store_goes_on(
    roots: tuple[Path, Path], sections: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The whole program is killed twice while trials train; who goes on has nothing of its files on this machine."""
    on_disk, in_store = (run_in(root, sections, GRID, epochs=9) for root in roots)
    file = tmp_path / "run.yaml"
    file.write_text(in_store.to_yaml())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = [sys.executable, "-m", "mmray", "tune", str(file)]
    for num_done in (1, 3):
        process = subprocess.Popen(command)
        while num_complete(in_store) < num_done:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
        process.wait()
    subprocess.run([*command, "--resume"], check=True, timeout=300)
    found = outcome(in_store, study.read_info(in_store.run_dir))
    assert found == outcome(on_disk, searched_here(on_disk, {"val/gap": "max"}, monkeypatch, tmp_path))
