"""Searches on Ray Tune, on a tiny corpus: what they find, what they survive, what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_search import LR, new_process, scores, searched_here, small_sections

from mmray import config, study
from mmray.on_ray.prepare import prepare
from mmray.on_ray.tune import tune
from mmray.prepared import read_info
from mmray.tasks import build
from mmray.training import checkpoint, feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_runtime")]
Make = Callable[..., config.Run]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return small_sections(tmp_path_factory.mktemp("corpus"))


def searched(run: config.Run) -> study.StudyInfo:
    return study.read_info(tune(run))


def plain_fit(run: config.Run) -> list[float]:
    """The validation scores of a run in one process without Ray: the reference."""
    folder = prepare(run)
    info = read_info(folder)
    context = Context(run_folder.open_run(run, info))
    task = build(run, info)
    fit(run, task, *feed.tables(run, task, folder, context), context)
    return scores(run.run_dir)


def test_search_over_models_leaves_what_it_found(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """A conditional space, stopped early, the default first; the process is killed once on the way.

    Then the best trial is trained again without Ray, and the search called again.
    """
    space = LR | {"model": {"choice": ["logistic", "moe"], "when": {"moe": {"model.num_experts": {"int": [1, 4]}}}}}
    settings = {
        "space": space,
        "samples": 7,
        "points": ["default"],
        "keep_best": 2,
        "stopper": "asha",
        "concurrency": 1,
    }
    run = make("models", tune=settings, resources={"max_failures": 1})
    killer = threading.Thread(target=kill_once, args=(run.run_dir / "trials" / "0002",), daemon=True)
    killer.start()
    info = searched(run)
    killer.join()
    assert [trial.number for trial in info.trials] == list(range(7))
    assert {trial.state for trial in info.trials} == {"complete", "pruned"}
    default = info.trial(0)
    assert default.values == {"train.optimizer.lr": 0.001, "model.name": "moe", "model.num_experts": 2}
    for trial in info.trials:
        assert ("model.num_experts" in trial.values) == (trial.values["model.name"] == "moe")
        ours = scores(run.run_dir / "trials" / f"{trial.number:04d}")
        assert [value for _, value in trial.curve] == pytest.approx(ours)
        assert len(ours) == 3 if trial.state == "complete" else len(ours) < 3
    best = max((t for t in info.trials if t.state == "complete"), key=lambda t: t.objectives["val/gap"])
    assert info.best[0] == best.number
    again = config.load(run.run_dir / "best.yaml")
    assert plain_fit(again) == pytest.approx([value for _, value in best.curve], rel=1e-4)
    kept = {path.parent.name for path in (run.run_dir / "trials").glob("*/checkpoints")}
    assert kept == {f"{number:04d}" for number in info.best[:2]}
    assert len(list(Path(run.prepare.out).glob("youtube8m-*"))) == 1
    said = capsys.readouterr().out
    assert "7 of 7" in said
    assert "MB on disk" in said

    before = {path: path.stat().st_mtime_ns for path in (run.run_dir / "trials").rglob("metrics.jsonl")}
    assert side_by_side(run.run_dir) == {f"{t.number:04d}": t.values.get("model.num_experts") for t in info.trials}
    again = searched(run)  # which is at its end
    assert again == info
    assert all(path.stat().st_mtime_ns == modified for path, modified in before.items())
    other = make("models", tune=settings | {"stopper": "none"}, resources={"max_failures": 1})
    with pytest.raises(ValueError, match=r"holds another search:\n  tune\.stopper\.name: 'asha' there, 'none' now"):
        tune(other)


def kill_once(run_dir: Path) -> None:
    """SIGKILL for the process that trains, when this trial has begun."""
    while not run_dir.exists() or not (found := processes_of_ray(b"ray::ResourceTrainable")):
        time.sleep(0.02)
    os.kill(found[0], signal.SIGKILL)


def side_by_side(folder: Path) -> dict[str, float | None]:
    """What TensorBoard's tab of parameters shows of the trials: the number of experts, where there are some."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    found: dict[str, float | None] = {}
    for board in (folder / "trials").glob("*/tensorboard"):
        events = EventAccumulator(str(board))
        events.Reload()
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        shown = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        found[board.parent.name] = shown["model.num_experts"].number_value if "model.num_experts" in shown else None
        assert "val/gap" in events.Tags()["scalars"]
    return found


