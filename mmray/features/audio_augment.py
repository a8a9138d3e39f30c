"""Altered copies of sound for training: higher or lower, faster or slower, louder or softer, with noise.

Pitch and tempo in two qualities:

- `fast` is the phase vocoder, by the definitions of `librosa.effects.time_stretch` and `librosa.effects.pitch_shift`
  (a stretch, then soxr's HQ resampling). It agrees with librosa run in float64 to better than 100 dB, at several times
  its speed. Like every plain phase vocoder it smears clicks, over some 25 ms.
- `high` is Signalsmith Stretch, which keeps clicks in their places (within 1 ms) and spreads them over 2 to 3 ms, in
  some seven times the time. It needs the package python-stretch: pip install "mmray[stretch]".

Nothing here clips: sound near full scale may come out above ±1. Arguments are never altered. Sound is (n,) floats, n at
least 1, full scale 1; it comes out as float32. ValueError for anything else, for samples that are not finite, and for
intervals and rates beyond four octaves (`MAX_SEMITONES`, `MIN_RATE` ... `MAX_RATE`).
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, field_validator

from mmray.config import Section
from mmray.features import phase_vocoder

Array = NDArray[np.float32]
Quality = Literal["fast", "high"]
Kind = Literal["pitch_shift", "time_stretch"]

MAX_SEMITONES = 48.0
MAX_RATE = 2 ** (MAX_SEMITONES / 12)
MIN_RATE = 1 / MAX_RATE
_MIN_SIGNALSMITH_HZ = 1000  # with blocks of a few samples it crashes, or never returns

Semitones = Annotated[float, Field(ge=-MAX_SEMITONES, le=MAX_SEMITONES)]
Rate = Annotated[float, Field(ge=MIN_RATE, le=MAX_RATE)]
Decibels = Annotated[float, Field(ge=-120, le=120)]


class Settings(Section):
    """What `augment` may do to a piece of sound; nothing, by default."""

    pitch_shift_semitones: list[Semitones] = Field([], description="intervals to choose from, as [-2, 2]")
    time_stretch_rates: list[Rate] = Field(
        [], description="speeds to choose from, as [0.8, 1.2]: 0.8 is slower, and longer by a quarter"
    )
    gain_db: tuple[Decibels, Decibels] | None = Field(None, description="lowest and highest gain")
    noise_snr_db: tuple[Decibels, Decibels] | None = Field(
        None, description="lowest and highest ratio of sound to white noise"
    )
    quality: Quality = Field("fast", description='of pitch and tempo; high needs pip install "mmray[stretch]"')

    @field_validator("gain_db", "noise_snr_db")
    @classmethod
    def _ascends(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"[{value[0]:g}, {value[1]:g}] is not [lowest, highest]; turn it round")
        return value

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The changes of pitch and tempo that have choices."""
        offered: dict[Kind, list[float]] = {
            "pitch_shift": self.pitch_shift_semitones,
            "time_stretch": self.time_stretch_rates,
        }
        return tuple(kind for kind, choices in offered.items() if choices)


def rng_of(seed: int, item: str, turn: int) -> np.random.Generator:
    """The random numbers for one turn (the number of a copy, or an epoch) of one item, whichever process asks."""
    digest = hashlib.blake2b(f"{seed}:{turn}:{item}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def augment(
    samples: ArrayLike,
    sample_rate_hz: int,
    settings: Settings,
    rng: np.random.Generator,
    kind: Kind | None = None,
) -> Array:
    """One altered copy.

    First a shift of pitch or a stretch of time, never both: one of `settings.kinds`, then one of its choices, each as
    likely as the others. Then a gain, then noise, where there are settings for them, uniform in dB. A stretched copy
    has another length.

    `kind` fixes the first draw. Copies 1, 2, ... with `settings.kinds[(copy - 1) % len(settings.kinds)]` are one of
    each kind in turn. ValueError if the settings have no choices for it.
    """
    sound = _checked(samples)
    if kind is not None and kind not in settings.kinds:
        offered = ", ".join(settings.kinds) or "none"
        raise ValueError(f"kind={kind!r} has no choices in the settings; those that have: {offered}")
    if kind is None and settings.kinds:
        kind = settings.kinds[rng.integers(len(settings.kinds))]
    if kind == "pitch_shift":
        semitones = settings.pitch_shift_semitones[rng.integers(len(settings.pitch_shift_semitones))]
        sound = pitch_shift(sound, sample_rate_hz, semitones, settings.quality)
    elif kind == "time_stretch":
        rate = settings.time_stretch_rates[rng.integers(len(settings.time_stretch_rates))]
        sound = time_stretch(sound, rate, settings.quality, sample_rate_hz)
    if settings.gain_db is not None:
        sound = gain(sound, rng.uniform(*settings.gain_db))
    if settings.noise_snr_db is not None:
        sound = add_noise(sound, rng.uniform(*settings.noise_snr_db), rng)
    return sound.copy() if sound is samples else sound


