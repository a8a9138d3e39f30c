"""What a page says of ensembles: their members side by side, what each adds, how alike they are, what they cost.

`ensemble/<evaluation>.json` of an ensemble's run folder holds it: see `mmray.on_ray.ensemble`.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mmray.reporting import plots
from mmray.reporting.pictures import Pictures
from mmray.reporting.runs import Json, Run, shown_path
from mmray.reporting.scores import lower_is_better
from mmray.reporting.text import display_name, duration, finite_or_nan, is_finite, number

MAX_MEMBERS_IN_MATRIX = 24


def ensemble_sections(runs: Sequence[Run], names: Sequence[str], pictures: Pictures) -> list[Json]:
    """Of every ensemble and evaluation: title, remarks, the table of its members, pictures of how alike they are."""
    sections, drawn_for = [], set()
    for run in runs:
        for name in names:
            study = _study(run, name)
            if study is None:
                continue
            title = f"{run.label}, {name}" if len(runs) > 1 or len(names) > 1 else name
            members = (name, *(str(member) for member in run.config["ensemble"]["members"]))
            drawn = [
                pictures.save(f"{key} {run.label} {name}", figure, caption)
                for key, caption, figure in (_matrices(study, name) if members not in drawn_for else [])
            ]
            drawn_for.add(members)  # other methods over the same members show the same
            sections.append(
                {
                    "title": title,
                    "remarks": _remarks(study, name),
                    "table": _members(study, run, name),
                    "pictures": drawn,
                }
            )
    return sections


def score_by_cost(runs: Sequence[Run], name: str, pictures: Pictures) -> list[Json]:
    """Where there is an ensemble: the first metric of each run against its parameters, and its seconds of training."""
    studies = {run.label: _study(run, name) for run in runs}
    evaluated = [run for run in runs if run.evaluations.get(name, {}).get("metrics")]
    if not any(studies.values()) or not evaluated:
        return []
    metric = next(iter(evaluated[0].evaluations[name]["metrics"]))
    costs = {"parameters": "parameters", "seconds": "seconds of training, fitting and combining"}
    drawn = []
    for cost, axis in costs.items():
        points = {}
        for run in runs:
            value = run.evaluations.get(name, {}).get("metrics", {}).get(metric)
            points[run.label] = _cost(run, studies[run.label], cost), finite_or_nan(value)
        if sum(map(_is_drawable, points.values())) < 2:
            continue
        figure = _scatter(points, axis, f"{display_name(metric)} on {name}")
        caption = f"{display_name(metric)} on {name} against {axis}; an ensemble has those of all its members."
        drawn.append(pictures.save(f"cost {cost} {name}", figure, caption))
    return drawn


def ensemble_settings(run: Run) -> Json:
    """What stands among the settings of an ensemble in place of those of a trained run; nothing for other runs."""
    section = run.config.get("ensemble")
    if not section:
        return {}
    members = [shown_path(str(member)) for member in section["members"]]
    folder, method = shlex.quote(f"{run.path}-again"), shlex.quote(section["method"])
    command = f"mmray ensemble {' '.join(map(shlex.quote, members))} --method {method} --out {folder}"
    shown = {"model": f"{section['method']} of {len(members)} runs: {', '.join(members)}", "repeat it": command}
    return shown | ({} if section["method"] == "soup" else {"epochs finished": None, "convolutions": None})


def _study(run: Run, name: str) -> Json | None:
    path = run.evaluation_dir.parent / "ensemble" / f"{name}.json"
    if not run.config.get("ensemble") or not path.is_file():
        return None
    try:
        study: Json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; run mmray ensemble again") from error
    if missing := [key for key in ("method", "rows", "members") if key not in study]:
        raise ValueError(f"{path} lacks the key(s) {', '.join(missing)}; run mmray ensemble again")
    return study


def _remarks(study: Json, name: str) -> list[str]:
    remarks = [f"{study['method']} of {len(study['members'])} members over {number(study['rows'])} rows"]
    if study.get("fitted_on"):
        remarks.append(f"learned on {study['fitted_on']} alone, in {duration(study['fit_s'])}")
        if name == study["fitted_on"]:
            remarks.append("these are the very rows that it was learned from: its scores here flatter")
    if study.get("combine_s") is not None:
        remarks.append(f"combined in {duration(study['combine_s'])} of one core")
    for member, count in study.get("left_out", {}).items():
        remarks.append(f"{number(count)} rows of {member} left out, which another member lacks")
    return remarks


def _members(study: Json, run: Run, name: str) -> Json:
    """A row a member and one for the ensemble: scores, what is lost without the member, weight, cost."""
    whole = study.get("without", {})
    first = next(iter(whole.get("metrics", {})), None)
    metrics = list(whole.get("metrics", {}))[:4]
    columns = ["member", *map(display_name, metrics)]
    if first is not None:
        of_rule = f" {whole['rule']}" if whole["rule"] != study["method"] else ""
        columns += [f"{display_name(first)} of the others'{of_rule}", "what it adds"]
    columns += [*(["weight"] if study.get("weights") else []), "parameters", "training, s"]
    sign = -1 if first is not None and lower_is_better(first) else 1
    rows = []
    for place, member in enumerate(study["members"]):
        row = [member["name"], *(member.get("metrics", {}).get(metric) for metric in metrics)]
        if first is not None:
            rest = member.get("without", {}).get(first)
            row += [rest, None if rest is None else sign * (whole["metrics"][first] - rest)]
        rows.append([*row, *(study["weights"][place : place + 1] if study.get("weights") else []), *_costs(member)])
    measured = run.evaluations.get(name, {}).get("metrics", {})
    whole_row = [study["method"], *(measured.get(metric) for metric in metrics)]
    whole_row += [None] * (len(columns) - 3 - len(metrics))
    rows.append([*whole_row, *_costs({key: _sum(study, key) for key in ("parameters", "train_s")})])
    titles = [{"title": title, "is_text": place == 0, "run": None} for place, title in enumerate(columns)]
    return {"kind": "members", "columns": titles, "rows": rows}


def _costs(member: Json) -> list[float | None]:
    return [member.get("parameters"), None if member.get("train_s") is None else round(member["train_s"])]


def _sum(study: Json, key: str) -> float | None:
    values = [member.get(key) for member in study["members"]]
    known = [value for value in values if is_finite(value)]
    return sum(known) if len(known) == len(values) else None


def _cost(run: Run, study: Json | None, cost: str) -> float:
    if study is None:
        if cost == "parameters":
            return finite_or_nan(run.environment.get("num_parameters"))
        seconds = [event["epoch_s"] for event in run.epochs if is_finite(event.get("epoch_s"))]
        return sum(seconds) if seconds else math.nan
    total = finite_or_nan(_sum(study, "parameters" if cost == "parameters" else "train_s"))
    return total if cost == "parameters" else total + study.get("fit_s", 0) + study.get("combine_s", 0)


def _is_drawable(point: tuple[float, float]) -> bool:
    return point[0] > 0 and all(map(math.isfinite, point))


def _matrices(study: Json, name: str) -> list[tuple[str, str, Figure]]:
    """How alike every two members are."""
    members = [member["name"] for member in study["members"]]
    if len(members) > MAX_MEMBERS_IN_MATRIX:
        return []
    shown = {
        "correlation": "correlation of the scores of candidate classes: the lower, the more an ensemble can gain",
        "disagreement": "share of rows, or frames, where first choices differ",
    }
    return [
        (key, f"{name}: {caption}.", _matrix(members, np.array(study[key], np.float64)))
        for key, caption in shown.items()
        if key in study
    ]


def _matrix(names: Sequence[str], values: np.ndarray) -> Figure:
    """Values (M, M) of every two members, in colours and to two digits."""
    side_in = 1.4 + 0.5 * len(names)
    figure, (axes,) = plots.new_figure(max(3.2, side_in + 0.6), max(2.6, side_in))
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.15)
    labels = [name if len(name) <= 18 else name[:17] + "…" for name in (n.replace("$", r"\$") for n in names)]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), labels)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        text = f"{value:.2f}" if np.isfinite(value) else "—"
        color = "#ffffff" if value > 0.65 else "#222222"
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
    return figure


def _scatter(points: dict[str, tuple[float, float]], x_label: str, y_label: str) -> Figure:
    """One point a run; `points` maps its label to cost, on a logarithmic axis, and score."""
    figure, (axes,) = plots.new_figure(5.0, 3.2)
    drawn = set()
    for place, (label, point) in enumerate(points.items()):
        if _is_drawable(point):
            drawn.add(label)
            axes.plot(*point, color=plots.run_color(place), marker=plots._marker(place), markersize=6, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    plots._legend(figure, points, drawn, [])
    return figure
