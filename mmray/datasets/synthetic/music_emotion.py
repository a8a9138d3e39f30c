"""Made-up music in three moods: a folder for each of Angry, Happy and Sad, with one long sound file a track.

`generate` writes `Angry/angry_01.flac`, `Happy/happy_01.flac`, `Sad/sad_01.flac` and so on: 16 bits, mono or stereo,
at one of `sample_rates_hz`. The moods take turns, so that the first n tracks have them in about the shares asked for.

Mood. A track has a place on two axes, arousal and valence, drawn around that of its emotion (`MOODS`):

    (arousal, valence) = MOODS[emotion] + overlap * normal(0, SPREAD)

and what is played follows from there, each cue with a deviation of its own: tempo, notes a bar and drums rise with
arousal; major keys, high registers and long bright notes come with valence; dissonant tones, distortion and roughness
come where arousal is high and valence low; soft, slow and dark is what has little of either. So every cue alone
overlaps between emotions: there are slow happy tracks, and angry ones that are clean.

Track. What says nothing of the mood is drawn for each track, too: key, timbre and place of every instrument, balance,
level, and the recording's colour, which is a filter of random gains at `COLOUR_HZ`, a room, and a noise floor. A track
keeps all of it from beginning to end. So a classifier can know a track by its sound; one that is tested on pieces of
the tracks it was trained on need not hear a mood.

Time. A track is a random sequence of its three sections, four bars each, which differ in chords, rhythm, melody and
in who plays. It is drawn and written section by section: memory does not grow with its length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import soundfile
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.signal import oaconvolve

from mmray.datasets.synthetic import Progress, Summary, summary, write_pieces
from mmray.datasets.synthetic._instruments import SCALES, Instrument, add, pitches_from, play
from mmray.files import written_whole

Floats = NDArray[np.float32]

MOODS = {"Angry": (1.0, -1.0), "Happy": (0.8, 1.0), "Sad": (-1.0, -0.7)}  # arousal, valence
SPREAD = 0.25
COLOUR_HZ = (60, 150, 400, 1_000, 2_500, 6_000, 12_000)
COLOUR_DB = 2.0  # deviation of the gain at each of these
COLOUR_TAPS = 1024
BAND_SHARES = {"strings": 0.8, "pad": 0.6, "bass": 0.85, "lead": 0.7, "drums": 0.85}  # of the sections have them
BARS = 4  # of a section
LONGEST_HIT_S = 0.5  # of a drum
WAV_BYTES = (1 << 32) - 1024  # more than this is RF64


class Config(BaseModel):
    """What to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["music_emotion"] = "music_emotion"
    num_tracks: int = Field(24, ge=1, description="all emotions together; the corpus of the publication has 22")
    minutes: float = Field(4.0, gt=0, le=600, description="of a track, on average; that corpus: 39")
    length_spread: float = Field(0.2, ge=0, lt=1, description="lengths lie within minutes * (1 - this, 1 + this)")
    shares: tuple[float, float, float] = Field((1, 1, 1), description="of Angry, Happy and Sad; that corpus: 10, 10, 2")
    overlap: float = Field(1.0, ge=0, le=3, description="how far tracks stray from their emotion; 0: not at all")
    sample_rates_hz: tuple[int, ...] = Field((22_050, 44_100), min_length=1, description="a track has one of these")
    stereo_share: float = Field(0.5, ge=0, le=1, description="of the tracks")
    file_format: Literal["flac", "wav"] = "flac"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if min(self.shares) < 0 or not 0 < sum(self.shares) < math.inf:
            raise ValueError(f"shares={self.shares}; give three numbers of at least 0, one of them more")
        if min(self.sample_rates_hz) < 8_000 or max(self.sample_rates_hz) > 192_000:
            raise ValueError(f"sample_rates_hz={self.sample_rates_hz}; give rates from 8000 to 192000")
        return self


@dataclass(frozen=True)
class Track:
    """One track to write: its number in the plan, its emotion, and the name of its file without a suffix."""

    index: int
    emotion: str
    name: str


@dataclass(frozen=True)
class Part:
    """An instrument in the band: what it is, how hard it is driven into distortion, and where it stands."""

    instrument: Instrument
    drive: float
    angle: float  # 0: left, pi / 2: right


@dataclass(frozen=True)
class Drums:
    """Every drum's sound, (n,), and the gain of all of them."""

    kick: Floats
    snare: Floats
    hat: Floats
    gain: float


