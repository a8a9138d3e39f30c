"""The made-up music: its files, its determinism, and that tracks are easier to know than moods."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmray.datasets.synthetic import music_emotion
from mmray.datasets.synthetic._instruments import pitches_from, play
from mmray.datasets.synthetic.music_emotion import (
    MOODS,
    Config,
    Song,
    Track,
    _Band,
    draw_song,
    perform,
    track_file,
    track_plan,
    write_track,
)

SMALL = Config(num_tracks=4, minutes=0.1, sample_rates_hz=(8_000, 11_025))


def generate(out: Path, config: Config, **options: int) -> Path:
    music_emotion.generate(out, config, lambda done, total: None, **options)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("corpus"), SMALL)


@pytest.fixture(scope="module")
def songs() -> dict[str, list[Song]]:
    """What 120 tracks of each emotion are like."""
    config = Config(num_tracks=360, sample_rates_hz=(8_000,))
    drawn: dict[str, list[Song]] = {emotion: [] for emotion in MOODS}
    for track in track_plan(config):
        drawn[track.emotion].append(draw_song(config, track))
    return drawn


def test_a_folder_an_emotion_and_a_file_a_track(corpus: Path) -> None:
    names = {"Angry/angry_01.flac", "Happy/happy_01.flac", "Sad/sad_01.flac", "Angry/angry_02.flac", "synthetic.json"}
    assert set(contents(corpus)) == names
    for path in corpus.rglob("*.flac"):
        info = soundfile.info(path)
        assert (info.format, info.subtype) == ("FLAC", "PCM_16")
        assert info.samplerate in (8_000, 11_025)
        assert info.channels in (1, 2)
        assert 0.8 * 6 - 1e-3 <= info.duration <= 1.2 * 6 + 1e-3
        samples = soundfile.read(path)[0]
        assert 0.005 < np.sqrt(np.square(samples).mean()) < 0.5
        assert np.abs(samples).max() < 1


def test_rates_channels_and_lengths_are_all_there() -> None:
    config = Config(num_tracks=60)
    recordings = [(song.recording, song.num_samples) for song in (draw_song(config, t) for t in track_plan(config))]
    seconds = [num_samples / recording.sample_rate_hz for recording, num_samples in recordings]
    formats = Counter((recording.sample_rate_hz, recording.num_channels) for recording, _ in recordings)
    assert set(formats) == {(22_050, 1), (22_050, 2), (44_100, 1), (44_100, 2)}
    assert 0.8 * 240 <= min(seconds) < 210 < 270 < max(seconds) <= 1.2 * 240
    exact = Config(num_tracks=1, minutes=0.5, length_spread=0, sample_rates_hz=(16_000,), stereo_share=1)
    song = draw_song(exact, track_plan(exact)[0])
    assert (song.num_samples, song.recording.num_channels) == (480_000, 2)


def test_a_wav_too_long_for_its_header_is_rf64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SMALL.model_copy(update={"file_format": "wav", "num_tracks": 1})
    track = track_plan(config)[0]
    write_track(config, track, tmp_path / "short")
    monkeypatch.setattr(music_emotion, "WAV_BYTES", 1_000)
    write_track(config, track, tmp_path / "long")
    short, long = (track_file(tmp_path / folder, config, track) for folder in ("short", "long"))
    assert (soundfile.info(short).format, soundfile.info(long).format) == ("WAV", "RF64")
    np.testing.assert_array_equal(soundfile.read(short)[0], soundfile.read(long)[0])


@pytest.mark.parametrize("shares", [(1, 1, 1), (10, 10, 2), (0, 1, 3), (0.1, 0.1, 0.1)])
def test_plan_keeps_to_the_shares_at_any_length(shares: tuple[float, float, float]) -> None:
    plan = track_plan(Config(num_tracks=22, shares=shares))
    assert [track.index for track in plan] == list(range(22))
    assert len({track.name for track in plan}) == 22
    for n in range(1, 23):
        counts = Counter(track.emotion for track in plan[:n])
        for emotion, share in zip(MOODS, shares, strict=True):
            assert abs(counts[emotion] - n * share / sum(shares)) < 1.01
    assert Counter(track.emotion for track in track_plan(Config(num_tracks=22, shares=(10, 10, 2)))) == {
        "Angry": 10,
        "Happy": 10,
        "Sad": 2,
    }


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"shares": (0, 0, 0)}, r"shares=\(0\.0, 0\.0, 0\.0\)"),
        ({"shares": (1, -1, 1)}, r"shares="),
        ({"shares": (1, float("nan"), 1)}, r"shares="),
        ({"sample_rates_hz": (44_100, 100)}, r"rates from 8000"),
        ({"minutes": 0}, r"minutes"),
        ({"tempo": 3}, r"tempo"),
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Config(**wrong)  # type: ignore[arg-type]


def test_processes_write_the_same_bytes(tmp_path: Path, corpus: Path) -> None:
    assert contents(generate(tmp_path / "two", SMALL, num_processes=2)) == contents(corpus)


def test_same_bytes_in_any_order_and_other_bytes_for_another_seed(tmp_path: Path, corpus: Path) -> None:
    whole = contents(corpus)
    for track in reversed(track_plan(SMALL)):
        write_track(SMALL, track, tmp_path / "alone")
    assert contents(tmp_path / "alone").items() <= whole.items()
    other = contents(generate(tmp_path / "other", SMALL.model_copy(update={"seed": 1})))
    assert not [name for name in whole if whole[name] == other[name]]
    assert len(set(whole.values())) == len(whole)


def test_a_stopped_run_goes_on_and_another_corpus_is_not_mixed_in(tmp_path: Path) -> None:
    out = generate(tmp_path / "out", SMALL)
    before = contents(out)
    (out / "Happy" / "happy_01.flac").unlink()
    kept = (out / "Sad" / "sad_01.flac").stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    summary = music_emotion.generate(out, SMALL, lambda done, total: calls.append((done, total)))
    assert calls == [(4, 4)]
    assert contents(out) == before
    assert (out / "Sad" / "sad_01.flac").stat().st_mtime_ns == kept
    assert (summary.num_items, summary.num_files, summary.num_bytes) == (4, 5, sum(map(len, before.values())))
    with pytest.raises(ValueError, match="other settings"):
        generate(out, SMALL.model_copy(update={"seed": 1}))
    (out / "synthetic.json").unlink()
    with pytest.raises(ValueError, match="not empty"):
        generate(out, SMALL)


def test_a_longer_track_begins_as_a_shorter_one_and_takes_no_more_memory() -> None:
    """What was drawn section by section joins without a seam: nothing depends on where the track ends."""
    peaks, starts = [], []
    for minutes in (0.5, 3.0):
        config = Config(num_tracks=1, minutes=minutes, length_spread=0, sample_rates_hz=(8_000,), stereo_share=1)
        track = track_plan(config)[0]
        song = draw_song(config, track)
        tracemalloc.start()
        num_samples = 0
        for block in perform(config, track, song):
            if num_samples == 0:
                starts.append(block)
            num_samples += block.shape[1]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert num_samples == song.num_samples == minutes * 60 * 8_000
    np.testing.assert_array_equal(*starts)
    assert peaks[1] < 1.3 * peaks[0]


def test_the_room_goes_on_from_section_to_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """A track, before the limiter, is what the band played, convolved in one piece with colour and room."""
    config = Config(num_tracks=1, minutes=0.5, sample_rates_hz=(8_000,), shares=(0, 0, 1), stereo_share=1)
    track = track_plan(config)[0]
    song = draw_song(config, track)
    impulse = np.eye(1, 2, dtype=np.float32).repeat(2, axis=0)  # a recording that adds nothing
    monkeypatch.setattr(np, "tanh", lambda x: x)
    dry = list(perform(config, track, replace(song, recording=replace(song.recording, response=impulse))))
    assert len(dry) >= 2
    whole = np.concatenate(list(perform(config, track, song)), axis=1)
    pairs = zip(np.concatenate(dry, axis=1), song.recording.response, strict=True)
    expected = np.stack([np.convolve(played, response)[: song.num_samples] for played, response in pairs])
    np.testing.assert_allclose(whole / np.linalg.norm(whole), expected / np.linalg.norm(expected), atol=1e-6)


def test_notes_ring_on_into_the_next_section() -> None:
    """After a section of the pad alone, one in which nobody plays has what is left of its last chord."""
    config = Config(num_tracks=1, sample_rates_hz=(8_000,), stereo_share=0)
    song = draw_song(config, track_plan(config)[0])
    part = song.band["pad"]
    band, random = _Band(song), np.random.default_rng(0)
    band.play(replace(song.sections[0], band=("pad",), gain=1.0), random)
    rest = band.play(replace(song.sections[0], band=()), random)[0]
    num_samples = round(song.bar_s * 8_000)
    pitches = pitches_from(part.instrument.lowest, song.sections[0].chords[3])[:3]
    late = sum(play(part.instrument, pitch, num_samples, 8_000) for pitch in pitches)
    late = late[band.num_samples - round(3 * song.bar_s * 8_000) :]
    expected = np.sqrt(0.5) * np.tanh(part.drive * late) / np.sqrt(part.drive)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(rest[: len(expected)], expected, atol=1e-6)
    assert not rest[len(expected) :].any()


def test_moods_differ_on_average_and_overlap(songs: dict[str, list[Song]]) -> None:
    bpm = {emotion: np.array([60 / song.beat_s for song in of]) for emotion, of in songs.items()}
    assert np.median(bpm["Sad"]) < 0.75 * min(np.median(bpm["Happy"]), np.median(bpm["Angry"]))
    assert bpm["Happy"].min() < np.quantile(bpm["Sad"], 0.9)  # slow happy tracks
    major = {emotion: np.mean([song.mode == "major" for song in of]) for emotion, of in songs.items()}
    assert major["Happy"] > 0.9
    assert max(major["Sad"], major["Angry"]) < 0.25
    assert major["Sad"] > 0
    tension = {emotion: np.mean([song.tension for song in of]) for emotion, of in songs.items()}
    assert tension["Angry"] > 0.6 > 0.4 > max(tension["Happy"], tension["Sad"])
    slope = {emotion: [song.band["strings"].instrument.slope for song in of] for emotion, of in songs.items()}
    assert np.mean(slope["Sad"]) > np.mean(slope["Happy"]) + 0.3
    assert min(slope["Sad"]) < max(slope["Happy"])


def test_no_overlap_makes_tracks_of_an_emotion_agree_in_mood() -> None:
    config = Config(num_tracks=30, overlap=0, sample_rates_hz=(8_000,))
    for emotion, mood in MOODS.items():
        drawn = [draw_song(config, track) for track in track_plan(config) if track.emotion == emotion]
        assert {(song.arousal, song.valence) for song in drawn} == {mood}
        assert len({song.beat_s for song in drawn}) == len({song.mode for song in drawn}) == 1
        assert len({song.key for song in drawn}) > 3  # what is not mood still differs


def onset_repeats(samples: np.ndarray, hop: int = 80) -> np.ndarray:
    """The autocorrelation of the rise of the loudness: how far onsets repeat after each lag, in steps of `hop`."""
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    rise = np.maximum(np.diff(np.log(np.square(frames).mean(1) + 1e-5)), 0)
    rise -= rise.mean()
    correlation: np.ndarray = np.fft.irfft(np.abs(np.fft.rfft(rise, 2 * len(rise))) ** 2)[: len(rise)]
    return correlation / correlation[0]


def test_onsets_repeat_after_a_bar_of_the_tempo() -> None:
    """Listening to it: the loudness rises again a bar later, and not half an eighth beside that."""
    config = Config(num_tracks=6, minutes=0.8, sample_rates_hz=(8_000,), stereo_share=0)
    for track in track_plan(config):
        song = draw_song(config, track)
        repeats = onset_repeats(np.concatenate([block[0] for block in perform(config, track, song)]))
        on, off = (round((song.beats_per_bar + beats) * song.beat_s * 100) for beats in (0, 0.25))
        assert repeats[on - 1 : on + 2].max() > repeats[off - 1 : off + 2].max() + 0.1


def test_what_sounds_is_in_the_key() -> None:
    """Without drums, noise and clashes the strongest pitch classes are those of the scale."""
    config = Config(num_tracks=4, minutes=0.6, overlap=0, sample_rates_hz=(16_000,), stereo_share=0, shares=(0, 1, 1))
    for track in track_plan(config):
        song = draw_song(config, track)
        samples = np.concatenate([block[0] for block in perform(config, track, song)])
        frames = samples[: len(samples) // 8_192 * 8_192].reshape(-1, 8_192) * np.hanning(8_192)
        power = np.square(np.abs(np.fft.rfft(frames))).mean(0)
        hz = np.fft.rfftfreq(8_192, 1 / 16_000)
        tonal = (hz > 130) & (hz < 1_000)
        pitch = 69 + 12 * np.log2(hz[tonal] / 440)
        near = np.abs(pitch - np.rint(pitch)) < 0.25
        strength = np.zeros(12)
        np.add.at(strength, np.rint(pitch[near]).astype(int) % 12, power[tonal][near])
        third, other_third = (4, 3) if song.mode == "major" else (3, 4)
        assert strength[song.key] > np.median(strength)
        assert strength[(song.key + third) % 12] > strength[(song.key + other_third) % 12]


def heard(samples: np.ndarray) -> np.ndarray:
    """Logarithmic power in 20 bands from 60 Hz to 4 kHz: mean and deviation over time, of samples at 8 kHz."""
    frames = samples[: len(samples) // 512 * 512].reshape(-1, 512) * np.hanning(512)
    power = np.square(np.abs(np.fft.rfft(frames)))
    edges = np.geomspace(60, 4_000, 21) / 8_000 * 512
    bands = np.stack([power[:, int(a) : int(b) + 1].sum(1) for a, b in itertools.pairwise(edges)], 1)
    level = np.log(bands + 1e-6)
    return np.concatenate([level.mean(0), level.std(0)])


def test_pieces_of_a_known_track_are_easier_than_an_unknown_track() -> None:
    """Nearest neighbour over pieces of 15 s: with other pieces of its track at hand, and without."""
    config = Config(num_tracks=18, minutes=1, length_spread=0, sample_rates_hz=(8_000,), stereo_share=0)
    features, emotions, tracks = [], [], []
    for track in track_plan(config):
        samples = np.concatenate([block[0] for block in perform(config, track, draw_song(config, track))])
        for start in range(0, len(samples), 15 * 8_000):
            features.append(heard(samples[start : start + 15 * 8_000]))
            emotions.append(track.emotion)
            tracks.append(track.index)
    x, y, group = np.array(features), np.array(emotions), np.array(tracks)
    x = (x - x.mean(0)) / x.std(0)
    apart = np.square(x[:, None] - x).sum(-1)
    np.fill_diagonal(apart, np.inf)
    leaky = (y[apart.argmin(1)] == y).mean()
    apart[group[:, None] == group] = np.inf
    honest = (y[apart.argmin(1)] == y).mean()
    assert leaky > 0.95
    assert 0.45 < honest < 0.9
    assert leaky - honest > 0.1


def test_tracks_have_names_and_numbers_of_their_own() -> None:
    config = Config(num_tracks=5)
    assert track_plan(config) == [
        Track(0, "Angry", "angry_01"),
        Track(1, "Happy", "happy_01"),
        Track(2, "Sad", "sad_01"),
        Track(3, "Angry", "angry_02"),
        Track(4, "Happy", "happy_02"),
    ]
