"""A run folder from weights that others have trained: what `mmray train` would leave, but for the training."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmray import config, lookup
from mmray.files import locked
from mmray.schema import DatasetInfo
from mmray.storage import fetched
from mmray.tasks import build
from mmray.training import checkpoint, run_folder
from mmray.training.checkpoint import TrainState

IMPORTED = "imported"  # in place of the name of the prepared dataset that a run was trained on


def import_weights(run: config.Run, weights: Path) -> Path:
    """Make the run folder of `run` with the authors' released state dict as its only checkpoint; return the folder.

    `weights`: a `.safetensors`, or a file of torch.save that holds tensors only (any other is refused: it could run
    code). The run's corpus need not be there. ValueError where the weights are not of the run's model, and where the
    run folder has a checkpoint already.
    """
    dataset = lookup.load("dataset", run.dataset.name)  # type: ignore[attr-defined]
    model_module = lookup.load("model", run.model.name)  # type: ignore[attr-defined]
    if not hasattr(model_module, "rename_published"):
        raise ValueError(f"model.name={model_module.__name__.rpartition('.')[2]} has no published weights to import")
    info = DatasetInfo(
        id=IMPORTED, columns=dataset.columns(run.dataset), class_names=dataset.class_names(run.dataset), splits={},
        split_rule="none: the weights were imported", group_key=dataset.GROUP_KEY,
        rows_in=0, rows_out=0, rejected=0, rejected_reasons={},
    )  # fmt: skip
    run_dir = run.run_dir
    with locked(run_dir.with_name(f".{run_dir.name}.lock"), f"importing into {run_dir}", wait=False):
        if run_folder.is_begun(run_dir):
            raise ValueError(f"{run_dir} has a checkpoint already; choose another name (--set name=...) or remove it")
        task = build(run, info)
        model = task.build_model()
        try:
            state = model_module.rename_published(_read_at(weights))
        except ValueError as error:
            raise ValueError(f"{weights}: {error}") from None
        checkpoint.load_tensors(model, state, f"{weights} has the weights")
        run_folder.open_run(run, info)
        num_parameters = sum(p.numel() for p in model.parameters())
        run_folder.write_environment(
            run_dir, imported_from=weights.name, num_parameters=num_parameters, **task.describe(model)
        )
        checkpoint.save(run_dir, TrainState(), model, torch.optim.SGD(model.parameters(), lr=1.0))
    return run_dir


def _read_at(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError("no such file")
    with fetched(path) as here:
        return _read(here)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"not a file of safetensors: {error}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of many kinds; what they say is how to run the code in it all the same
        raise ValueError(
            "not a file of torch.save that holds tensors only; save the model's state_dict() and nothing else"
        ) from None
    names_to_tensors = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )
    if not names_to_tensors:
        raise ValueError("not a state dict: it must map names to tensors")
    return dict(state)
