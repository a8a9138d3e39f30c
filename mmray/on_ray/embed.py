"""`mmray embed`: what a trained model's classifier reads of every row, by as many processes as predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from mmray import config, embeddings, prepared
from mmray.console import say
from mmray.embeddings import DType, EmbeddingsInfo
from mmray.files import begin_folder, delete_leftovers, locked, publish_folder, write_json
from mmray.on_ray import runtime
from mmray.on_ray.predict import MAY_CHANGE, Announced, Loaded, require_model, write_parts
from mmray.on_ray.prepare import prepare_for
from mmray.prepared import SplitReader
from mmray.schema import DatasetInfo, arrow_schema
from mmray.tasks import build, monitored
from mmray.training import checkpoint, run_folder


def embed(
    run_dir: Path,
    split: str = "all",
    dtype: DType = "float32",
    overrides: Sequence[str] = (),
    verbose: bool = False,
) -> Path:
    """Embed a split, or all, with the best checkpoint; return the folder of embeddings: see `mmray.embeddings`.

    Splits that the same checkpoint has embedded are kept. ValueError where the model has nothing to embed with.
    """
    run = config.with_overrides(run_folder.read_run(run_dir), overrides, MAY_CHANGE)
    require_model(run, run_dir, "has no embedding of its own; embed with one of its members")
    task = build(run, run_folder.read_info(run_dir))
    size = _embedding_size(run, task.build_model)
    best = checkpoint.best(run_dir, *monitored(run, task))
    folder = prepare_for(run, run_dir, verbose)
    info = prepared.read_info(folder)
    names = [name for name, of_split in info.splits.items() if of_split.rows] if split == "all" else [split]
    out = run_dir / embeddings.FOLDER
    runtime.start(verbose)
    with locked(out.parent / ".lock", f"embedding with {run_dir}", wait=True):
        out.mkdir(parents=True, exist_ok=True)
        delete_leftovers(out)
        for name in names:
            result = EmbeddingsInfo(
                run=run.name,
                dataset=info.id,
                split=name,
                step=best.step,
                rows=info.split(name).rows,
                left_out=0,
                class_names=info.class_names,
                columns=embeddings.columns_of(info.columns, size, dtype),
            )
            _embed_split(run, run_dir, folder, result, out / name)
    return out


def _embedding_size(run: config.Run, build_model: Any) -> int:
    """E; ValueError where the run's model has no embedding."""
    with torch.device("meta"):
        model = build_model()
    if not hasattr(model, "embed"):
        name: str = run.model.name  # type: ignore[attr-defined]
        raise ValueError(f"model.name={name} has no embedding: its classifier reads the inputs themselves")
    return int(model.embedding_size)


def _embed_split(run: config.Run, run_dir: Path, folder: Path, result: EmbeddingsInfo, out: Path) -> None:
    if (out / embeddings.FILE).exists():
        there = embeddings.read_info(out)
        if there.model_copy(update={"left_out": 0}) == result:
            say(f"embeddings {out} are there: {there.stored:,} rows")
            return
    aside = begin_folder(out)
    done, written = write_parts(_write_embeddings, run, run_dir, folder, result, aside, "embed")
    result = result.model_copy(update={"left_out": done - written})
    write_json(aside / embeddings.FILE, result.model_dump(mode="json"))
    publish_folder(aside, out)
    left_out = f"; the other {done - written:,} have nothing that the model looks at" if done > written else ""
    say(f"embedded {written:,} of {done:,} rows into {out}{left_out}")


class _Embedder(nn.Module):
    """In the place of a model: keeps what it embeds, and gives no logits but zeros, so that no class is computed."""

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.model, self.num_classes = model, num_classes
        self.embedding = torch.empty(0)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        self.embedding = self.model.embed(*inputs)  # type: ignore[operator]
        return self.embedding.new_zeros(len(self.embedding), self.num_classes)


def _write_embeddings(
    loaded: Loaded, reader: SplitReader, rows: range, batch_size: int, result: Announced, path: Path
) -> int:
    """The task makes the model's inputs of rows as it does to evaluate it."""
    task, model, device = loaded
    info: DatasetInfo = task.info
    embedder, inputs = _Embedder(model, len(info.class_names)), task.columns(labelled=False)
    dtype, written = np.dtype(result.columns[-1].dtype), 0
    schema = arrow_schema(result.columns)
    with pq.ParquetWriter(path, schema, use_dictionary=False, write_statistics=False) as writer:
        for table in reader.batches(rows.start, rows.stop, batch_size):
            batch = task.collate(table.select(inputs)).to(device)
            task.evaluate(embedder, batch)
            found = np.flatnonzero(task.filled(batch).cpu()) if hasattr(task, "filled") else np.arange(table.num_rows)
            vectors = embedder.embedding.float().cpu().numpy()[found].astype(dtype)
            if not np.isfinite(vectors).all():
                raise ValueError(f"an embedding is no finite {dtype}; embed as float32: --dtype float32")
            if len(found):
                carried = table.select(schema.names[:-1]).take(pa.array(found))
                columns = [*carried.columns, pa.FixedShapeTensorArray.from_numpy_ndarray(vectors)]
                writer.write_table(pa.table(columns, schema=schema))
                written += len(found)
    return written
