"""What was measured: the headline and the tables of scores, from evaluations as they were read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmray.reporting.runs import Json, Run, shown_path
from mmray.reporting.text import display_name, finite_or_nan, is_finite

# A label with fewer positives than this has too uncertain a score to be called best or worst.
MIN_POSITIVES = 10
NUM_FREQUENT, NUM_BEST, NUM_WORST = 20, 10, 10
LOWER_IS_BETTER = re.compile(r"loss|error|false_alarm|perplexity|(^|_)ece$")
# Up to so many classes there is a table of all of them; more are ranked by frequency.
MAX_CLASSES_IN_REPORT = 40
# Stand in that table alone, where there is one: beside the first metrics they say little new.
_IN_CLASS_REPORT = ("macro_precision", "macro_recall", "weighted_precision", "weighted_recall")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is the better one: losses, errors (ECE is one), false alarms."""
    return LOWER_IS_BETTER.search(metric) is not None


def headline(runs: Sequence[Run], name: str) -> Json | None:
    """The best run by the first metric of the evaluation, the strongest baseline there, and its published score.

    `gain` is how far it is ahead of the baseline in the metric's better direction, negative if behind, None without a
    baseline; `published_gain` the same towards the published score. Runs that were scored on other rows than the first
    evaluated one do not compete. None if no run has a finite value.
    """
    evaluated = [run for run in runs if run.evaluations.get(name, {}).get("metrics")]
    if not evaluated:
        return None
    metric = next(iter(evaluated[0].evaluations[name]["metrics"]))
    sign = -1 if lower_is_better(metric) else 1
    values = {run.label: run.evaluations[name]["metrics"].get(metric) for run in evaluated}
    data = scored_rows(evaluated[0], name)
    ranked = [run for run in evaluated if is_finite(values[run.label]) and scored_rows(run, name) == data]
    if not ranked:
        return None
    best = max(ranked, key=lambda run: sign * values[run.label])
    evaluation = best.evaluations[name]
    baselines = {
        baseline: metrics[metric]
        for baseline, metrics in evaluation.get("baselines", {}).items()
        if is_finite(metrics.get(metric))
    }
    strongest = max(baselines, key=lambda baseline: sign * baselines[baseline], default=None)
    value = values[best.label]
    published = best.published.get(name, {}).get(metric)
    published = published if is_finite(published) else None
    return {
        "metric": metric,
        "split": name,
        "run": best.label,
        "value": value,
        "interval": interval(evaluation, metric),
        "interval_over": " over tracks" if evaluation.get("tracks") else "",
        "baseline": strongest,
        "baseline_value": baselines[strongest] if strongest is not None else None,
        "gain": sign * (value - baselines[strongest]) if strongest is not None else None,
        "published": published,
        "published_source": best.published_source,
        "published_gain": sign * (value - published) if published is not None else None,
        "rows": evaluation["rows"],
        "rows_with_labels": evaluation.get("rows_with_labels", evaluation["rows"]),
        "num_compared": len(ranked),
    }


def interval(evaluation: Json, metric: str) -> tuple[float, float] | None:
    """The 95 % interval that the evaluation gives for a metric; None where it gives none, or none that is finite."""
    ends = (evaluation.get("intervals") or {}).get(metric)
    if not isinstance(ends, list) or len(ends) != 2 or not all(map(is_finite, ends)):
        return None
    return float(ends[0]), float(ends[1])


def leak_remarks(runs: Sequence[Run], name: str) -> list[tuple[list[str], str, bool]]:
    """How the rows scored were kept apart from the training rows: (runs, sentence, whether that flatters the scores).

    Runs with the same answer share a sentence; those whose evaluation doesn't say have none.
    """
    remarks: dict[tuple[str, bool], list[str]] = {}
    for run in runs:
        leak = run.evaluations.get(name, {}).get("leak")
        if leak:
            remarks.setdefault(_leak_sentence(leak, name), []).append(run.label)
    return [(labels, sentence, flatters) for (sentence, flatters), labels in remarks.items()]


