"""From shards to a prepared dataset: nothing lost, nothing twice, nothing half-written, nothing done again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmray import config, preparation, prepared
from mmray.datasets import Source
from mmray.features.tfrecord_write import encode_example, encode_sequence_example, write_tfrecord
from mmray.preparation import BadInputError
from mmray.prepared import SplitReader
from mmray.schema import DatasetInfo

MakeCorpus = Callable[..., config.Run]


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """Write shards of labelled videos of 4 + 2 numbers, and make a run over them."""

    def make(rows: dict[str, int] | None = None, level: str = "video", **sections: object) -> config.Run:
        corpus = tmp_path / "corpus"
        for number, (shard, count) in enumerate(
            (rows or {"train00": 50, "train01": 31, "validate00": 20, "test00": 9}).items()
        ):
            rng = np.random.default_rng(number)

            def record(i: int, shard: str = shard, rng: np.random.Generator = rng) -> bytes:
                context = {"id": f"{shard}-{i}", "labels": [i % 5, 5 + i % 2]}
                if level == "video":
                    vectors = {"mean_rgb": rng.random(4, np.float32), "mean_audio": rng.random(2, np.float32)}
                    return encode_example(context | vectors)
                frames = 1 + i % 4
                rgb = [rng.integers(0, 256, 4, np.uint8).tobytes() for _ in range(frames)]
                return encode_sequence_example(context, {"rgb": rgb, "audio": [frame[:2] for frame in rgb]})

            write_tfrecord(corpus / f"{shard}.tfrecord", map(record, range(count)))
        features = {"mean_rgb": 4, "mean_audio": 2} if level == "video" else {"rgb": 4, "audio": 2}
        values: dict[str, object] = {
            "name": "tiny",
            "task": "video_classification",
            "dataset": {
                "name": "youtube8m",
                "path": str(corpus),
                "level": level,
                "num_classes": 7,
                "features": features,
            },
            "model": "logistic",
            "prepare": {"out": str(tmp_path / "prepared")},
        }
        for name, section in sections.items():
            values[name] = {**values[name], **section}  # type: ignore[dict-item]
        return config.from_dict(values)

    return make


def prepare(run: config.Run) -> tuple[Path, DatasetInfo]:
    plan = preparation.plan(run)
    notes = [preparation.write_part(run, part, plan.aside) for part in plan.parts]
    return plan.folder, preparation.publish(plan, notes)


def ids(folder: Path, info: DatasetInfo, split: str) -> list[str]:
    reader = SplitReader(folder, info.split(split), ("id",))
    return [name for t in reader.batches(0, info.split(split).rows, 7) for name in t.column("id").to_pylist()]


def test_part_reaches_its_task_unchanged() -> None:
    note = json.dumps(["", [['Motörhead/"1".jpg', "g", None, 0, ""]]])
    bare, whole = Source("a/train00", None, 0), Source("a/ü.jpg", "train", 1 << 40, ("a/b.jpg", "a/c d.jpg"), note)
    part = preparation.Part(3, (bare, whole))
    assert preparation.Part.from_json(part.to_json()) == part


def test_every_row_is_in_the_split_of_its_file(make_corpus: MakeCorpus) -> None:
    folder, info = prepare(make_corpus())
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 81, "val": 20, "test": 9}
    assert (info.rows_in, info.rows_out, info.rejected) == (110, 110, 0)
    assert ids(folder, info, "train") == [f"train00-{i}" for i in range(50)] + [f"train01-{i}" for i in range(31)]
    assert prepared.read_info(folder) == info


def test_values_come_through_bit_for_bit(make_corpus: MakeCorpus) -> None:
    folder, info = prepare(make_corpus())
    rng = np.random.default_rng(0)
    expected = [(rng.random(4, np.float32), rng.random(2, np.float32)) for _ in range(50)]
    table = SplitReader(folder, info.split("train"), ("mean_rgb", "mean_audio", "labels")).take(np.arange(50))
    np.testing.assert_array_equal(prepared.tensor_column(table, "mean_rgb"), [rgb for rgb, _ in expected])
    np.testing.assert_array_equal(prepared.tensor_column(table, "mean_audio"), [audio for _, audio in expected])
    assert table.column("labels").to_pylist() == [[i % 5, 5 + i % 2] for i in range(50)]


def test_frames_stay_bytes(make_corpus: MakeCorpus) -> None:
    folder, info = prepare(make_corpus(level="frame"))
    rng = np.random.default_rng(0)
    frames = [np.stack([rng.integers(0, 256, 4, np.uint8) for _ in range(1 + i % 4)]) for i in range(50)]
    table = SplitReader(folder, info.split("train"), ("rgb", "audio", "num_frames")).take(np.arange(50))
    values, offsets = prepared.ragged_column(table, "rgb")
    np.testing.assert_array_equal(values.reshape(-1, 4), np.concatenate(frames))
    np.testing.assert_array_equal(offsets, np.cumsum([0, *(f.size for f in frames)]))
    assert table.column("num_frames").to_pylist() == [len(f) for f in frames]


def test_label_counts(make_corpus: MakeCorpus) -> None:
    _, info = prepare(make_corpus())
    expected = Counter(label for count in (50, 31) for i in range(count) for label in (i % 5, 5 + i % 2))
    assert info.split("train").label_counts == [expected[c] for c in range(7)]
    assert info.split("train").max_labels == 2


def test_split_by_hash_depends_on_the_id_alone(make_corpus: MakeCorpus) -> None:
    by_hash = {"split": {"by": "hash", "fractions": {"train": 0.6, "val": 0.2, "test": 0.2}}}
    folder, info = prepare(make_corpus(prepare=by_hash))
    one = {name: set(ids(folder, info, name)) for name in info.splits}
    assert sum(map(len, one.values())) == 110
    assert 45 < len(one["train"]) < 87
    folder, info = prepare(make_corpus(prepare=by_hash | {"part_mb": 1, "row_group_mb": 0.001}))
    assert {name: set(ids(folder, info, name)) for name in info.splits} == one
    seeded = {"split": {**by_hash["split"], "seed": 1}}
    folder, info = prepare(make_corpus(prepare=seeded))
    assert set(ids(folder, info, "train")) != one["train"]


def test_same_settings_same_folder_and_others_another(make_corpus: MakeCorpus) -> None:
    run = make_corpus()
    folder = preparation.plan(run).folder
    assert preparation.plan(run).folder == folder
    for section, change in [
        ("dataset", {"num_classes": 8}),
        ("prepare", {"part_mb": 7}),
        ("dataset", {"dtype": "float16"}),
    ]:
        values = run.to_dict()
        values[section] |= change
        assert preparation.plan(config.from_dict(values)).folder != folder
    values = run.to_dict()
    values["train"]["epochs"] = 99
    assert preparation.plan(config.from_dict(values)).folder == folder
    write_tfrecord(Path(run.to_dict()["dataset"]["path"]) / "train02.tfrecord", [])
    assert preparation.plan(run).folder != folder


def test_interrupted_preparation_goes_on(make_corpus: MakeCorpus) -> None:
    run = make_corpus(prepare={"part_mb": 1})
    plan = preparation.plan(run)
    assert len(plan.parts) == 3  # one a split: a part never holds two
    preparation.write_part(run, plan.parts[0], plan.aside)
    note = next((plan.aside / "parts").iterdir())
    before = note.stat().st_mtime_ns
    assert not plan.folder.exists()
    folder, info = prepare(run)
    assert (folder / "parts" / note.name).stat().st_mtime_ns == before
    assert info.rows_out == 110
    assert not plan.aside.exists()


def test_first_bad_record_fails(make_corpus: MakeCorpus) -> None:
    run = make_corpus(dataset={"num_classes": 6})
    with pytest.raises(BadInputError, match=r"test00\.tfrecord, record 1, byte \d+: label 6 .*\n.*on_bad_input: skip"):
        prepare(run)
    assert not any(path.is_file() for path in preparation.plan(run).aside.rglob("*")), "no half-written file is left"


def test_bad_records_are_skipped_counted_and_listed(make_corpus: MakeCorpus) -> None:
    folder, info = prepare(
        make_corpus(dataset={"num_classes": 6}, prepare={"on_bad_input": "skip", "max_bad_fraction": 0.6})
    )
    assert info.rows_in == 110
    assert info.rows_out + info.rejected == 110
    assert info.rejected == sum(1 for count in (50, 31, 20, 9) for i in range(count) if i % 2)
    listed = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert len(listed) == info.rejected == sum(info.rejected_reasons.values())
    assert listed[0]["record"] == 1
    assert listed[0]["path"].endswith("test00.tfrecord")
    assert info.rejected_reasons == {"label N is outside [N, N)": info.rejected}


def test_too_many_bad_records_fail(make_corpus: MakeCorpus) -> None:
    """Also where a run of more patience has prepared the same dataset before."""
    run = make_corpus(dataset={"num_classes": 6}, prepare={"on_bad_input": "skip", "max_bad_fraction": 0.1})
    folder, info = prepare(run)
    with pytest.raises(
        BadInputError, match=r"54 of 110 inputs are bad, more than prepare\.max_bad_fraction=0\.1 .*\n.*byte"
    ):
        preparation.check_rejected(run, folder, info)
    values = run.to_dict()
    strict = config.from_dict(values | {"prepare": values["prepare"] | {"on_bad_input": "fail"}})
    assert preparation.plan(strict).folder == folder
    with pytest.raises(BadInputError, match="54 of 110 inputs are bad, more than this run allows"):
        preparation.check_rejected(strict, folder, info)
    patient = config.from_dict(values | {"prepare": values["prepare"] | {"max_bad_fraction": 0.6}})
    preparation.check_rejected(patient, folder, info)


def test_shards_of_no_split_are_named(make_corpus: MakeCorpus) -> None:
    with pytest.raises(ValueError, match=r"shard-a\.tfrecord belongs to no split.*prepare\.split\.by: hash"):
        prepare(make_corpus({"shard-a": 5}))


def test_corpus_without_rows(make_corpus: MakeCorpus) -> None:
    with pytest.raises(ValueError, match=r"holds no row|empty"):
        prepare(make_corpus({"train00": 0}, prepare={"on_bad_input": "skip", "max_bad_fraction": 1.0}))


def test_row_groups_are_of_the_size_asked_for(make_corpus: MakeCorpus) -> None:
    _, info = prepare(make_corpus({"train00": 3000}, prepare={"row_group_mb": 0.01}))
    (file,) = info.split("train").files
    assert sum(file.row_groups) == 3000
    assert len(set(file.row_groups[:-1])) <= 3
    assert 100 < file.row_groups[0] < 400
