"""The run folder: what a run was, what it did and what came of it.

runs/<name>/
    config.yaml         the resolved run
    dataset.json        the prepared dataset it trained on
    environment.json    hardware and versions
    metrics.jsonl       one line every few steps and one an epoch
    tensorboard/        the same, as TensorBoard events
    checkpoints/        see mmray.training.checkpoint
    predictions/        see mmray.on_ray.predict
    evaluation/         metrics and per-class results of each evaluated split
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmray import __version__, config
from mmray.files import write_json, write_text
from mmray.schema import DatasetInfo
from mmray.storage import is_remote

# A run that goes on may be given other resources or more epochs; anything else would make it another run.
_MAY_CHANGE = (
    "resources",
    "predict",
    "published",
    "out",
    "prepare.out",
    "prepare.max_bad_fraction",
    "train.epochs",
    "train.early_stopping",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_best",
)


def open_run(run: config.Run, info: DatasetInfo) -> Path:
    """Create the run folder, or open it to go on; ValueError where another run has begun to train in it."""
    run_dir = run.run_dir
    if is_begun(run_dir):
        before, now = _flat(read_run(run_dir).to_dict()), _flat(run.to_dict())
        changed = [
            k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k) and not _may_change(k, run)
        ]
        if changed:
            lines = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
            raise ValueError(
                f"{run_dir} holds another run:\n{lines}\n"
                f"give this one a name of its own (--set name=...), or remove the folder to start anew"
            )
    write_json(run_dir / "dataset.json", info.model_dump(mode="json"))
    write_text(run_dir / "config.yaml", run.to_yaml())
    return run_dir


def is_begun(run_dir: Path) -> bool:
    """Whether a run has left a checkpoint to go on from."""
    return any(run_dir.glob("checkpoints/step-*/state.json"))


def read_run(run_dir: Path) -> config.Run:
    """The resolved run of a run folder; ValueError when it is none."""
    path = run_dir / "config.yaml"
    if not path.exists():
        raise ValueError(f"{run_dir} is not a run folder: it has no config.yaml")
    return config.load(path)


def read_info(run_dir: Path) -> DatasetInfo:
    """The dataset a run was trained on; ValueError where the folder is no run's."""
    if not (run_dir / "dataset.json").exists():
        raise ValueError(f"{run_dir} is not a run folder: it has no dataset.json")
    return DatasetInfo.model_validate(json.loads((run_dir / "dataset.json").read_text(encoding="utf-8")))


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """All whole lines of `metrics.jsonl`; a last line torn by a crash is left out. Empty where there is no log."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def new_lines(run_dir: Path) -> Iterator[list[dict[str, Any]]]:
    """Each time it is asked, the whole lines that the log has gained; a line of a rewritten log is not new again."""
    path = run_dir / "metrics.jsonl"
    version: object = None  # of a file its inode, which it keeps while it grows
    offset, known = 0, set()
    while True:
        lines, data = [], b""
        if is_remote(path):
            if path.exists() and (there := path.stat()) != version:
                version, offset, data = there, 0, path.read_bytes()
        elif path.exists():
            with path.open("rb") as file:
                if (now := os.fstat(file.fileno()).st_ino) != version:
                    version, offset = now, 0
                file.seek(offset)
                data = file.read()
        whole = data.rfind(b"\n") + 1
        offset += whole
        for line in map(json.loads, data[:whole].splitlines()):
            if (line["event"], line["step"]) not in known:
                known.add((line["event"], line["step"]))
                lines.append(line)
        yield lines


def write_environment(run_dir: Path, **facts: Any) -> None:
    """Record hardware and versions of this machine, with `facts` from the caller beside them."""
    from importlib.metadata import version

    import torch

    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    values = {
        "mmray": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
        "platform": platform.platform(terse=True),
        "cpu": _cpu_model(),
        "num_cpus": os.cpu_count(),
        "memory_gb": round(memory_bytes / 2**30, 1),
        "gpus": gpus,
    }
    write_json(run_dir / "environment.json", values | facts)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _may_change(key: str, run: config.Run) -> bool:
    if key == "train.epochs" and run.train.schedule.name == "cosine":
        return False  # the end of the run shapes every learning rate of it
    if key.startswith("train.early_stopping") and run.train.phases:
        return False  # it says which phase an epoch of the past belongs to
    return any(key == may or key.startswith(f"{may}.") for may in _MAY_CHANGE)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