def _leak_sentence(leak: Json, name: str) -> tuple[str, bool]:
    split_by, segments, sharing = leak["split_by"], leak["segments"], leak["sharing_a_track_with_train"]
    share = "shares" if sharing == 1 else "share"
    of_all = f"{sharing:,} of {segments:,} {name} segments {share} a track with the training split"
    if sharing == 0:
        return f"Split by {split_by}: no {name} track was trained on.", False
    if split_by == "track":
        return f"Split by track, yet {of_all}: these scores cannot be trusted.", True
    return f"Split by {split_by}: {of_all}; scores flatter.", True


def scored_rows(run: Run, name: str) -> Any:
    """What tells which rows the evaluation covers: clips or whole tracks where it lists them, else the data set.

    So models that read the same clips or tracks through different features compare. Where tracks were cut up among
    the splits, their names don't tell which of their segments were scored.
    """
    evaluation = run.evaluations[name]
    if clips := evaluation.get("per_clip"):
        return tuple(sorted(str(clip["id"]) for clip in clips))
    if (tracks := evaluation.get("tracks")) and evaluation.get("leak", {}).get("split_by") == "track":
        return tuple(sorted((str(track["group"]), track["segments"]) for track in tracks))
    return run.dataset["id"]


def comparison(runs: Sequence[Run], name: str) -> Json:
    """The table of an evaluation: a row per run, baseline and published model, a column per metric.

    The best of each column of more than one value is marked in `best`. Published scores, whose rows nobody can check,
    do not compete for it, and among runs that were scored on different rows nothing is marked. A baseline or a
    published model that several runs give with the same values stands once. A run without this evaluation has `values`
    None.
    """
    rows: list[Json] = []
    baselines: dict[tuple[Any, ...], Json] = {}
    published: dict[tuple[Any, ...], Json] = {}
    for run in runs:
        evaluation = run.evaluations.get(name)
        rows.append({"label": run.label, "path": run.path, "values": None, "kind": "run"})
        if scores := run.published.get(name):
            key = (run.published_source, *sorted(scores.items()))
            published.setdefault(
                key, {"label": [], "values": scores, "kind": "published", "source": run.published_source}
            )["label"].append(run.label)
        if evaluation is None:
            continue
        rows[-1] |= {
            "values": evaluation["metrics"],
            "intervals": {metric: interval(evaluation, metric) for metric in evaluation["metrics"]},
            "rows": evaluation["rows"],
            "rows_with_labels": evaluation.get("rows_with_labels", evaluation["rows"]),
            "checkpoint": shown_path(str(evaluation.get("checkpoint", ""))),
        }
        for baseline, metrics in evaluation.get("baselines", {}).items():
            key = (baseline, run.dataset["id"], evaluation["rows"], *sorted(metrics.items()))
            baselines.setdefault(
                key,
                rows[-1] | {"label": baseline, "values": metrics, "intervals": {}, "kind": "baseline", "of": run.label},
            )
    times = Counter(row["label"] for row in baselines.values())
    for row in baselines.values():
        if times[row["label"]] > 1:
            row["label"] += f" (data of {row['of']})"
    rows += baselines.values()
    shown = {metric for row in (*rows, *published.values()) for metric in row["values"] or ()}
    shown -= _told_by_class(runs, name)
    metrics = [metric for metric in _metrics_in_order(runs) if metric in shown]
    best: dict[str, float] = {}
    if len({scored_rows(run, name) for run in runs if name in run.evaluations}) == 1:
        for metric in metrics:
            values = [row["values"].get(metric) for row in rows if row["values"]]
            finite = [value for value in values if is_finite(value)]
            if len(finite) > 1:
                best[metric] = min(finite) if lower_is_better(metric) else max(finite)
    rows += [row | {"label": ", ".join(row["label"])} for row in published.values()]
    return {"split": name, "metrics": metrics, "rows": rows, "best": best}


def _told_by_class(runs: Sequence[Run], name: str) -> set[str]:
    """The metrics that a `class_report` shows for every run of the evaluation, and nobody has published."""
    evaluated = [run for run in runs if name in run.evaluations]
    if not evaluated or not all(has_class_report(run, name) for run in evaluated):
        return set()
    return set(_IN_CLASS_REPORT) - {metric for run in runs for metric in run.published.get(name, {})}


