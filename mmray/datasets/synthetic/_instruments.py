"""Instruments that several made-up corpora play: what a note of one sounds like, and where it stands in a piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_HARMONICS = 16  # of an instrument's note
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}


@dataclass(frozen=True)
class Instrument:
    """A pitched instrument of a song: its lowest note (semitones), and how a note of it sounds."""

    lowest: int
    gain: float
    slope: float  # harmonic k has the amplitude k^-slope
    even: float  # of the even harmonics against the odd ones
    decay_per_s: float
    attack_s: float
    detuning: float = 0.0  # semitones; more than 0: two strings, one on either side
    vibrato_semitones: float = 0.0
    vibrato_hz: float = 5.0


def pitches_from(lowest: int, pitch_classes: tuple[int, ...]) -> list[int]:
    """The pitches of these classes from `lowest` on, ascending, one of each and the first again an octave higher."""
    pitches = sorted(lowest + (pitch_class - lowest) % 12 for pitch_class in pitch_classes)
    return [*pitches, pitches[0] + 12]


def play(instrument: Instrument, pitch: int, num_samples: int, sample_rate_hz: int) -> np.ndarray:
    """One note of an instrument, with 50 ms of release after its length.

    It is sum_k w_k r^k sin(k phi) e^(-0.7 d t), d the decay per second and r = e^(-0.3 d t), so that high harmonics
    fade faster; Clenshaw's recurrence sums the series with one sine and one cosine.
    """
    t = np.arange(num_samples + sample_rate_hz // 20) / sample_rate_hz
    f0_hz = 440.0 * 2 ** ((pitch - 69) / 12)
    num_harmonics = min(NUM_HARMONICS, int(0.47 * sample_rate_hz / f0_hz))
    weights = np.arange(1.0, num_harmonics + 1) ** -instrument.slope
    weights[1::2] *= instrument.even
    swell = np.clip((t - 0.2) / 0.3, 0, 1)
    bend = instrument.vibrato_semitones * np.log(2) / 12 * swell * np.sin(2 * np.pi * instrument.vibrato_hz * t)
    fading = np.exp((-0.3 * instrument.decay_per_s * t).astype(np.float32))
    edges = np.clip(t / instrument.attack_s, 0, 1) * np.clip((t[-1] - t) / 0.05, 0, 1)
    envelope = instrument.gain * edges * np.exp(-0.7 * instrument.decay_per_s * t)
    sound = np.zeros(len(t))
    strings = (-instrument.detuning, instrument.detuning) if instrument.detuning else (0.0,)
    for offset in strings:
        cycles = np.cumsum((1 + bend) * f0_hz * 2 ** (offset / 12) / sample_rate_hz) % 1.0
        phase = (2 * np.pi * cycles).astype(np.float32)
        factor, factor_before = 2 * fading * np.cos(phase), fading * fading
        now, before = np.zeros((2, len(t)), np.float32)
        for weight in weights[::-1].tolist():
            now, before = factor * now - factor_before * before + weight, now
        sound += envelope * (now * fading * np.sin(phase))
    return sound


def add(total: np.ndarray, sound: np.ndarray, start: int, force: float) -> None:
    """Add `sound` to `total` in place from sample `start` on; what lies before or after `total` is lost."""
    begin, end = max(start, 0), min(start + len(sound), len(total))
    if begin < end:
        total[begin:end] += force * sound[begin - start : end - start]
