"""Windows over a file against the whole file in one piece, and which files are read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmray.features import audio
from mmray.features.cfp import Cfp, Settings
from mmray.features.contour import Contour, decode_argmax
from mmray.models import dense_aspp
from mmray.tasks import _melody_files
from mmray.tasks._melody_files import audio_files, extract, extract_contour, logits_of_map, outputs

CPU = torch.device("cpu")
SMALL = Settings(sample_rate_hz=8000, hop=80, window=513, resolution_hz=8.0, min_hz=80.0, bins_per_octave=12)


class SmallModel(nn.Module):
    """Batch norm and dilated convolutions; the first output row is pooled, as those of the real models are."""

    context_frames = 7

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.SELU(),
            nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=6, dilation=6), nn.SELU(), nn.Conv2d(4, 1, 1),
        )  # fmt: skip
        for layer in self.body:
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.running_mean)  # type: ignore[arg-type]
                nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
        self.calls: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(x.shape[3])
        pitches = self.body(x)[:, 0]
        return torch.cat([pitches.mean(dim=1, keepdim=True), 3 * pitches], dim=1)


@pytest.fixture
def model() -> nn.Module:
    return SmallModel().eval()


def write_song(path: Path, seconds: float = 3.0, rate: int = 8000, channels: int = 2) -> np.ndarray:
    """A gliding tone in noise, stereo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(2 * np.pi * (200 * t + 30 * t * t))
    samples = tone[:, None] + 0.05 * rng.standard_normal((len(t), channels))
    soundfile.write(path, samples, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return samples.astype(np.float32)


def in_one_piece(model: nn.Module, cfp: Cfp, samples: np.ndarray) -> np.ndarray:
    """Posteriors (T, F + 1) of the whole clip at once."""
    x = torch.from_numpy(cfp(samples)).permute(1, 2, 0)[None]
    with torch.inference_mode():
        return model(x)[0].softmax(dim=0).T.numpy()


# ---- The model over a file


@pytest.mark.parametrize("window_frames", [1, 5, 32, 100, 290, 10_000])
def test_windows_equal_the_whole_file(tmp_path: Path, model: nn.Module, window_frames: int) -> None:
    cfp = Cfp(SMALL)
    samples = write_song(tmp_path / "a.wav")
    expected = in_one_piece(model, cfp, samples.mean(axis=1))
    parts = list(extract(model, cfp, tmp_path / "a.wav", CPU, window_frames=window_frames))
    assert all(part.dtype == np.float32 for part in parts)
    assert [len(part) for part in parts[:-1]] == [window_frames] * (len(parts) - 1)
    result = np.concatenate(parts)
    assert result.shape == (SMALL.num_frames(len(samples)), SMALL.num_bins + 1) == expected.shape
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6)
    assert max(model.calls[1:]) <= window_frames + 2 * model.context_frames
    with torch.inference_mode():
        logits = logits_of_map(model, torch.from_numpy(cfp(samples.mean(axis=1))), window_frames)
    np.testing.assert_allclose(logits.softmax(dim=0).T.numpy(), expected, rtol=0, atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 50), st.integers(0, 20))
def test_pieces_join_and_bring_their_context(chunks: list[int], num_inner: int, context: int) -> None:
    sequence = np.arange(sum(chunks), dtype=np.float32)[:, None]
    frames = iter(np.split(sequence, np.cumsum(chunks)[:-1]))
    seen = 0
    for piece, first, last in _melody_files._windows(frames, num_inner, context):
        start, stop = max(0, seen - context), min(len(sequence), seen + last - first + context)
        assert piece[:, 0].tolist() == list(range(start, stop))
        assert piece[first, 0] == seen
        seen += last - first
    assert seen == len(sequence)


def test_wrong_context_would_show(tmp_path: Path, model: nn.Module) -> None:
    """So the tests above can fail."""
    cfp = Cfp(SMALL)
    samples = write_song(tmp_path / "a.wav")
    model.context_frames = 6  # type: ignore[assignment]
    result = np.concatenate(list(extract(model, cfp, tmp_path / "a.wav", CPU, window_frames=50)))
    assert np.abs(result - in_one_piece(model, cfp, samples.mean(axis=1))).max() > 1e-4


