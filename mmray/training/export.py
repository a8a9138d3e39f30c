"""`mmray export`: a trained model as one file that predicts by itself, with all that is done to its input inside.

Beside the file stand the weights (`<stem>.safetensors`) and what there is to know of them (`<stem>.json`): the names of
the classes in the order of the probabilities, the run, and how an image becomes the model's input.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from mmray import __version__
from mmray.files import written_whole
from mmray.prepared import SplitReader
from mmray.prepared import read_info as read_prepared
from mmray.schema import DatasetInfo
from mmray.tasks import Task, build, monitored
from mmray.training import checkpoint, run_folder, trained

Format = Literal["onnx", "torch"]
Array = NDArray[Any]
TOLERANCE = 1e-4  # of a probability
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
_NUM_CHECKED = 16
_METADATA = "mmray.json"  # of a file of torch.export


@dataclass(frozen=True)
class Exported:
    """What was written, and how it differs from the run's own predictions, at most: in a probability, over `rows` rows
    as they are stored, and over the same rows at other sizes.
    """

    files: tuple[Path, ...]
    rows: int
    split: str
    stored_difference: float
    resized_difference: float

    def __str__(self) -> str:
        return (
            f"wrote {', '.join(str(path) for path in self.files)}\n"
            f"checked on {self.rows} rows of {self.split}: the largest difference of a probability is "
            f"{self.stored_difference:.1e} as they are stored, {self.resized_difference:.1e} at other sizes "
            f"(allowed: {TOLERANCE:g})"
        )


def export(run_dir: Path, data: Path, format: Format, out: Path | None = None) -> Exported:
    """Write the best checkpoint of a run as `out` (default `<run>/export/<name>.onnx` or `.pt2`), once it is checked.

    `data` is the prepared dataset that the run was trained on: the file must predict its rows as the run does, within
    `TOLERANCE`. ValueError where the task's models can't be exported, a package is missing, or the file predicts
    otherwise; nothing is written then.
    """
    run = run_folder.read_run(run_dir)
    best = checkpoint.best(run_dir, *monitored(run, build(run, run_folder.read_info(run_dir))))
    task, model = trained.load(run, run_dir, best.step)
    if not hasattr(task, "deployed"):
        raise ValueError(f"task.name={run.task.name} has no models that can be exported")  # type: ignore[attr-defined]
    out = out or run_dir / "export" / f"{run.name}{SUFFIXES[format]}"
    if out.suffix != SUFFIXES[format]:
        raise ValueError(f"--out {out}: a file of format {format} ends in {SUFFIXES[format]}")
    module: nn.Module = task.deployed(model).eval()
    facts = {
        "class_names": task.info.class_names,
        "run": run.name,
        "checkpoint": f"step-{best.step:08d}",
        "mmray": __version__,
        "input": "uint8 (rows, height, width, 3), RGB, any height and width",
        "output": "float32 (rows, classes), probabilities",
        "preprocessing": module.facts,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mmray-") as folder:
        aside = Path(folder) / out.name
        predict = _write_onnx(module, facts, aside) if format == "onnx" else _write_torch(module, facts, aside)
        checked = _checked(task, model, module, data, predict, out)
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, aside.with_suffix(".safetensors"), {"mmray": json.dumps(facts)})
        aside.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        written = [out, out.with_suffix(".safetensors"), out.with_suffix(".json")]
        for path in written:
            with written_whole(path) as target:
                shutil.copyfile(Path(folder) / path.name, target)
    return Exported(tuple(written), *checked)


def _program(module: nn.Module) -> torch.export.ExportedProgram:
    """The module as a graph, for any number of images of any height and width."""
    dim = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 67, 45, 3, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes={"images": {0: dim, 1: dim, 2: dim}})


def _write_onnx(module: nn.Module, facts: dict[str, Any], path: Path) -> Callable[[Array], Array]:
    """Write the module, with `facts` as its metadata; return what predicts with the written file."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise ValueError(f'--format onnx needs more packages: pip install "mmray[onnx]" ({error})') from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            _program(module), dynamo=True, verbose=False, input_names=["images"], output_names=["probabilities"]
        )
    assert program is not None
    proto = program.model_proto
    for key, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.save(proto, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: Array) -> Array:
        (found,) = session.run(["probabilities"], {"images": images})
        return np.asarray(found)

    return predict


def _write_torch(module: nn.Module, facts: dict[str, Any], path: Path) -> Callable[[Array], Array]:
    """As `_write_onnx`, for `torch.export.load`."""
    torch.export.save(_program(module), path, extra_files={_METADATA: json.dumps(facts)})
    loaded = torch.export.load(path).module()

    def predict(images: Array) -> Array:
        with torch.no_grad():
            found: Array = loaded(torch.from_numpy(images)).numpy()
        return found

    return predict


def _checked(
    task: Task, model: nn.Module, module: nn.Module, data: Path, predict: Callable[[Array], Array], out: Path
) -> tuple[int, str, float, float]:
    """Rows and split compared, and the largest differences: to what the run itself predicts of stored rows; and to the
    module that was exported, of the same rows at other sizes. ValueError for more than `TOLERANCE`.
    """
    info = read_prepared(data)
    name = _checked_split(info)
    reader = SplitReader(data, info.split(name), task.columns(labelled=False))
    rows = min(_NUM_CHECKED, info.split(name).rows)
    batch = task.collate(reader.take(np.arange(rows)))
    images = batch.tensors["images"]
    with torch.inference_mode():
        stored = _difference(predict(images.numpy()), task.evaluate(model, batch)[0].numpy())
        resized = 0.0
        for height, width in ((1.4, 0.7), (0.6, 1.9)):
            y = (torch.arange(max(1, round(height * images.shape[1]))) / height).long().clamp(max=images.shape[1] - 1)
            x = (torch.arange(max(1, round(width * images.shape[2]))) / width).long().clamp(max=images.shape[2] - 1)
            other = images[:, y][:, :, x].contiguous()
            resized = max(resized, _difference(predict(other.numpy()), module(other).numpy()))
    if not max(stored, resized) <= TOLERANCE:
        raise ValueError(
            f"{out} was not written: it predicts probabilities up to {max(stored, resized):.1e} from those of the run, "
            f"of {rows} rows of {name}; {TOLERANCE:g} is allowed"
        )
    return rows, name, stored, resized


def _checked_split(info: DatasetInfo) -> str:
    return next(name for name in ("test", "val", "train", "all") if name in info.splits and info.splits[name].rows)


def _difference(ours: Array, theirs: Array) -> float:
    return float(np.abs(ours - theirs).max())
