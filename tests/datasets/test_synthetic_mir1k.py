"""The made-up MIR-1K: its format, its determinism, and labels that agree with what is heard."""

from __future__ import annotations

import itertools
import re
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmray.datasets.synthetic import mir1k
from mmray.datasets.synthetic._instruments import NUM_HARMONICS, play
from mmray.datasets.synthetic.mir1k import SINGERS, Clip, Config, Voice, clip_plan, draw_clip, draw_song

SMALL = Config(num_clips=6, min_clip_s=4, max_clip_s=4.5)
RATE = 16_000


def generate(out: Path, config: Config, **options: int) -> Path:
    mir1k.generate(out, config, lambda done, total: None, **options)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("corpus"), SMALL)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Clip, np.ndarray, Voice]]:
    """Every fourth clip of a corpus in which all singers sing."""
    config = Config(num_clips=84)
    return [(clip, *draw_clip(config, clip)) for clip in clip_plan(config)[::4]]


def labels(path: Path) -> np.ndarray:
    return np.array([float(line) for line in path.read_text().splitlines()])


def stereo(path: Path) -> np.ndarray:
    """(n, 2) samples, read byte by byte past the 44 bytes of the plainest header."""
    data = path.read_bytes()
    assert data[:4] + data[8:16] + data[36:40] == b"RIFFWAVEfmt data"
    return np.frombuffer(data[44:], "<i2").reshape(-1, 2) / 32768