def _metrics_in_order(runs: Sequence[Run]) -> list[str]:
    """Every metric of any evaluation in order of first appearance, what only baselines or papers report at the end."""
    evaluations = [evaluation for run in runs for evaluation in run.evaluations.values()]
    measured = [metric for evaluation in evaluations for metric in evaluation["metrics"]]
    of_baselines = [m for e in evaluations for metrics in e.get("baselines", {}).values() for m in metrics]
    published = [metric for run in runs for metrics in run.published.values() for metric in metrics]
    return list(dict.fromkeys(measured + of_baselines + published))


def class_tables(runs: Sequence[Run], split: str) -> list[Json]:
    """The per-class tables of runs on one data set: excerpts first, then every class; classes by training frequency.

    Each row is `(rank, name, scores…, train rows, rows in the split)` with one score per kind of score and run. Best
    and worst go by the first run's first score, among labels with at least `MIN_POSITIVES` positives. With few
    classes there is the full table only.
    """
    evaluated = [
        run for run in runs if run.evaluations.get(split, {}).get("per_class") and not has_class_report(run, split)
    ]
    if not evaluated:
        return []
    by_class = [{entry["class"]: entry for entry in run.evaluations[split]["per_class"]} for run in evaluated]
    keys = score_keys(evaluated[0].evaluations[split]["per_class"])
    ranked = sorted(by_class[0].values(), key=lambda entry: (-entry["train_count"], entry["class"]))
    rows = [
        (
            rank,
            entry["name"],
            *(of_run.get(entry["class"], {}).get(key) for key in keys for of_run in by_class),
            entry["train_count"],
            entry["count"],
        )
        for rank, entry in enumerate(ranked, start=1)
    ]
    single = len(evaluated) == 1
    columns = [
        _column("rank"),
        _column("label", is_text=True),
        *(_column(display_name(key), None if single else run.label) for key in keys for run in evaluated),
        _column("train rows"),
        _column(f"{split} rows"),
    ]
    full = {"title": f"All {len(rows):,} labels", "kind": "classes", "columns": columns, "rows": rows, "full": True}
    if len(rows) <= NUM_FREQUENT + NUM_BEST + NUM_WORST or not keys:
        return [full]
    enough = [row for row in rows if row[-1] >= MIN_POSITIVES and is_finite(row[2])]
    best_first = sorted(enough, key=lambda row: -row[2])
    by_whom = "" if single else f" by {evaluated[0].label},"
    among = f"{by_whom} of the {len(enough):,} labels with at least {MIN_POSITIVES} positives in {split}"
    excerpts = [
        (f"{NUM_FREQUENT} most frequent", rows[:NUM_FREQUENT]),
        (f"{min(NUM_BEST, len(enough))} best{among}", best_first[:NUM_BEST]),
        (f"{min(NUM_WORST, len(enough))} worst{among}", best_first[::-1][:NUM_WORST]),
    ]
    return [full | {"title": title, "rows": part, "full": False} for title, part in excerpts] + [full]


def score_keys(per_class: Sequence[Json]) -> list[str]:
    """What the entries of `per_class` measure: their keys beyond those that say which class and how many rows."""
    described = {"class", "name", "train_count", "count"}
    return [key for key in per_class[0] if key not in described] if per_class else []


def has_class_report(run: Run, name: str) -> bool:
    """Whether the evaluation gives precision, recall and F1 of not too many classes, for `class_report`."""
    per_class = run.evaluations.get(name, {}).get("per_class") or []
    return 0 < len(per_class) <= MAX_CLASSES_IN_REPORT and {"precision", "recall", "f1"} <= per_class[0].keys()


