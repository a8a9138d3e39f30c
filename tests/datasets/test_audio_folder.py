"""The audio_folder corpus: what is listed, how it is divided and cut, the rows, and input of every bad kind."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray import config as run_config
from mmray import preparation
from mmray.datasets import Rejected, Source, audio_folder
from mmray.datasets.audio_folder import (
    Config,
    class_names,
    columns,
    read,
    sources,
    split_groups,
    split_report,
    split_rows,
)
from mmray.features import audio, audio_augment, audio_features
from mmray.schema import arrow_schema

RATE = 8000
FEATURES = {"sample_rate_hz": RATE, "n_fft": 512, "hop": 256, "mfcc": 5, "contrast_bands": 3}
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def sound(seconds: float, seed: int, channels: int = 1, rate: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tone = np.sin(np.arange(round(seconds * rate)) * rng.uniform(0.05, 0.5))
    return 0.3 * tone[:, None] + 0.05 * rng.standard_normal((len(tone), channels))


def write(path: Path, seconds: float, seed: int, channels: int = 1, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(seconds, seed, channels, rate), rate)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two classes of five recordings each, of 2.5 to 7 s, in several formats."""
    folder = tmp_path / "corpus"
    names = ["a.wav", "b.flac", "c.wav", "d.w64", "deep/e.aiff"]
    for label_number, label in enumerate(("calm", "tense")):
        for i, name in enumerate(names):
            write(folder / label / name, 2.5 + i + 0.5 * label_number, seed=10 * label_number + i)
    (folder / "notes.txt").write_text("not a recording")
    (folder / "calm" / "cover.jpg").write_bytes(b"nor this")
    return folder


def config(path: Path, **values: Any) -> Config:
    return Config(**{"path": str(path), "segment_s": 1, "hop_s": 1, "features": FEATURES, **values})


def rows(config: Config, found: list[Source] | None = None, reject: Any = pytest.fail) -> list[dict[str, Any]]:
    """The rows of all sources, with the split of each."""
    listed = []
    for source in sources(config) if found is None else found:
        for batch in read(config, source, reject):
            assert batch.schema.equals(arrow_schema(columns(config)))
            listed += [{**row, "split": source.split} for row in batch.to_pylist()]
    return listed


