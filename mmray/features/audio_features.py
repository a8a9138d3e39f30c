"""Sound to frames of features: MFCC, spectral contrast and log-mel spectra, as librosa defines them, from one spectrum.

Frame t is centred on sample t hop: n_fft samples under a periodic Hann window, with zeros beyond the clip's ends. Let P
be the power |DFT|^2 of a frame and dB(x) = 10 log10 max(x, 1e-10), where nothing lies more than 80 below the largest
value that the clip has of x.

- mel spectrum (`librosa.feature.melspectrogram`): sums of P under triangles that are spaced evenly on Slaney's mel
  scale from 0 Hz to half the sampling rate, each of area 1 over Hz.
- log-mel: dB(mel spectrum), in `log_mel` bands.
- MFCC (`librosa.feature.mfcc`): the first `mfcc` places of the orthonormal DCT-II of dB(mel spectrum), in 128 bands.
- contrast (`librosa.feature.spectral_contrast`): dB(peak) - dB(valley) of sqrt(P) in bands up to 200, 400, 800, ... Hz,
  the last of them up to half the sampling rate. The peak is the mean of the largest 2 % of a band's bins, at least of
  one, the valley that of the smallest. As in librosa's program, a band but the first begins a bin below its edge, and
  all but the last leave out their topmost bin.

Where a DFT is too short for so many mel bands, some lie between two bins and are always at the floor, as in librosa.

The transform is in float64, as librosa's is. Contrast takes the logarithm of the emptiest bins, and in the top octave
of an MP3 a transform in float32 leaves nothing in them but its rounding errors: contrasts came out up to 5 dB wrong.

Contrast is after D.-N. Jiang, L. Lu, H.-J. Zhang, J.-H. Tao and L.-H. Cai, "Music type classification by spectral
contrast feature", IEEE International Conference on Multimedia and Expo, 2002.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mmray.config import Section
from mmray.features.native import called, compiled

Array = NDArray[np.float32]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MFCC_MELS = 128
_FLOOR = np.float32(1e-10)
_RANGE_DB = np.float32(80)
_FIRST_EDGE_HZ = 200.0
_QUANTILE = 0.02
_LANES = 16  # frames side by side: one step of compiled code works on all, and their spectra stay in a core's own cache
_LARGEST_SAMPLE = 1e12  # the square of a window's spectrum is then within float32


class Settings(Section):
    """Which features, of what. The rows of a frame: `mfcc`, then contrast, then `log_mel`."""

    sample_rate_hz: PositiveInt = 16000
    n_fft: int = Field(2048, ge=2, multiple_of=2, description="samples of a frame, the size of its DFT")
    hop: PositiveInt = Field(512, description="samples from a frame to the next")
    mfcc: int = Field(20, ge=0, le=_MFCC_MELS, description="coefficients; 0 = none")
    contrast_bands: int = Field(6, ge=0, le=16, description="octaves from 200 Hz, which give one row more; 0 = none")
    log_mel: NonNegativeInt = Field(0, description="mel bands; 0 = none")

    @model_validator(mode="after")
    def _makes_features(self) -> Self:
        if self.size == 0:
            raise ValueError("mfcc, contrast_bands and log_mel are all 0: there is no feature; give one of them")
        if self.contrast_bands:
            _contrast_bands(self)
        return self

    @property
    def size(self) -> int:
        """D, the rows of a frame."""
        return self.mfcc + (self.contrast_bands + 1 if self.contrast_bands else 0) + self.log_mel

    @property
    def names(self) -> list[str]:
        """What each of the D rows is."""
        contrast = self.contrast_bands + 1 if self.contrast_bands else 0
        sizes = {"mfcc": self.mfcc, "contrast": contrast, "log-mel": self.log_mel}
        return [f"{kind} {row}" for kind, size in sizes.items() for row in range(size)]

    @property
    def hop_s(self) -> float:
        """Seconds from a frame to the next."""
        return self.hop / self.sample_rate_hz

    def num_frames(self, num_samples: int) -> int:
        """T, the frames of a clip of at least one sample: frame t stands at t hop, up to the clip's end."""
        return 1 + num_samples // self.hop