@pytest.mark.parametrize("statistics", ["running", "clip"])
def test_published_architecture_in_windows(tmp_path: Path, statistics: Literal["running", "clip"]) -> None:
    torch.manual_seed(1)
    model = dense_aspp.Config(growth=2, skip_copies=1, batch_statistics=statistics).build(SMALL.num_bins)
    for _ in range(3):  # running statistics other than 0 and 1, so that the edges of a window would show
        model(torch.rand(2, 3, SMALL.num_bins, 50))
    model.eval()
    cfp = Cfp(SMALL)
    samples = write_song(tmp_path / "a.wav", seconds=5)
    expected = in_one_piece(model, cfp, samples.mean(axis=1))
    result = np.concatenate(list(extract(model, cfp, tmp_path / "a.wav", CPU, window_frames=128)))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        logits = logits_of_map(model, torch.from_numpy(cfp(samples.mean(axis=1))), window_frames=128)
    np.testing.assert_allclose(logits.softmax(dim=0).T.numpy(), expected, rtol=0, atol=1e-5)


def test_contour_of_a_file(tmp_path: Path, model: nn.Module) -> None:
    cfp = Cfp(SMALL)
    samples = write_song(tmp_path / "a.flac", rate=22050)
    resampled = audio.read(tmp_path / "a.flac", 8000, "left")
    expected = in_one_piece(model, cfp, resampled)

    def decode(posteriors: np.ndarray) -> Contour:
        np.testing.assert_allclose(posteriors, expected, rtol=1e-4)  # float16 would round by more
        return decode_argmax(posteriors, SMALL.frequencies_hz())

    found = extract_contour(model, cfp, tmp_path / "a.flac", CPU, decode, mix="left", window_frames=64)
    num_frames = SMALL.num_frames(round(len(samples) * 8000 / 22050))
    np.testing.assert_allclose(found.times_s, 0.01 * np.arange(1, num_frames + 1), rtol=0, atol=1e-12)
    rows = expected.argmax(axis=1)
    agree = np.sort(expected, axis=1)
    clear = agree[:, -1] > 1.01 * agree[:, -2]  # rounding may turn a tie
    assert clear.mean() > 0.8
    hz = np.concatenate([[0.0], SMALL.frequencies_hz()])[rows]
    np.testing.assert_allclose(found.f0_hz[clear], hz[clear])
    np.testing.assert_allclose(found.confidence, 1 - expected[:, 0], atol=1e-3)


def test_shortest_clips(tmp_path: Path, model: nn.Module) -> None:
    cfp = Cfp(SMALL)
    for num_samples, num_frames in ((81, 1), (161, 2), (700, 8)):
        soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, num_samples), 8000)
        (part,) = extract(model, cfp, tmp_path / "a.wav", CPU)
        assert part.shape == (num_frames, SMALL.num_bins + 1)
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), 8000)
    (part,) = extract(model, cfp, tmp_path / "silence.wav", CPU)
    assert np.isfinite(part).all()


def test_errors_name_the_file(tmp_path: Path, model: nn.Module) -> None:
    cfp = Cfp(SMALL)
    soundfile.write(tmp_path / "short.wav", np.zeros(80), 8000)
    soundfile.write(tmp_path / "loud.wav", np.full(800, 1e20), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), 8000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound")
    for name, reason in (
        ("short.wav", "too short for a frame of 80 samples"),
        ("loud.wav", "samples must be finite"),
        ("nan.wav", "nan"),
        ("text.wav", "not a sound file"),
        ("missing.wav", "can.t be read"),
    ):
        with pytest.raises(ValueError, match=reason) as caught:
            list(extract(model, cfp, tmp_path / name, CPU))
        assert str(tmp_path / name) in str(caught.value)
        assert str(caught.value).count(str(tmp_path / name)) == 1
    write_song(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="window_frames=0"):
        list(extract(model, cfp, tmp_path / "a.wav", CPU, window_frames=0))
    with pytest.raises(ValueError, match="without frames"):
        logits_of_map(model, torch.empty(0, 3, SMALL.num_bins))
    model.train()
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        list(extract(model, cfp, tmp_path / "a.wav", CPU))


def test_memory_does_not_grow_with_the_file(tmp_path: Path, model: nn.Module) -> None:
    """What is held at once: at most a window with its context, and a chunk."""
    held = []

    def frames(num_chunks: int) -> list[np.ndarray]:
        return [np.zeros((32, 2), np.float32)] * num_chunks

    for piece, _, _ in _melody_files._windows(iter(frames(500)), 100, 7):
        held.append(len(piece) if piece.base is None else len(piece.base))
    assert max(held) <= 100 + 2 * 7 + 32


