"""The mirdata corpora, through mirdata itself, on made-up files in the layout that an index of its form tells."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from mmray.datasets import Rejected, mirdata
from mmray.datasets.mirdata import Config, read, sources

RATE = 22050


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mirdata", None)
    with pytest.raises(ValueError, match=r'pip install "mmray\[mirdata\]"'):
        sources(Config(corpus="orchset", path=str(tmp_path)))


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"melody='melody3': medleydb_melody has melody1, melody2"):
        Config(corpus="medleydb_melody", path="x", melody="melody3")
    with pytest.raises(ValidationError, match=r"'ikala'.* or 'vocadito'"):
        Config.model_validate({"corpus": "gtzan", "path": "x"})
    with pytest.raises(ValueError, match=r"dataset\.path='.*nowhere': not a folder"):
        sources(Config(corpus="orchset", path=str(tmp_path / "nowhere")))


LINES = {
    "two columns": lambda times: "".join(f"{t},{220 if t > 0.2 else 0}\n" for t in times),
    "tabs": lambda times: "".join(f"{t}\t{220 if t > 0.2 else 0}\n" for t in times),
    "tonas": lambda times: "".join(f"{t}\t0.1\t{110 if t > 0.2 else 0}\t{220 if t > 0.2 else 0}\n" for t in times),
    "semitones": lambda times: "".join(f"{57 if t > 0.2 else 0}\n" for t in times),
}
CORPORA: dict[str, tuple[str, str, str, dict[str, str]]] = {  # audio key, label key, form of the label, ids and groups
    "ikala": ("audio", "pitch", "semitones", {"10161_chorus": "10161", "10161_verse": "10161", "10164_verse": "10164"}),
    "mdb_stem_synth": ("audio", "f0", "two columns", {"A_B_STEM_01": "A", "A_C_STEM_02": "A", "D_B_STEM_1": "D"}),
    "medleydb_melody": ("audio", "melody1", "two columns", {"Ann_One": "Ann", "Ann_Two": "Ann", "Bob_One": "Bob"}),
    "medleydb_pitch": ("audio", "pitch", "two columns", {"Ann_One_STEM_08": "Ann", "Bob_Two_STEM_01": "Bob"}),
    "orchset": ("audio_mono", "melody", "tabs", {"Haydn-S94-ex2": "Haydn-S94", "Haydn-S94-ex3": "Haydn-S94"}),
    "scms": ("audio", "pitch", "two columns", {"Song_1": "Singer A", "Song_2": "Singer A", "Other_1": "Singer B"}),
    "tonas": ("audio", "f0", "tonas", {"01-D_AMairena": "AMairena", "24-M1_AMairena-Martinete": "AMairena"}),
    "vocadito": ("audio", "f0", "two columns", {"1": "S1", "2": "S1", "10": "S2"}),
}
OTHER_KEYS = (
    "lyrics", "notes_pyin", "melody2", "melody3", "audio_stereo", "activations", "notes", "notesA1", "notesA2",
)  # fmt: skip


def write_metadata(root: Path, corpus: str, groups: dict[str, str]) -> None:
    if corpus == "vocadito":
        rows = [f"{id},{singer},60,English\n" for id, singer in groups.items()]
        (root / "vocadito_metadata.csv").write_text("track_id,singer_id,average_pitch,language\n" + "".join(rows))
    if corpus == "scms":
        singers = sorted(set(groups.values()))
        (root / "SCMS").mkdir(exist_ok=True)
        (root / "SCMS/metadata.json").write_text(
            json.dumps({"train": {singer: {"tonic": 1, "gender": "F"} for singer in singers}, "test": {}})
        )
        (root / "SCMS/artists_to_track_mapping.json").write_text(
            json.dumps({singer: [id for id in groups if groups[id] == singer] for singer in singers})
        )


Make = Callable[[str], Config]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Write a corpus of tones of 1 s, unvoiced in the first 0.2 s, with the index that mirdata reads."""
    core = pytest.importorskip("mirdata.core")

    def write(name: str) -> Config:
        audio_key, label_key, form, groups = CORPORA[name]
        root = tmp_path / "corpus"
        (root / "audio").mkdir(parents=True)
        tracks = {}
        times = np.round(np.arange(0.0, 1.0, 0.032 if form == "semitones" else 0.01), 6)
        for id in groups:
            soundfile.write(root / f"audio/{id}.wav", 0.1 * np.sin(np.arange(RATE) * 2 * np.pi * 220 / RATE), RATE)
            (root / f"{id}.label").write_text(LINES[form](times))
            others = {key: [None, None] for key in OTHER_KEYS}
            tracks[id] = others | {audio_key: [f"audio/{id}.wav", "0"], label_key: [f"{id}.label", "0"]}
        write_metadata(root, name, groups)
        (tmp_path / "index.json").write_text(json.dumps({"version": "1", "tracks": tracks}))
        monkeypatch.setattr(core.Index, "get_path", lambda self: str(tmp_path / "index.json"))
        mirdata._recordings.cache_clear()
        return Config(corpus=name, path=str(root))  # type: ignore[arg-type]

    return write


@pytest.mark.parametrize("name", CORPORA)
def test_recordings_are_rows(make: Make, name: str) -> None:
    config = make(name)
    batches = [b for source in sources(config) for b in read(config, source, pytest.fail)]
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert {row["id"]: row["group"] for row in rows} == CORPORA[name][3]
    assert all(source.split is None and len(source.companions) == 1 for source in sources(config))
    frame_times = np.arange(1, 63) * 0.016
    for row in rows:
        assert row["num_frames"] == 62
        f0 = np.array(row["f0_hz"])
        np.testing.assert_allclose(f0[(frame_times > 0.28) & (frame_times < 0.95)], 220, rtol=1e-6)
        assert not f0[frame_times < 0.2].any()
        assert row["ref_times_s"][0] == pytest.approx(0.016 if name == "ikala" else 0)


def test_all_corpora_are_tested() -> None:
    assert set(CORPORA) == set(get_args(Config.model_fields["corpus"].annotation))


def test_files_that_are_missing(make: Make) -> None:
    config = make("medleydb_melody")
    source = sources(config)[-1]
    Path(source.companions[0]).unlink()
    with pytest.raises(ValueError, match=r"1 of 3 clips have no label"):
        sources(config)
    assert sources(config.model_copy(update={"labels": "optional"}))[-1].companions == ()
    Path(source.path).unlink()
    with pytest.raises(ValueError, match=r"1 of the 3 recordings of medleydb_melody are not there"):
        sources(config)


@pytest.mark.parametrize("text", ["nothing that is a number\n", "", "0.0,100\n0.0,100\n", "0.0\n"])
def test_labels_that_mirdata_refuses(make: Make, text: str) -> None:
    config = make("medleydb_melody")
    source = sources(config)[0]
    Path(source.companions[0]).write_text(text)
    rejected: list[Rejected] = []
    assert not list(read(config, source, rejected.append))
    assert [bad.path for bad in rejected] == [source.companions[0]]


@pytest.mark.parametrize("name", ["scms", "vocadito"])
def test_metadata_that_is_missing(make: Make, name: str) -> None:
    config = make(name)
    for path in Path(config.path).rglob("*metadata*"):
        path.unlink()
    with pytest.raises(ValueError, match=f"metadata of {name} is missing"):
        sources(config)


def test_an_index_that_is_missing(make: Make, tmp_path: Path) -> None:
    config = make("orchset")
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match=r"mirdata has no index of orchset yet; run .*download\(\['index'\]\)"):
        sources(config)
