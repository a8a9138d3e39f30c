"""A made-up MIR-1K: karaoke clips and the pitch that is sung in them, in the real corpus's own layout.

`generate` writes into one folder `Wavfile/<singer>_<song>_<clip>.wav` (16 bits, stereo, 16 kHz: accompaniment left,
voice right) and `PitchLabel/<singer>_<song>_<clip>.pv`: a line for each window of 40 ms that fits into the clip, one
every 20 ms, with the pitch of the voice in semitones (MIDI numbers; 69 is 440 Hz), 0 where it is unvoiced. As the
real corpus's reader takes it, label i stands for the instant 0.01 + 0.02 i s; here it is the pitch of that very
instant, not an estimate.

Singers. The real corpus's test singers and two more of its names sing here too, so that a reader that splits by name
finds its splits; all others are invented. A singer has a range, a length of the vocal tract, a brightness, a breath
and a vibrato, and sings several songs; a song has a key, a tempo, chords, a band and a balance, and makes several
clips.

The voice. Notes of the scale, in phrases with rests between, wander around the middle of the range and lean to
chord tones. Their pitch in semitones is

    p(t) = notes joined by glides + scoops and falls + vibrato + drift + jitter        f0 = 440 * 2^((p - 69) / 12)

where vibrato sets in late in long notes. The glottal source is the sum of all harmonics of the phase, each weaker by
its frequency alone, which has a closed form:

    phi(t) = 2 pi * integral of f0         sum_k r^k cos(k phi) = Re z / (1 - z),   z = r e^(i phi),   r = e^(-a f0)

Source and breath noise pass a filter of five resonances (formants), of which three move from vowel to vowel, made of
short spectra that are weighted and added up again (32 ms every 8 ms, no phase shift, so that nothing moves in time).
Consonants are gaps of noise, where the label is 0, or dips that stay voiced. A little noise is there all the time.

The accompaniment. Plucked chords, a pad, bass, drums and in most songs a lead instrument with vibrato and a line of its
own, all but bass and drums in the range of voices. What plays, how bright and how loud is the song's. The lead plays
most where the voice rests. All has a little reverberation, and is 0 to 5 dB (root mean square of the clip) below the
voice, as the song wants.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmray.datasets.synthetic import Progress, Summary, summary, write_pieces
from mmray.datasets.synthetic._instruments import SCALES, Instrument, add, pitches_from, play
from mmray.files import write_text, written_whole

SAMPLE_RATE_HZ = 16_000
FIRST_LABEL, LABEL_HOP = 160, 320  # samples: the instants that labels speak of
LABEL_WINDOW = 640  # samples that must be there for a label to be written
CONTROL_HOP = 16  # samples: pitch and loudness are drawn at 1 kHz and interpolated
FRAME, FRAME_HOP, FRAME_FFT = 512, 128, 1024  # samples: the formant filter's pieces

SINGERS = {
    "train": [
        "alder",
        "birch",
        "cedar",
        "clover",
        "fern",
        "hazel",
        "heather",
        "ivy",
        "juniper",
        "laurel",
        "maple",
        "olive",
        "rowan",
        "sage",
    ],
    "val": ["amy", "bobon"],
    "test": ["leon", "stool", "tammy", "titon", "yifen"],
}
VOWELS_HZ = np.array(  # first three formants of an adult man; a, e, i, o, u, schwa
    [(750, 1200, 2500), (500, 1800, 2500), (290, 2200, 2950), (480, 850, 2500), (320, 750, 2300), (500, 1450, 2450)]
)
HIGH_FORMANTS_HZ = (3500, 4500)
BANDWIDTHS_HZ = np.array([80, 100, 140, 220, 300])
GAINS = np.array([1.0, 0.5, 0.2, 0.12, 0.06])
GLOTTIS_GAIN, GLOTTIS_HZ = 0.4, 300.0  # the lowest harmonics are strong whatever the vowel
BAND_SHARES = {"pluck": 0.9, "pad": 0.75, "bass": 0.9, "lead": 0.6}  # of the songs have such an instrument
PROGRESSIONS = {  # degrees of the scale, from 0, a bar each
    "major": [(0, 4, 5, 3), (0, 5, 3, 4), (3, 4, 2, 5), (0, 3, 1, 4), (5, 3, 0, 4)],
    "minor": [(0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 4), (0, 5, 3, 4), (3, 4, 0, 5)],
}


class Config(BaseModel):
    """What to make. The defaults of lengths are the real corpus's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["mir1k"] = "mir1k"
    num_clips: int = Field(200, ge=1, description="all splits together; the real corpus has 1,000")
    clips_per_song: int = Field(5, ge=1, description="at most; fewer where a singer would be left without a song")
    min_clip_s: float = Field(4.0, ge=1, le=600)
    max_clip_s: float = Field(13.0, ge=1, le=600)
    min_voice_db: float = Field(0.0, ge=-40, le=40, description="voice against accompaniment, root mean square")
    max_voice_db: float = Field(5.0, ge=-40, le=40)
    seed: int = Field(0, ge=0)
    train_fraction: float = Field(0.70, gt=0, le=1, description="of the clips; made by invented singers")
    val_fraction: float = Field(0.10, ge=0, le=1, description="what train and validation leave is sung by test singers")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for low, high in (("min_clip_s", "max_clip_s"), ("min_voice_db", "max_voice_db")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} is more than {high}={getattr(self, high)}")
        if self.train_fraction + self.val_fraction > 1 + 1e-9:
            raise ValueError(
                f"train_fraction={self.train_fraction} and val_fraction={self.val_fraction} make more than 1"
            )
        return self


