"""The page of a search holds the numbers of its trials; its pictures hold the points they were given."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmray import config, study
from mmray.reporting import plots_study
from mmray.reporting.plots_study import Axis
from mmray.reporting.study import write_report
from mmray.study import ParamInfo, StudyInfo, TrialInfo

PARAMS = [
    ParamInfo(name="train.optimizer.lr", key="train.optimizer.lr", ends=(1e-4, 1e-1), log=True),
    ParamInfo(name="model.name", key="model.name", choices=["logistic", "moe"]),
    ParamInfo(name="model.num_experts", key="model.num_experts", ends=(1, 8)),
]


def trials() -> list[TrialInfo]:
    logistic = {"train.optimizer.lr": 0.01, "model.name": "logistic"}
    moe = {"train.optimizer.lr": 0.001, "model.name": "moe", "model.num_experts": 4}
    return [
        TrialInfo(number=0, state="complete", values=logistic, objectives={"val/gap": 0.61}, curve=[(2, 0.6)]),
        TrialInfo(number=1, state="complete", values=moe, objectives={"val/gap": 0.8125}, curve=[(1, 0.6), (2, 0.8)]),
        TrialInfo(number=2, state="pruned", values=moe | {"model.num_experts": 1}, curve=[(1, 0.25)], seconds=3.5),
        TrialInfo(number=3, state="failed", values=moe, reason="FloatingPointError: train/loss <became> nan"),
        TrialInfo(number=4, state="running", values=logistic),
    ]  # fmt: skip


def write_study(folder: Path, **changes: Any) -> Path:
    run = config.from_dict(
        {
            "name": "searched",
            "out": str(folder),
            "task": "video_classification",
            "dataset": {"name": "youtube8m", "path": "data", "num_classes": 10, "level": "video"},
            "model": "logistic",
            "tune": {"space": {"train.optimizer.lr": {"loguniform": [0.001, 0.1]}}},
        }
    )
    values: dict[str, Any] = {
        "name": "searched",
        "objectives": {"val/gap": "max"},
        "samples": 6,
        "params": PARAMS,
        "trials": trials(),
        "best": [1, 0],
        "importances": {"val/gap": {"train.optimizer.lr": 0.75, "model.name": 0.25}},
        "disk_bytes": 5 << 20,
    }
    study.open_study(run)
    study.write_info(run.run_dir, StudyInfo.model_validate(values | changes))
    return run.run_dir


def page_of(folder: Path, **changes: Any) -> str:
    return write_report(write_study(folder, **changes), folder / "report").read_text()


def table_of(page: str) -> list[list[str]]:
    (table,) = re.findall(r'<table id="trials">.*?</table>', page, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    return [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)] for row in rows]


def test_page_tells_the_best_and_every_trial(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert '<span class="value">0.8125</span> val GAP, trial 1' in page
    assert "5 of 6 trials: 2 complete, 1 pruned, 1 failed, 1 running. 3.5 s of training, 5 MB on disk." in page
    assert "trial 3: FloatingPointError: train/loss &lt;became&gt; nan" in page
    assert "Not at its end; go on: <code>mmray tune study.yaml</code>" in page
    head, *rows = table_of(page)
    assert head[:5] == ["trial", "train.optimizer.lr", "model.name", "model.num_experts", "val GAP"]
    assert [row[0] for row in rows] == ["1", "0", "2", "3", "4"]
    assert rows[0][1:5] == ["0.0010", "moe", "4", "0.8125"]
    assert rows[2][4:] == ["0.2500", "1", "3.5", "pruned"]
    assert rows[1][3] == rows[4][4] == "—"
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == {
        "history", "curves", "importances", "parallel_coordinates", "slices"
    }  # fmt: skip
    assert page.count('<img class="plot" src="data:image/png;base64,') == 5
    assert str(tmp_path) not in page


def test_page_of_two_objectives_has_their_front(tmp_path: Path) -> None:
    found = trials()
    for trial, size in zip(found, (100.0, 900.0), strict=False):
        trial.objectives["num_parameters"] = size
    page = page_of(tmp_path, trials=found, objectives={"val/gap": "max", "num_parameters": "min"})
    assert (tmp_path / "report" / "pareto_val_gap_num_parameters.png").exists()
    assert "Pareto front first" in page
    assert page.count('<tr class="best">') == 2


def test_page_of_a_search_that_has_just_begun(tmp_path: Path) -> None:
    page = page_of(tmp_path, trials=trials()[4:], best=[], importances={})
    assert "No trial has been trained to its end yet." in page
    (tmp_path / "searched" / "study.json").unlink()
    with pytest.raises(ValueError, match=r"has no study\.json: no trial has begun"):
        write_report(tmp_path / "searched", tmp_path / "report")
    with pytest.raises(ValueError, match="is not the folder of a search"):
        write_report(tmp_path, tmp_path / "report")


def test_history_draws_every_value_and_the_best_so_far() -> None:
    values = np.array([0.5, 0.4, np.nan, 0.9, 0.7])
    finished = np.array([True, True, False, False, True])
    axes = plots_study.history(values, finished, maximise=True, label="val GAP").axes[0]
    points = [collection.get_offsets().tolist() for collection in axes.collections]
    assert points[0] == [[0, 0.5], [1, 0.4], [4, 0.7]]
    assert [3, 0.9] in points[1]
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.5, 0.5, 0.5, 0.7]  # one that was stopped is no best
    down = plots_study.history(values, finished, maximise=False, label="loss").axes[0]
    assert down.lines[0].get_ydata().tolist() == [0.5, 0.4, 0.4, 0.4, 0.4]


def test_parallel_coordinates_pass_by_what_a_trial_lacks() -> None:
    params = [
        Axis("lr", np.array([1e-4, 1e-2, 1e-1]), log=True),
        Axis("experts", np.array([1.0, np.nan, 8.0])),
        Axis("model", np.array([1.0, 0.0, 1.0]), choices=["logistic", "moe"]),
    ]
    axes = plots_study.parallel_coordinates(params, np.array([0.2, 0.9, 0.4]), maximise=True, label="GAP").axes[0]
    drawn = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert [list(line.get_xdata()) for line in drawn] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 3]]  # the best on top
    np.testing.assert_allclose(drawn[0].get_ydata(), [0, 0, 1, 0])
    np.testing.assert_allclose(drawn[1].get_ydata(), [1, 1, 1, 2 / 7])
    np.testing.assert_allclose(drawn[2].get_ydata(), [2 / 3, 0, 1])


def test_slices_have_an_axes_a_parameter() -> None:
    params = [Axis(f"p{i}", np.arange(3.0) + 1, log=i == 1) for i in range(4)]
    figure = plots_study.slices(params, np.array([1.0, 2.0, 3.0]), "GAP")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in shown] == ["p0", "p1", "p2", "p3"]
    assert [axes.get_xscale() for axes in shown] == ["linear", "log", "linear", "linear"]
    assert shown[2].collections[0].get_offsets().tolist() == [[1, 1], [2, 2], [3, 3]]


def test_importances_are_bars_of_each_objective() -> None:
    shares = {"GAP": {"lr": 0.7, "size": 0.3}, "size": {"size": 1.0}}
    axes = plots_study.importances(shares).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [0.3, 0.7, 1.0, 0.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["size", "lr"]


@pytest.mark.parametrize(("maximise", "where"), [((False, True), "steps-post"), ((True, True), "steps-pre")])
def test_front_is_joined_by_what_is_known_to_be_reached(maximise: tuple[bool, bool], where: str) -> None:
    """Between two points of a front of size and score, the smaller one's score is what can be had."""
    x, y = Axis("size", np.array([3.0, 1.0, 2.0])), Axis("score", np.array([0.9, 0.5, 0.4]))
    axes = plots_study.pareto(x, y, np.array([True, True, False]), maximise).axes[0]
    (line,) = axes.lines
    assert line.get_drawstyle() == where
    assert line.get_xdata().tolist() == [1, 3]
    assert "higher is better" in axes.get_ylabel()
    assert ("lower" in axes.get_xlabel()) == (not maximise[0])


def test_nothing_finite_is_no_error() -> None:
    nothing = np.array([math.nan])
    plots_study.history(nothing, np.array([False]), maximise=True, label="x")
    plots_study.parallel_coordinates([Axis("a", nothing)], nothing, maximise=True, label="x")


def test_report_of_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from mmray.cli import cli

    folder = write_study(tmp_path)
    ended = CliRunner().invoke(cli, ["report", str(folder)])
    assert ended.exit_code == 0
    assert ended.output.strip() == f"open {folder / 'report' / 'index.html'}"
    both = CliRunner().invoke(cli, ["report", str(folder), str(tmp_path)])
    assert both.exit_code != 0
    assert "is a search; a page is over one search, or over runs" in both.output
