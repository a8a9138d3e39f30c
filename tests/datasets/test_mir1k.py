"""The mir1k corpus: its splits by singer, and training clips mixed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from pydantic import ValidationError

from mmray.datasets import Rejected, Source
from mmray.datasets.mir1k import Config, columns, read, sources
from mmray.features.cfp import Cfp, Settings
from mmray.schema import arrow_schema

RATE = 16000
NAMES = ("ada_1_01", "ada_2_03", "amy_1_02", "bea_1_01", "leon_1_01", "zoe_3_12")


def channels(name: str, seconds: float) -> NDArray[np.float32]:
    """Accompaniment left, voice right, (n, 2): noise of the clip's own, so that each mixture can be told."""
    return np.random.default_rng(NAMES.index(name)).uniform(-0.2, 0.2, (round(seconds * RATE), 2)).astype(np.float32)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Clips of four training singers and one of each other split, of 0.5 to 1 s."""
    (tmp_path / "Wavfile").mkdir()
    (tmp_path / "PitchLabel").mkdir()
    for i, name in enumerate(NAMES):
        seconds = 0.5 + 0.1 * i
        soundfile.write(tmp_path / f"Wavfile/{name}.wav", channels(name, seconds), RATE, subtype="FLOAT")
        num_labels = round(seconds / 0.02) - 2
        (tmp_path / f"PitchLabel/{name}.pv").write_text("0 \n" * 5 + "57 \n" * (num_labels - 5))
    return tmp_path


def config(corpus: Path, **settings: Any) -> Config:
    return Config(**{"path": str(corpus), "val_singers": ["amy"], **settings})


def rows(config: Config, source: Source) -> dict[str, dict[str, Any]]:
    """The rows of a clip by their ids."""
    batches = list(read(config, source, pytest.fail))
    assert all(batch.schema.equals(arrow_schema(columns(config))) for batch in batches)
    return {row["id"]: row for batch in batches for row in batch.to_pylist()}


def feature(row: dict[str, Any]) -> NDArray[np.float16]:
    return np.frombuffer(row["cfp"], np.float16).reshape(-1, 3, Settings().num_bins)


def by_name(config: Config) -> dict[str, Source]:
    return {Path(source.path).stem: source for source in sources(config)}


def test_splits_are_by_singer(corpus: Path) -> None:
    found = by_name(config(corpus))
    assert list(found) == sorted(NAMES)
    assert {name: source.split for name, source in found.items()} == {
        "ada_1_01": "train", "ada_2_03": "train", "amy_1_02": "val", "bea_1_01": "train", "leon_1_01": "test",
        "zoe_3_12": "train",
    }  # fmt: skip
    assert {source.split for source in sources(config(corpus, val_singers=[]))} == {"train", "test"}
    (row,) = rows(config(corpus), found["leon_1_01"]).values()
    assert (row["id"], row["group"]) == ("leon_1_01", "leon")


def test_labels_are_midi_pitches_every_20_ms(corpus: Path) -> None:
    (row,) = rows(config(corpus), by_name(config(corpus))["ada_1_01"]).values()
    assert row["ref_times_s"][:3] == pytest.approx([0.01, 0.03, 0.05])
    assert row["ref_f0_hz"] == pytest.approx([0] * 5 + [220] * 18)
    frame_times = np.arange(1, 1 + row["num_frames"]) * 0.016
    nearest = np.clip(np.round((frame_times - 0.01) / 0.02), 0, 22).astype(int)
    inside = (np.abs(frame_times - 0.1) > 0.02) & (frame_times < row["ref_times_s"][-1])
    np.testing.assert_allclose(np.array(row["f0_hz"])[inside], np.array(row["ref_f0_hz"])[nearest][inside], rtol=1e-6)


@pytest.mark.parametrize("mix", ["mean", "sum", "left", "right"])
def test_mixes(corpus: Path, mix: str) -> None:
    both = channels("ada_1_01", 0.5)
    expected = {"mean": both.mean(axis=1), "sum": both.sum(axis=1), "left": both[:, 0], "right": both[:, 1]}[mix]
    (row,) = rows(config(corpus, mix=mix), by_name(config(corpus))["ada_1_01"]).values()
    np.testing.assert_allclose(feature(row), Cfp(Settings())(expected), rtol=0, atol=4e-4)


def test_partners_that_are_missing(corpus: Path) -> None:
    (corpus / "PitchLabel/bea_1_01.pv").unlink()
    with pytest.raises(ValueError, match=r"bea_1_01\.wav, looked for .*PitchLabel/bea_1_01\.pv"):
        sources(config(corpus))
    assert by_name(config(corpus, labels="optional"))["bea_1_01"].companions == ()
    (corpus / "Wavfile/zoe_3_12.wav").unlink()
    with pytest.raises(ValueError, match=r"1 labels have no audio file; the first is .*zoe_3_12\.pv"):
        sources(config(corpus, labels="optional"))


def test_wrong_settings(corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"no clip of amie in .*the training singers there are ada, amy, bea, zoe"):
        sources(config(corpus, val_singers=["amie"]))
    with pytest.raises(ValidationError, match="leon are test singers"):
        config(corpus, val_singers=["amy", "leon"])
    with pytest.raises(ValidationError, match="expected \\[lowest, highest\\]"):
        config(corpus, remix={"copies": 1, "gain_db": [5, -5]})
    with pytest.raises(ValidationError, match="set mix: mean or sum"):
        config(corpus, remix={"copies": 1}, mix="left")
    (corpus / "Wavfile/zoe.wav").write_bytes((corpus / "Wavfile/zoe_3_12.wav").read_bytes())
    (corpus / "PitchLabel/zoe.pv").write_text("0\n")
    with pytest.raises(ValueError, match=r"zoe\.wav: not a name of MIR-1K's"):
        sources(config(corpus))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("mix", ["mean", "sum"])
def test_remixed_clips(corpus: Path, swap: bool, mix: str) -> None:
    """Of a gain that is given: the voice 6 dB up over its own accompaniment, or another clip's cut or repeated."""
    settings = config(corpus, remix={"copies": 2, "gain_db": [6, 6], "swap": swap}, mix=mix)
    seconds = {name: 0.5 + 0.1 * i for i, name in enumerate(NAMES)}
    for name, source in by_name(settings).items():
        found = rows(settings, source)
        if source.split != "train":
            assert list(found) == [name]
            assert len(source.companions) == 1
            continue
        assert list(found) == [name, f"{name}~1", f"{name}~2"]
        voice = channels(name, seconds[name])[:, 1].astype(np.float64)
        for copy in (1, 2):
            other = Path(source.companions[copy]).stem if swap else name
            accompaniment = channels(other, seconds[other])[:, 0]
            mixture = voice * 10 ** (3 / 20) + np.tile(accompaniment, 2)[: len(voice)] / 10 ** (3 / 20)
            expected = Cfp(Settings())(mixture / 2 if mix == "mean" else mixture)
            np.testing.assert_allclose(feature(found[f"{name}~{copy}"]), expected, rtol=0, atol=1e-3)
        assert {key: found[f"{name}~1"][key] for key in ("group", "f0_hz", "ref_times_s", "ref_f0_hz")} == {
            key: found[name][key] for key in ("group", "f0_hz", "ref_times_s", "ref_f0_hz")
        }


