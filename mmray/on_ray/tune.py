"""`mmray tune`: a search over runs. Optuna decides and remembers (`search`), Ray Tune executes (`executor`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mmray import config, prepared, study, tuning
from mmray.console import say
from mmray.files import locked
from mmray.on_ray import runtime, samplers
from mmray.on_ray.machines import cluster_of_ray
from mmray.on_ray.plan import plan
from mmray.on_ray.prepare import prepare
from mmray.on_ray.search import FACTS, Search
from mmray.on_ray.train import check_rows
from mmray.on_ray.trial_table import TrialTable
from mmray.study import StudyInfo
from mmray.tasks import Task, build, monitored
from mmray.training import phases


def tune(run: config.Run, verbose: bool = False) -> Path:
    """Search as the run's section tune says, or go on with the search; return the folder of the study.

    ValueError, before anything is launched, where the space does not fit the run, settings don't go together or the
    cluster is too small; and where all trials fail.
    """
    space, folder = tuning.space_of(run), run.run_dir
    with locked(folder.with_name(f".{folder.name}.lock"), f"searching in {folder}", wait=False):
        data = {tuning.data_key(variant): prepare(variant, verbose) for variant in tuning.data_variants(run, space)}
        info = prepared.read_info(next(iter(data.values())))
        objectives, base = _objectives(run, build(run, info))
        samplers.check(base, space, list(objectives))
        _check_models(base, space, data)
        samples = samplers.num_samples(base, space)
        runtime.start(verbose)
        placed = plan(base, cluster_of_ray(), samples, info)
        say(placed.said())
        study.open_study(run)
        before = study.read_info(folder).trials if (folder / "study.json").exists() else []
        if before:
            finished = sum(trial.state != "running" for trial in before)
            say(f"going on with {folder}: {finished} of {samples} trials are finished")
        table = TrialTable(*next(iter(objectives.items())), samples, before)
        search = Search(base, space, folder, objectives, placed.concurrency, table)
        if not search.is_over:
            with table.shown(), runtime.without_core_remarks():
                from mmray.on_ray.executor import execute  # imports Ray, which reads its settings when it is imported

                execute(search, placed, data, verbose)
        _say_outcome(search.write(at_end=True), search, folder)
    return folder


def _objectives(run: config.Run, task: Task) -> tuple[dict[str, Any], config.Run]:
    """What the search is for, and the run with the first metric among it monitored."""
    assert run.tune is not None
    monitor, maximise = monitored(run, task)
    objectives = run.tune.objectives or {monitor: "max" if maximise else "min"}
    for name in objectives:
        if name not in FACTS and "/" not in name:
            raise ValueError(f"tune.objectives: {name!r} is neither a metric, such as {task.monitor}, nor of {FACTS}")
    first = next((name for name in objectives if name.startswith("val/")), None)
    if first is not None:
        run = run.model_copy(update={"train": run.train.model_copy(update={"monitor": first})})
        if monitored(run, task)[1] != (objectives[first] == "max"):
            raise ValueError(f"tune.objectives: {first}={objectives[first]}: its other end is better, and is kept")
    return objectives, run


def _check_models(run: config.Run, space: tuning.Space, data: dict[str, Path]) -> None:
    """ValueError where a choice of the space gives a run that does not fit its task or its rows."""
    import torch

    assert run.tune is not None
    if run.resources.feed == "ray_data":
        raise ValueError("resources.feed: ray_data has its tasks beside the trials, which take all CPUs: feed=thread")

    def options(param: tuning.Param) -> list[Any]:
        branches = isinstance(param.range, tuning.Choice) and (param.range.when or param.key.startswith("model."))
        return list(param.range.values() if branches else param.range.ends()[:1])

    for values in tuning.combinations(space, options):
        one = tuning.run_of(run, space, values)
        try:
            task = build(one, prepared.read_info(data[tuning.data_key(one)]))
            with torch.device("meta"):
                phases.check_patterns(one.train, task.build_model())
            check_rows(one, task)
        except ValueError as error:
            raise ValueError(f"tune.space, with {tuning.describe(values)}: {error}") from None


def _say_outcome(info: StudyInfo, search: Search, folder: Path) -> None:
    states = Counter(trial.state for trial in info.trials)
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    say(f"searched {folder}: {counted} of {info.samples} trials; {info.disk_bytes / 2**20:,.0f} MB on disk")
    for number in info.best[:5] if len(info.objectives) > 1 else info.best[:1]:
        trial = info.trial(number)
        scores = ", ".join(f"{name} {value:.4f}" for name, value in trial.objectives.items())
        say(f"the best: trial {number}, {scores} ({tuning.describe(trial.values)})")
    if (folder / "best.yaml").exists():
        say(f"train it again: mmray train {folder / 'best.yaml'}")
    if not search.is_complete:
        say(f"the search is not at its end; go on: mmray tune {folder / 'study.yaml'}")