class Extractor:
    """The features of mono sound at `settings.sample_rate_hz`; holds tables only, so that threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(settings.n_fft) / settings.n_fft)
        numbers = {_MFCC_MELS if settings.mfcc else 0, settings.log_mel} - {0}
        self._mel_bands = {number: _mel_bands(settings, number) for number in sorted(numbers)}
        self._contrast_bands = _contrast_bands(settings) if settings.contrast_bands else None

    def __call__(self, samples: ArrayLike) -> Array:
        """Features (T, D) of a clip (n,) of floats, full scale 1, n >= 1.

        A frame's values depend on its own samples and, by the range of 80 dB, on the clip's largest value.
        ValueError for another shape or type, an empty clip, and samples that are not finite.
        """
        import ducc0

        settings, array = self.settings, _checked(samples)
        num_frames = settings.num_frames(len(array))
        num_chunks = -(-num_frames // _LANES)
        padded = np.zeros(settings.n_fft + (num_chunks * _LANES - 1) * settings.hop, np.float32)
        start = settings.n_fft // 2
        # A hop longer than half a frame may leave last samples that no frame reaches.
        padded[start : start + len(array)] = array[: len(padded) - start]

        num_bins = settings.n_fft // 2 + 1
        frames = np.empty((settings.n_fft, _LANES))
        spectra = np.empty((num_bins, _LANES), np.complex128)
        powers, work = np.empty((num_bins, _LANES), np.float32), np.empty((num_bins, _LANES), np.float32)
        mels = {number: np.empty((num_frames, number), np.float32) for number in self._mel_bands}
        valleys, peaks = np.empty((2, num_frames, settings.contrast_bands + 1), np.float32)
        for chunk in range(num_chunks):
            rows = slice(chunk * _LANES, (chunk + 1) * _LANES)
            _fill_frames(padded[rows.start * settings.hop :], settings.hop, self._window, frames)
            ducc0.fft.r2c(frames, axes=(0,), out=spectra, nthreads=1)
            _fill_powers(spectra, powers)
            for number, bands in self._mel_bands.items():
                _sum_bands(powers, *bands, mels[number][rows])
            if self._contrast_bands:
                _find_extremes(powers, *self._contrast_bands, work, valleys[rows], peaks[rows])

        for mel in mels.values():
            _to_db(mel)
        parts = []
        if settings.mfcc:
            parts.append(ducc0.fft.dct(mels[_MFCC_MELS], type=2, axes=(1,), inorm=1, nthreads=1)[:, : settings.mfcc])
        if self._contrast_bands:
            parts.append(_to_db(peaks) - _to_db(valleys))
        if settings.log_mel:
            parts.append(mels[settings.log_mel])
        return np.concatenate(parts, axis=1)


def _checked(samples: ArrayLike) -> Array:
    array = np.asarray(samples)
    if array.ndim != 1 or array.dtype.kind != "f":
        raise ValueError(f"sound has shape {array.shape} and type {array.dtype}; give (n,) floats, full scale 1")
    if len(array) == 0:
        raise ValueError("sound has no samples; give at least one")
    if not (float(array.max()) <= _LARGEST_SAMPLE and float(array.min()) >= -_LARGEST_SAMPLE):
        bad = int(np.argmin(np.abs(array.astype(np.float64)) <= _LARGEST_SAMPLE))
        raise ValueError(f"sample {bad} is {array[bad]}; samples must be finite, with full scale at 1")
    return array.astype(np.float32, copy=False)


def _to_db(values: Array) -> Array:
    """Turn a clip's values into dB, in place."""
    np.maximum(values, _FLOOR, out=values)
    np.log10(values, out=values)
    values *= np.float32(10)
    np.maximum(values, values.max() - _RANGE_DB, out=values)
    return values


def _mel_bands(settings: Settings, number: int) -> tuple[Ints, Ints, Array]:
    """First bin of each band, where its weights begin in the last, and where they end, and the weights of all."""
    corners_hz = _mel_to_hz(np.linspace(0, _hz_to_mel(settings.sample_rate_hz / 2), number + 2))
    bins_hz = _bins_hz(settings)
    firsts, sizes, weights = [], [], []
    for low, peak, high in zip(corners_hz, corners_hz[1:], corners_hz[2:], strict=False):
        triangle = np.maximum(np.minimum((bins_hz - low) / (peak - low), (high - bins_hz) / (high - peak)), 0)
        within = np.flatnonzero(triangle)
        firsts.append(within[0] if len(within) else 0)
        sizes.append(len(within))
        weights.append(triangle[within] * (2 / (high - low)))
    return np.array(firsts), np.cumsum([0, *sizes]), np.concatenate(weights).astype(np.float32)


# Slaney's scale: 3 mel per 200 Hz up to 1 kHz, from there on 27 for a factor of 6.4.
_MEL_HZ = 200 / 3
_BEND_HZ = 1000.0
_BEND_MEL = _BEND_HZ / _MEL_HZ
_MEL_LOG = np.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / _MEL_HZ if hz < _BEND_HZ else _BEND_MEL + float(np.log(hz / _BEND_HZ) / _MEL_LOG)


def _mel_to_hz(mel: Floats) -> Floats:
    return np.where(mel < _BEND_MEL, mel * _MEL_HZ, _BEND_HZ * np.exp(_MEL_LOG * (mel - _BEND_MEL)))