@dataclass(frozen=True)
class Section:
    """Four bars of a song. Rhythms are a flag for each eighth of a bar."""

    chords: tuple[tuple[int, ...], ...]  # pitch classes, a bar each
    strums: tuple[bool, ...]
    basses: tuple[bool, ...]
    motif: tuple[tuple[int, int, int], ...]  # melody of a bar: eighth, length in eighths, step of the chord
    band: tuple[str, ...]  # who plays
    gain: float


@dataclass(frozen=True)
class Recording:
    """How a track was recorded."""

    sample_rate_hz: int
    num_channels: int
    level: float  # root mean square of the full band, before the limiter
    noise: float  # root mean square against that of the band
    response: Floats  # (channels, taps): colour and room


@dataclass(frozen=True)
class Song:
    """What a track is: its mood, its music, and its recording."""

    arousal: float
    valence: float
    beat_s: float
    beats_per_bar: int
    mode: str
    key: int
    tension: float  # 0 to 1: share of the chords that clash
    articulation: float  # length of a strummed note against its eighth
    band: dict[str, Part]
    drums: Drums
    sections: tuple[Section, ...]
    recording: Recording
    num_samples: int

    @property
    def bar_s(self) -> float:
        """Seconds of a bar."""
        return self.beats_per_bar * self.beat_s


def generate(out: Path, config: Config, progress: Progress, num_processes: int = 1) -> Summary:
    """Write the corpus into the folder `out`; a track that is there is kept, so that a stopped run goes on.

    Raises ValueError when `out` holds anything but a run, whole or not, of the same configuration.
    """
    plan = track_plan(config)
    files = write_pieces(
        out, config, plan, lambda track: (track_file(out, config, track),), write_track, progress, num_processes
    )
    return summary(out, len(plan), files)


def track_file(out: Path, config: Config, track: Track) -> Path:
    """Where the track stands."""
    return out / track.emotion / f"{track.name}.{config.file_format}"


def track_plan(config: Config) -> list[Track]:
    """Every track of the corpus, in order. The next emotion is always the one that has most to catch up."""
    counts = dict.fromkeys(MOODS, 0)
    plan = []
    for index in range(config.num_tracks):
        due = {
            emotion: share * (index + 1) / sum(config.shares) - counts[emotion]
            for emotion, share in zip(MOODS, config.shares, strict=True)
        }
        emotion = max(due, key=lambda emotion: due[emotion])
        counts[emotion] += 1
        plan.append(Track(index, emotion, f"{emotion.lower()}_{counts[emotion]:02d}"))
    return plan


def write_track(config: Config, track: Track, out: Path) -> None:
    """Write a track's file into the folder `out`: its bytes depend on `config` and `track` alone."""
    song = draw_song(config, track)
    rate, num_channels = song.recording.sample_rate_hz, song.recording.num_channels
    form = config.file_format.upper()
    if form == "WAV" and 2 * num_channels * song.num_samples > WAV_BYTES:
        form = "RF64"
    with (
        written_whole(track_file(out, config, track)) as aside,
        soundfile.SoundFile(aside, "w", rate, num_channels, "PCM_16", format=form) as file,
    ):
        for block in perform(config, track, song):
            file.write(np.rint(block.T * np.float32(32767)).astype(np.int16))


def _random(config: Config, *purpose: int) -> np.random.Generator:
    """The stream of one purpose: (0, i) what track i is, (1, i) how it is played, (2, i) its noise."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=purpose))


# ---- What a track is


def draw_song(config: Config, track: Track) -> Song:
    """What track number `track.index` sounds like."""
    random = _random(config, 0, track.index)
    arousal, valence = np.array(MOODS[track.emotion]) + config.overlap * SPREAD * random.standard_normal(2)

    def near(value: float, deviation: float) -> float:
        """A cue of the mood: `value` in tracks that don't stray."""
        return float(value + config.overlap * deviation * random.standard_normal())

    beat_s = 60 / float(np.clip(100 * 2 ** near(0.35 * arousal, 0.2), 50, 180))
    mode = "major" if near(valence, 0.4) > 0 else "minor"
    tension = _share(near(1.6 * (arousal - valence) - 1.6, 0.5))
    density = _share(near(1.2 * arousal, 0.5))
    brightness = near(0.4 * arousal + 0.2 * valence, 0.15)
    register = round(float(np.clip(near(3 * valence + arousal, 3.0), -12, 12)))
    hold = near(0.5 * valence - 0.4 * arousal, 0.5)
    band = {
        name: Part(
            draw_instrument(name, brightness, register, hold, random),
            drive=0.5 * 2 ** (6 * tension + near(0, 0.5)) if name in ("strings", "lead") else 0.3,
            angle=math.pi / 2 * float(random.uniform(0.35, 0.65) if name == "bass" else random.uniform(0.1, 0.9)),
        )
        for name in ("strings", "pad", "bass", "lead")
    }
    key, beats_per_bar = int(random.integers(12)), 3 if random.random() < 0.2 else 4
    recording = draw_recording(config, arousal, random)
    drums = draw_drums(near(8 * arousal - 6, 3.0), recording.sample_rate_hz, random)
    sections = tuple(draw_section(key, mode, beats_per_bar, density, tension, random) for _ in range(3))
    minutes = config.minutes * random.uniform(1 - config.length_spread, 1 + config.length_spread)
    return Song(
        arousal=float(arousal),
        valence=float(valence),
        beat_s=beat_s,
        beats_per_bar=beats_per_bar,
        mode=mode,
        key=key,
        tension=tension,
        articulation=float(np.clip(1.2 * 2**hold, 0.4, 4)),
        band=band,
        drums=drums,
        sections=sections,
        recording=recording,
        num_samples=max(1, round(60 * minutes * recording.sample_rate_hz)),
    )