def class_report(runs: Sequence[Run], name: str) -> Json | None:
    """Precision, recall and F1 of each class, then their macro and weighted means and the weighted accuracy.

    Runs stand side by side if they were scored on the same classes; those with other classes than the first one are
    left out. `rows`: (name, row kind, a cell per column); a class without rows in this split has a dash, not the 0 by
    convention. None where no run has such scores.
    """
    having = [run for run in runs if has_class_report(run, name)]
    if not having:
        return None
    classes = [(entry["class"], entry["name"]) for entry in having[0].evaluations[name]["per_class"]]
    entries = {
        run.label: {(entry["class"], entry["name"]): entry for entry in run.evaluations[name]["per_class"]}
        for run in having
    }
    having = [run for run in having if list(entries[run.label]) == classes]
    scores = ("precision", "recall", "f1")
    rows: list[tuple[str, str, list[Any]]] = []
    for of_class in classes:
        cells: list[Any] = []
        for run in having:
            entry = entries[run.label][of_class]
            cells += [entry[score] if entry["count"] else None for score in scores]
        first = entries[having[0].label][of_class]
        rows.append((str(of_class[1]), "class", [*cells, first["train_count"], first["count"]]))
    metrics = [run.evaluations[name]["metrics"] for run in having]
    total = [sum(entries[having[0].label][of_class][key] for of_class in classes) for key in ("train_count", "count")]
    for kind in ("macro", "weighted"):
        cells = [_mean_of(of_run, kind, score) for of_run in metrics for score in scores]
        rows.append((f"{kind} mean", "mean", [*cells, *total]))
    accuracy = [
        cell for of_run in metrics for cell in ("", of_run.get("accuracy", of_run.get("weighted_accuracy")), "")
    ]
    rows.append(("weighted accuracy", "mean", [*accuracy, *total]))
    return {"split": name, "runs": [run.label for run in having], "scores": scores, "rows": rows}


def _mean_of(metrics: Json, kind: str, score: str) -> Any:
    """The macro or weighted mean of a score; the weighted mean of the recall is the accuracy under another name."""
    same = metrics.get("accuracy") if (kind, score) == ("weighted", "recall") else None
    return metrics.get(f"{kind}_{score}", same)