def _contrast_bands(settings: Settings) -> tuple[Ints, Ints, Ints]:
    """First bin of each band, the one after its last, and how many bins make its peak. ValueError if one is empty."""
    number, bins_hz = settings.contrast_bands, _bins_hz(settings)
    edges_hz = [0.0, *(_FIRST_EDGE_HZ * 2.0**band for band in range(number + 1))]
    if edges_hz[number] >= settings.sample_rate_hz / 2:
        most = sum(_FIRST_EDGE_HZ * 2.0**band < settings.sample_rate_hz / 2 for band in range(number))
        raise ValueError(
            f"contrast_bands={number}: the last band begins at {edges_hz[number]:g} Hz, which is not below half of "
            f"sample_rate_hz={settings.sample_rate_hz}; take at most {most} bands or a higher sample_rate_hz"
        )
    firsts, stops, counts = [], [], []
    for band in range(number + 1):
        is_last = band == number
        within = np.flatnonzero((bins_hz >= edges_hz[band]) & (bins_hz <= edges_hz[band + 1]))
        first = within[0] - (band > 0) if len(within) else 0
        stop = (len(bins_hz) if is_last else within[-1]) if len(within) else 0
        if first == stop:
            raise ValueError(
                f"n_fft={settings.n_fft}: no bin is left for the contrast band from {edges_hz[band]:g} to "
                f"{edges_hz[band + 1]:g} Hz at sample_rate_hz={settings.sample_rate_hz}; take a larger n_fft or "
                "contrast_bands: 0"
            )
        firsts.append(first)
        stops.append(stop)
        counts.append(max(1, round(_QUANTILE * (stop - first + (not is_last)))))  # of all bins, left out or not
    return np.array(firsts), np.array(stops), np.array(counts)


def _bins_hz(settings: Settings) -> Floats:
    return np.fft.rfftfreq(settings.n_fft, 1 / settings.sample_rate_hz).astype(np.float64)


@compiled
def _fill_frames(padded: Array, hop: int, window: Floats, frames: Floats) -> None:
    """Cut the columns of `frames` (n_fft, lanes) from `padded`, column c from place c hop on, and weight them."""
    for k in range(len(window)):
        for c in range(_LANES):
            frames[k, c] = window[k] * padded[hop * c + k]


@compiled
def _fill_powers(spectra: NDArray[np.complex128], powers: Array) -> None:
    """powers = |spectra|^2, both (bins, lanes)."""
    for k in range(len(spectra)):
        for c in range(_LANES):
            value = spectra[k, c]
            powers[k, c] = value.real * value.real + value.imag * value.imag


@compiled
def _sum_bands(powers: Array, firsts: Ints, offsets: Ints, weights: Array, sums: Array) -> None:
    """sums[t, b] = sum over k of weights[offsets[b] + k] * powers[firsts[b] + k, t]; sums has the first few lanes."""
    totals = np.empty(_LANES, np.float32)
    for b in range(len(firsts)):
        totals[:] = 0
        for k in range(offsets[b + 1] - offsets[b]):
            weight, place = weights[offsets[b] + k], firsts[b] + k
            for c in range(_LANES):
                totals[c] += weight * powers[place, c]
        for t in range(len(sums)):
            sums[t, b] = totals[t]


@compiled
def _find_extremes(
    powers: Array, firsts: Ints, stops: Ints, counts: Ints, work: Array, valleys: Array, peaks: Array
) -> None:
    """Means of the square roots of each band's `counts` smallest and largest powers; `work` is overwritten."""
    for b in range(len(firsts)):
        size = stops[b] - firsts[b]
        for k in range(size):
            for c in range(_LANES):
                work[k, c] = powers[firsts[b] + k, c]
        _mean_of_least(work, size, counts[b], valleys[:, b])
        for k in range(size):
            for c in range(_LANES):
                work[k, c] = -powers[firsts[b] + k, c]
        _mean_of_least(work, size, counts[b], peaks[:, b])


@called
def _mean_of_least(work: Array, size: int, count: int, means: Array) -> None:
    """Means of sqrt |x| of the `count` smallest x of each column of work[:size], which is left without them.

    Each pass takes the next four and always as many steps, whatever the numbers. For the few that are wanted this is
    some five times as fast as the sorting of real spectra by insertion.
    """
    least = np.empty((4, _LANES), np.float32)
    totals = np.zeros(_LANES)
    for taken in range(0, count, 4):
        least[:] = np.inf
        for k in range(size):
            for c in range(_LANES):
                x = work[k, c]
                for i in range(4):
                    least[i, c], x = min(least[i, c], x), max(least[i, c], x)
                work[k, c] = x
        for i in range(min(4, count - taken)):
            for c in range(_LANES):
                totals[c] += np.sqrt(abs(least[i, c]))
    for t in range(len(means)):
        means[t] = totals[t] / count
