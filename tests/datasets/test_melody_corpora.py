"""What all melody corpora share, shown on melody_folder; and iKala, ADC2004 and MIREX05, whose files differ."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import mir_eval
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmray import config as run_files
from mmray import preparation
from mmray.datasets import Rejected, _melody, adc2004, ikala, melody_folder, mirex05
from mmray.features.cfp import Cfp, Settings
from mmray.prepared import frames_column
from mmray.schema import arrow_schema

RATE = 16000


def sound(seconds: float = 1.0, rate: int = RATE, channels: int = 1, hz: float = 220.0) -> NDArray[np.float32]:
    """A tone with harmonics, (n, channels), the same in each channel."""
    t = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * hz * k * t) / k for k in (1, 2, 3))
    return np.repeat(0.2 * np.asarray(tone, np.float32)[:, None], channels, axis=1)


def label_text(seconds: float = 1.0, hz: float = 220.0) -> str:
    """A label every 10 ms, the first and last 0.1 s unvoiced."""
    times = np.arange(round(seconds * 100)) / 100
    return "".join(f"{t:.2f},{hz if 0.1 <= t < seconds - 0.1 else 0:.3f}\n" for t in times)


def write_clip(path: Path, label: str | None = None, **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(**settings), settings.get("rate", RATE))
    if label is not None:
        path.with_suffix(".csv").write_text(label)


def read(module: ModuleType, config: Any) -> tuple[pa.Table, list[Rejected]]:
    """All rows of a corpus, in the order of its sources, and what was rejected."""
    rejected: list[Rejected] = []
    batches = [b for source in module.sources(config) for b in module.read(config, source, rejected.append)]
    return pa.Table.from_batches(batches, arrow_schema(module.columns(config))), rejected


def features(table: pa.Table) -> NDArray[np.float16]:
    """The feature of the only row."""
    return np.frombuffer(table["cfp"][0].as_py(), np.float16).reshape(-1, 3, Settings().num_bins)


def strongest_hz(frames: NDArray[np.float16]) -> NDArray[np.float64]:
    """The frequency at which the three channels agree best, of each frame."""
    return Settings().frequencies_hz()[frames.astype(np.float32).prod(axis=1).argmax(axis=1)]


def folder_config(path: Path, **settings: Any) -> melody_folder.Config:
    return melody_folder.Config(path=str(path), **settings)


def test_a_row_is_the_feature_and_the_label_of_a_clip(tmp_path: Path) -> None:
    write_clip(tmp_path / "song.wav", label_text())
    table, rejected = read(melody_folder, folder_config(tmp_path))
    assert not rejected
    assert table["id"].to_pylist() == table["group"].to_pylist() == ["song"]

    samples, _ = soundfile.read(tmp_path / "song.wav", dtype="float32")
    expected = Cfp(Settings())(samples)
    assert table["num_frames"][0].as_py() == len(expected) == 62
    np.testing.assert_allclose(features(table), expected, rtol=0, atol=2.5e-4)
    assert features(table).min() == 0
    assert features(table).max() == 1

    times, f0 = np.loadtxt(tmp_path / "song.csv", delimiter=",").T
    assert table["ref_times_s"][0].as_py() == times.tolist()
    assert table["ref_f0_hz"][0].as_py() == f0.tolist()
    frame_times = np.arange(1, 63) * 0.016
    on_frames, voicing = mir_eval.melody.resample_melody_series(times, f0, (f0 > 0).astype(float), frame_times)
    np.testing.assert_allclose(table["f0_hz"][0].as_py(), on_frames * (voicing > 0), rtol=1e-6)
    assert 0 < np.count_nonzero(table["f0_hz"][0].as_py()) < 62


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("channels", [1, 6])
def test_any_rate_and_number_of_channels(tmp_path: Path, rate: int, channels: int) -> None:
    """The pitch stands in the row of its frequency, at the times of its frames, whatever the file's own rate."""
    write_clip(tmp_path / "song.wav", label_text(hz=311.127), rate=rate, channels=channels, hz=311.127)
    table, rejected = read(melody_folder, folder_config(tmp_path))
    assert not rejected
    assert table["num_frames"][0].as_py() == 62
    assert strongest_hz(features(table)[20:40]) == pytest.approx([311.127] * 20, rel=0.02)
    np.testing.assert_allclose(np.array(table["f0_hz"][0].as_py())[20:40], 311.127, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_any_format(tmp_path: Path, suffix: str) -> None:
    write_clip(tmp_path / f"song{suffix}")
    (tmp_path / "song.csv").write_text(label_text())
    table, rejected = read(melody_folder, folder_config(tmp_path))
    assert not rejected
    assert table["num_frames"][0].as_py() == 62
    assert strongest_hz(features(table)[20:40]) == pytest.approx([220] * 20, rel=0.02)


LABELS = {
    "longer than the sound": (label_text(1.5), r"reach from 0\.000 to 1\.490 s, but the sound lasts 1\.000 s"),
    "shorter than the sound": ("0,0\n0.01,220\n", "but the sound lasts 3.000 s"),
    "unsorted": ("0,0\n0.5,220\n0.4,220\n1,0\n", r"time 0\.4 s after 0\.5 s; sort the lines.* \(line 3\)"),
    "twice the same time": ("0,0\n0.5,220\n0.5,220\n", r"0\.5 s stands there twice.* \(line 3\)"),
    "all but the same time": ("0,0\n0.5,220\n0.50000000000001,220\n1,0\n", r"times"),
    "not numbers": ("0,0\n0.5,high\n", r"'high' is not a number.* \(line 2\)"),
    "no line": ("", "no labels in the file"),
    "nan": ("0,0\n0.5,nan\n", "pitch nan"),
    "not a pitch": ("0,0\n0.5,44100\n1,0\n", "above 20 kHz"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    text, reason = LABELS[name]
    write_clip(tmp_path / "song.wav", text, seconds=3.0 if "shorter" in name else 1.0)
    table, (bad,) = read(melody_folder, folder_config(tmp_path))
    assert table.num_rows == 0
    assert bad.path == str(tmp_path / "song.csv")
    assert str(tmp_path) not in bad.reason
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(bad.reason)


def test_labels_with_a_header_and_negative_pitches(tmp_path: Path) -> None:
    """A negative pitch is a guess at a frame that is held to be unvoiced."""
    write_clip(tmp_path / "song.wav", "time,frequency\n0,-220\n0.3,220\n0.6,220\n0.9,-220\n")
    table, rejected = read(melody_folder, folder_config(tmp_path))
    assert not rejected
    assert table["ref_f0_hz"][0].as_py() == [0, 220, 220, 0]
    f0 = np.array(table["f0_hz"][0].as_py())
    frame_times = np.arange(1, 63) * 0.016
    assert set(f0[frame_times < 0.14]) == {0}
    assert set(f0[(frame_times > 0.31) & (frame_times < 0.59)]) == {220}


def nan_sound() -> NDArray[np.float32]:
    samples = sound()
    samples[777] = np.nan
    return samples


def test_sounds_that_cannot_be_used(tmp_path: Path) -> None:
    """Each is rejected with its path and the reason, and the good clip among them is read."""
    soundfile.write(tmp_path / "nan.wav", nan_sound(), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "ten.wav", sound()[:10], RATE)
    soundfile.write(tmp_path / "loud.wav", sound() * np.float32(1e30), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", sound()[:0], RATE)
    (tmp_path / "text.wav").write_text("no music")
    write_clip(tmp_path / "whole.wav")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:9000])
    for path in tmp_path.glob("*.wav"):
        path.with_suffix(".csv").write_text(label_text())
    table, rejected = read(melody_folder, folder_config(tmp_path))
    assert table["id"].to_pylist() == ["whole"]
    reasons = {Path(bad.path).name: bad.reason for bad in rejected}
    assert sorted(reasons) == ["cut.wav", "empty.wav", "loud.wav", "nan.wav", "ten.wav", "text.wav"]
    assert "sample 777" in reasons["nan.wav"]
    assert reasons["ten.wav"] == "too short for one frame: 10 samples at 16,000 Hz"
    assert "not a sound file" in reasons["text.wav"]
    assert "truncated" in reasons["cut.wav"]


def test_silence_is_a_clip(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song.wav", np.zeros(RATE, np.float32), RATE)
    (tmp_path / "song.csv").write_text("0,0\n0.5,0\n")
    table, rejected = read(melody_folder, folder_config(tmp_path))
    assert not rejected
    assert not features(table).any()
    assert not any(table["f0_hz"][0].as_py())


def test_long_recordings_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_clip(tmp_path / "song.wav", label_text())
    assert read(melody_folder, folder_config(tmp_path, max_clip_s=1))[0].num_rows == 1
    table, (bad,) = read(melody_folder, folder_config(tmp_path, max_clip_s=0.99))
    assert table.num_rows == 0
    assert "max_clip_s=0.99" in bad.reason
    assert "mmray predict --input" in bad.reason


def test_a_label_that_is_missing(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", label_text())
    write_clip(tmp_path / "b.wav")
    with pytest.raises(ValueError, match=r"1 of 2 clips have no label.*b\.wav, looked for .*b\.csv or .*b\.txt"):
        melody_folder.sources(folder_config(tmp_path))
    optional = folder_config(tmp_path, labels="optional")
    assert [source.companions for source in melody_folder.sources(optional)] == [(str(tmp_path / "a.csv"),), ()]
    table, rejected = read(melody_folder, optional)
    assert not rejected
    assert table["f0_hz"].to_pylist()[1] == table["ref_f0_hz"].to_pylist()[1] == []
    assert table["num_frames"].to_pylist() == [62, 62]


def test_a_label_that_went_missing_later(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", label_text())
    config = folder_config(tmp_path)
    (source,) = melody_folder.sources(config)
    (tmp_path / "a.csv").unlink()
    rejected: list[Rejected] = []
    assert not list(melody_folder.read(config, source, rejected.append))
    assert "can't be read" in rejected[0].reason


def test_what_reject_raises_reaches_the_caller(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", "nothing")

    def refuse(bad: Rejected) -> None:
        raise ValueError("stop")

    config = folder_config(tmp_path)
    with pytest.raises(ValueError, match=r"^stop$"):
        list(melody_folder.read(config, melody_folder.sources(config)[0], refuse))


def test_folders_give_splits_and_groups(tmp_path: Path) -> None:
    for name in ("train/x/a_1", "train/y/b_1", "val/c_1", "test/d_1"):
        write_clip(tmp_path / f"{name}.wav", label_text())
    write_clip(tmp_path / "train/._a_1.wav")  # what some systems leave beside a file
    sources = melody_folder.sources(folder_config(tmp_path))
    assert [source.split for source in sources] == ["test", "train", "train", "val"]
    assert [source.path for source in sources] == sorted(source.path for source in sources)
    assert {source.split for source in melody_folder.sources(folder_config(tmp_path / "train"))} == {None}

    def groups(**settings: Any) -> list[str]:
        return list(read(melody_folder, folder_config(tmp_path, **settings))[0]["group"].to_pylist())

    assert groups() == ["d_1", "a_1", "b_1", "c_1"]
    assert groups(group="parent") == ["test", "train/x", "train/y", "val"]
    assert groups(group=r"([^/_]+)_\d+$") == ["d", "a", "b", "c"]
    assert groups(group=r"^[^/]+") == ["test", "train", "train", "val"]
    with pytest.raises(ValueError, match="finds no group in 'test/d_1'"):
        groups(group="Z")
    with pytest.raises(ValueError, match="choose stem, parent or a regular expression"):
        groups(group="(")
    with pytest.raises(ValueError, match=r"group '1' stands in 3 splits \(test: test/d_1; train: train/x/a_1, train/y"):
        groups(group=r"\d+")


def test_labels_in_another_folder(tmp_path: Path) -> None:
    for name in ("x/a", "y/b"):
        write_clip(tmp_path / f"music/{name}.wav")
    (tmp_path / "labels/x").mkdir(parents=True)
    (tmp_path / "labels/x/a.f0").write_text(label_text())
    (tmp_path / "labels/b.pv").write_text("60\n" * 50)
    config = folder_config(tmp_path / "music", labels_path=str(tmp_path / "labels"))
    table, rejected = read(melody_folder, config)
    assert not rejected
    times = table["ref_times_s"].to_pylist()
    assert times[1][:2] == [0.01, 0.03]
    assert table["ref_f0_hz"].to_pylist()[1][0] == pytest.approx(261.6256, abs=1e-4)
    every_32_ms = folder_config(tmp_path / "music", labels_path=str(tmp_path / "labels"), pv="ikala")
    assert read(melody_folder, every_32_ms)[1][0].path == str(tmp_path / "labels/b.pv")  # 1.6 s, now
    (tmp_path / "labels/a.csv").write_text(label_text())
    with pytest.raises(ValueError, match="more than one label"):
        melody_folder.sources(config)
    with pytest.raises(ValueError, match=r"labels_path=.*not a folder"):
        melody_folder.sources(folder_config(tmp_path, labels_path=str(tmp_path / "nowhere")))


def test_one_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "song.mp3", rate=44100, channels=2)
    with pytest.raises(ValueError, match="no label"):
        melody_folder.sources(folder_config(tmp_path / "song.mp3"))
    table, rejected = read(melody_folder, folder_config(tmp_path / "song.mp3", labels="optional"))
    assert not rejected
    assert table["id"].to_pylist() == ["song"]


def test_the_same_name_twice(tmp_path: Path) -> None:
    write_clip(tmp_path / "song.wav", label_text())
    write_clip(tmp_path / "song.flac")
    with pytest.raises(ValueError, match=r"clip 'song' stands there more than once: .*song\.flac, .*song\.wav"):
        melody_folder.sources(folder_config(tmp_path))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "val", "test", None])), max_size=8))
