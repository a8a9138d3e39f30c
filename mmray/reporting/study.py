"""One self-contained HTML page about a search, finished or not, from its `study.json` alone.

Nothing here imports torch, ray or optuna, so a report can be made on any machine that holds the folder.
"""

from __future__ import annotations

import itertools
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import yaml

from mmray import study
from mmray.reporting import plots_study
from mmray.reporting.page import _template
from mmray.reporting.pictures import Pictures
from mmray.reporting.plots_study import Axis
from mmray.reporting.runs import Json, shown_path, without_absolute_paths
from mmray.reporting.text import display_name, duration, number
from mmray.study import ParamInfo, StudyInfo, TrialInfo


def write_report(folder: Path, out: Path) -> Path:
    """Write `out/index.html`, its pictures inlined, and the same pictures as `out/*.png`; return the page's path.

    ValueError where the folder is no study's, or no trial has begun.
    """
    run, info = study.read_run(folder), study.read_info(folder)
    out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(out)
    best = [info.trial(place) for place in info.best]
    counts = Counter(trial.state for trial in info.trials)
    config = without_absolute_paths(run.to_dict())
    page = (
        _template()
        .environment.get_template("study.html.j2")
        .render(
            info=info,
            best=best,
            headline=_headline(info, best),
            counts=", ".join(f"{times:,} {state}" for state, times in counts.items()),
            disk=f"{info.disk_bytes / 2**20:,.0f} MB",
            seconds=duration(sum(trial.seconds or 0.0 for trial in info.trials)),
            pictures=[] if not info.trials else _pictures(info, pictures),
            table=_table(info),
            failures=[trial for trial in info.trials if trial.reason],
            again=_command("train", folder / "best.yaml") if (folder / "best.yaml").exists() else "",
            going_on=_command("tune", folder / "study.yaml") if _is_unfinished(info) else "",
            config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100),
        )
    )
    index = out / "index.html"
    index.write_text(page, encoding="utf-8")
    return index


def _command(verb: str, path: Path) -> str:
    return f"mmray {verb} {shlex.quote(shown_path(str(path)))}"


def _is_unfinished(info: StudyInfo) -> bool:
    return len(info.trials) < info.samples or any(trial.state == "running" for trial in info.trials)


def _headline(info: StudyInfo, best: list[TrialInfo]) -> Json | None:
    if not best:
        return None
    name = next(iter(info.objectives))
    return {
        "metric": _label(name),
        "value": number(best[0].objectives[name]),
        "trial": best[0].number,
        "values": [(param.name, best[0].values[param.name]) for param in info.params if param.name in best[0].values],
        "others": [(_label(other), number(value)) for other, value in best[0].objectives.items() if other != name],
    }


def _pictures(info: StudyInfo, pictures: Pictures) -> list[Json]:
    """History, curves, importances, parallel coordinates, slices and fronts, as far as there is something to show."""
    first, direction = next(iter(info.objectives.items()))
    maximise, label = direction == "max", _label(first)
    finished = np.array([trial.state == "complete" for trial in info.trials])
    values = np.array([_value(trial, first) for trial in info.trials])
    drawn = []
    figure = plots_study.history(values, finished, maximise, label)
    drawn.append(pictures.save("history", figure, f"{label} of each trial, and the best so far. Rings: stopped early."))
    curved = [trial for trial in info.trials if trial.curve]
    if curved:
        curves = [(*np.array(trial.curve, dtype=np.float64).T, trial.state == "complete") for trial in curved]
        place = next((i for i, trial in enumerate(curved) if info.best and trial.number == info.best[0]), None)
        figure = plots_study.trial_curves(curves, place, label)
        drawn.append(pictures.save("curves", figure, f"{label} over epochs; the best trial, whole ones, stopped ones."))
    if any(info.importances.values()):
        caption = "Share of the variation among finished trials that each parameter explains (PED-ANOVA)."
        figure = plots_study.importances({_label(name): shares for name, shares in info.importances.items()})
        drawn.append(pictures.save("importances", figure, caption))
    whole = [trial for trial in info.trials if trial.state == "complete"]
    if not whole:
        return drawn
    axes = [_axis(param, whole) for param in info.params]
    of_whole = np.array([trial.objectives[first] for trial in whole])
    figure = plots_study.parallel_coordinates(axes, of_whole, maximise, label)
    drawn.append(pictures.save("parallel coordinates", figure, "Finished trials; the brighter a line, the better."))
    figure = plots_study.slices(axes, of_whole, label)
    drawn.append(pictures.save("slices", figure, f"{label} over each parameter; early trials dark, late ones bright."))
    on_front = np.array([trial.number in info.best for trial in whole])
    for one, other in itertools.combinations(info.objectives, 2):
        x, y = (Axis(_label(name), np.array([t.objectives[name] for t in whole])) for name in (other, one))
        ups = (info.objectives[other] == "max", info.objectives[one] == "max")
        caption = f"{_label(one)} against {_label(other)}: the trials of the Pareto front are joined."
        drawn.append(pictures.save(f"pareto {one} {other}", plots_study.pareto(x, y, on_front, ups), caption))
    return drawn


def _axis(param: ParamInfo, trials: list[TrialInfo]) -> Axis:
    if param.choices is None:
        given = [trial.values.get(param.name) for trial in trials]
        values = [float(value) if isinstance(value, int | float) else np.nan for value in given]
        return Axis(param.name, np.array(values), log=param.log)
    places = [
        param.choices.index(trial.values[param.name]) if param.name in trial.values else np.nan for trial in trials
    ]
    return Axis(param.name, np.array(places, dtype=np.float64), choices=[str(choice) for choice in param.choices])


def _value(trial: TrialInfo, objective: str) -> float:
    """Of a finished trial its objective, of others the last they had."""
    return trial.objectives.get(objective, trial.curve[-1][1] if trial.curve else np.nan)


def _table(info: StudyInfo) -> Json:
    """Every trial: the best first, then the others by their objective, those without one last."""
    first, direction = next(iter(info.objectives.items()))
    sign = -1 if direction == "max" else 1
    places = {trial: place for place, trial in enumerate(info.best)}

    def order(trial: TrialInfo) -> tuple[int, float, int]:
        value = _value(trial, first)
        return places.get(trial.number, len(places)), sign * value if np.isfinite(value) else np.inf, trial.number

    rows = [
        [
            trial.number,
            *(trial.values.get(param.name, "") for param in info.params),
            *(
                number(trial.objectives.get(name, trial.curve[-1][1] if trial.curve and name == first else None))
                for name in info.objectives
            ),
            trial.curve[-1][0] if trial.curve else "",
            f"{trial.seconds:.1f}" if trial.seconds is not None else "",
            trial.state + (f", from {trial.parent}" if trial.parent is not None else ""),
        ]
        for trial in sorted(info.trials, key=order)
    ]
    columns = ["trial", *(p.name for p in info.params), *(_label(n) for n in info.objectives), "epochs", "s", "state"]
    return {"columns": columns, "rows": rows}


def _label(objective: str) -> str:
    """`val/gap` -> val GAP."""
    split, slash, metric = objective.rpartition("/")
    return f"{split} {display_name(metric)}" if slash else display_name(metric)