def time_stretch(samples: ArrayLike, rate: float, quality: Quality = "fast", sample_rate_hz: int = 16000) -> Array:
    """Sound (n,) at `rate` times its speed and the same pitch, (round(n / rate),); rate 1 gives it as it is.

    `sample_rate_hz` sets the block length of quality `high` (0.12 s); `fast` has 2,048 samples at any sample rate.
    ValueError if nothing is left of a very short clip.
    """
    sound = _checked(samples)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"rate={rate} is not from {MIN_RATE:g} to {MAX_RATE:g}; 0.8 is slower, 1.2 is faster")
    _check(quality, sample_rate_hz)
    if rate == 1:
        return sound.copy()
    _check_length(len(sound), rate)
    if quality == "high":
        return _signalsmith(sound, sample_rate_hz, rate=rate)
    return phase_vocoder.stretch(sound, rate)


def pitch_shift(samples: ArrayLike, sample_rate_hz: int, semitones: float, quality: Quality = "fast") -> Array:
    """Sound (n,) an interval higher or (below 0) lower at the same speed, (n,); 0 semitones give it as it is.

    As librosa's, `fast` may end in a few zeros where a sound stretched by a large interval is rounded to less than n.
    ValueError if a very short clip leaves nothing to shift.
    """
    sound = _checked(samples)
    if not -MAX_SEMITONES <= semitones <= MAX_SEMITONES:
        raise ValueError(f"semitones={semitones} is not from {-MAX_SEMITONES:g} to {MAX_SEMITONES:g}")
    _check(quality, sample_rate_hz)
    if semitones == 0:
        return sound.copy()
    if quality == "high":
        return _signalsmith(sound, sample_rate_hz, semitones=semitones)
    import soxr

    rate = 2 ** (-semitones / 12)
    _check_length(len(sound), rate)
    slower = phase_vocoder.stretch(sound, rate)
    return _of_length(soxr.resample(slower, sample_rate_hz / rate, sample_rate_hz, "HQ"), len(sound))


def gain(samples: ArrayLike, db: float) -> Array:
    """Sound (n,) louder by `db` decibels, or softer where that is below 0."""
    sound = _checked(samples)
    if not -120 <= db <= 120:
        raise ValueError(f"db={db} is not from -120 to 120")
    return sound * np.float32(10 ** (db / 20))


def add_noise(samples: ArrayLike, snr_db: float, rng: np.random.Generator) -> Array:
    """Sound (n,) with white Gaussian noise whose power is `snr_db` decibels below the sound's; silence stays silent."""
    sound = _checked(samples)
    if not -120 <= snr_db <= 120:
        raise ValueError(f"snr_db={snr_db} is not from -120 to 120")
    noise = rng.standard_normal(len(sound), np.float32)
    level = np.sqrt(_power(sound) / _power(noise)) * 10 ** (-snr_db / 20)
    return sound + noise * np.float32(level)


def _power(sound: Array) -> float:
    return float(np.mean(np.square(sound, dtype=np.float64)))


def _checked(samples: ArrayLike) -> Array:
    array = np.asarray(samples)
    if array.ndim != 1 or array.dtype.kind != "f" or not len(array):
        raise ValueError(
            f"sound has shape {array.shape} and type {array.dtype}; give (n,) floats, n at least 1, full scale 1"
        )
    limit = phase_vocoder.LARGEST_SAMPLE
    if not (array.min() >= -limit and array.max() <= limit):
        bad = int(np.argmin(np.abs(array) <= limit))
        raise ValueError(f"sample {bad} is {array[bad]}; samples must be finite, with full scale at 1")
    return np.ascontiguousarray(array, np.float32)


def _check(quality: Quality, sample_rate_hz: int) -> None:
    if quality not in get_args(Quality):
        raise ValueError(f"quality={quality!r}; choose {' or '.join(get_args(Quality))}")
    if not sample_rate_hz > 0:
        raise ValueError(f"sample_rate_hz={sample_rate_hz} is not above 0")


def _check_length(num_samples: int, rate: float) -> None:
    if round(num_samples / rate) < 1:
        raise ValueError(f"{num_samples} samples at {rate:g} times their speed leave none; give a longer clip")


def _of_length(sound: Array, num_samples: int) -> Array:
    """The first so many samples, with zeros after them where there are fewer."""
    return np.pad(sound[:num_samples], (0, max(0, num_samples - len(sound))))


def _signalsmith(sound: Array, sample_rate_hz: int, rate: float = 1.0, semitones: float = 0.0) -> Array:
    """Signalsmith Stretch. It takes care of its own delay, and its output may be a sample off in length."""
    try:
        from python_stretch.Signalsmith import Stretch
    except ImportError as error:
        raise ValueError(f'quality: high needs one more package: pip install "mmray[stretch]" ({error})') from None
    if sample_rate_hz < _MIN_SIGNALSMITH_HZ:
        raise ValueError(
            f"quality: high needs a sample rate of {_MIN_SIGNALSMITH_HZ} Hz or more, not {sample_rate_hz}; "
            "take quality: fast"
        )
    stretch = Stretch(0)  # a fixed seed
    stretch.preset(1, sample_rate_hz)
    stretch.setTimeFactor(rate)
    stretch.setTransposeSemitones(semitones)
    return _of_length(np.asarray(stretch.process(sound[None]), np.float32)[0], round(len(sound) / rate))