def pitch_by_periods(samples: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Semitones (0: none) and aperiodicity by YIN's difference function in windows of 30 ms around sample numbers.

    A. de Cheveigne and H. Kawahara, "YIN, a fundamental frequency estimator for speech and music", JASA 111(4), 2002
    """
    num_lags, window = RATE // 60, 480
    padded = np.pad(samples, num_lags + window)
    pitch, aperiodicity = np.zeros(len(centres)), np.ones(len(centres))
    for i, centre in enumerate(centres + num_lags + window):
        difference = np.ones(num_lags)
        for lag in range(RATE // 900, num_lags):
            start = centre - (window + lag) // 2
            apart = padded[start : start + window] - padded[start + lag : start + lag + window]
            difference[lag] = apart @ apart
        shortest = RATE // 900
        mean = np.cumsum(difference[shortest:]) / np.arange(1, num_lags - shortest + 1)
        difference[shortest:] /= np.maximum(mean, 1e-12)
        good = np.flatnonzero(difference[shortest:] < 0.15)
        lag = shortest + int(good[0] if len(good) else difference[shortest:].argmin())
        while lag + 1 < num_lags and difference[lag + 1] < difference[lag]:
            lag += 1
        aperiodicity[i] = difference[lag]
        if shortest < lag < num_lags - 1:
            left, middle, right = difference[lag - 1 : lag + 2]
            lag = lag + 0.5 * (left - right) / (left - 2 * middle + right)
        pitch[i] = 69 + 12 * np.log2(RATE / lag / 440)
    return pitch, aperiodicity


def test_labels_agree_with_the_periods_of_the_voice(tmp_path: Path) -> None:
    config = Config(num_clips=12, min_clip_s=4, max_clip_s=6)
    out = generate(tmp_path / "out", config)
    far, clear_but_unvoiced = [], []
    for path in sorted((out / "PitchLabel").iterdir()):
        voice, truth = stereo(out / "Wavfile" / f"{path.stem}.wav")[:, 1], labels(path)
        at = np.arange(len(truth))[::3]
        pitch, aperiodicity = pitch_by_periods(voice, 160 + 320 * at)
        voiced = truth[at] > 0
        far.append(np.abs(pitch - truth[at])[voiced] > 0.25)
        clear_but_unvoiced.append(aperiodicity[~voiced] < 0.1)
        assert far[-1].mean() < 0.12, path
    assert np.concatenate(far).mean() < 0.05
    assert np.concatenate(clear_but_unvoiced).mean() < 0.15


def test_files_are_those_of_the_real_corpus(corpus: Path) -> None:
    names = {clip.name for clip in clip_plan(SMALL)}
    assert {file.name for file in corpus.iterdir()} == {"Wavfile", "PitchLabel", "synthetic.json"}
    assert {file.name for file in (corpus / "Wavfile").iterdir()} == {f"{name}.wav" for name in names}
    assert {file.name for file in (corpus / "PitchLabel").iterdir()} == {f"{name}.pv" for name in names}
    for name in names:
        with wave.open(str(corpus / "Wavfile" / f"{name}.wav")) as file:
            assert file.getparams()[:3] == (2, 2, RATE)
            seconds = file.getnframes() / RATE
        assert 4 <= seconds <= 4.5
        text = (corpus / "PitchLabel" / f"{name}.pv").read_text()
        assert re.fullmatch(r"((0|\d\d(\.\d{1,4})?) \n)+", text)
        assert text.count("\n") == int((seconds - 0.04) / 0.02 + 1e-9) + 1


def test_layout_is_the_real_one(real_data: Path, corpus: Path) -> None:
    """Real files: the same form of a line, and the same number of labels for a length."""
    soundfile = pytest.importorskip("soundfile")
    real = real_data / "mir1k"
    for path in sorted((real / "PitchLabel").iterdir())[::10]:
        sound = soundfile.info(next((real / "Wavfile").glob(f"{path.stem}.*")))
        assert (sound.samplerate, sound.channels, sound.subtype) == (RATE, 2, "PCM_16")
        text = path.read_text()
        assert re.fullmatch(r"((0|\d\d(\.\d{1,4})?) \n)+", text)
        assert text.count("\n") == (sound.frames - 640) // 320 + 1
    assert soundfile.info(next((corpus / "Wavfile").iterdir())).subtype == "PCM_16"


def test_written_samples_and_labels_are_what_was_drawn(corpus: Path) -> None:
    clip = clip_plan(SMALL)[2]
    accompaniment, voice = draw_clip(SMALL, clip)
    written = stereo(corpus / "Wavfile" / f"{clip.name}.wav")
    np.testing.assert_allclose(written, np.stack([accompaniment, voice.samples], axis=1), atol=1e-4)
    truth = labels(corpus / "PitchLabel" / f"{clip.name}.pv")
    for i in range(len(truth)):
        at = 160 + 320 * i
        assert truth[i] == pytest.approx(voice.pitch[at] if voice.voiced[at] else 0.0, abs=1e-4)


def test_plan_shares_clips_among_splits_and_singers() -> None:
    plan = clip_plan(Config(num_clips=200))
    assert Counter(clip.split for clip in plan) == {"train": 140, "val": 20, "test": 40}
    assert [clip.index for clip in plan] == list(range(200))
    assert len({clip.name for clip in plan}) == 200
    for split, singers in SINGERS.items():
        count = Counter(clip.singer for clip in plan if clip.split == split)
        assert set(count) == set(singers)
        assert max(count.values()) - min(count.values()) <= 5
    for song, clips in itertools.groupby(plan, key=lambda clip: clip.song):
        of_song = list(clips)
        assert len(of_song) <= 5
        assert len({clip.singer for clip in of_song}) == 1
        prefix = {clip.name.rsplit("_", 1)[0] for clip in of_song}
        assert len(prefix) == 1
        assert prefix.isdisjoint(clip.name.rsplit("_", 1)[0] for clip in plan if clip.song != song)


@pytest.mark.parametrize("num_clips", [1, 2, 3, 10, 21, 1000])
def test_plan_has_every_clip_once(num_clips: int) -> None:
    plan = clip_plan(Config(num_clips=num_clips, clips_per_song=9))
    assert len({clip.name for clip in plan}) == len(plan) == num_clips


def test_settings_that_contradict_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"min_clip_s=14\.0 is more than max_clip_s=13\.0"):
        Config(min_clip_s=14)
    with pytest.raises(ValueError, match=r"min_voice_db=6\.0 is more than max_voice_db=5\.0"):
        Config(min_voice_db=6)
    with pytest.raises(ValueError, match=r"train_fraction=0\.8 and val_fraction=0\.3"):
        Config(train_fraction=0.8, val_fraction=0.3)


def test_processes_write_the_same_bytes(tmp_path: Path, corpus: Path) -> None:
    assert contents(generate(tmp_path / "two", SMALL, num_processes=2)) == contents(corpus)


def test_same_bytes_in_any_order_and_other_bytes_for_another_seed(tmp_path: Path, corpus: Path) -> None:
    whole = contents(corpus)
    for clip in reversed(clip_plan(SMALL)):
        mir1k.write_clip(SMALL, clip, tmp_path / "alone")
    assert contents(tmp_path / "alone").items() <= whole.items()
    other = contents(generate(tmp_path / "other", SMALL.model_copy(update={"seed": 1})))
    assert not [name for name in whole if whole[name] == other[name]]
    assert len(set(whole.values())) == len(whole)


def test_a_stopped_run_goes_on_and_another_corpus_is_not_mixed_in(tmp_path: Path) -> None:
    out = generate(tmp_path / "out", SMALL)
    before = contents(out)
    first, second, third = (mir1k.clip_files(out, clip) for clip in clip_plan(SMALL)[:3])
    first[0].unlink()
    second[1].unlink()
    kept = third[0].stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    summary = mir1k.generate(out, SMALL, lambda done, total: calls.append((done, total)))
    assert calls == [(5, 6), (6, 6)]
    assert contents(out) == before
    assert third[0].stat().st_mtime_ns == kept
    assert (summary.num_items, summary.num_files) == (6, 13)
    assert summary.num_bytes == sum(map(len, before.values()))
    with pytest.raises(ValueError, match="other settings"):
        generate(out, SMALL.model_copy(update={"seed": 1}))
    (out / "synthetic.json").unlink()
    with pytest.raises(ValueError, match="not empty"):
        generate(out, SMALL)


def test_lengths_levels_and_share_of_voice(drawn: list[tuple[Clip, np.ndarray, Voice]]) -> None:
    config = Config(num_clips=84)
    shares, seconds = [], []
    for clip, accompaniment, voice in drawn:
        assert accompaniment.shape == voice.samples.shape == voice.pitch.shape == voice.voiced.shape
        seconds.append(len(voice.samples) / RATE)
        shares.append(voice.voiced.mean())
        assert 0.5 <= max(np.abs(accompaniment).max(), np.abs(voice.samples).max()) <= 0.95 + 1e-6
        ratio_db = 10 * np.log10(np.square(voice.samples).mean() / np.square(accompaniment).mean())
        assert ratio_db == pytest.approx(draw_song(config, clip.song).voice_db, abs=1e-6)
        assert 0 <= ratio_db <= 5
    assert min(seconds) >= 4
    assert max(seconds) <= 13
    assert 6.5 < np.mean(seconds) < 9.5
    assert min(shares) >= 0.5
    assert max(shares) <= 0.9
    assert 0.6 < np.mean(shares) < 0.8


def test_pitch_stays_within_a_voice_and_moves_as_voices_do(drawn: list[tuple[Clip, np.ndarray, Voice]]) -> None:
    within_a_window, vibrato_hz = [], []
    for clip, _, voice in drawn:
        sung = voice.pitch[voice.voiced]
        assert 36 < sung.min() < sung.max() < 78
        middle = mir1k.draw_singer(Config(num_clips=84), clip.singer).middle
        assert abs(np.median(sung) - middle) < 8
        at = np.flatnonzero(voice.voiced[:-320] & voice.voiced[320:])
        within_a_window.append(np.abs(voice.pitch[at + 320] - voice.pitch[at]))
        edges = np.flatnonzero(np.diff(voice.voiced.astype(int)))
        for start, end in itertools.pairwise(edges):
            if voice.voiced[start + 1] and end - start > RATE:
                held = voice.pitch[end - 12_000 : end - 1_500 : 50]
                held = held - np.polyval(np.polyfit(np.arange(len(held)), held, 3), np.arange(len(held)))
                spectrum = np.abs(np.fft.rfft(held * np.hanning(len(held)), 4096))
                peak = np.fft.rfftfreq(4096, 50 / RATE)[spectrum.argmax()]
                if 0.2 < held.std() * 2**0.5 < 0.9:
                    vibrato_hz.append(peak)
    assert np.quantile(np.concatenate(within_a_window), 0.9) < 1.0  # the real corpus: 0.55 semitones in 20 ms
    assert np.mean([4.5 < peak < 7 for peak in vibrato_hz]) > 0.4


def test_clips_of_a_song_share_key_and_speed_and_differ_in_music(drawn: list[tuple[Clip, np.ndarray, Voice]]) -> None:
    config = Config(num_clips=84)
    first, second = clip_plan(config)[:2]
    assert first.song == second.song
    one, two = draw_clip(config, first)[1], draw_clip(config, second)[1]
    n = min(len(one.pitch), len(two.pitch))
    assert np.abs(one.pitch[:n] - two.pitch[:n]).mean() > 0.5
    for clip, _, voice in drawn:
        pitch_classes = draw_song(config, clip.song).pitch_classes
        held = voice.pitch[voice.voiced][::160]
        away = np.abs((held[:, None] - np.array(pitch_classes) + 6) % 12 - 6).min(1)
        assert np.median(away) < 0.3  # notes of any pitch: 0.43


def test_singers_and_songs_differ() -> None:
    config = Config()
    singers = [mir1k.draw_singer(config, name) for names in SINGERS.values() for name in names]
    assert len({singer.middle for singer in singers}) == 21
    high = [singer.middle > 56.5 for singer in singers]
    assert 8 <= sum(high) <= 13
    songs = [draw_song(config, song) for song in range(60)]
    assert len({song.chords for song in songs}) > 30
    assert 0.45 < np.mean(["lead" in song.band for song in songs]) < 0.75
    assert all(song.band for song in songs)


@pytest.mark.parametrize("clip_s", [1.0, 30.0])
def test_short_and_long_clips_have_a_voice(clip_s: float) -> None:
    config = Config(num_clips=8, min_clip_s=clip_s, max_clip_s=clip_s)
    for clip in clip_plan(config)[:: 1 if clip_s == 1 else 4]:
        accompaniment, voice = draw_clip(config, clip)
        assert len(accompaniment) == clip_s * RATE
        assert voice.voiced.mean() > 0.2
        assert np.isfinite(accompaniment).all()
        assert np.isfinite(voice.samples).all()


@pytest.mark.parametrize("name", ["pluck", "pad", "bass", "lead"])
def test_an_instrument_plays_the_sum_of_its_harmonics(name: str) -> None:
    """Harmonic by harmonic, as the docstring of `play` has it; the vibrato is that of f0 (1 + bend)."""
    instrument = mir1k.draw_instrument(name, np.random.default_rng(3))
    n = 8_000
    t = np.arange(n + 800) / RATE
    bend = instrument.vibrato_semitones * np.log(2) / 12 * np.clip((t - 0.2) / 0.3, 0, 1)
    bend *= np.sin(2 * np.pi * instrument.vibrato_hz * t)
    expected = np.zeros(len(t))
    for string in {-instrument.detuning, instrument.detuning}:
        phase = 2 * np.pi * np.cumsum((1 + bend) * 440 * 2 ** ((57 + string - 69) / 12)) / RATE
        for k in range(1, NUM_HARMONICS + 1):
            weight = k**-instrument.slope * (1 if k % 2 else instrument.even)
            expected += weight * np.exp(-instrument.decay_per_s * (0.7 + 0.3 * k) * t) * np.sin(k * phase)
    expected *= instrument.gain * np.minimum(t / instrument.attack_s, 1) * np.minimum((t[-1] - t) / 0.05, 1)
    np.testing.assert_allclose(play(instrument, 57, n, RATE), expected, atol=1e-4 * np.abs(expected).max())


def test_the_voice_has_all_harmonics_of_its_label_and_nothing_between_them() -> None:
    """The spectrum of the longest steady stretch of each singer, at the label's multiples and halfway between."""
    config = Config(num_clips=42)
    steps_db = []
    for clip in clip_plan(config)[::4]:
        voice = draw_clip(config, clip)[1]
        n = 2_048
        starts = [i for i in range(0, len(voice.pitch) - n, 512) if voice.voiced[i : i + n].all()]
        start = min(starts, key=lambda i: float(np.ptp(voice.pitch[i : i + n])))
        f0_hz = 440 * 2 ** ((voice.pitch[start : start + n].mean() - 69) / 12)
        t = np.arange(n) / RATE
        windowed = voice.samples[start : start + n] * np.blackman(n)
        for k in range(1, 7):
            level, between = (abs(windowed @ np.exp(-2j * np.pi * m * f0_hz * t)) for m in (k, k + 0.5))
            steps_db.append(20 * np.log10(level / between))
    assert np.median(steps_db) > 20
    assert np.mean(np.array(steps_db) > 6) > 0.9