def test_accompaniments_come_from_other_training_clips(corpus: Path) -> None:
    settings = config(corpus, remix={"copies": 50, "swap": True})
    training = {name for name, source in by_name(settings).items() if source.split == "train"}
    for name in training:
        partners = {Path(path).stem for path in by_name(settings)[name].companions[1:]}
        assert partners == training - {name}
    assert by_name(settings) == by_name(settings)
    other_seed = config(corpus, remix={"copies": 50, "swap": True, "seed": 1})
    assert by_name(settings)["ada_1_01"].companions != by_name(other_seed)["ada_1_01"].companions


def test_gains_are_drawn_anew_for_each_copy_and_the_same_for_each_reader(corpus: Path) -> None:
    settings = config(corpus, remix={"copies": 3})
    source = by_name(settings)["ada_1_01"]
    first, second = rows(settings, source), rows(settings, source)
    assert {id: row["cfp"] for id, row in first.items()} == {id: row["cfp"] for id, row in second.items()}
    assert len({row["cfp"] for row in first.values()}) == 4
    fewer = rows(config(corpus, remix={"copies": 1}), source)
    assert fewer["ada_1_01~1"]["cfp"] == first["ada_1_01~1"]["cfp"]
    other_seed = rows(config(corpus, remix={"copies": 1, "seed": 1}), source)
    assert other_seed["ada_1_01"]["cfp"] == first["ada_1_01"]["cfp"]
    assert other_seed["ada_1_01~1"]["cfp"] != first["ada_1_01~1"]["cfp"]


def test_a_partner_that_cannot_be_read_costs_its_copy_alone(corpus: Path) -> None:
    settings = config(corpus, remix={"copies": 1, "swap": True})
    source = by_name(settings)["ada_1_01"]
    Path(source.companions[1]).write_text("no music")
    rejected: list[Rejected] = []
    batches = list(read(settings, source, rejected.append))
    assert [batch["id"][0].as_py() for batch in batches] == ["ada_1_01"]
    assert "not a sound file" in rejected[0].reason


def test_swap_needs_another_clip(corpus: Path) -> None:
    for name in NAMES:
        if not name.startswith(("ada_1", "amy")):
            (corpus / f"Wavfile/{name}.wav").unlink()
            (corpus / f"PitchLabel/{name}.pv").unlink()
    with pytest.raises(ValueError, match="no other training clip"):
        sources(config(corpus, remix={"copies": 1, "swap": True}))


def test_real_clips(real_data: Path) -> None:
    settings = Config(path=str(real_data / "mir1k"))
    found = sources(settings)
    assert {split: sum(s.split == split for s in found) for split in ("train", "val", "test")} == {
        "train": 108, "val": 18, "test": 25,
    }  # fmt: skip
    for source in found[::20]:
        (row,) = rows(settings, source).values()
        assert row["num_frames"] * 0.016 == pytest.approx(soundfile.info(source.path).duration, abs=0.04)
        voiced = np.array([f0 for f0 in row["f0_hz"] if f0])
        assert 0.3 < len(voiced) / row["num_frames"] < 0.95
        assert 80 < voiced.min() < voiced.max() < 1000