@dataclass(frozen=True)
class Clip:
    """One clip to write: its number in the plan, its split, its song's number in the corpus, its singer and name."""

    index: int
    split: str
    song: int
    singer: str
    name: str


@dataclass(frozen=True)
class Singer:
    """A voice. Pitches in semitones (MIDI)."""

    middle: float
    half_range: float
    formant_scale: float
    darkness_s: float  # harmonics fall as e^(-darkness_s * frequency)
    breath: float  # noise against source, in amplitude
    room: float  # noise of the recording against the singing, in root mean square
    vibrato_hz: float
    vibrato_semitones: float  # to either side
    vibrato_share: float  # of the long notes
    unvoiced_share: float  # of the syllables begin with an unvoiced consonant


@dataclass(frozen=True)
class Song:
    """What the clips of a song share. `chords` are pitch classes a bar; `band` holds what plays."""

    beat_s: float
    beats_per_bar: int
    pitch_classes: tuple[int, ...]
    chords: tuple[tuple[int, ...], ...]
    band: dict[str, Instrument]
    pattern: tuple[int, ...]  # chord tone of each eighth of a bar, -1: none
    strummed: bool
    drums: float
    wet: float
    voice_db: float


@dataclass(frozen=True)
class Notes:
    """The n notes that are sung: seconds, semitones, and whether a rest stands before and after."""

    start_s: np.ndarray
    end_s: np.ndarray
    pitch: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Voice:
    """The sung samples, and for each of them the pitch in semitones and whether it is voiced."""

    samples: np.ndarray
    pitch: np.ndarray
    voiced: np.ndarray


def generate(out: Path, config: Config, progress: Progress, num_processes: int = 1) -> Summary:
    """Write the corpus into the folder `out`; a clip that is there is kept, so that a stopped run goes on.

    Raises ValueError when `out` holds anything but a run, whole or not, of the same configuration.
    """
    plan = clip_plan(config)
    files = write_pieces(out, config, plan, lambda clip: clip_files(out, clip), write_clip, progress, num_processes)
    return summary(out, len(plan), files)


def clip_files(out: Path, clip: Clip) -> tuple[Path, Path]:
    """Where the clip's sound and its labels stand."""
    return out / "Wavfile" / f"{clip.name}.wav", out / "PitchLabel" / f"{clip.name}.pv"