def test_what_fails_is_told_and_the_search_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A loss that is not finite, a batch larger than the corpus, and trials that are well."""
    space = {
        "train.optimizer.lr": {"choice": [0.01, 1e38]},
        "train.batch_size": {"choice": [50, 100_000]},
    }
    sgd = {"optimizer": {"name": "sgd"}, "epochs": 1}
    run = make("failing", train=sgd, tune={"space": space, "sampler": "grid"})
    info = searched_here(run, {"val/gap": "max"}, monkeypatch, tmp_path)
    states = {(t.values["train.optimizer.lr"], t.values["train.batch_size"]): t for t in info.trials}
    assert states[0.01, 50].state == "complete"
    assert [t.state for t in info.trials].count("failed") == 3
    assert states[1e38, 50].reason.startswith("FloatingPointError: train/loss became")
    assert "more than the" in states[0.01, 100_000].reason
    assert info.best == [states[0.01, 50].number]


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "title"), [(1, b"ray::ResourceTrainable"), (2, b"ray::Peer")])
def test_killed_trial_goes_on(make: Make, num_workers: int, title: bytes) -> None:
    """SIGKILL while it trains: the trial goes on from its last checkpoint, and the search with it."""
    settings = {"space": LR, "samples": 1, "concurrency": 1}
    resources = {"max_failures": 1, "num_workers": num_workers}
    run = make(f"killed-{num_workers}", train={"epochs": 30}, resources=resources, tune=settings)
    run_dir = run.run_dir / "trials" / "0000"
    killed = []

    def kill_when_it_trains() -> None:
        while not killed and len(scores(run_dir)) < 25:
            if len(scores(run_dir)) > 5:
                killed.extend(processes_of_ray(title)[:1])
            for process in killed:
                os.kill(process, signal.SIGKILL)
            time.sleep(0.02)

    killer = threading.Thread(target=kill_when_it_trains, daemon=True)
    killer.start()
    info = searched(run)
    killer.join()
    assert killed
    (trial,) = info.trials
    assert trial.state == "complete"
    assert [epoch for epoch, _ in trial.curve] == list(range(1, 31))
    assert scores(run_dir) == pytest.approx([value for _, value in trial.curve])


def processes_of_ray(title: bytes) -> list[int]:
    """The processes of this title among those that this one's Ray started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = (folder / "environ").read_bytes().find(f"MMRAY_TEST_SESSION={os.getpid()}".encode()) >= 0
            if mine and (folder / "cmdline").read_bytes().startswith(title):
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile, or is someone else's
            continue
    return found


def test_process_that_is_asked_for_no_epoch_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune gives a trial to a process that is free, also where one that it asked for is just being set up."""
    from mmray.on_ray import trial as of_trial

    trained = []
    monkeypatch.setattr(of_trial, "train_job", lambda job, rank, judge: trained.append(job["number"]))
    job = {"size": 1, "runs": [{"out": str(tmp_path), "name": "0000"}]}
    process = new_process({"job": json.dumps(job | {"number": 0})}, tmp_path, monkeypatch)
    process.cleanup()
    assert process.reset_config({"job": json.dumps(job | {"number": 1})})
    assert process.step()["done"]
    assert trained == [1]


def test_trial_that_runs_out_of_memory_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is well, and takes the next trial."""
    from mmray.on_ray import trial as of_trial

    def train_job(job: dict[str, Any], rank: int, judge: Callable[..., bool]) -> dict[str, float]:
        assert judge(1, {"val/gap": 0.5})
        if job["number"] == 0:
            raise MemoryError("cannot allocate 8 GB")
        return {"val/gap": 0.5}

    monkeypatch.setattr(of_trial, "train_job", train_job)
    job = {"size": 1, "runs": [{"out": str(tmp_path), "name": "0000"}]}
    process = new_process({"job": json.dumps(job | {"number": 0})}, tmp_path, monkeypatch)
    assert json.loads(process.step()["metrics"]) == {"val/gap": 0.5}
    ended = process.step()
    assert ended["done"]
    assert json.loads(ended["outcome"]) == {"failed": "MemoryError: cannot allocate 8 GB"}
    assert "in train_job" in (tmp_path / "0000" / "error.txt").read_text()  # where it happened
    assert process.reset_config({"job": json.dumps(job | {"number": 1})})
    assert not process.step()["done"]
    assert json.loads(process.step()["outcome"]) == {"metrics": {"val/gap": 0.5}}
    process.cleanup()


def test_trials_of_two_workers_give_the_curve_of_one_process(make: Make) -> None:
    """Two trials, so that the workers are used again."""
    space = {"train.optimizer.lr": {"choice": [0.02, 0.05]}}
    info = searched(make("gang", resources={"num_workers": 2}, tune={"space": space, "sampler": "grid"}))
    for trial, lr in zip(info.trials, (0.02, 0.05), strict=True):
        assert trial.values["train.optimizer.lr"] == lr
        reference = plain_fit(make(f"alone-{lr}", train={"optimizer": {"lr": lr}}))
        assert [value for _, value in trial.curve] == pytest.approx(reference, rel=1e-4)


@pytest.mark.slow
def test_workers_are_replaced_after_a_failure(make: Make) -> None:
    space = {"train.optimizer.lr": {"choice": [1e38, 0.02]}}
    train = {"optimizer": {"name": "sgd"}}
    info = searched(
        make("replaced", train=train, resources={"num_workers": 2}, tune={"space": space, "sampler": "grid"})
    )
    assert [trial.state for trial in info.trials] == ["failed", "complete"]
    assert info.trial(0).reason.startswith("FloatingPointError: train/loss became")