def _share(x: float) -> float:
    """Any number to 0 to 1: the logistic function."""
    return 1 / (1 + math.exp(-x))


def draw_instrument(
    name: str, brightness: float, register: int, hold: float, random: np.random.Generator
) -> Instrument:
    """Strings (plucked or strummed), a pad, a bass or a lead of its own colour."""
    uniform = random.uniform
    gain, even = 0.3 * 10 ** (uniform(-5, 5) / 20), uniform(0.1, 1)
    slope = float(np.clip(uniform(0.8, 1.4) - brightness, 0.2, 2.2))
    decay_per_s = uniform(0.6, 2.0) * 2**-hold
    vibrato = uniform(0, 0.4)
    match name:
        case "strings":
            return Instrument(int(random.integers(44, 58)) + register, gain, slope, even, decay_per_s, 0.003)
        case "pad":
            pad = Instrument(int(random.integers(46, 60)) + register, 0.3 * gain, slope + 0.3, even, 0, 0.12)
            return replace(pad, detuning=uniform(0.02, 0.1), vibrato_semitones=vibrato / 2)
        case "bass":
            return Instrument(int(random.integers(28, 38)) + register // 3, 1.2 * gain, slope + 0.3, even, 1.2, 0.008)
        case _:
            lead = Instrument(int(random.integers(56, 70)) + register, gain, slope, even, decay_per_s / 2, 0.03)
            return replace(lead, vibrato_semitones=vibrato, vibrato_hz=uniform(4.5, 6.5))


def draw_drums(gain_db: float, sample_rate_hz: int, random: np.random.Generator) -> Drums:
    """Kick, snare and hi-hat of a kit of their own; a kit below -18 dB isn't there."""
    t = np.arange(round(LONGEST_HIT_S * sample_rate_hz)) / sample_rate_hz
    noise = random.standard_normal((2, len(t)))
    fade = np.clip((t[-1] - t) / 0.05, 0, 1)
    low_hz, snare_hz = random.uniform(40, 65), random.uniform(150, 240)
    kick_s, snare_s, hat_s = random.uniform(0.04, 0.12), random.uniform(0.03, 0.1), random.uniform(0.01, 0.06)
    kick = np.sin(2 * np.pi * (low_hz * t + random.uniform(2, 6) * (1 - np.exp(-t / 0.03)))) * np.exp(-t / kick_s)
    snare = (random.uniform(0.3, 0.7) * noise[0] + 0.5 * np.sin(2 * np.pi * snare_hz * t)) * np.exp(-t / snare_s)
    hat = np.diff(noise[1], n=2, prepend=[0, 0]) * np.exp(-t / hat_s) * random.uniform(0.05, 0.25)
    kick, snare, hat = (0.6 * fade * sound for sound in (kick, snare, hat))
    gain = 10 ** (min(gain_db, 6) / 20) if gain_db > -18 else 0.0
    return Drums(kick.astype(np.float32), snare.astype(np.float32), hat.astype(np.float32), gain)


def draw_section(
    key: int, mode: str, beats_per_bar: int, density: float, tension: float, random: np.random.Generator
) -> Section:
    """Four bars: chords of the key, some of which clash, rhythms that are as dense as asked for, and a melody."""
    scale = SCALES[mode]
    chords = []
    for degree in (0, *random.choice([1, 2, 3, 4, 5], BARS - 1, p=[0.1, 0.1, 0.3, 0.3, 0.2]).tolist()):
        tones = [scale[(degree + step) % 7] for step in (0, 2, 4)]
        if random.random() < tension:  # a semitone or a tritone above the root, in place of the fifth
            tones[2] = tones[0] + (1 if random.random() < 0.5 else 6)
        chords.append(tuple((key + tone) % 12 for tone in tones))
    num_eighths = 2 * beats_per_bar
    on_beat = np.arange(num_eighths) % 2 == 0
    strums = random.random(num_eighths) < density * np.where(on_beat, 1.1, 0.8)
    basses = random.random(num_eighths) < density * np.where(on_beat, 1.0, 0.5)
    strums[0] = basses[0] = True
    motif = []
    eighth = 0
    while eighth < num_eighths:
        length = int(random.choice([1, 2, 3, 4], p=_lengths(density)))
        if random.random() < 0.8:
            motif.append((eighth, min(length, num_eighths - eighth), int(random.integers(4))))
        eighth += length
    band = tuple(name for name, share in BAND_SHARES.items() if random.random() < share) or ("strings",)
    return Section(
        tuple(chords),
        tuple(strums.tolist()),
        tuple(basses.tolist()),
        tuple(motif),
        band,
        10 ** (random.normal(0, 1.5) / 20),
    )


def _lengths(density: float) -> np.ndarray:
    """How often a note of the melody lasts 1, 2, 3 and 4 eighths."""
    weights = np.array([density, 0.5, 0.3 * (1 - density), 1 - density])
    shares: np.ndarray = weights / weights.sum()
    return shares


def draw_recording(config: Config, arousal: float, random: np.random.Generator) -> Recording:
    """A format, a level, a noise floor, a colour and a room."""
    rate = int(random.choice(config.sample_rates_hz))
    num_channels = 2 if random.random() < config.stereo_share else 1
    frequencies = np.fft.rfftfreq(COLOUR_TAPS, 1 / rate)
    knots_db = COLOUR_DB * random.standard_normal(len(COLOUR_HZ))
    gain_db = np.interp(np.log(np.maximum(frequencies, 1)), np.log(COLOUR_HZ), knots_db)
    colour = np.roll(np.fft.irfft(10 ** (gain_db / 20)), COLOUR_TAPS // 2) * np.hanning(COLOUR_TAPS + 1)[:-1]
    reverberation_s = random.uniform(0.3, 1.5)  # until it is 60 dB down
    t = np.arange(round(reverberation_s * rate)) / rate
    room = random.standard_normal((num_channels, len(t))) * 10 ** (-3 * t / reverberation_s)
    room *= 10 ** (random.uniform(-22, -6) / 20) / np.sqrt(np.square(room).sum(axis=1, keepdims=True))
    room[:, 0] += 1
    return Recording(
        sample_rate_hz=rate,
        num_channels=num_channels,
        level=10 ** ((-20 + 1.5 * arousal + random.normal(0, 3)) / 20),
        noise=10 ** (random.uniform(-60, -32) / 20),
        response=oaconvolve(room, colour[None], axes=1).astype(np.float32),
    )


# ---- How it is played


def perform(config: Config, track: Track, song: Song) -> Iterator[Floats]:
    """The samples of a track, (channels, n) within [-1, 1], a section at a time: `song.num_samples` in all."""
    random, noise = _random(config, 1, track.index), _random(config, 2, track.index)
    recording = song.recording
    # The full band plays four bars that nobody hears, by which the level is set.
    everyone = replace(song.sections[0], band=tuple(BAND_SHARES), gain=1.0)
    band = _Band(song)
    trial = band.play(everyone, random)
    loudness = math.sqrt(np.square(oaconvolve(trial, recording.response, axes=1)).mean())
    noise_gain = np.float32(recording.noise * math.sqrt(np.square(trial).mean()))
    gain = np.float32(recording.level / loudness)

    band.hush()
    tail = np.zeros((recording.num_channels, recording.response.shape[1] - 1), np.float32)
    left = song.num_samples
    while left:
        dry = band.play(song.sections[int(random.integers(len(song.sections)))], random)
        dry += noise_gain * noise.standard_normal(dry.shape, np.float32)
        wet = oaconvolve(dry, recording.response, axes=1)
        wet[:, : tail.shape[1]] += tail
        tail = wet[:, dry.shape[1] :]
        num_samples = min(left, dry.shape[1])
        yield np.tanh(gain * wet[:, :num_samples])
        left -= num_samples


class _Band:
    """Plays section after section; what still sounds at the end of one goes on in the next."""

    def __init__(self, song: Song) -> None:
        self.song = song
        self.rate = song.recording.sample_rate_hz
        self.num_samples = round(BARS * song.bar_s * self.rate)  # of a section
        self._num_late = round((2 * song.bar_s + LONGEST_HIT_S) * self.rate)  # longer than any note
        self._notes: dict[tuple[str, int, int], Floats] = {}
        self.hush()

    def hush(self) -> None:
        """Forget what still sounds."""
        self._late = {name: np.zeros(self._num_late, np.float32) for name in BAND_SHARES}

    def play(self, section: Section, random: np.random.Generator) -> Floats:
        """Four bars, (channels, `num_samples`), before anything is recorded."""
        parts = {
            name: np.concatenate([late, np.zeros(self.num_samples, np.float32)]) for name, late in self._late.items()
        }
        for name, pitch, at_s, length_s, force in self._score(section, random):
            key = (name, pitch, round(length_s * self.rate))
            if key not in self._notes:
                instrument = self.song.band[name].instrument
                self._notes[key] = play(instrument, pitch, key[2], self.rate).astype(np.float32)
            add(parts[name], self._notes[key], round(at_s * self.rate), section.gain * force)
        if "drums" in section.band and self.song.drums.gain:
            self._drum(parts["drums"], section, random)
        self._late = {name: sound[self.num_samples :] for name, sound in parts.items()}
        return self._mixed({name: sound[: self.num_samples] for name, sound in parts.items()})

    def _score(self, section: Section, random: np.random.Generator) -> Iterator[tuple[str, int, float, float, float]]:
        """All notes of pitched instruments: (name, semitones, start and length in seconds, force)."""
        eighth_s = self.song.beat_s / 2
        strum_s = min(self.song.articulation * eighth_s, self.song.bar_s)
        lowest = {name: part.instrument.lowest for name, part in self.song.band.items()}
        for bar, chord in enumerate(section.chords):
            bar_s = bar * self.song.bar_s
            tones = {name: pitches_from(low, chord) for name, low in lowest.items()}
            for eighth, (strum, bass) in enumerate(zip(section.strums, section.basses, strict=True)):
                at_s = bar_s + eighth * eighth_s + random.uniform(0, 0.01)
                force = random.uniform(0.7, 1.1) * (1.2 if eighth == 0 else 1.0)
                if strum and "strings" in section.band:
                    for i, pitch in enumerate(tones["strings"][:3]):
                        yield "strings", pitch, at_s + 0.01 * i, strum_s, force
                if bass and "bass" in section.band:
                    yield "bass", pitches_from(lowest["bass"], chord[:1])[0], at_s, 2 * eighth_s, force
            if "pad" in section.band:
                for pitch in tones["pad"][:3]:
                    yield "pad", pitch, bar_s, self.song.bar_s, 1.0
            if "lead" in section.band:
                for eighth, length, step in section.motif:
                    if random.random() < 0.85:
                        at_s = bar_s + eighth * eighth_s + random.uniform(0, 0.02)
                        yield "lead", tones["lead"][step], at_s, length * eighth_s, random.uniform(0.7, 1.1)

    def _drum(self, total: Floats, section: Section, random: np.random.Generator) -> None:
        """Add kick, snare and hi-hat to `total` in place; the kick goes with the bass."""
        drums, num_eighths = self.song.drums, 2 * self.song.beats_per_bar
        for eighth in range(BARS * num_eighths):
            start = round(eighth * self.song.beat_s / 2 * self.rate)
            force = drums.gain * section.gain * random.uniform(0.8, 1.1)
            place = eighth % num_eighths
            add(total, drums.hat, start, force)
            if section.basses[place] and place % 2 == 0:
                add(total, drums.kick, start, force)
            if place % 4 == 2:
                add(total, drums.snare, start, 0.7 * force)

    def _mixed(self, parts: dict[str, Floats]) -> Floats:
        """The parts (n,), distorted and set in their places: (channels, n)."""
        mixed = np.zeros((self.song.recording.num_channels, self.num_samples), np.float32)
        for name, sound in parts.items():
            if name != "drums":
                drive = np.float32(self.song.band[name].drive)
                sound = np.tanh(drive * sound) / np.sqrt(drive)
            angle = math.pi / 4 if name == "drums" else self.song.band[name].angle
            places = (math.cos(angle), math.sin(angle)) if len(mixed) == 2 else (math.sqrt(0.5),)
            for channel, gain in zip(mixed, places, strict=True):
                channel += np.float32(gain) * sound
        return mixed
