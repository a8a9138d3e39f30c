"""`mmray ensemble`: each block of rows is a task that reads it from every member, combines it and writes its part.

The driver holds no rows. As many blocks are in flight as keep the CPUs busy. A part that is written is whole and is
never made again: parts lie in a folder named by a hash of what the members predicted and of the rule, until all are
there. See `mmray.ensembling` for what is done with a block.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmray import config
from mmray.console import progress, say
from mmray.ensembling import FITTED_ON, blocks, fitting, forest
from mmray.ensembling.blocks import Ensemble
from mmray.ensembling.fitting import Candidates
from mmray.ensembling.forest import Forest
from mmray.ensembling.inputs import Inputs, match, open_member, require_same_classes
from mmray.ensembling.pooling import Rule
from mmray.ensembling.soup import make_soup
from mmray.files import delete_folder, delete_leftovers, locked, publish_folder, write_json, write_text
from mmray.on_ray import runtime
from mmray.on_ray.predict import MAY_CHANGE, predict
from mmray.predictions import PredictionsInfo
from mmray.storage import at
from mmray.tasks import build
from mmray.training import run_folder

_RULES_AT_ONCE = 4  # metrics hold 120 bytes a row and rule
_POSTERIORS = "predict.posteriors=true"


def make(members: Sequence[Path], out: Path, settings: dict[str, Any], seed: int = 0) -> Path:
    """Make the folder `out` of an ensemble of run folders; return it. Nothing is predicted yet, but a soup is whole.

    `settings` are those of `config.Ensemble`, without the members. ValueError, saying what differs, where the members
    don't fit together, and where the folder holds something else.
    """
    labels = _labels(members)
    paths = [path for _, path in sorted(zip(labels, members, strict=True))]
    runs, infos = [run_folder.read_run(p) for p in paths], [run_folder.read_info(p) for p in paths]
    require_same_classes(list(zip([str(p) for p in paths], infos, strict=True)), runs)
    values = runs[0].to_dict() | {"name": out.name, "out": str(out.parent), "seed": seed, "published": None}
    values["ensemble"] = settings | {"members": [str(path) for path in paths]}
    run = config.from_dict(values, where=f"ensemble {out.name}")
    runtime.warn_of_relative_paths(run)
    if (out / "config.yaml").exists():
        there = run_folder.read_run(out)
        if (there.ensemble, there.seed) == (run.ensemble, run.seed):
            return out
        if there.ensemble is None or (out / "predictions").exists() or run_folder.is_begun(out):
            raise ValueError(
                f"{out} holds {_described(there)}, not {_described(run)}; choose another --out, or remove it"
            )
    if run.ensemble is not None and run.ensemble.method == "soup":
        return make_soup(run, paths)
    run_folder.open_run(run, infos[0])
    counts = [_parameters(path) for path in paths]
    known = [count for count in counts if count is not None]
    run_folder.write_environment(out, num_parameters=sum(known) if len(known) == len(counts) else None)
    write_text(out / "metrics.jsonl", "")  # an ensemble is not trained step by step
    return out


def predict_ensemble(
    run_dir: Path, split: str, corpus: str | None, overrides: Sequence[str], verbose: bool
) -> tuple[Path, Path | None]:
    """Combine the members' predictions, made where they are missing; see `predict`.

    The prepared dataset returned is the first member's, None where that can't be made.
    """
    run = config.with_overrides(run_folder.read_run(run_dir), overrides, MAY_CHANGE)
    runtime.start(verbose)
    inputs, data, name = _inputs(run, split, corpus, overrides, verbose)
    settings = _settings(run)
    ensemble = Ensemble(
        inputs.members, blocks.kind_of(inputs.members, settings.method), run.to_dict(), run_folder.read_info(run_dir)
    )
    if inputs.dropped:
        lost = ", ".join(f"{count:,} of {member}" for member, count in inputs.dropped.items())
        say(f"combining the {inputs.num_rows:,} rows that all members have; left out: {lost}")
    rule, fit = _rule(run_dir, run, ensemble, verbose)
    out = run_dir / "predictions" / name
    digest = _hash(inputs.digest, repr(rule), [c.model_dump(mode="json") for c in ensemble.columns(inputs)])
    note = out / "inputs.json"
    if note.exists() and json.loads(note.read_text())["digest"] == digest:
        say(f"predictions {out} are there: {inputs.num_rows:,} rows")
        return out, data
    began = time.perf_counter()
    with locked(out.parent / ".lock", f"combining in {run_dir}", wait=True):
        aside = out.parent / f".{name}.partial-{digest}"
        for stale in out.parent.glob(f".{name}.partial-*"):
            if stale != aside:
                delete_folder(stale)
        delete_leftovers(out.parent)
        combine_s = _write_parts(run, ensemble, inputs, rule, aside)
        first = inputs.reference.info
        info = first.model_copy(
            update={"run": run.name, "step": 0, "rows": inputs.num_rows, "columns": ensemble.columns(inputs)}
        )
        write_json(
            aside / "predictions.json", PredictionsInfo.model_validate(info.model_dump()).model_dump(mode="json")
        )
        listed = [{"name": m.name, "step": m.info.step, "rows": m.info.rows} for m in inputs.members]
        write_json(aside / "inputs.json", {"digest": digest, "members": listed, "left_out": inputs.dropped})
        publish_folder(aside, out)
    say(f"combined {inputs.num_rows:,} rows into {out} in {time.perf_counter() - began:.1f} s")
    study = _study(run, ensemble, inputs, rule)
    write_json(run_dir / "ensemble" / f"{name}.json", study | {"combine_s": round(combine_s, 3), **fit})
    return out, data


def _labels(paths: Sequence[Path]) -> list[str]:
    """The runs' names, those that several share told apart by their folders."""
    names = [run_folder.read_run(path).name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _settings(run: config.Run) -> config.Ensemble:
    assert run.ensemble is not None
    return run.ensemble


def _described(run: config.Run) -> str:
    if run.ensemble is None:
        return "a run"
    return f"{run.ensemble.method} of {', '.join(run.ensemble.members)} (seed {run.seed})"


def _inputs(
    run: config.Run, split: str, corpus: str | None, overrides: Sequence[str], verbose: bool
) -> tuple[Inputs, Path | None, str]:
    """The members' predictions, the first one's prepared dataset, and the name that the ensemble's should have."""
    settings, found, data, name = _settings(run), [], None, split
    paths = [at(path) for path in settings.members]
    for place, (path, label) in enumerate(zip(paths, _labels(paths), strict=True)):
        folder, prepared = _predicted(path, settings.method, split, corpus, overrides, verbose)
        if place == 0:
            data, name = prepared, folder.name.replace(f"+{_POSTERIORS}", "")
        found.append(open_member(label, folder.absolute()))
    return match(found, settings.missing), data, name


def _predicted(
    path: Path, method: str, split: str, corpus: str | None, overrides: Sequence[str], verbose: bool
) -> tuple[Path, Path | None]:
    """The predictions of a member, made if it has a model to make them with."""
    run = run_folder.read_run(path)
    if not run_folder.is_begun(path) and run.ensemble is None:
        return path / "predictions" / split, None  # predictions alone
    of_frames = hasattr(build(run, run_folder.read_info(path)), "decode")
    if of_frames and method != "median" and not run.predict.posteriors and _POSTERIORS not in overrides:
        overrides = [*overrides, _POSTERIORS]
    return predict(path, split, corpus, overrides, verbose)


def _parameters(path: Path) -> int | None:
    file = path / "environment.json"
    found = json.loads(file.read_text()).get("num_parameters") if file.exists() else None
    return int(found) if found is not None else None


# Learning, on val alone


def _rule(run_dir: Path, run: config.Run, ensemble: Ensemble, verbose: bool) -> tuple[Rule | Forest, dict[str, Any]]:
    """The rule of the run's method, learned if need be, and what is to be said of its learning."""
    method, num = _settings(run).method, len(ensemble.members)
    equal, exclusive = (1 / num,) * num, ensemble.exclusive
    if method in ("max", "geometric"):
        return Rule("max" if method == "max" else "geometric", equal, exclusive=exclusive), {}
    if method == "rank":
        stored = max((c.shape[0] or 0 for m in ensemble.members if (c := m.column("top_classes"))), default=0)
        return Rule("rank", equal, exclusive=exclusive, places=stored), {}
    if method in ("mean", "median"):
        return Rule("linear", equal, exclusive=exclusive), {}
    return _learned(run_dir, run, verbose)


def _learned(run_dir: Path, run: config.Run, verbose: bool) -> tuple[Rule | Forest, dict[str, Any]]:
    """Learn the rule on val, or read it where it was learned from the same predictions; write `fit/rule.json`."""
    settings = _settings(run)
    inputs, _, _ = _inputs(run, FITTED_ON, None, (), verbose)
    inputs.reference.info.require_labels(inputs.reference.folder)
    ensemble = Ensemble(
        inputs.members, blocks.kind_of(inputs.members, settings.method), run.to_dict(), run_folder.read_info(run_dir)
    )
    digest = _hash(inputs.digest, settings.model_dump(mode="json"), run.seed)
    path = run_dir / "fit" / "rule.json"
    with locked(run_dir / "fit" / ".lock", f"fitting {run_dir}", wait=True):
        there = json.loads(path.read_text()) if path.exists() else {}
        if there.get("digest") != digest:
            began = time.perf_counter()
            fitted = (
                _fit_greedy(run, ensemble, inputs)
                if settings.method == "greedy"
                else _fit(run_dir, run, ensemble, inputs, digest)
            )
            there = {
                "digest": digest, "method": settings.method, "fitted_on": FITTED_ON,
                "members": [member.name for member in inputs.members], **fitted,
                "fit_s": round(time.perf_counter() - began, 3),
            }  # fmt: skip
            write_json(path, there)
    said = {key: there[key] for key in ("fitted_on", "fit_s", "weights", "bias") if key in there}
    if settings.method == "forest":
        chunks = tuple(str((path.parent / name).absolute()) for name in there["chunks"])
        return Forest(chunks, settings.forest.trees, settings.candidates, ensemble.exclusive), said
    weights = tuple(there["weights"])
    say(f"{settings.method}: " + ", ".join(f"{n} {w:.3f}" for n, w in zip(there["members"], weights, strict=True)))
    kind = "logistic" if settings.method == "stack" else "linear"
    return Rule(kind, weights, there.get("bias", 0.0), exclusive=ensemble.exclusive), said


def _fit(run_dir: Path, run: config.Run, ensemble: Ensemble, inputs: Inputs, digest: str) -> dict[str, Any]:
    """Weights, a stack or a forest, from candidates of val."""
    settings = _settings(run)
    at_most = min(ensemble.num_classes, settings.candidates * len(inputs.members))
    frames = 1.0
    if ensemble.kind == "posteriors":
        frames = inputs.reference.num_bytes / max(1, inputs.reference.info.rows) / (2 * ensemble.num_classes)
    share = min(1.0, settings.max_candidates / max(1.0, inputs.num_rows * at_most * frames))
    jobs = [(block, settings.candidates, share) for block in inputs.blocks()]
    gathered = _each(blocks.gather, ensemble, jobs, "learn from", "blocks")
    parts: dict[int, Candidates] = {index: part for index, part, _ in gathered}
    found = fitting.concatenated([parts[index] for index in sorted(parts)])
    fitting.require_both(found)
    facts = {"rows": len(found.offsets) - 1, "candidates": len(found.hits), "share_of_rows": round(share, 6)}
    if settings.method == "forest":
        return facts | {"chunks": _grow(run_dir, run, found, digest)}
    if settings.method == "stack":
        rule = fitting.fit_stack(found, Rule("logistic", (0.0,) * len(inputs.members), exclusive=ensemble.exclusive))
        return facts | {"weights": list(rule.weights), "bias": rule.bias}
    return facts | {"weights": list(fitting.fit_weights(found, ensemble.exclusive))}


def _fit_greedy(run: config.Run, ensemble: Ensemble, inputs: Inputs) -> dict[str, Any]:
    task = ensemble.task
    metric, sign = task.monitor.removeprefix("val/"), 1 if task.maximise else -1

    def score(weightings: list[tuple[float, ...]]) -> list[float]:
        rules = [Rule("linear", weights, exclusive=ensemble.exclusive) for weights in weightings]
        return [sign * metrics[metric] for metrics in _measured(ensemble, inputs, rules, "choose by")]

    weights, best = fitting.fit_greedy(len(inputs.members), score, _settings(run).rounds)
    return {"rows": inputs.num_rows, "weights": list(weights), metric: sign * best}


def _grow(run_dir: Path, run: config.Run, found: Candidates, digest: str) -> list[str]:
    """Grow the forest in chunks of trees, those that are not there yet; return their files, relative to `fit/`."""
    import ray

    settings = _settings(run).forest
    folder = run_dir / "fit" / f"forest-{digest}"
    for stale in folder.parent.glob("forest-*"):
        if stale != folder:
            delete_folder(stale)
    folder.mkdir(parents=True, exist_ok=True)
    chunks = forest.chunks_of(settings.trees, settings.trees_a_task)
    files = [folder / f"trees-{first:05d}.safetensors" for first, _ in chunks]
    scores, hits = ray.put(found.scores), ray.put(found.hits)
    jobs = [
        (scores, hits, first, count, run.seed, settings.min_samples_leaf, str(file.absolute()))
        for (first, count), file in zip(chunks, files, strict=True)
        if not file.exists()
    ]
    for _ in _each(_grow_chunk, None, jobs, "grow", "parts of the forest", run.name):
        pass
    return [f"{folder.name}/{file.name}" for file in files]


def _grow_chunk(_: None, scores: Any, hits: Any, first: int, count: int, seed: int, leaf: int, file: str) -> None:
    import ray

    x, y = ray.get([scores, hits])
    forest.save(at(file), forest.grow(x, y, first, count, seed, leaf))


# Blocks as tasks


def _write_parts(run: config.Run, ensemble: Ensemble, inputs: Inputs, rule: Rule | Forest, aside: Path) -> float:
    """Write what is not there of the parts; return the seconds that the tasks took together."""
    aside.mkdir(parents=True, exist_ok=True)
    for leftover in aside.glob(".part-*"):  # of a task that was killed while it wrote
        leftover.unlink()
    columns = ensemble.columns(inputs)
    jobs = [(rule, b, columns, (aside / f"part-{b.index:05d}.parquet").absolute()) for b in inputs.blocks()]
    rows, seconds = 0, 0.0
    for _, of_part, took_s in _each(blocks.write, ensemble, jobs, "combine", "blocks", run.name):
        rows, seconds = rows + of_part, seconds + took_s
    if rows != inputs.num_rows:
        raise RuntimeError(f"combined {rows:,} of {inputs.num_rows:,} rows: this must not happen, please report it")
    return seconds


def _measured(ensemble: Ensemble, inputs: Inputs, rules: Sequence[Rule | Forest], label: str) -> list[dict[str, float]]:
    """The task's metrics of each rule."""
    found = []
    for start in range(0, len(rules), _RULES_AT_ONCE):
        some = list(rules[start : start + _RULES_AT_ONCE])
        metrics = [blocks.new_metrics(ensemble) for _ in some]
        jobs = [(some, block) for block in inputs.blocks()]
        for _, states, _ in _each(blocks.measure, ensemble, jobs, label, "blocks"):
            for of_rule, state in zip(metrics, states, strict=True):
                of_rule.merge(state)
        found += [of_rule.compute() for of_rule in metrics]
    return found


def _study(run: config.Run, ensemble: Ensemble, inputs: Inputs, rule: Rule | Forest) -> dict[str, Any]:
    """What a report shows: the members' scores, what each adds, how alike they are, what they cost."""
    settings, num = _settings(run), len(inputs.members)
    jobs = [(block, settings.candidates) for block in inputs.blocks()]
    sums = [total for _, total, _ in _each(blocks.compare, ensemble, jobs, "compare", "blocks")]
    members: list[dict[str, Any]] = [
        {"name": member.name, "parameters": _parameters(at(path)), "train_s": _train_s(at(path))}
        for member, path in zip(inputs.members, settings.members, strict=True)
    ]
    study = {"method": settings.method, "rows": inputs.num_rows, "left_out": inputs.dropped, "members": members}
    study |= blocks.likeness({key: np.sum([total[key] for total in sums], axis=0) for key in sums[0]})
    if inputs.reference.info.labelled:
        whole = rule if isinstance(rule, Rule) else Rule("linear", (1 / num,) * num, exclusive=ensemble.exclusive)
        alone = [Rule("linear", tuple(np.eye(num)[m].tolist()), exclusive=ensemble.exclusive) for m in range(num)]
        # Where the rule rests on one member alone, nothing is left without it.
        rest = [m for m in range(num) if any(whole.without(m).weights)]
        scores = _measured(ensemble, inputs, [*alone, whole, *(whole.without(m) for m in rest)], "score")
        for member, metrics in zip(members, scores[:num], strict=True):
            member["metrics"] = metrics
        study["without"] = {"rule": settings.method if whole is rule else "mean", "metrics": scores[num]}
        for m, metrics in zip(rest, scores[num + 1 :], strict=True):
            members[m]["without"] = metrics
    return study


def _train_s(path: Path) -> float | None:
    """The seconds of the epochs that a run's log has."""
    took = [line["epoch_s"] for line in run_folder.read_log(path) if line.get("epoch_s") is not None]
    return round(sum(took), 1) if took else None


def _each(
    function: Callable[..., Any],
    ensemble: Ensemble | None,
    jobs: Sequence[tuple[Any, ...]],
    label: str,
    unit: str,
    note: str = "",
) -> Iterator[tuple[int, Any, float]]:
    """Run `function(ensemble, *job)` as a task for each job; yield its index, answer and seconds as they finish.

    No more tasks wait than keep the CPUs busy, so no more answers than those lie in the object store. A task whose
    worker is lost is tried again.
    """
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(_answered)
    shared, pending, done = ray.put(ensemble), {}, 0
    at_once = max(2, int(2 * runtime.cluster_cpus()))
    waiting = iter(enumerate(jobs))
    with progress(label, len(jobs), unit) as advance, runtime.without_core_remarks():
        while True:
            while len(pending) < at_once and (following := next(waiting, None)) is not None:
                pending[remote.remote(function, shared, following[1])] = following[0]
            if not pending:
                return
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            index = pending.pop(ready)
            answer, bad, took_s = ray.get(ready)
            if bad:
                raise ValueError(bad)
            done += 1
            advance(done, note)
            yield index, answer, took_s


def _answered(function: Callable[..., Any], ensemble: Any, job: tuple[Any, ...]) -> tuple[Any, str, float]:
    """What a task does: bad input is an answer, not a failure of the task, so there is no retry and no stack trace."""
    began = time.perf_counter()
    try:
        answer = function(ensemble, *job)
    except (ValueError, OSError) as error:
        return None, str(error), 0.0
    return answer, "", time.perf_counter() - began


def _hash(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