def test_several_objectives_over_seeds_give_a_front(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objectives = {"val/gap": "max", "num_parameters": "min", "latency_ms": "min"}
    run = make(
        "front",
        train={"epochs": 1},
        tune={
            "space": {"model.num_experts": {"int": [1, 4]}, "train.optimizer.lr": {"choice": [0.003, 0.03]}},
            "objectives": objectives,
            "samples": 5,
            "seeds": [0, 1],
            "sampler": "nsga2",
        },
    )
    info = searched_here(run, objectives, monkeypatch, tmp_path)
    for trial in info.trials:
        experts = int(trial.values["model.num_experts"] or 0)
        assert trial.objectives["num_parameters"] == 8 * (16 * (2 * experts + 1) + experts)
        assert trial.objectives["latency_ms"] > 0
        of_seeds = [scores(path)[-1] for path in study.trial_dirs(run.run_dir, trial.number)]
        assert len(of_seeds) == 2
        assert trial.objectives["val/gap"] == pytest.approx(sum(of_seeds) / 2)

    def beats(one: study.TrialInfo, other: study.TrialInfo) -> bool:
        a, b = one.objectives, other.objectives
        pairs = [(a["val/gap"], b["val/gap"])] + [(-a[n], -b[n]) for n in ("num_parameters", "latency_ms")]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    front = {t.number for t in info.trials if not any(beats(other, t) for other in info.trials)}
    assert set(info.best) == front


def test_population_hands_weights_on(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "space": LR,
        "sampler": {"name": "pbt", "population": 3, "interval_epochs": 1, "quantile": 0.34},
    }
    run = make("population", tune=settings)
    info = searched_here(run, {"val/gap": "max"}, monkeypatch, tmp_path)
    assert [trial.state for trial in info.trials] == ["complete"] * 9
    for trial in info.trials:
        generation, member = divmod(trial.number, 3)
        run_dir = run.run_dir / "trials" / f"{trial.number:04d}"
        state = checkpoint.last(run_dir)
        if state is not None:  # those of the first generation are deleted
            assert state.epoch == generation + 1
        assert len(scores(run_dir)) == generation + 1
        if generation == 0:
            assert trial.parent is None
            continue
        assert trial.parent in range(3 * generation - 3, 3 * generation)
        parent = info.trial(trial.parent)
        assert scores(run_dir)[:-1] == pytest.approx(scores(run.run_dir / "trials" / f"{trial.parent:04d}"))
        ranked = sorted(info.trials[3 * generation - 3 : 3 * generation], key=lambda t: t.objectives["val/gap"])
        own = info.trial(3 * (generation - 1) + member)
        if own.number == ranked[0].number:  # the worst goes on from the best, with other values
            assert trial.parent == ranked[-1].number
            assert trial.values != parent.values
        else:
            assert trial.parent == own.number
            assert trial.values == parent.values


def test_what_can_not_fit_is_refused_before_anything_starts(make: Make) -> None:
    inputs = {"model.inputs": {"choice": [["mean_x"]]}}
    unfit = LR | {"model": {"choice": ["moe", "logistic"], "when": {"logistic": inputs}}}
    with pytest.raises(ValueError, match=r"tune\.space, with .*model logistic.*: model\.inputs: 'mean_x'"):
        tune(make("unfit", tune={"space": unfit}))
    with pytest.raises(ValueError, match=r"4 processes of .* are asked for, and 2 fit"):
        tune(make("large", resources={"cpus_per_worker": 1}, tune={"space": LR, "concurrency": 4}))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_search_goes_on(make: Make, tmp_path: Path, how: signal.Signals) -> None:
    """The whole program is killed while trials train; the next one finishes each trial once, with two at a time."""
    run = make(f"search-{how.name}", tune={"space": LR, "samples": 8})
    path = tmp_path / "run.yaml"
    path.write_text(run.to_yaml())
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-c", "from mmray.cli import main; main()", "tune", str(path)]

    def finished() -> dict[int, study.TrialInfo]:
        with contextlib.suppress(ValueError):
            return {t.number: t for t in study.read_info(run.run_dir).trials if t.state == "complete"}
        return {}

    process = subprocess.Popen(command, env=environment)
    while len(finished()) < 4:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    process.wait(timeout=60)
    before = finished()
    logs = {n: (run.run_dir / "trials" / study.trial_name(n) / "metrics.jsonl").stat().st_mtime_ns for n in before}
    assert len(before) < 8
    subprocess.run([*command, "--resume"], env=environment, check=True, timeout=300)
    after = finished()
    assert sorted(after) == list(range(8))
    assert {number: after[number] for number in before} == before
    for number, modified in logs.items():
        log = run.run_dir / "trials" / study.trial_name(number) / "metrics.jsonl"
        assert log.stat().st_mtime_ns == modified