# ---- Which files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_audio_files(tmp_path: Path) -> None:
    touch(tmp_path, "b.wav", "a.MP3", "sub/deep/c.flac", "a.csv", "._b.wav", ".hidden.wav", "song [live].wav", "odd")
    (tmp_path / "folder.wav").mkdir()
    expected = [tmp_path / name for name in ("a.MP3", "b.wav", "song [live].wav", "sub/deep/c.flac")]
    assert audio_files(tmp_path) == expected == audio_files(f"{tmp_path}/**/*")
    assert audio_files(tmp_path / "song [live].wav") == [tmp_path / "song [live].wav"]
    assert audio_files(tmp_path / "odd") == [tmp_path / "odd"]  # its content decides
    assert audio_files(f"{tmp_path}/*.wav") == [tmp_path / "b.wav", tmp_path / "song [live].wav"]
    for source, reason in (
        (tmp_path / "none", "nothing; give a sound file"),
        (f"{tmp_path}/*.ogg", "nothing"),
        (f"{tmp_path}/*.csv", "1 files, none of them sound"),
        (tmp_path / "folder.wav", "nothing"),
    ):
        with pytest.raises(ValueError, match=reason):
            audio_files(source)


BOTH = frozenset(["midi", "sonification"])


def test_outputs_of_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "song.wav")
    song = [tmp_path / "song.wav"]
    for out, extras, expected in (
        ("song.csv", BOTH, {"contour": "song.csv", "midi": "song.mid", "sonification": "song.melody.wav"}),
        ("v1.2.txt", {"midi"}, {"contour": "v1.2.txt", "midi": "v1.2.mid"}),
        ("new.TXT", (), {"contour": "new.TXT"}),
        ("out", ["sonification"], {"contour": "out/song.melody.csv", "sonification": "out/song.melody.wav"}),
        (".", {"midi"}, {"contour": "song.melody.csv", "midi": "song.melody.mid"}),
    ):
        assert outputs(song, tmp_path / out, extras) == [{kind: tmp_path / name for kind, name in expected.items()}]


def test_outputs_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.wav", "in/album/a.mp3", "in/album/01. b.wav")
    for root in (tmp_path, Path()):
        monkeypatch.chdir(tmp_path)
        assert [one["contour"] for one in outputs(audio_files(root / "in"), tmp_path / "out")] == [
            tmp_path / "out" / name for name in ("a.melody.csv", "album/01. b.melody.csv", "album/a.melody.csv")
        ]
    (one, *_) = outputs(audio_files(tmp_path / "in"), tmp_path / "in")
    assert one == {"contour": tmp_path / "in" / "a.melody.csv"}
    touch(tmp_path, "in/a.flac")
    with pytest.raises(ValueError, match=r"a\.flac and .*a\.wav would both be written to .*a\.melody\.csv"):
        outputs(audio_files(tmp_path / "in"), tmp_path / "out")


def test_outputs_that_would_do_harm(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.wav", "in/b.wav", "in/a.melody.wav", "file", "odd.csv")
    several, one = audio_files(tmp_path / "in"), [tmp_path / "in" / "a.wav"]
    for files, out, reason in (
        (several, "out.csv", "is one table, but there are 3 sound files"),
        (several, "file", "is no place for tables"),
        (one, "song.mid", "is no place for tables"),
        (one, "song.MP3", "is no place for tables"),
        (several, "in", "a later run would take the sonifications for songs"),
        (several, "in/melody", "a later run would take the sonifications for songs"),
        ([tmp_path / "odd.csv"], "odd.csv", "is a sound file that is to be read"),
        ([tmp_path / "in" / "a.melody.wav"], "in/a.csv", "is a sound file that is to be read"),
    ):
        with pytest.raises(ValueError, match=reason):
            outputs(files, tmp_path / out, BOTH)
    (tmp_path / "link.csv").symlink_to(tmp_path / "in" / "a.wav")
    with pytest.raises(ValueError, match="is a sound file that is to be read"):
        outputs(one, tmp_path / "link.csv")
    with pytest.raises(ValueError, match="'video' is nothing that can be written for a song; choose from midi, son"):
        outputs(one, tmp_path / "a.csv", ["video"])