def track_tables(runs: Sequence[Run], name: str) -> list[Json]:
    """The tables of whole tracks: the worst first, then every one.

    Tracks predicted wrong come first, and of those on either side the ones that gave their label least probability.
    One run shows its prediction, its probability and the label's. Several that were scored on the same tracks show
    their prediction and the label's probability each, and the order is the first run's. With few tracks there is the
    full table only.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        if tracks := run.evaluations.get(name, {}).get("tracks"):
            groups.setdefault(tuple(sorted(str(track["group"]) for track in tracks)), []).append(run)
    return [table for group in groups.values() for table in _tables_of_same_tracks(group, name)]


def _tables_of_same_tracks(runs: Sequence[Run], name: str) -> list[Json]:
    by_track = [{str(track["group"]): track for track in run.evaluations[name]["tracks"]} for run in runs]
    names = [class_names_of(run, name) for run in runs]

    def of_label(place: int, group: str) -> float | None:
        track = by_track[place][group]
        p = track["probabilities"]
        return p[track["label"]] if 0 <= track["label"] < len(p) else None

    def named(place: int, klass: int) -> str:
        return names[place].get(klass, f"class {klass}")

    def is_right(place: int, group: str) -> bool:
        return bool(by_track[place][group]["predicted"] == by_track[place][group]["label"])

    ranked = sorted(by_track[0], key=lambda group: (is_right(0, group), _or_zero(of_label(0, group)), group))
    rows: list[tuple[Any, ...]] = []
    for group in ranked:
        first = by_track[0][group]
        cells: list[Any] = [group, named(0, first["label"])]
        for place in range(len(runs)):
            predicted = named(place, by_track[place][group]["predicted"])
            cells += ["right" if is_right(place, group) else f"✗ {predicted}", of_label(place, group)]
        rows.append((*cells, first["segments"]))
    several = len(runs) > 1
    columns = [_column("track", is_text=True), _column("label", is_text=True)]
    for run in runs:
        columns += [
            _column("predicted", run.label if several else None, is_text=True),
            _column("probability of the label", run.label if several else None),
        ]
    columns.append(_column("segments"))
    num_right = sum(is_right(0, group) for group in ranked)
    by_whom = f" by {runs[0].label}" if several else ""
    title = f"{name}: {len(rows):,} tracks, {num_right:,} predicted right{by_whom}"
    full = {"title": title, "kind": "clips", "columns": columns, "rows": rows, "full": True}
    if len(rows) <= NUM_WORST:
        return [full]
    worst = f"{name}: {NUM_WORST} worst of {len(rows):,} tracks{by_whom}"
    return [full | {"title": worst, "rows": rows[:NUM_WORST], "full": False}, full]


def class_names_of(run: Run, name: str) -> dict[int, str]:
    """Names of the classes by number, of the evaluation and else of the data set."""
    of_data = dict(enumerate(run.dataset.get("class_names") or []))
    return of_data | {entry["class"]: str(entry["name"]) for entry in run.evaluations[name].get("per_class") or []}


def clip_tables(runs: Sequence[Run], name: str) -> list[Json]:
    """The per-clip tables of an evaluation: the worst clips first, then every one; clips from worst to best.

    One run shows every metric of a clip. Several that were scored on the same clips show the first metric each, and
    the order is the first run's. A clip without a finite score comes last, and is not among the worst. With few clips
    there is the full table only.
    """
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        if run.evaluations.get(name, {}).get("per_clip"):
            groups.setdefault(scored_rows(run, name), []).append(run)
    return [table for group in groups.values() for table in _clip_tables_of_same_clips(group, name)]


def _clip_tables_of_same_clips(runs: Sequence[Run], name: str) -> list[Json]:
    clips = runs[0].evaluations[name]["per_clip"]
    metrics = [metric for metric in runs[0].evaluations[name]["metrics"] if any(metric in clip for clip in clips)]
    if not metrics:
        return []
    first = metrics[0]
    sign = -1 if lower_is_better(first) else 1
    ranked = sorted(clips, key=lambda clip: (not is_finite(clip.get(first)), sign * _or_zero(clip.get(first))))
    if len(runs) == 1:
        columns = [_column(display_name(metric)) for metric in metrics]
        scores = {clip["id"]: [clip.get(metric) for metric in metrics] for clip in clips}
    else:
        columns = [_column(display_name(first), run.label) for run in runs]
        by_clip = [{clip["id"]: clip.get(first) for clip in run.evaluations[name]["per_clip"]} for run in runs]
        scores = {clip["id"]: [of_run[clip["id"]] for of_run in by_clip] for clip in clips}
    rows = [(clip["id"], clip.get("group"), *scores[clip["id"]]) for clip in ranked]
    by_whom = f"{display_name(first)} of {runs[0].label}" if len(runs) > 1 else display_name(first)
    num_scored = sum(is_finite(clip.get(first)) for clip in clips)
    left_out = f"; {len(rows) - num_scored:,} have none" if num_scored < len(rows) else ""
    full = {
        "title": f"{name}: {'all ' if len(rows) > 1 else ''}{len(rows):,} clip{'s' if len(rows) > 1 else ''}"
        f", by {by_whom}{left_out}",
        "kind": "clips",
        "columns": [_column("clip", is_text=True), _column("group", is_text=True), *columns],
        "rows": rows,
        "full": True,
    }
    if len(rows) <= NUM_WORST:
        return [full]
    worst = min(NUM_WORST, num_scored)
    title = f"{name}: {worst} worst of {len(rows):,} clips by {by_whom}{left_out}"
    return [full | {"title": title, "rows": rows[:worst], "full": False}, full]


def _column(title: str, run: str | None = None, is_text: bool = False) -> Json:
    return {"title": title, "run": run, "is_text": is_text}


def _or_zero(value: Any) -> float:
    return float(value) if is_finite(value) else 0.0


def clip_scores(run: Run, name: str) -> tuple[str, list[float]] | None:
    """The first metric that the evaluation gives clip by clip, and its value for each clip, NaN where it has none."""
    evaluation = run.evaluations.get(name, {})
    clips = evaluation.get("per_clip") or []
    metric = next((m for m in evaluation.get("metrics", {}) if any(m in clip for clip in clips)), None)
    return None if metric is None else (metric, [finite_or_nan(clip.get(metric)) for clip in clips])