def clip_plan(config: Config) -> list[Clip]:
    """Every clip of the corpus, in order. Songs go round among a split's singers, who all sing if there are enough."""
    ends = np.rint(np.cumsum([config.train_fraction, config.val_fraction]) * config.num_clips).astype(int).tolist()
    plan: list[Clip] = []
    num_songs = first = 0
    for (split, singers), end in zip(SINGERS.items(), (*ends, config.num_clips), strict=True):
        num_clips = end - first
        songs = max(-(-num_clips // config.clips_per_song), min(num_clips, len(singers)))
        for song, clips in enumerate(np.diff(np.linspace(0, num_clips, songs + 1).astype(int)).tolist()):
            turn, place = divmod(song, len(singers))
            for clip in range(clips):
                name = f"{singers[place]}_{turn + 1}_{clip + 1:02d}"
                plan.append(Clip(len(plan), split, num_songs + song, singers[place], name))
        num_songs += songs
        first = end
    return plan


def write_clip(config: Config, clip: Clip, out: Path) -> None:
    """Write a clip's two files into the folder `out`: their bytes depend on `config` and `clip` alone."""
    accompaniment, voice = draw_clip(config, clip)
    sound, labels = clip_files(out, clip)
    num_labels = (len(voice.samples) - LABEL_WINDOW) // LABEL_HOP + 1
    at = FIRST_LABEL + LABEL_HOP * np.arange(num_labels)
    pitch = np.where(voice.voiced[at], voice.pitch[at], 0.0)
    write_text(labels, "".join(f"{value:.6g} \n" for value in pitch))
    stereo = np.rint(np.stack([accompaniment, voice.samples], axis=1) * 32767).astype("<i2")
    with written_whole(sound) as aside, wave.open(str(aside), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(stereo.tobytes())


def _random(config: Config, *purpose: int) -> np.random.Generator:
    """The stream of one purpose: (0, i) singer i, (1, i) song i, (2, i) clip i."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=purpose))


def draw_singer(config: Config, name: str) -> Singer:
    """The voice of that name; high and low voices alternate."""
    index = [singer for singers in SINGERS.values() for singer in singers].index(name)
    random, high = _random(config, 0, index), index % 2 == 0
    return Singer(
        middle=(62.0 if high else 51.0) + random.uniform(-3, 3),
        half_range=random.uniform(6, 9),
        formant_scale=(1.15 if high else 1.0) * random.uniform(0.94, 1.06),
        darkness_s=random.uniform(5e-4, 10e-4),
        breath=10 ** (random.uniform(-32, -20) / 20),
        room=10 ** (random.uniform(-60, -45) / 20),
        vibrato_hz=random.uniform(5.0, 6.5),
        vibrato_semitones=random.uniform(0.2, 0.8),
        vibrato_share=random.uniform(0.1, 0.8),
        unvoiced_share=random.uniform(0.5, 0.8),
    )


def draw_song(config: Config, song: int) -> Song:
    """What song number `song` sounds like."""
    random = _random(config, 1, song)
    mode = "major" if random.random() < 0.6 else "minor"
    key, scale = int(random.integers(12)), SCALES[mode]
    progression = PROGRESSIONS[mode][random.integers(len(PROGRESSIONS[mode]))]
    chords = tuple(tuple((key + scale[(degree + step) % 7]) % 12 for step in (0, 2, 4)) for degree in progression)
    beats_per_bar = 4 if random.random() < 0.8 else 3
    band = {name: draw_instrument(name, random) for name, share in BAND_SHARES.items() if random.random() < share} or {
        "pluck": draw_instrument("pluck", random)
    }
    return Song(
        beat_s=60 / random.uniform(64, 120),
        beats_per_bar=beats_per_bar,
        pitch_classes=tuple(sorted((key + step) % 12 for step in scale)),
        chords=chords,
        band=band,
        pattern=tuple(random.choice([-1, 0, 1, 2, 3], 2 * beats_per_bar, p=[0.15, 0.25, 0.2, 0.25, 0.15]).tolist()),
        strummed=bool(random.random() < 0.4),
        drums=10 ** (random.uniform(-8, 2) / 20) if random.random() < 0.7 else 0.0,
        wet=random.uniform(0.05, 0.25),
        voice_db=random.uniform(config.min_voice_db, config.max_voice_db),
    )


def draw_instrument(name: str, random: np.random.Generator) -> Instrument:
    """A pluck, pad, bass or lead of its own colour."""
    gain, even = 10 ** (random.uniform(-4, 4) / 20), random.uniform(0.15, 1)
    uniform = random.uniform
    match name:
        case "pluck":
            return Instrument(int(random.integers(48, 63)), 0.4 * gain, uniform(0.6, 1.3), even, uniform(1, 4), 0.003)
        case "pad":
            return Instrument(
                int(random.integers(50, 63)),
                0.14 * gain,
                uniform(0.7, 1.5),
                even,
                0.0,
                uniform(0.05, 0.2),
                detuning=uniform(0.02, 0.08),
                vibrato_semitones=uniform(0, 0.2),
                vibrato_hz=uniform(4.5, 6.0),
            )
        case "bass":
            return Instrument(int(random.integers(31, 38)), 0.3 * gain, uniform(0.9, 1.8), even, uniform(0.8, 2), 0.008)
        case _:
            return Instrument(
                int(random.integers(52, 66)),
                0.35 * gain,
                uniform(0.7, 1.5),
                even,
                uniform(0, 0.8),
                uniform(0.02, 0.06),
                vibrato_semitones=uniform(0, 0.5),
                vibrato_hz=uniform(4.5, 6.5),
            )


def draw_clip(config: Config, clip: Clip) -> tuple[np.ndarray, Voice]:
    """The accompaniment (n,) and the voice of a clip, scaled as they are written: neither leaves [-1, 1]."""
    random, song, singer = (
        _random(config, 2, clip.index),
        draw_song(config, clip.song),
        draw_singer(config, clip.singer),
    )
    low, high = config.min_clip_s, config.max_clip_s
    clip_s = random.triangular(low, low + 0.4 * (high - low), high) if high > low else low
    num_samples = round(clip_s * SAMPLE_RATE_HZ)
    first_beat = int(random.integers(song.beats_per_bar * len(song.chords))) - random.uniform(0, 1)
    notes = compose(song, singer, first_beat, num_samples / SAMPLE_RATE_HZ, random)
    voice = sing(singer, notes, num_samples, random)
    accompaniment = accompany(song, notes, first_beat, num_samples, random)
    accompaniment *= _rms(voice.samples) / _rms(accompaniment) * 10 ** (-song.voice_db / 20)
    gain = random.uniform(0.5, 0.95) / max(np.abs(voice.samples).max(), np.abs(accompaniment).max())
    return accompaniment * gain, Voice(voice.samples * gain, voice.pitch, voice.voiced)


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples).mean()))


def compose(song: Song, singer: Singer, first_beat: float, clip_s: float, random: np.random.Generator) -> Notes:
    """A melody for a clip that begins `first_beat` beats into the song: at least one note."""
    around = np.arange(round(singer.middle - singer.half_range), round(singer.middle + singer.half_range) + 1)
    ladder = around[np.isin(around % 12, song.pitch_classes)]
    place = int(np.abs(ladder - singer.middle + random.uniform(-4, 4)).argmin())
    lengths = np.array([0.5, 1.0, 1.5, 2.0])
    rows: list[tuple[float, float, int, bool, bool]] = []
    beat = np.ceil(2 * (first_beat + min(0.5, 0.1 * clip_s) / song.beat_s)) / 2
    left = int(random.integers(2, 8))  # notes to the end of the phrase
    begins = True
    while (start_s := (beat - first_beat) * song.beat_s) < clip_s - 0.25:
        ends = left == 0
        length = random.choice([1.0, 1.5, 2.0, 3.0]) if ends else random.choice(lengths, p=[0.6, 0.28, 0.07, 0.05])
        chord = song.chords[int(beat // song.beats_per_bar) % len(song.chords)]
        place += round(random.normal(0.08 * (len(ladder) / 2 - place), 1.5))
        place = min(max(place, 0), len(ladder) - 1)
        if (ends or beat % 1 == 0) and random.random() < 0.6:
            place = min(np.flatnonzero(np.isin(ladder % 12, chord)).tolist(), key=lambda other: abs(other - place))
        end_s = min(start_s + length * song.beat_s * (0.85 if ends else 1.0), clip_s - 0.05)
        rows.append((start_s, end_s, int(ladder[place]), begins, ends))
        beat += length
        begins, left = ends, left - 1
        if ends:
            beat += random.choice([0.5, 1.0, 1.5, 2.0], p=[0.3, 0.4, 0.15, 0.15])
            left = int(random.integers(3, 9))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    columns[4][-1] = True
    return Notes(*columns)


def sing(singer: Singer, notes: Notes, num_samples: int, random: np.random.Generator) -> Voice:
    """The notes as the singer sings them."""
    control_s = np.arange(num_samples // CONTROL_HOP + 2) * (CONTROL_HOP / SAMPLE_RATE_HZ)
    unvoiced = random.random(len(notes.pitch)) < singer.unvoiced_share
    gap_s = np.where(unvoiced, random.uniform(0.05, 0.13, len(notes.pitch)), 0.0)
    pitch = _pitch_curve(singer, notes, unvoiced, control_s, random)
    gate, loudness, hiss = _loudness_curves(notes, gap_s, control_s, random)

    at = np.arange(num_samples) / CONTROL_HOP
    step = np.arange(len(control_s))
    pitch = np.interp(at, step, pitch)
    f0_hz = 440.0 * 2 ** ((pitch - 69) / 12)
    phase = 2 * np.pi * (np.cumsum(f0_hz) / SAMPLE_RATE_HZ % 1.0)
    z = np.exp(-singer.darkness_s * f0_hz + 1j * phase)
    source = (z / (1 - z)).real
    loudness = np.interp(at, step, loudness)
    breath = singer.breath * random.standard_normal(num_samples)
    noise = random.standard_normal(num_samples) * np.interp(at, step, hiss)

    num_frames = num_samples // FRAME_HOP + FRAME // FRAME_HOP + 1
    frame_s = np.arange(num_frames) * (FRAME_HOP / SAMPLE_RATE_HZ)
    samples = _filtered((source + breath) * loudness, _vowel_responses(singer, notes, frame_s, random))
    samples += _filtered(noise, _consonant_responses(notes, frame_s, random))
    samples += singer.room * _rms(samples) * random.standard_normal(num_samples)
    return Voice(samples, pitch, np.interp(at, step, gate) >= 0.5)


def _pitch_curve(
    singer: Singer, notes: Notes, unvoiced: np.ndarray, control_s: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """The pitch in semitones at the times `control_s`, also where nothing sounds."""
    n = len(notes.pitch)
    target = notes.pitch + random.normal(0, 0.12, n)
    middle_s = np.where(notes.begins, notes.start_s - 0.1, notes.start_s + random.uniform(-0.03, 0.03, n))
    glide_s = random.uniform(0.05, 0.2, n)
    rise = 1 / (1 + np.exp(-8 * np.clip((control_s - middle_s[1:, None]) / glide_s[1:, None], -8, 8)))
    pitch = target[0] + np.diff(target) @ rise

    scoop = random.uniform(0.4, 2.5, n) * (random.random(n) < np.where(notes.begins, 0.6, 0.45))
    scoop_s = random.uniform(0.03, 0.07, n)
    fall = random.uniform(0.5, 2.5, n) * (notes.ends & (random.random(n) < 0.3))
    depth = np.clip(singer.vibrato_semitones * random.uniform(0.7, 1.3, n), 0.2, 0.8)
    depth *= random.random(n) < singer.vibrato_share
    rate_hz = singer.vibrato_hz + random.uniform(-0.3, 0.3, n)
    delay_s = random.uniform(0.15, 0.35, n)
    turn = random.uniform(0, 2 * np.pi, n)
    alone = unvoiced | notes.begins
    # Where nothing sounds beside a note, its curve goes on while its loudness rises and falls.
    first, last = np.searchsorted(control_s, [notes.start_s - 0.02 * alone, notes.end_s + 0.02 * notes.ends])
    for i in range(n):
        span = slice(first[i], last[i])
        since, until = control_s[span] - notes.start_s[i], notes.end_s[i] - control_s[span]
        x = np.maximum(since / scoop_s[i], 0)
        pitch[span] -= scoop[i] * (np.exp(-x) if alone[i] else x * np.exp(1 - x))
        pitch[span] -= fall[i] * np.square(np.maximum(1 - until / 0.15, 0))
        swell = np.clip((since - delay_s[i]) / 0.25, 0, 1) * np.clip(until / 0.08, 0, 1)
        pitch[span] += depth[i] * swell * np.sin(2 * np.pi * rate_hz[i] * since + turn[i])
    curve: np.ndarray = pitch + 0.15 * _wander(control_s, 0.15, random) + 0.07 * _wander(control_s, 0.012, random)
    return curve


def _wander(control_s: np.ndarray, step_s: float, random: np.random.Generator) -> np.ndarray:
    """A random curve of about unit deviation that changes its course every `step_s` seconds."""
    values = random.standard_normal(int(control_s[-1] / step_s) + 2)
    curve: np.ndarray = np.interp(control_s, np.arange(len(values)) * step_s, values)
    return curve


def _loudness_curves(
    notes: Notes, gap_s: np.ndarray, control_s: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At the times `control_s`: how far the voice is on (0 to 1), its amplitude, and that of consonants' noise."""
    n = len(gap_s)
    gate, hiss, dip = np.zeros_like(control_s), np.zeros_like(control_s), np.ones_like(control_s)
    accent = 10 ** (random.normal(0, 2, n) / 20)
    plosive = random.random(n) < 0.4
    force = 10 ** (random.uniform(-26, -12, n) / 20)
    weakness = random.uniform(0.3, 0.9, n)
    knots_s = np.stack([notes.start_s + 0.03, notes.end_s - 0.03], axis=1).ravel()
    level = np.interp(control_s, knots_s, np.stack([accent, accent * random.uniform(0.4, 1.0, n)], axis=1).ravel())
    for start_s, end_s in zip(notes.start_s, notes.end_s, strict=True):
        gate[slice(*np.searchsorted(control_s, [start_s, end_s]))] = 1.0
    for i in range(n):
        before = slice(*np.searchsorted(control_s, [notes.start_s[i] - gap_s[i], notes.start_s[i]]))
        around = slice(*np.searchsorted(control_s, [notes.start_s[i] - 0.05, notes.start_s[i] + 0.03]))
        if gap_s[i]:
            gate[before] = 0.0
            x = np.linspace(0, 1, len(hiss[before]))
            hiss[before] = force[i] * (np.where(x > 0.75, 1.5 - x, 0.0) if plosive[i] else np.sin(np.pi * x))
        elif not notes.begins[i]:
            dip[around] = 1 - weakness[i] * np.sin(np.linspace(0, np.pi, len(dip[around])))
    ramp = np.hanning(27)[1:-1]
    gate = np.convolve(gate, ramp / ramp.sum(), "same")
    swell = 10 ** (_wander(control_s, 0.4, random) * 1.5 / 20)
    return gate, gate * dip * level * swell, hiss


def _vowel_responses(singer: Singer, notes: Notes, frame_s: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The voice's filter (frames, bins): every note has a vowel, some slide into a second one."""
    n = len(notes.pitch)
    first = random.integers(len(VOWELS_HZ), size=n)
    second = np.where(random.random(n) < 0.4, random.integers(len(VOWELS_HZ), size=n), first)
    third = (notes.end_s - notes.start_s) / 3
    knots_s = np.stack([notes.start_s + 0.04, notes.start_s + third, notes.end_s - 0.04], axis=1)
    knots_s = np.maximum.accumulate(knots_s.ravel())
    vowels = np.stack([first, first, second], axis=1).ravel()
    moving = [np.interp(frame_s, knots_s, VOWELS_HZ[vowels, formant]) for formant in range(3)]
    fixed = [np.full(len(frame_s), hz) for hz in HIGH_FORMANTS_HZ]
    centres_hz = singer.formant_scale * np.stack([*moving, *fixed], axis=1)
    bins_hz = np.fft.rfftfreq(FRAME_FFT, 1 / SAMPLE_RATE_HZ)
    glottis = GLOTTIS_GAIN / (1 + np.square(bins_hz / GLOTTIS_HZ))
    response = np.tile(glottis.astype(np.float32), (len(frame_s), 1))
    for formant, (bandwidth_hz, gain) in enumerate(zip(BANDWIDTHS_HZ, GAINS, strict=True)):
        away = ((bins_hz - centres_hz[:, formant, None]) / (bandwidth_hz / 2)).astype(np.float32)
        response += gain / np.sqrt(1 + away * away)
    return response


def _consonant_responses(notes: Notes, frame_s: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The consonants' filter (frames, bins): one broad band a note."""
    centre_hz = random.uniform(2000, 6500, len(notes.pitch))
    width_hz = random.uniform(700, 2000, len(notes.pitch))
    nearest = np.abs(frame_s[:, None] - notes.start_s).argmin(1)
    bins_hz = np.fft.rfftfreq(FRAME_FFT, 1 / SAMPLE_RATE_HZ)
    away = ((bins_hz - centre_hz[nearest, None]) / width_hz[nearest, None]).astype(np.float32)
    return 1 / (1 + away * away)


def _filtered(samples: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """`samples` (n,) through a filter that changes with time: frame j, centred on sample j * FRAME_HOP, by row j."""
    padded = np.zeros(len(responses) * FRAME_HOP + FRAME, np.float32)
    padded[FRAME // 2 : FRAME // 2 + len(samples)] = samples
    frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::FRAME_HOP][: len(responses)]
    window = np.hanning(FRAME + 1)[:-1].astype(np.float32) * np.float32(2 * FRAME_HOP / FRAME)
    before = (FRAME_FFT - FRAME) // 2  # room on both sides: the responses have no phase, so they ring both ways
    wide = np.zeros((len(responses), FRAME_FFT), np.float32)
    wide[:, before : before + FRAME] = frames * window
    pieces = np.fft.irfft(np.fft.rfft(wide) * responses, FRAME_FFT).reshape(len(responses), -1, FRAME_HOP)
    total = np.zeros((len(responses) + pieces.shape[1], FRAME_HOP))
    for piece in range(pieces.shape[1]):
        total[piece : piece + len(responses)] += pieces[:, piece]
    return total.ravel()[before + FRAME // 2 :][: len(samples)]


def accompany(song: Song, notes: Notes, first_beat: float, num_samples: int, random: np.random.Generator) -> np.ndarray:
    """What the band plays (n,) under these notes, at any level."""
    score = _score(song, notes, first_beat, num_samples / SAMPLE_RATE_HZ, random)
    total = np.zeros(num_samples + SAMPLE_RATE_HZ)
    played: dict[tuple[str, int, int], np.ndarray] = {}
    for name, pitch, start_s, length_s, force in score:
        key = (name, pitch, round(length_s * SAMPLE_RATE_HZ))
        if key not in played:
            played[key] = play(song.band[name], pitch, key[2], SAMPLE_RATE_HZ)
        add(total, played[key], round(start_s * SAMPLE_RATE_HZ), force)
    if song.drums:
        _drum(song, total, first_beat, random)
    tail = random.standard_normal(SAMPLE_RATE_HZ // 4) * np.exp(
        -np.arange(SAMPLE_RATE_HZ // 4) / (0.06 * SAMPLE_RATE_HZ)
    )
    size = 1 << (len(total) + len(tail) - 1).bit_length()
    echo = np.fft.irfft(np.fft.rfft(total, size) * np.fft.rfft(tail, size), size)[:num_samples]
    total = total[:num_samples]
    return total + song.wet * echo * (_rms(total) / max(_rms(echo), 1e-12))


def _score(
    song: Song, notes: Notes, first_beat: float, clip_s: float, random: np.random.Generator
) -> list[tuple[str, int, float, float, float]]:
    """All notes of pitched instruments: (instrument, semitones, start and length in seconds, force)."""
    score: list[tuple[str, int, float, float, float]] = []
    eighth_s = song.beat_s / 2
    first_bar = int(first_beat // song.beats_per_bar)
    last_bar = int((first_beat + clip_s / song.beat_s) // song.beats_per_bar)
    for bar in range(first_bar, last_bar + 1):
        chord = song.chords[bar % len(song.chords)]
        bar_s = (bar * song.beats_per_bar - first_beat) * song.beat_s
        chords = {name: pitches_from(instrument.lowest, chord) for name, instrument in song.band.items()}
        for eighth, tone in enumerate(song.pattern):
            at_s = bar_s + eighth * eighth_s
            force = random.uniform(0.7, 1.1) * (1.2 if eighth == 0 else 1.0)
            if "pluck" in song.band and tone >= 0:
                tones = chords["pluck"][:3] if song.strummed and eighth % 2 == 0 else [chords["pluck"][tone]]
                score += [("pluck", pitch, at_s + 0.012 * i, 1.2, force) for i, pitch in enumerate(tones)]
            if "bass" in song.band and (eighth % 4 == 0 or (tone == 0 and eighth % 2 == 0)):
                root = pitches_from(song.band["bass"].lowest, chord[:1])[0]
                score.append(("bass", root + (7 if eighth and tone == 2 else 0), at_s, 2 * eighth_s, force))
        if "pad" in song.band:
            score += [("pad", pitch, bar_s, song.beats_per_bar * song.beat_s, 1.0) for pitch in chords["pad"][:3]]
        if "lead" in song.band:
            eighth = 0
            while eighth < len(song.pattern):
                length = int(random.choice([1, 2, 3, 4]))
                at_s = bar_s + eighth * eighth_s
                sung = bool(((notes.start_s < at_s + eighth_s) & (notes.end_s > at_s)).any())
                if random.random() < (0.35 if sung else 0.9):
                    choices = chord if random.random() < 0.6 else song.pitch_classes
                    pitch = int(random.choice(pitches_from(song.band["lead"].lowest, choices)))
                    score.append(("lead", pitch, at_s, length * eighth_s, random.uniform(0.7, 1.2)))
                eighth += length
    return score


def _drum(song: Song, total: np.ndarray, first_beat: float, random: np.random.Generator) -> None:
    """Add kick, snare and hi-hat to `total` in place."""
    t = np.arange(SAMPLE_RATE_HZ // 5) / SAMPLE_RATE_HZ
    noise = random.standard_normal((2, len(t)))
    kick = np.sin(2 * np.pi * (50 * t + 5 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.06)
    snare = (0.5 * noise[0] + 0.5 * np.sin(2 * np.pi * 190 * t)) * np.exp(-t / 0.05)
    hat = np.diff(noise[1], n=2, prepend=[0, 0]) * np.exp(-t / 0.02) * 0.2
    eighth_s = song.beat_s / 2
    first = int(np.floor(2 * first_beat))
    for eighth in range(first, first + int(len(total) / SAMPLE_RATE_HZ / eighth_s) + 1):
        start = round((eighth / 2 - first_beat) * song.beat_s * SAMPLE_RATE_HZ)
        force = song.drums * random.uniform(0.8, 1.1)
        place = eighth % (2 * song.beats_per_bar)
        add(total, hat, start, force)
        if place == 0 or (place == 4 and song.beats_per_bar == 4):
            add(total, kick, start, force)
        elif place % 4 == 2:
            add(total, snare, start, 0.6 * force)
