"""The dashboards of a search, asked over HTTP as a browser would."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from formula_search import LR, finish, formula_run, open_search

from mmray import study
from mmray.on_ray.dashboard import serve
from mmray.training.log import RunLog

pytest.importorskip("optuna_dashboard")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished search of three trials, whose logs are in TensorBoard's format too."""
    run = formula_run(tmp_path, LR, samples=3)
    info = finish(open_search(run))
    for trial in info.trials:
        run_dir = run.run_dir / "trials" / study.trial_name(trial.number)
        run_dir.mkdir(parents=True)
        with RunLog(run_dir, 0, trial.values, "val/gap") as log:
            log.write("epoch", 0, 1, trial.objectives, {})
    return run.run_dir


def ask(url: str, question: dict[str, Any] | None = None) -> Any:
    """The JSON that a server answers, once it is there."""
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for _ in range(600):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def test_both_show_the_trials(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["mmray", "dashboard", str(folder), "--port", str(port)]
    code = f"import sys; from mmray.cli import main; sys.argv = {command}; main()"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        info = study.read_info(folder)
        (summary,) = ask(f"http://127.0.0.1:{port + 1}/api/studies")["study_summaries"]
        assert summary["study_name"] == "formula"
        trials = ask(f"http://127.0.0.1:{port + 1}/api/studies/{summary['study_id']}")["trials"]
        assert [trial["values"] for trial in trials] == [list(trial.objectives.values()) for trial in info.trials]
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"]
        question = {"experimentName": "", "startIndex": 0, "sliceSize": 9, "allowedStatuses": statuses}
        for _ in range(100):  # it reads the logs while it answers already
            answer = ask(f"http://127.0.0.1:{port}/data/plugin/hparams/session_groups", question)
            if len(answer.get("sessionGroups", ())) == 3:
                break
            time.sleep(0.2)
        shown = {
            group["name"]: (group["hparams"]["train.optimizer.lr"], group["metricValues"][0]["value"])
            for group in answer["sessionGroups"]
        }
        expected = {
            f"{study.trial_name(trial.number)}/tensorboard": (
                pytest.approx(trial.values["train.optimizer.lr"]),
                pytest.approx(trial.objectives["val/gap"], rel=1e-6),
            )
            for trial in info.trials
        }
        assert shown == expected
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not the folder of a search"):
        serve(tmp_path, optuna=True, tensorboard=False, ray=False, host=None, port=None)
    run = formula_run(tmp_path, LR, samples=1)
    study.open_study(run)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="has no Ray dashboard; start a cluster"):
        serve(run.run_dir, optuna=False, tensorboard=False, ray=True, host=None, port=None)


def test_others_are_let_in_with_a_warning_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default this machine alone; what `--host` opens is said."""
    import optuna_dashboard

    heard = []
    monkeypatch.setattr(optuna_dashboard, "run_server", lambda storage, host, port: heard.append((host, port)))
    serve(folder, optuna=True, tensorboard=False, ray=False, host=None, port=None)
    assert "warning" not in capsys.readouterr().out
    serve(folder, optuna=True, tensorboard=False, ray=False, host="0.0.0.0", port=8099)
    assert "nobody is asked for a password" in capsys.readouterr().out
    assert heard == [("127.0.0.1", 8080), ("0.0.0.0", 8099)]
