"""The authors' own weights on real sound: feature, model and decoding must fit together as they did for the authors."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import mir_eval
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmray.features import audio, cfp
from mmray.features.pitch_labels import read_mir1k
from mmray.models import dense_aspp, segnet

TEST_SINGERS = ("leon", "stool", "tammy", "titon", "yifen")
SOME_CLIPS = ("leon_7_13", "stool_5_07", "tammy_1_07", "titon_3_07", "yifen_2_09")


def load(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        pytest.skip(f"no released weights at {path}")
    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def estimate(model: torch.nn.Module, settings: cfp.Settings, sound: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Time and pitch of each frame, 0 Hz where there's no melody, by the largest logit."""
    scaled = cfp.Cfp(settings)(audio.read(sound, settings.sample_rate_hz))
    with torch.no_grad():
        rows = model(torch.from_numpy(scaled).permute(1, 2, 0)[None].contiguous())[0].argmax(dim=0).numpy()
    return settings.frame_times_s(len(rows)), np.concatenate([[0.0], settings.pitches_hz()])[rows]


def accuracies(batch_statistics: str, names: list[str], real_data: Path) -> tuple[float, float]:
    """Mean overall accuracy over MIR-1K clips: ours, and what the authors' script wrote for the same weights."""
    state = load(real_data / "melody_weights" / "denseaspp10_authors_epoch22.pt")
    config = dense_aspp.Config(**{**dict(dense_aspp.published_config(state)), "batch_statistics": batch_statistics})
    model = config.build(256).eval()
    model.load_state_dict(dense_aspp.rename_published(state))
    with (real_data / "melody_weights" / "test_result_of_MIR1K.csv").open() as table:
        published = {row["Songname"]: float(row["OA"]) / 100 for row in csv.DictReader(table)}
    ours = []
    for name in names:
        (sound,) = (real_data / "mir1k" / "Wavfile").glob(name + ".*")
        track = read_mir1k(real_data / "mir1k" / "PitchLabel" / f"{name}.pv")
        scores = mir_eval.melody.evaluate(track.times_s, track.f0_hz, *estimate(model, cfp.Settings(), sound))
        ours.append(scores["Overall Accuracy"])
    return float(np.mean(ours)), float(np.mean([published[name] for name in names]))


@pytest.mark.parametrize("batch_statistics", ["clip", "running"])
def test_dense_aspp_scores_on_some_clips_as_its_authors_report(batch_statistics: str, real_data: Path) -> None:
    ours, published = accuracies(batch_statistics, list(SOME_CLIPS), real_data)
    assert abs(ours - published) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("batch_statistics", ["clip", "running"])
def test_dense_aspp_scores_on_all_clips_as_its_authors_report(batch_statistics: str, real_data: Path) -> None:
    sounds = (real_data / "mir1k" / "Wavfile").iterdir()
    names = sorted(sound.stem for sound in sounds if sound.stem.split("_")[0] in TEST_SINGERS)
    assert len(names) == 25
    ours, published = accuracies(batch_statistics, names, real_data)
    assert abs(ours - published) < 0.02


def test_segnet_gives_its_authors_output(real_data: Path) -> None:
    """Frame by frame the same row; the authors wrote its pitch without the digits behind the point."""
    model = segnet.Config().build(320).eval()
    model.load_state_dict(segnet.rename_published(load(real_data / "melody_weights" / "segnet_vocal.pt")))
    settings = cfp.Settings(sample_rate_hz=44100, bins_per_octave=60)
    times_s, f0_hz = estimate(model, settings, real_data / "melody_weights" / "train01.wav")
    expected = np.loadtxt(real_data / "melody_weights" / "train01_segnet_output.txt")
    np.testing.assert_allclose(times_s, expected[:, 0], rtol=1e-12)
    assert np.mean(np.floor(f0_hz) == expected[:, 1]) > 0.999
    scores = mir_eval.melody.evaluate(expected[:, 0], expected[:, 1], times_s, f0_hz)
    assert scores["Overall Accuracy"] > 0.999
