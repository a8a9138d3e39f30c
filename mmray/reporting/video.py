"""What a study of modalities compares: which run reads what, side by side with what was published for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmray.reporting import plots_video
from mmray.reporting.pictures import Pictures
from mmray.reporting.runs import Json, Run
from mmray.reporting.text import display_name, is_finite

# Inputs by what they tell of, in the order of the paper's tables; any other input is a modality of its own.
MODALITIES = {
    "visual": ("mean_rgb", "rgb"),
    "audio": ("mean_audio", "audio"),
    "keywords": ("keywords", "keyword_words"),
    "title": ("title", "title_vector", "title_words"),
}
METRICS = ("gap", "hit_at_1", "perr", "map")  # in the paper's order
COLUMN_NAMES = {"keyword_words": "keywords", "title_words": "titles"}


def modality_tables(runs: Sequence[Run], names: Sequence[str]) -> list[Json]:
    """For each evaluation that runs of different inputs or models share, a table: a row a run, a column a modality.

    Each metric has a column for what was measured and, where any run has one, a column for what was published. Runs
    stand by the modalities that they read, fewest first.
    """
    tables = []
    for name in names:
        read = {run.label: modalities(run) for run in runs}
        shown = [run for run in runs if read[run.label] and (_metrics(run, name) or _published(run, name))]
        if len({(tuple(read[run.label]), _model(run)) for run in shown}) < 2:
            continue
        found = [modality for run in shown for modality in read[run.label]]
        modes = [*(m for m in MODALITIES if m in found), *sorted(set(found) - MODALITIES.keys())]
        metrics = [m for m in METRICS if any(m in {**_metrics(run, name), **_published(run, name)} for run in shown)]
        shown.sort(key=lambda run: (len(read[run.label]), [m not in read[run.label] for m in modes], _model(run)))
        columns = [_column("model", True), _column("run", True), *(_column(mode, True) for mode in modes)]
        for metric in metrics:
            columns.append(_column(display_name(metric)))
            if any(metric in _published(run, name) for run in shown):
                columns.append(_column(f"{display_name(metric)}, published"))
        rows = []
        for run in shown:
            row: list[Any] = [_model(run), run.label, *("✓" if mode in read[run.label] else " " for mode in modes)]
            for metric in metrics:
                row.append(_metrics(run, name).get(metric))
                if any(metric in _published(other, name) for other in shown):
                    row.append(_published(run, name).get(metric))
            rows.append(tuple(row))
        tables.append({"title": name, "kind": "modalities", "columns": columns, "rows": rows})
    return tables


def modalities(run: Run) -> list[str]:
    """What the run's model reads: modalities where its inputs have one, else the inputs' own names.

    Empty where the run's task is no classification of videos. Without `model.inputs` the model reads all vectors, or
    all frames, that the dataset has.
    """
    if _name(run.config.get("task")) != "video_classification" or run.config.get("ensemble"):
        return []
    inputs = (run.config.get("model") or {}).get("inputs")
    if inputs is None:
        columns = [c for c in run.dataset.get("columns", []) if c["dtype"] != "bytes"]
        vectors = [c["name"] for c in columns if len(c["shape"]) == 1 and c["shape"][0] is not None]
        frames = [c["name"] for c in columns if len(c["shape"]) == 2]
        inputs = vectors + frames
    by_input = {name: modality for modality, of_one in MODALITIES.items() for name in of_one}
    found = {by_input.get(name, name) for name in inputs}
    return [*(m for m in MODALITIES if m in found), *sorted(found - MODALITIES.keys())]


def common_words(runs: Sequence[Run], names: Sequence[str], pictures: Pictures) -> list[Json]:
    """The most frequent words of titles and of keywords of training videos beside the most frequent labels."""
    drawn = []
    seen: list[Json] = []
    for run, words in ((run, run.evaluations.get(name, {}).get("common_words")) for run in runs for name in names):
        if not words or words in seen:  # of one corpus, perhaps prepared in another way
            continue
        seen.append(words)
        for column, entries in words.items():
            if entries:
                of = COLUMN_NAMES.get(column, column)
                counts = {str(entry["word"]): int(entry["count"]) for entry in entries}
                figure = plots_video.ranked_counts(counts, f"times in {of} of training videos")
                caption = f"The {len(counts)} most frequent words of the {of} of {run.dataset['id']}."
                drawn.append(pictures.save(f"common words {of} {run.dataset['id']}", figure, caption))
        drawn += _frequent_labels(run, pictures)
    return drawn


def _frequent_labels(run: Run, pictures: Pictures) -> list[Json]:
    counts = run.dataset["splits"].get("train", {}).get("label_counts") or []
    named = sorted(zip(run.dataset.get("class_names", []), counts, strict=True), key=lambda of_label: -of_label[1])
    best = {str(name): count for name, count in named[: plots_video.MAX_COUNTS] if count}
    if not best:
        return []
    figure = plots_video.ranked_counts(best, "training videos with the label")
    caption = f"The {len(best)} most frequent of {len(counts):,} labels of {run.dataset['id']}."
    return [pictures.save(f"frequent labels {run.dataset['id']}", figure, caption)]


def _metrics(run: Run, name: str) -> Json:
    metrics: Json = run.evaluations.get(name, {}).get("metrics", {})
    return {key: value for key, value in metrics.items() if is_finite(value)}


def _published(run: Run, name: str) -> dict[str, float]:
    return run.published.get(name, {})


def _model(run: Run) -> str:
    return str(_name(run.config.get("model")))


def _name(section: Any) -> Any:
    return section.get("name") if isinstance(section, dict) else section


def _column(title: str, is_text: bool = False) -> Json:
    return {"title": title, "run": None, "is_text": is_text}
