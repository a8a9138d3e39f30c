"""The youtube8m corpus: which shards, which split, what is read, and what `verify` reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from mmray.datasets import Rejected, Source
from mmray.datasets.youtube8m import Config, class_names, columns, detect, merge, read, sources, verify
from mmray.features.tfrecord_write import encode_example, encode_sequence_example, write_tfrecord
from mmray.schema import arrow_schema


def video(k: int, **changes: Any) -> bytes:
    rng = np.random.default_rng(k)
    features = {
        "id": f"v{k}",
        "labels": [k % 5, 5],
        "mean_rgb": rng.standard_normal(1024).astype(np.float32),
        "mean_audio": rng.standard_normal(128).astype(np.float32),
    }
    return encode_example({name: value for name, value in {**features, **changes}.items() if value is not None})


def clip(k: int, num_frames: int) -> bytes:
    lists = {
        name: [np.random.default_rng(k).bytes(size) for _ in range(num_frames)]
        for name, size in (("rgb", 1024), ("audio", 128))
    }
    return encode_sequence_example({"video_id": f"v{k}", "labels": [k % 5]}, lists)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Video-level shards of every split, one of none, and files that are no shards."""
    folder = tmp_path / "corpus"
    (folder / "more").mkdir(parents=True)
    for k, name in enumerate(("train00", "more/train01", "validate00", "val7", "test00", "other")):
        write_tfrecord(folder / f"{name}.tfrecord", [video(10 * k + i) for i in range(3)])
    (folder / "readme.txt").write_text("about")
    return folder


def config(path: Path | str, **settings: Any) -> Config:
    return Config(**{"path": str(path), "level": "video", "num_classes": 6, **settings})


def test_splits_follow_the_file_names(corpus: Path) -> None:
    found = [(os.path.relpath(s.path, corpus), s.split) for s in sources(config(corpus))]
    assert found == [
        ("more/train01.tfrecord", "train"),
        ("other.tfrecord", None),
        ("test00.tfrecord", "test"),
        ("train00.tfrecord", "train"),
        ("val7.tfrecord", "val"),
        ("validate00.tfrecord", "val"),
    ]
    assert all(s.num_bytes == Path(s.path).stat().st_size for s in sources(config(corpus)))


def test_one_shard_a_pattern_and_other_names(corpus: Path) -> None:
    assert [s.split for s in sources(config(corpus / "train00.tfrecord"))] == ["train"]
    assert [Path(s.path).name for s in sources(config(f"{corpus}/t*.tfrecord"))] == [
        "test00.tfrecord",
        "train00.tfrecord",
    ]
    assert len(sources(config(f"{corpus}/**/train*.tfrecord"))) == 2
    own = config(corpus, patterns=("o*.tfrecord",), train=("other*",))
    assert [s.split for s in sources(own)] == ["train"]