def features(row: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(row["features"], np.float32).reshape(-1, 5 + 4)


# ---- The paper's corpus


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 recordings with the published classes, segments a class and total length, at 100 samples a second."""
    folder = tmp_path_factory.mktemp("paper")
    segments = {
        "Angry": [23] * 3 + [24] * 7,
        "Happy": [76] * 3 + [77] * 7,
        "Sad": [361] * 2,
    }
    short_of_s = iter([17, 18] * 11)
    rng = np.random.default_rng(0)
    for label, numbers in segments.items():
        (folder / label).mkdir()
        for i, number in enumerate(numbers):
            noise = rng.uniform(-1, 1, 100 * (30 * number - next(short_of_s)))
            soundfile.write(folder / label / f"{i}.wav", noise, 100, subtype="PCM_U8")
    return folder


def planned(config: Config) -> list[tuple[str, str, int, int]]:
    """Split, recording, segment and copy of every row that the sources hold."""
    return [
        (str(source.split), source.path, *row) for source in sources(config) for row in json.loads(source.note)["rows"]
    ]


def test_published_numbers_of_segments(paper: Path) -> None:
    config = Config(path=str(paper), split={"by": "none"})
    total_s = sum(audio.length(path).seconds for path in paper.glob("*/*"))
    assert total_s == 14 * 3600 + 16 * 60 + 35
    counts = Counter(Path(path).parent.name for _, path, _, _ in planned(config))
    assert counts == {"Angry": 237, "Happy": 767, "Sad": 722}
    assert {source.split for source in sources(config)} == {None}


@pytest.mark.parametrize("seed", [0, 1])
def test_published_split_leaks(paper: Path, seed: int) -> None:
    augment = {"copies": 2, "pitch_shift_semitones": [-2, 2], "time_stretch_rates": [0.8, 1.2]}
    config = Config(path=str(paper), augment=augment, split={"by": "segment", "seed": seed})
    found = planned(config)
    assert len(set(found)) == 5178
    assert Counter(split for split, *_ in found) == {"train": 3624, "val": 777, "test": 777}
    by_class = Counter((split, Path(path).parent.name) for split, path, *_ in found)
    for label, number in {"Angry": 711, "Happy": 2301, "Sad": 2166}.items():
        assert sum(by_class[split, label] for split in SHARES) == number
        for split, share in SHARES.items():
            assert abs(by_class[split, label] - share * number) < 2
    # Copies of one segment stand on both sides.
    sides = defaultdict(set)
    for split, path, index, _ in found:
        sides[path, index].add(split)
    assert sum({"train", "test"} <= both for both in sides.values()) > 300
    train = {path for split, path, _, _ in found if split == "train"}
    shared = sum(path in train for split, path, _, _ in found if split == "test")
    assert f"{shared:,} of 777 test rows come from a group that train has, too" in split_report(config)


def test_two_recordings_can_not_be_divided_in_three(paper: Path) -> None:
    with pytest.raises(
        ValueError, match=r"class 'Sad' has 2 groups \(Sad/0, Sad/1\), too few for one in each of train,"
    ):
        sources(Config(path=str(paper)))
    config = Config(path=str(paper), split={"fractions": {"train": 0.5, "test": 0.5}})
    assert {split for split, path, _, _ in planned(config) if "Sad" in path} == {"train", "test"}


def test_sources_are_ten_minutes_of_a_file(paper: Path) -> None:
    found = sources(Config(path=str(paper), split={"by": "none"}))
    starts = defaultdict(list)
    for source in found:
        starts[source.path] += [30 * index // 600 for index, _ in json.loads(source.note)["rows"][:1]]
        assert len(json.loads(source.note)["rows"]) <= 20
        assert source.num_bytes <= 600 * 16000 * 4
    assert all(spans == list(range(len(spans))) for spans in starts.values())
    assert max(map(len, starts.values())) == 19  # of a recording of three hours


# ---- Divisions


@given(
    counts=st.lists(st.integers(0, 200), min_size=1, max_size=8),
    fractions=st.sampled_from([(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.5, 0.5, 0), (0.34, 0.33, 0.33), (1, 0, 0)]),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_rows_are_divided_in_exact_shares(counts: list[int], fractions: tuple[float, ...], seed: int) -> None:
    labels = [f"class {c}" for c, count in enumerate(counts) for _ in range(count)]
    shares = {name: share for name, share in zip(SHARES, fractions, strict=True) if share}
    found = split_rows(labels, shares, seed)
    assert found == split_rows(labels, shares, seed)
    assert len(found) == len(labels)
    sizes = Counter(found)
    for name, share in shares.items():
        assert abs(sizes[name] - share * len(labels)) < 1
    # Largest remainders: no split that was rounded up has a smaller remainder than one that was rounded down.
    remainders = {name: share * len(labels) - sizes[name] for name, share in shares.items()}
    assert max(remainders.values(), default=0) - min(remainders.values(), default=0) <= 1 + 1e-9
    by_class = Counter(zip(labels, found, strict=True))
    for c, count in enumerate(counts):
        for name, share in shares.items():
            assert abs(by_class[f"class {c}", name] - share * count) <= 2


def test_rows_are_drawn_at_random() -> None:
    """Every row is about as often in each split as the shares say, and neighbours are independent."""
    labels = ["a"] * 30 + ["b"] * 10
    draws = np.array([split_rows(labels, SHARES, seed) for seed in range(600)])
    for name, share in SHARES.items():
        often = (draws == name).mean(axis=0)
        assert np.abs(often - share).max() < 5 * np.sqrt(share * (1 - share) / 600)
    together = ((draws[:, 0] == "test") & (draws[:, 1] == "test")).mean()
    assert together < 0.15**2 + 0.03


@given(data=st.data(), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_groups_are_divided_by_playing_time(data: st.DataObject, seed: int) -> None:
    labels = ["a", "b", "c"][: data.draw(st.integers(1, 3))]
    seconds = {
        f"{label}{i}": {label: data.draw(st.floats(1, 100))}
        for label in labels
        for i in range(data.draw(st.integers(3, 25)))
    }
    found = split_groups(seconds, SHARES, seed)
    assert found == split_groups(dict(reversed(seconds.items())), SHARES, seed)
    assert found.keys() == seconds.keys()
    for label in labels:
        times = {group: of_group[label] for group, of_group in seconds.items() if label in of_group}
        total = sum(times.values())
        for name, share in SHARES.items():
            mine = [time for group, time in times.items() if found[group] == name]
            assert mine, "every class is in every split"
            if len(times) >= 12:  # with fewer, one in each split may already be too much
                assert abs(sum(mine) / total - share) <= max(times.values()) / total


def test_a_small_corpus_is_divided_nearly_as_well_as_can_be() -> None:
    """Against all 3^9 divisions of nine recordings of one class."""
    minutes = [31, 12, 47, 5, 22, 18, 40, 9, 27]
    choices = np.stack(np.meshgrid(*[range(3)] * 9, indexing="ij"), -1).reshape(-1, 9)
    got = np.stack([(choices == s) @ np.array(minutes) for s in range(3)], -1) / sum(minutes)
    best = ((got - list(SHARES.values())) ** 2).sum(1).min() ** 0.5
    found = split_groups({str(i): {"a": 60 * m} for i, m in enumerate(minutes)}, SHARES, 0)
    mine = [sum(m for i, m in enumerate(minutes) if found[str(i)] == name) / sum(minutes) for name in SHARES]
    assert np.linalg.norm(np.array(mine) - list(SHARES.values())) <= best + 0.02


def test_classes_do_not_all_miss_in_the_same_way() -> None:
    """Ten equal recordings give 1.5 to val and test each: some classes have two here and some there."""
    seconds = {f"{label}{i}": {label: 60.0} for label in "abc" for i in range(10)}
    sizes = Counter(split_groups(seconds, SHARES, 0).values())
    assert sizes["train"] == 21
    assert sorted((sizes["val"], sizes["test"])) == [4, 5]


def test_groups_of_several_classes_stay_whole() -> None:
    seconds = {f"artist {i}": {"a": 10.0 + i, "b": 20.0 - i, None: 3.0} for i in range(12)}
    assert Counter(split_groups(seconds, SHARES, 0).values()) == {"train": 8, "val": 2, "test": 2}


def test_seeds_give_other_divisions() -> None:
    seconds = {str(i): {"a": 60.0 + i} for i in range(20)}
    assert len({tuple(split_groups(seconds, SHARES, seed).values()) for seed in range(8)}) > 4


def test_no_recording_stands_in_two_splits(corpus: Path) -> None:
    config_ = config(corpus, augment={"copies": 1, "gain_db": [-3, 3]})
    found = planned(config_)
    splits = defaultdict(set)
    for split, path, _, _ in found:
        splits[path].add(split)
    assert all(len(of_path) == 1 for of_path in splits.values())
    for label in ("calm", "tense"):
        assert {split for split, path, _, _ in found if label in path} == set(SHARES)
    # Only training segments have copies.
    copies = Counter((split, copy) for split, _, _, copy in found)
    assert copies["train", 1] == copies["train", 0] > 0
    assert copies["val", 1] == copies["test", 1] == 0
    with_val = config_.model_copy(update={"augment_splits": ("train", "val")})
    assert Counter((split, copy) for split, _, _, copy in planned(with_val))["val", 1] == copies["val", 0]


def test_report_tells_each_class_s_shares(corpus: Path) -> None:
    config_ = config(corpus)
    report = split_report(config_)
    length_s: dict[tuple[str, str], float] = defaultdict(float)
    for source in sources(config_):
        label = Path(source.path).relative_to(corpus).parts[0]
        length_s[label, str(source.split)] += source.num_bytes / 4 / RATE
    for label, total in (("calm", 22.5), ("tense", 25.0)):
        got = [100 * length_s[label, name] / total for name in SHARES]
        miss = max(abs(g - 100 * share) for g, share in zip(got, SHARES.values(), strict=True))
        line = f"{label}: {got[0]:.1f} / {got[1]:.1f} / {got[2]:.1f} %, off by {miss:.1f} points; "
        assert line in report
    assert "leak" not in report
    assert "prepare.split" in split_report(config(corpus, split={"by": "none"}))


# ---- Rows


def test_rows_are_the_segments_of_the_files(corpus: Path) -> None:
    config_ = config(corpus, split={"by": "none"})
    extract = audio_features.Extractor(config_.features)
    found = {row["id"]: row for row in rows(config_)}
    number = 0
    for label_number, label in enumerate(("calm", "tense")):
        for path in sorted((corpus / label).rglob("*")):
            if path.is_dir() or path.suffix == ".jpg":
                continue
            samples, _ = soundfile.read(path, dtype="float32")
            track = path.relative_to(corpus).with_suffix("").as_posix()
            for start in range(0, len(samples), RATE):
                row = found[f"{track}@{start // RATE}"]
                assert (row["group"], row["start_s"], row["labels"]) == (track, start / RATE, [label_number])
                np.testing.assert_array_equal(features(row), extract(samples[start : start + RATE]))
                number += 1
    assert number == len(found) == 5 * (3 + 7) + 2 - 4 + 2  # 2.5 + i and 3 + i s, tails kept
    assert class_names(config_) == ["calm", "tense"]


@pytest.mark.parametrize("by", ["track", "segment"])
@pytest.mark.parametrize("suffix", ["wav", "mp3", "ogg", "flac"])
def test_rows_do_not_depend_on_how_files_are_divided(tmp_path: Path, by: str, suffix: str) -> None:
    for label in "ab":
        for i in range(3):
            soundfile.write(tmp_path / f"{label}{i}.wav", sound(1, 0), RATE)
            path = tmp_path / label / f"{i}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, sound(9.3, i + 10 * (label == "b"), 2, 11025), 11025)
    for stray in tmp_path.glob("*.wav"):
        stray.unlink()
    augment = {"copies": 2, "pitch_shift_semitones": [-2, 2], "time_stretch_rates": [0.8, 1.2], "noise_snr_db": [9, 20]}
    config_ = config(tmp_path, augment=augment, split={"by": by}, hop_s=0.6)
    few, many = audio_folder._sources(config_, 600), audio_folder._sources(config_, 1.3)
    assert len(many) > 4 * len(few)
    by_id = {row["id"]: row for row in rows(config_, few)}
    assert by_id == {row["id"]: row for row in rows(config_, many[::-1])}
    assert len(by_id) == len(planned(config_))


def test_copies_are_shifted_and_stretched_in_turn(corpus: Path) -> None:
    augment = {"copies": 3, "pitch_shift_semitones": [-2, 2], "time_stretch_rates": [0.8, 1.2]}
    config_ = config(corpus, augment=augment, split={"fractions": {"train": 0.6, "test": 0.4}})
    found = {row["id"]: row for row in rows(config_) if row["split"] == "train"}
    extract = audio_features.Extractor(config_.features)
    originals = [id for id in found if "~" not in id]
    drawn = set()
    for id in originals:
        (path,) = corpus.glob(id.partition("@")[0] + ".*")
        start = round(found[id]["start_s"] * RATE)
        samples = audio.read(path, RATE)[start : start + RATE]
        for copy in (1, 2, 3):
            row = found[f"{id}~{copy}"]
            assert {key: row[key] for key in ("group", "start_s", "labels")} == {
                key: found[id][key] for key in ("group", "start_s", "labels")
            }
            choices = {
                choice: extract(audio_augment.pitch_shift(samples, RATE, choice))
                if copy != 2
                else extract(audio_augment.time_stretch(samples, choice))
                for choice in ((0.8, 1.2) if copy == 2 else (-2, 2))
            }
            matching = [c for c, expected in choices.items() if np.array_equal(features(row), expected)]
            assert len(matching) == 1
            drawn |= {(copy, choice) for choice in matching}
    assert len(drawn) == 6  # each copy got each of its choices somewhere
    other = config(corpus, augment={**augment, "seed": 1}, split={"fractions": {"train": 0.6, "test": 0.4}})
    changed = {row["id"]: row for row in rows(other)}
    assert any(changed[id]["features"] != row["features"] for id, row in found.items() if "~" in id)
    assert all(changed[id]["features"] == found[id]["features"] for id in originals)


def test_sound_is_stored_bit_by_bit(tmp_path: Path) -> None:
    integers = np.random.default_rng(0).integers(-(2**15), 2**15, 5 * RATE, np.int16)
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a/b.wav", integers, RATE)
    found = rows(config(tmp_path, store="audio", split={"by": "none"}, segment_s=2, hop_s=2))
    stored = [np.frombuffer(row["audio"], np.int16) for row in found]
    np.testing.assert_array_equal(np.concatenate(stored), integers)
    assert columns(config(tmp_path, store="audio"))[-1].shape == (None, 1)


def test_sound_beyond_full_scale_is_clipped_where_it_is_stored(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a/b.wav", np.array([1.5, -3, 0.5] * RATE), RATE, subtype="FLOAT")
    row, *_ = rows(config(tmp_path, store="audio", split={"by": "none"}))
    assert np.frombuffer(row["audio"], np.int16)[:3].tolist() == [32767, -32768, 16384]
    row, *_ = rows(config(tmp_path, split={"by": "none"}))
    expected = audio_features.Extractor(config(tmp_path).features)(np.float32([1.5, -3, 0.5] * RATE)[:RATE])
    np.testing.assert_array_equal(features(row), expected)


@pytest.mark.parametrize(("tail", "lengths"), [("keep", [16000, 4000]), ("pad", [16000, 16000]), ("drop", [16000])])
def test_tails(tmp_path: Path, tail: str, lengths: list[int]) -> None:
    write(tmp_path / "a/b.wav", 2.5, 0)
    found = rows(config(tmp_path, segment_s=2, hop_s=2, tail=tail, store="audio", split={"by": "none"}))
    assert [len(row["audio"]) // 2 for row in found] == lengths
    assert [row["id"] for row in found] == ["a/b@0", "a/b@2"][: len(lengths)]


def test_ids_have_fractions_of_seconds(tmp_path: Path) -> None:
    write(tmp_path / "a/b.c.wav", 2, 0)
    found = rows(config(tmp_path, hop_s=0.25, split={"by": "none"}))
    assert [row["id"] for row in found] == [f"a/b.c@{s}" for s in ("0", "0.25", "0.5", "0.75", "1")]


def test_preparing_counts_every_row(corpus: Path, tmp_path: Path) -> None:
    (corpus / "calm/f.wav").write_bytes(b"RIFF, or so it claims")
    broken = sound(4, seed=77)
    broken[RATE + 5] = np.nan
    soundfile.write(corpus / "tense/f.wav", broken, RATE, subtype="FLOAT")
    values = {
        "name": "x", "task": "video_classification", "model": "logistic",
        "dataset": {"name": "audio_folder", **config(corpus).model_dump(mode="json")},
        "prepare": {"out": str(tmp_path / "prepared"), "on_bad_input": "skip", "max_bad_fraction": 0.2, "part_mb": 1},
    }  # fmt: skip
    run = run_config.from_dict(values)
    plan = preparation.plan(run)
    notes = [preparation.write_part(run, part, plan.aside) for part in plan.parts]
    info = preparation.publish(plan, notes)
    assert info.rows_out == len(planned(run.dataset)) - 1
    assert info.rejected == 2
    rejected = [json.loads(line) for line in (plan.folder / "rejected.jsonl").read_text().splitlines()]
    assert {Path(bad["path"]).parent.name for bad in rejected} == {"calm", "tense"}
    assert info.splits["train"].label_counts is not None
    stored = pa.concat_tables(pq.read_table(plan.folder / f.path) for s in info.splits.values() for f in s.files)
    assert stored.num_rows == info.rows_out == len(set(stored.column("id").to_pylist()))
    values["prepare"]["split"] = {"by": "hash"}
    assert preparation.plan(run_config.from_dict(values)).parts  # rows are the same in any split, so that may be
    values["dataset"]["augment"] = {"copies": 1, "gain_db": [-3, 3]}
    with pytest.raises(ValueError, match=r"dataset\.split divides the rows"):
        preparation.plan(run_config.from_dict(values))


# ---- Tables


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    for i in range(4):
        if not (folder / f"music/{i}.wav").exists():
            write(folder / f"music/{i}.wav", 1.5, i)
    (folder / name).write_text(text)
    return folder / name


COLUMNS = {"path": "file", "label": "mood", "group": "singer"}
CSV = "file,year,mood,singer\nmusic/0.wav,1999,sad,ann\nmusic/1.wav,2000, sad ,bob\nmusic/2.wav,,merry,ann\n"


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_table_names_files_classes_and_groups(tmp_path: Path, kind: str) -> None:
    text = CSV.replace(",", "\t") if kind == "tsv" else CSV
    path = table(tmp_path, text, f"labels.{'csv' if kind == 'parquet' else kind}")
    if kind == "parquet":
        lines = [line.split(",") for line in CSV.splitlines()]
        columns_ = dict(zip(lines[0], zip(*lines[1:], strict=True), strict=True))
        path = tmp_path / "labels.parquet"
        pq.write_table(pa.table({name: list(values) for name, values in columns_.items()}), path)
    config_ = config(path, columns=COLUMNS, split={"by": "none"})
    assert class_names(config_) == ["merry", "sad"]
    found = {(row["id"], row["group"], *row["labels"]) for row in rows(config_) if row["start_s"] == 0}
    assert found == {("music/0@0", "ann", 1), ("music/1@0", "bob", 1), ("music/2@0", "ann", 0)}


def test_groups_of_a_table_stay_whole(tmp_path: Path) -> None:
    lines = [f"music/{i}.wav,{'ab'[i % 2]},{i // 4}" for i in range(32)]
    for i in range(32):
        write(tmp_path / f"music/{i}.wav", 1 + i % 3, i)
    path = table(tmp_path, "\n".join(["file,mood,singer", *lines]))
    splits = defaultdict(set)
    for source in sources(config(path, columns=COLUMNS)):
        splits[json.loads(source.note)["group"]].add(source.split)
    assert len(splits) == 8
    assert all(len(of_group) == 1 for of_group in splits.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("mood", "feeling"), "no column 'mood', which dataset.columns.label names; it has file, year, f"),
        (CSV.replace("singer", "artist"), "no column 'singer', which dataset.columns.group names"),
        (CSV.replace("file", "path"), "no column 'file'"),
        (CSV + "music/3.wav,2001,,cid\n", r"1 of 4 files have no class; the first is .*3\.wav \(.*line 5\)"),
        (CSV + "music/9.wav,2001,sad,cid\n", r"1 of 4 files of .* are missing; the first is .*line 5: .*music/9\.wav"),
        (CSV + "music/3.wav,2001,sad,\n", r"line 5: column 'singer' is empty"),
        (CSV + ",2001,sad,cid\n", r"line 5: column 'file' is empty"),
        (CSV + "music/3.wav,2001\n", r"line 5: 2 values for 4 columns"),
        (CSV + "music/0.wav,2001,merry,cid\n", r"have one name, 'music/0'"),
        ("", "no column 'file'"),
        ("file,mood,singer\n", "no sound file there"),
    ],
)
def test_tables_that_can_not_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources(config(table(tmp_path, text), columns=COLUMNS, split={"by": "none"}))


def test_files_without_a_class_may_be_allowed(tmp_path: Path) -> None:
    path = table(tmp_path, CSV + "music/3.wav,2001,,cid\n")
    config_ = config(path, columns=COLUMNS, split={"by": "none"}, labels="optional")
    assert {row["id"]: row["labels"] for row in rows(config_)}["music/3@0"] == []
    write(tmp_path / "folder/x.wav", 1, 0)
    for place in (tmp_path / "folder", tmp_path / "folder/x.wav"):
        (row,) = rows(config(place, labels="optional", split={"by": "none"}, classes=["one", "two"]))
        assert (row["id"], row["labels"]) == ("x@0", [])
        with pytest.raises(ValueError, match="have no class"):
            sources(config(place))
    assert class_names(config(tmp_path / "folder", labels="optional", classes=["one", "two"])) == ["one", "two"]


# ---- Input of bad kinds


def whole(path: Path) -> bytes:
    return write(path.parent / "tmp.wav", 3, 1).rename(path).read_bytes()


def clipped(path: Path) -> None:
    soundfile.write(path, np.clip(20 * sound(3, 1), -1, 1), RATE)


def with_nan(path: Path) -> None:
    samples = sound(3, 1)
    samples[2 * RATE + 7] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


def other_codec(path: Path) -> None:
    data = bytearray(whole(path))
    data[20:22] = (0x0161).to_bytes(2, "little")  # the format's number: Windows Media Audio
    path.write_bytes(data)


BAD = {
    "zero bytes": (lambda path: path.write_bytes(b""), 0, "not a sound file that libsndfile reads"),
    "zero length": (lambda path: soundfile.write(path, np.zeros(0), RATE), 0, "the file holds no samples"),
    "corrupt header": (lambda path: path.write_bytes(b"RIFX" + whole(path)[7:]), 0, "not a sound file"),
    "not sound": (lambda path: path.write_text("some text " * 99), 0, "not a sound file that libsndfile reads"),
    "unsupported codec": (other_codec, 0, "not a sound file that libsndfile reads"),
    "truncated": (lambda path: path.write_bytes(whole(path)[:30000]), 0, "truncated or damaged: 1.87 s of the 3.00 s"),
    "not a number": (with_nan, 2, r"sample 16007 \(2.0009 s\) of channel 0 is nan"),
    "silent": (lambda path: soundfile.write(path, np.zeros(3 * RATE), RATE), 3, None),
    "clipped": (clipped, 3, None),
    "flac called wav": (lambda path: write(path.with_suffix(".flac"), 3, 1).rename(path), 3, None),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_rejected_one_by_one(corpus: Path, kind: str) -> None:
    make, num_rows, reason = BAD[kind]
    path = corpus / "calm/z.wav"
    make(path)
    rejected: list[Rejected] = []
    found = rows(config(corpus), reject=rejected.append)
    assert sum(row["group"] == "calm/z" for row in found) == num_rows
    assert len(found) - num_rows == len(planned(config(corpus))) - (3 if num_rows else 0)
    if reason is None:
        assert rejected == []
    else:
        (bad,) = rejected
        assert bad.path == str(path)
        assert re.search(reason, bad.reason)
        assert not bad.reason.startswith(bad.path)


def test_silence_may_be_rejected(corpus: Path) -> None:
    samples = sound(3, 99)
    samples[RATE : 2 * RATE] = 0
    soundfile.write(corpus / "calm/z.wav", samples, RATE)
    rejected: list[Rejected] = []
    config_ = config(corpus, silent="reject", split={"by": "none"})
    found = rows(config_, reject=rejected.append)
    assert [bad.record for bad in rejected] == [1]
    assert "silent: every sample is 0" in rejected[0].reason
    assert [row["start_s"] for row in found if row["group"] == "calm/z"] == [0, 2]


def test_each_copy_of_a_bad_segment_is_counted(corpus: Path) -> None:
    with_nan(corpus / "calm/z.wav")
    config_ = config(corpus, augment={"copies": 2, "gain_db": [-3, 3]}, split={"by": "segment"})
    rejected: list[Rejected] = []
    found = rows(config_, reject=rejected.append)
    assert len(rejected) == 3
    assert len(found) + 3 == len(planned(config_))


def test_recordings_that_are_too_short(corpus: Path) -> None:
    write(corpus / "calm/z.wav", 0.5, 99)
    kept = [row for row in rows(config(corpus)) if row["group"] == "calm/z"]
    assert [row["id"] for row in kept] == ["calm/z@0"]
    for how, least in (({"tail": "drop"}, "1 s"), ({"min_tail_s": 0.6}, "0.6 s")):
        rejected: list[Rejected] = []
        rows(config(corpus, **how), reject=rejected.append)
        assert [bad.reason for bad in rejected] == [f"too short: 0.50 s give no segment of at least {least}"]


def test_sound_that_libsndfile_does_not_read_is_not_passed_over(corpus: Path) -> None:
    (corpus / "calm/z.m4a").write_bytes(b"\x00\x00\x00\x20ftypM4A " + bytes(100))
    rejected: list[Rejected] = []
    rows(config(corpus), reject=rejected.append)
    assert [Path(bad.path).name for bad in rejected] == ["z.m4a"]


def test_same_recording_under_two_names(corpus: Path) -> None:
    copied = corpus / "tense/copy.wav"
    copied.write_bytes((corpus / "calm/a.wav").read_bytes())
    with pytest.raises(
        ValueError, match=r"calm/a\.wav \(calm\) and .*tense/copy\.wav \(tense\) are the same recording"
    ):
        sources(config(corpus))
    copied.rename(corpus / "calm/copy.wav")
    with pytest.raises(ValueError, match=r"calm/a\.wav and .*calm/copy\.wav are the same recording, which would count"):
        sources(config(corpus))
    data = bytearray((corpus / "calm/copy.wav").read_bytes())
    data[-1] ^= 1  # as long, and the same in its middle
    (corpus / "calm/copy.wav").write_bytes(data)
    assert sources(config(corpus))


def test_corpora_that_are_not_there(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        sources(config(tmp_path / "nowhere"))
    (tmp_path / "empty/a").mkdir(parents=True)
    with pytest.raises(ValueError, match="no sound file there"):
        sources(config(tmp_path / "empty"))
    (corpus / "empty").mkdir()
    with pytest.raises(ValueError, match="no sound file in empty; every folder there is a class"):
        sources(config(corpus))
    (corpus / "empty").rmdir()
    (corpus / "calm/gone.wav").symlink_to(corpus / "nowhere.wav")
    with pytest.raises(ValueError, match=r"gone\.wav is a link to nothing"):
        sources(config(corpus))


def test_classes_may_be_given(corpus: Path) -> None:
    config_ = config(corpus, classes=["tense", "dull", "calm"], split={"by": "none"})
    assert class_names(config_) == ["tense", "dull", "calm"]
    assert {(row["group"].split("/")[0], *row["labels"]) for row in rows(config_)} == {("calm", 2), ("tense", 0)}
    with pytest.raises(ValueError, match=r"a\.wav \(folder calm\) is of class 'calm', which is not among"):
        sources(config(corpus, classes=["tense", "dull"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment": {"copies": 1}}, "nothing to alter"),
        ({"augment": {"copies": 1, "gain_db": [0, 1]}, "split": {"by": "none"}}, r"needs split\.by: track or segment"),
        ({"split": {"fractions": {"train": 0.5}}}, "fractions sum to 0.5"),
        ({"classes": ["a", "a"]}, "stands twice"),
        ({"segment_s": 0}, "greater than 0"),
    ],
)
def test_settings_that_can_not_be(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **values)


def test_emotify(real_data: Path) -> None:
    manifest = real_data / "emotify/labels.csv"
    columns_ = {"path": "file", "label": "emotion", "group": "track"}
    config_ = Config(path=str(manifest), columns=columns_)
    found = sources(config_)
    assert class_names(config_) == ["angry", "happy", "sad"]
    assert Counter(split for split, *_ in planned(config_)).total() == 90  # 60.03 s: two segments and a tail
    assert "off by" in split_report(config_)
    (first, second, tail) = rows(config_, found[:1])
    assert first["features"] != second["features"]
    assert np.frombuffer(first["features"], np.float32).reshape(-1, 27).shape[0] == 938
    assert len(tail["features"]) < len(first["features"]) / 100
    # The same files by their folders.
    by_folder = Config(path=str(manifest.parent))
    assert len(planned(by_folder)) == 90
