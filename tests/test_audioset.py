"""Real TFRecord shards, AudioSet's embeddings, from shard to model: skipped where the files are not at hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from example_peer import PACKED

from mmray import class_scores, config, preparation, prepared
from mmray.files import write_json
from mmray.metrics.ranking import RankingMetrics
from mmray.predictions import PredictionsInfo
from mmray.prepared import SplitReader
from mmray.tasks import build
from mmray.training import checkpoint, feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit


@pytest.fixture(scope="module")
def run(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> config.Run:
    corpus, work = real_data / "audioset_tfrecord", tmp_path_factory.mktemp("audioset")
    return config.from_dict(
        {
            "name": "audioset",
            "out": str(work / "runs"),
            "task": "video_classification",
            "dataset": {
                "name": "youtube8m",
                "path": str(corpus),
                "level": "frame",
                "num_classes": 527,
                "features": {"audio_embedding": 128},
                "class_names_file": str(corpus / "class_labels_indices.csv"),
            },
            "prepare": {
                "out": str(work / "prepared"),
                "split": {"by": "hash", "fractions": {"train": 0.7, "val": 0.1, "test": 0.2}},
            },
            "model": {"name": "moe", "num_experts": 2},
            "train": {
                "epochs": 15,
                "batch_size": 64,
                "precision": "fp32",
                "optimizer": {"lr": 0.003},
                "monitor": "val/map",
            },
        }
    )


@pytest.fixture(scope="module")
def dataset(run: config.Run) -> Path:
    plan = preparation.plan(run)
    preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    return plan.folder


def test_prepared_rows_are_what_protobuf_reads(run: config.Run, dataset: Path, real_data: Path) -> None:
    truth = {}
    for path in (real_data / "audioset_tfrecord").rglob("*.tfrecord"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            record = PACKED["SequenceExample"].FromString(data[at + 12 : at + 12 + length])
            context = record.context.feature
            frames = record.feature_lists.feature_list["audio_embedding"].feature
            truth[context["video_id"].bytes_list.value[0].decode()] = (
                list(context["labels"].int64_list.value),
                b"".join(frame.bytes_list.value[0] for frame in frames),
            )
            at += length + 16
    info = prepared.read_info(dataset)
    assert info.rows_in == info.rows_out == len(truth)
    seen = {}
    for split in info.splits.values():
        for table in SplitReader(dataset, split, ("id", "labels", "audio_embedding")).batches(0, split.rows, 100):
            for row in table.to_pylist():
                seen[row["id"]] = (row["labels"], row["audio_embedding"])
    assert seen == truth
    assert info.class_names[:2] == ["Speech", "Male speech, man speaking"]


def test_model_learns_more_than_the_prior(run: config.Run, dataset: Path) -> None:
    info = prepared.read_info(dataset)
    context = Context(run_folder.open_run(run, info))
    task = build(run, info)
    fit(run, task, *feed.tables(run, task, dataset, context), context)
    best = checkpoint.best(run.run_dir, "val/map", maximise=True)
    model = task.build_model().eval()
    checkpoint.load_model(checkpoint.folder_of(run.run_dir, best.step), model)
    split = info.split("test")
    reader = SplitReader(dataset, split, ("id", *task.columns(labelled=True)))
    (table,) = reader.batches(0, split.rows, split.rows)
    scores = task.evaluate(model, task.collate(table))[0].detach().numpy()
    metrics = RankingMetrics(527)
    metrics.update(scores, prepared.ragged_column(table, "labels"))
    folder = run.run_dir / "predictions" / "test"
    folder.mkdir(parents=True)
    ids, labels = (table.column(name).combine_chunks() for name in ("id", "labels"))

    pq.write_table(class_scores.to_table(ids, labels, scores, 20), folder / "part-00000.parquet")
    stored = PredictionsInfo(
        run=run.name,
        dataset=info.id,
        split="test",
        step=best.step,
        rows=split.rows,
        labelled=True,
        columns=class_scores.columns_of(527, 20, labelled=True),
    )
    write_json(folder / "predictions.json", stored.model_dump(mode="json"))
    prior = class_scores.prior_metrics(folder, info.split("train"), 527).compute()
    assert metrics.compute()["map"] > 5 * prior["map"]
    assert np.isfinite(list(prior.values())).all()