def test_a_group_in_two_splits_is_found(drawn: list[tuple[str, str | None]]) -> None:
    clips = [_melody.Clip(Path(f"{i}.wav"), None, str(i), *pair) for i, pair in enumerate(drawn)]
    clash = any(
        g == h and s is not None and t is not None and s != t for g, s in drawn for h, t in drawn
    )  # fmt: skip
    if clash:
        with pytest.raises(ValueError, match="stands in"):
            _melody.check_groups(clips)
    else:
        _melody.check_groups(clips)


def test_fractions_are_spread_evenly() -> None:
    drawn = np.array([_melody.fraction(f"song {i}") for i in range(10_000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=10, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 33  # chi-squared of 9 degrees of freedom: exceeded once in 10,000


def test_a_corpus_is_prepared(tmp_path: Path) -> None:
    """The whole stage: what was bad is listed, and the frames of all rows come back from the files."""
    for i in range(12):
        write_clip(tmp_path / f"music/{i}.wav", label_text(), hz=200 + 20 * i, seconds=1.0)
    (tmp_path / "music/5.csv").write_text("0,0\n0,0\n")
    run = run_files.from_dict(
        {
            "name": "tiny",
            "task": "video_classification",
            "model": "logistic",
            "dataset": {"name": "melody_folder", "path": str(tmp_path / "music")},
            "prepare": {
                "out": str(tmp_path / "prepared"), "on_bad_input": "skip", "max_bad_fraction": 0.2,
                "split": {"by": "hash", "fractions": {"train": 0.5, "val": 0.25, "test": 0.25}},
            },
        }
    )  # fmt: skip
    plan = preparation.plan(run)
    info = preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    assert (info.rows_in, info.rows_out, info.rejected) == (12, 11, 1)
    assert info.rejected_reasons == {
        "time N.N s stands there twice; leave one, or write times with more digits (line N)": 1
    }
    found = []
    for split in info.splits.values():
        for file in split.files:
            table = pq.read_table(plan.folder / file.path)
            frames, offsets = frames_column(table, info.column("cfp"))
            assert frames.shape == (62 * table.num_rows, 3, 256)
            assert np.diff(offsets).tolist() == table["num_frames"].to_pylist()
            found += table["id"].to_pylist()
    assert sorted(found) == sorted({str(i) for i in range(12)} - {"5"})


def write_pair(root: Path, name: str, seconds: float = 1.0) -> None:
    """As in iKala: two channels, and semitones every 32 ms."""
    (root / "Wavfile").mkdir(parents=True, exist_ok=True)
    (root / "PitchLabel").mkdir(exist_ok=True)
    soundfile.write(root / f"Wavfile/{name}.wav", sound(seconds, 44100, 2), 44100)
    (root / f"PitchLabel/{name}.pv").write_text("57\n" * round(seconds / 0.032))


def test_ikala(tmp_path: Path) -> None:
    names = ["10161_chorus", "10161_verse", "54243_verse", "54243_chorus", "90587_verse", "31081_verse"]
    names += [f"{20000 + i}_{part}" for i in range(30) for part in ("chorus", "verse")]
    for name in names:
        write_pair(tmp_path, name)
    config = ikala.Config(path=str(tmp_path), val_fraction=0.2)
    sources = ikala.sources(config)
    split_of = {Path(source.path).stem: source.split for source in sources}
    assert {name for name, split in split_of.items() if split == "test"} == {
        "54243_verse", "54243_chorus", "90587_verse",
    }  # fmt: skip
    for name in names:  # both clips of a song stand together
        assert split_of[name] == split_of.get(name.replace("verse", "chorus"), split_of[name])
    assert 2 <= Counter(split_of.values())["val"] <= 30
    assert {source.split for source in ikala.sources(config.model_copy(update={"val_fraction": 0}))} == {
        "train",
        "test",
    }

    rejected: list[Rejected] = []
    (batch,) = ikala.read(config, sources[0], rejected.append)
    assert not rejected
    assert batch["group"][0].as_py() == "10161"
    assert batch["ref_times_s"][0].as_py()[:2] == pytest.approx([0.016, 0.048])
    assert set(np.round(batch["f0_hz"][0].as_py(), 3)[:-1]) == {220.0}  # the last frame is past the last label
    (tmp_path / "Wavfile/10161_verse.wav").unlink()
    with pytest.raises(ValueError, match=r"10161_verse\.pv, looked for .*Wavfile/10161_verse with one of \.wav"):
        ikala.sources(config)
    (tmp_path / "PitchLabel/10161_verse.pv").rename(tmp_path / "PitchLabel/another.pv")
    write_pair(tmp_path, "another")
    with pytest.raises(ValueError, match=r"another\.wav: not a name of iKala's"):
        ikala.sources(config)


def test_ikalas_published_split(real_data: Path) -> None:
    """The authors' list of scores has the clips of the test songs, and no song besides."""
    lines = (real_data / "melody_weights/test_result_of_IK_test.csv").read_text().splitlines()[1:]
    assert len(lines) == 52
    assert {line.split("_")[0] for line in lines} == ikala.TEST_SONGS


CONTESTS = {
    "adc2004": (adc2004, adc2004.Config, ["jazz1", "midi2"], 12),
    "mirex05": (mirex05, mirex05.Config, ["train10", "train13MIDI"], 9),
}


@pytest.mark.parametrize("name", CONTESTS)
def test_contest_corpora(tmp_path: Path, name: str) -> None:
    module, make, instrumental, num_vocal = CONTESTS[name]
    for stem in [*module.VOCAL, *instrumental]:
        soundfile.write(tmp_path / f"{stem}.wav", sound(rate=44100), 44100)
        rows = np.loadtxt([line.replace(",", " ") for line in label_text().splitlines()])
        (tmp_path / f"{stem}REF.txt").write_text("".join(f"   {t:e}   {f0:e}\n" for t, f0 in rows))
    config = make(path=str(tmp_path))
    assert len(module.VOCAL) == num_vocal
    assert {source.split for source in module.sources(config)} == {"test"}
    table, rejected = read(module, config)
    assert not rejected
    assert table["id"].to_pylist() == sorted(module.VOCAL)
    assert table["ref_f0_hz"][0].as_py()[10] == 220
    assert read(module, make(path=str(tmp_path), clips=instrumental))[0]["id"].to_pylist() == instrumental

    victim = module.VOCAL[3]
    (tmp_path / f"{victim}REF.txt").unlink()
    with pytest.raises(ValueError, match=rf"{victim}\.wav, looked for .*{victim}REF\.txt"):
        module.sources(config)
    (tmp_path / f"{victim}.wav").unlink()
    with pytest.raises(ValueError, match=rf"no audio file for {victim}; looked for .*list in dataset\.clips"):
        module.sources(config)


@pytest.mark.parametrize("module", [ikala, adc2004, mirex05, melody_folder], ids=lambda module: module.__name__)
def test_a_corpus_that_is_not_there(tmp_path: Path, module: ModuleType) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"dataset.path='{path}'"):
            module.sources(module.Config(path=str(path)))