def test_no_shards(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset\.path='.*missing' does not exist"):
        sources(config(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", f"{corpus}/z*.tfrecord"):
        with pytest.raises(ValueError, match=r"no shard there; looked for \*\.tfrecord"):
            sources(config(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_unreadable(corpus: Path) -> None:
    (corpus / "train00.tfrecord").chmod(0)
    with pytest.raises(ValueError, match="check its permissions"):
        sources(config(corpus))
    corpus.chmod(0)
    with pytest.raises(ValueError, match="check its permissions"):
        sources(config(corpus))
    corpus.chmod(0o700)


def test_features_default_by_level_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    assert config("x").features == {"mean_rgb": 1024, "mean_audio": 128}
    assert config("x", level="frame").features == {"rgb": 1024, "audio": 128}
    assert config("x", features={"mean_rgb": 1024}).features == {"mean_rgb": 1024}
    for settings in ({"levl": 1}, {"level": "shot"}, {"features": {}}, {"num_classes": 0}, {"features": {"id": 3}}):
        with pytest.raises(ValidationError):
            config("x", **settings)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_video_rows(corpus: Path, dtype: str) -> None:
    settings = config(corpus / "train00.tfrecord", dtype=dtype)
    (batch,) = read(settings, sources(settings)[0], pytest.fail)
    batch.validate(full=True)
    assert batch.schema == arrow_schema(columns(settings))
    assert [c.name for c in columns(settings)] == ["id", "labels", "mean_rgb", "mean_audio"]
    assert batch["id"].to_pylist() == ["v0", "v1", "v2"]
    assert batch["labels"].to_pylist() == [[0, 5], [1, 5], [2, 5]]
    expected = np.stack([np.random.default_rng(k).standard_normal(1024).astype(np.float32) for k in range(3)])
    assert np.array_equal(batch["mean_rgb"].to_numpy_ndarray(), expected.astype(dtype))


def test_frame_rows(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "train.tfrecord", [clip(k, 3 + k) for k in range(4)])
    settings = config(tmp_path, level="frame", max_frames=5)
    (batch,) = read(settings, sources(settings)[0], pytest.fail)
    batch.validate(full=True)
    assert batch.schema == arrow_schema(columns(settings))
    assert batch["num_frames"].to_pylist() == [3, 4, 5, 5]
    frames = [np.random.default_rng(k).bytes(128) for k in range(4)]
    assert batch["audio"].to_pylist() == [frame * n for frame, n in zip(frames, (3, 4, 5, 5), strict=True)]


def test_bad_rows_are_rejected_with_their_remedy(tmp_path: Path) -> None:
    too_large = np.zeros(128, np.float32)
    too_large[7] = 1e6
    records = [video(0), video(1, labels=[6]), video(2, mean_audio=too_large), video(3, mean_rgb=None), video(4)]
    write_tfrecord(tmp_path / "train.tfrecord", records)
    settings = config(tmp_path, dtype="float16")
    rejected: list[Rejected] = []
    (batch,) = read(settings, sources(settings)[0], rejected.append)
    assert batch["id"].to_pylist() == ["v0", "v4"]
    assert [r.record for r in rejected] == [1, 2, 3]
    assert "label 6 is outside [0, 6): raise dataset.num_classes" in rejected[0].reason
    assert "'mean_audio', value 7, is 1000000.0, expected at most 65504" in rejected[1].reason
    assert "no feature 'mean_rgb'; it has id (1 bytes), labels (2 int64), mean_audio (128 float)" in rejected[2].reason
    size = len(video(0)) + 16
    assert str(rejected[0]).startswith(f"{tmp_path}/train.tfrecord, record 1, byte {size}: ")


def test_the_other_level_is_an_error_of_the_config(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "train.tfrecord", [clip(0, 2)])
    write_tfrecord(tmp_path / "test.tfrecord", [video(0)])
    for name, level, other in (("train", "video", "frame"), ("test", "frame", "video")):
        settings = config(tmp_path / f"{name}.tfrecord", level=level)
        with pytest.raises(ValueError, match=f"Set dataset.level: {other}"):
            list(read(settings, sources(settings)[0], pytest.fail))


def test_class_names(tmp_path: Path) -> None:
    assert class_names(config("x")) == ["0", "1", "2", "3", "4", "5"]
    files = {
        "audioset.csv": 'index,mid,display_name\n1,/m/b,"Speech, male"\n0,/m/a,Music\n',
        "vocabulary.csv": "Index,TrainVideoCount,KnowledgeGraphId,Name,Url\n0,9,/m/a,Music,u\n1,3,/m/b,,u\n",
        "names.txt": "Music\n\nSpeech, male\n",
    }
    expected = {"audioset.csv": ["Music", "Speech, male"], "vocabulary.csv": ["Music", "1"]}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        settings = config("x", num_classes=2, class_names_file=str(tmp_path / name))
        assert class_names(settings) == expected.get(name, ["Music", "Speech, male"])
        with pytest.raises(ValueError, match=r"names 2 classes, but dataset\.num_classes=6"):
            class_names(config("x", class_names_file=str(tmp_path / name)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("index,name\n0,a\n0,b\n", "line 3: class 0 stands there twice"),
        ("index,name\n0,a\n2,b\n", "none with index 1"),
        ("index,name\nx,a\n", "line 2: expected index, name; got"),
        ("index,name\n1\n", "line 2: expected index, name; got"),
    ],
)
def test_class_names_that_make_no_vocabulary(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(ValueError, match=reason):
        class_names(config("x", class_names_file=str(tmp_path / "names.csv")))
    with pytest.raises(ValueError, match="can't be read"):
        class_names(config("x", class_names_file=str(tmp_path / "missing.csv")))


def test_verify_and_merge(tmp_path: Path) -> None:
    first = [video(0), video(1), video(2, labels=None), video(3, labels=[99])]
    write_tfrecord(tmp_path / "train0.tfrecord", first)
    write_tfrecord(tmp_path / "validate0.tfrecord", [video(1), video(8), video(8)])
    write_tfrecord(tmp_path / "train1.tfrecord", [clip(0, 3)])
    damaged = bytearray((tmp_path / "train0.tfrecord").read_bytes())
    damaged[len(first[0]) + 16 + 500] ^= 1
    (tmp_path / "train0.tfrecord").write_bytes(damaged)
    (tmp_path / "test0.tfrecord").write_bytes(b"")

    settings = config(tmp_path, verify_crc=False)
    reports = {Path(s.path).stem: verify(settings, s) for s in sources(settings)}
    train = reports["train0"]
    assert (train.num_rows, train.num_unlabelled, train.ids.to_pylist()) == (2, 1, ["v0", "v2"])
    assert train.label_counts.tolist() == [1, 0, 0, 0, 0, 1]
    assert [(r.record, r.offset) for r in train.rejected] == [
        (1, len(first[0]) + 16),
        (3, len(damaged) - len(first[3]) - 16),
    ]
    assert "checksum" in train.rejected[0].reason
    assert "SequenceExample" in reports["train1"].rejected[0].reason
    assert reports["test0"].rejected[0].reason == "the file is empty"

    total = merge(list(reports.values()))
    assert (total.num_shards, total.num_rows, total.num_unlabelled) == (4, 5, 1)
    assert total.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert total.rows_of_split == {"test": 0, "train": 2, "val": 3}
    assert total.label_counts.tolist() == [1, 1, 0, 2, 0, 4]
    assert total.num_classes == 6
    assert total.duplicated_ids == {"v8": [str(tmp_path / "validate0.tfrecord")] * 2}
    assert len(total.rejected) == 4


def test_duplicates_across_shards_and_frame_counts(tmp_path: Path) -> None:
    for name, counts in (("a", (3, 5, 3)), ("b", (5, 1))):
        write_tfrecord(tmp_path / f"{name}.tfrecord", [clip(k, n) for k, n in enumerate(counts)])
    settings = config(tmp_path, level="frame")
    total = merge([verify(settings, s) for s in sources(settings)])
    a, b = str(tmp_path / "a.tfrecord"), str(tmp_path / "b.tfrecord")
    assert total.duplicated_ids == {"v0": [a, b], "v1": [a, b]}
    assert total.frame_counts.tolist() == [0, 1, 0, 2, 0, 2]
    assert merge([]).num_rows == 0


def test_detect(corpus: Path, tmp_path: Path) -> None:
    found = detect(str(corpus / "train00.tfrecord"))
    assert (found.level, found.features, found.id_names) == ("video", {"mean_audio": 128, "mean_rgb": 1024}, ("id",))
    assert verify(found, sources(found)[0]).num_rows == 3
    write_tfrecord(tmp_path / "frames", [clip(k, 2) for k in range(3)])
    found = detect(str(tmp_path / "frames"))
    assert (found.level, found.features, found.id_names) == ("frame", {"rgb": 1024, "audio": 128}, ("video_id",))
    (tmp_path / "text").write_text("no shard at all, but text")
    with pytest.raises(ValueError, match="no TFRecord frame"):
        detect(str(tmp_path / "text"))
    write_tfrecord(tmp_path / "odd", [encode_example({"labels": [1]})])
    with pytest.raises(ValueError, match=r"no id .* the first has labels \(1 int64\)"):
        detect(str(tmp_path / "odd"))


def test_real_audioset_shards(real_data: Path) -> None:
    folder = real_data / "audioset_tfrecord"
    settings = Config(
        path=str(folder),
        level="frame",
        num_classes=527,
        features={"audio_embedding": 128},
        class_names_file=str(folder / "class_labels_indices.csv"),
    )
    shards = sources(settings)
    assert len(shards) == 255
    assert class_names(settings)[:2] == ["Speech", "Male speech, man speaking"]
    found = detect(shards[0].path)
    assert (found.level, found.features, found.id_names) == ("frame", {"audio_embedding": 128}, ("video_id",))
    total = merge([verify(settings, shard) for shard in shards])
    assert total.rejected == []
    assert total.duplicated_ids == {}
    assert total.num_classes <= 527
    assert total.frame_counts.sum() == total.num_rows
    assert total.num_unlabelled == 0

    rows = sum(len(batch) for shard in shards[:20] for batch in read(settings, shard, pytest.fail))
    assert rows == sum(verify(settings, shard).num_rows for shard in shards[:20])


def test_a_source_is_a_shard(corpus: Path) -> None:
    """`read` takes any source of its own making, also one that a scheduler sent elsewhere and back."""
    settings = config(corpus)
    source = Source(str(corpus / "other.tfrecord"), None, 0)
    table = pa.Table.from_batches(read(settings, source, pytest.fail))
    assert table["id"].to_pylist() == ["v50", "v51", "v52"]
