"""CFP, combined frequency and periodicity: sound as a picture of pitch over time, with three views of it as channels.

Channel 0 is a power-scaled spectrum, which shows a tone and its harmonics; channel 2 a generalised cepstrum, which
shows the tone and its subharmonics; channel 1 the spectrum of that cepstrum. A pitch stands where they agree.

Let x be a frame of N = sample_rate / resolution places: a window of samples, then zeros. With its discrete Fourier
transform F x and powers g,

    S = |F x|^g0        C = max(Re F S / sqrt(N), 0)^g1        G = max(Re F C / sqrt(N), 0)^g2

where C is set to 0 in as many places at both ends as there are samples in a period of max_hz, and G in as many as there
are bins below min_hz. Triangles between neighbours of the centres min_hz 2^(i / bins_per_octave) sum S and G over
frequency, and C over sample_rate / quefrency. The channels are log(1 + sum) of S, G and C, in this order, and are
scaled to [0, 1] each over the clip.

After L. Su and Y.-H. Yang, "Combining spectral and temporal representations for multipitch estimation of polyphonic
music" (IEEE/ACM TASLP 23(10), 2015), and T.-H. Hsieh, L. Su and Y.-H. Yang, "A streamlined encoder/decoder architecture
for melody extraction" (ICASSP 2019, arXiv:1810.12947). Published weights expect what those authors' program computes,
which in places is not what one would write down from the papers. This module does as that program does:

- The first frame is centred on sample `hop`, and the last sample of a clip is in no frame.
- Of a window w of 2 H + 1 values, w[2 H], w[0], w[1], ..., w[2 H - 2] meet the samples -H - 1 ... H - 2 around the
  centre.
- Where a frame reaches over an edge of the clip, the values that meet samples are scaled to unit norm.
- With `cut` places at both ends set to 0, place `cut` stays but its mirror image N - cut does not.
- The triangles take bin j to lie at j sample_rate / (N - 2) instead of j sample_rate / N.
- A triangle narrower than a bin takes the bin at its lower corner; row 0 has no triangle and is always 0.

With SegNet's published weights this gives the pitch that its authors published for their example, frame by frame.

The spectra S and C are real and have mirror symmetry, so that the later two transforms are cosine transforms of half
the places. The first is in float64: a small power turns rounding errors in the emptier parts of a spectrum into large
ones. So the scaled feature is within 1e-5 of one computed in float64 throughout; a few values of pure tones, or of
frames that are silent but for an end, are within 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mmray.config import Section
from mmray.features import _cfp_kernels as kernels

Array = NDArray[np.float32]

CHANNELS = ("spectrum", "spectrum of cepstrum", "cepstrum")
_FRAMES_PER_CHUNK = 16  # a multiple of 4; their spectra stay in a core's second-level cache
_LARGEST_SAMPLE = 1e15  # the square of a window's spectrum is then within float32


class Settings(Section):
    """How sound becomes CFP. The defaults are those of the published DenseASPP; SegNet has 44,100 Hz and 60 bins."""

    sample_rate_hz: PositiveInt = 16000
    hop: PositiveInt = 256
    """Samples from a frame to the next."""
    window: int = Field(default=2049, ge=3)
    """Samples of the Blackman-Harris window."""
    resolution_hz: PositiveFloat = 2.0
    """Distance of the DFT's bins: frames are padded to N = sample_rate_hz / resolution_hz places."""
    min_hz: PositiveFloat = 31.0
    """Centre of row 0."""
    max_hz: PositiveFloat = 1250.0
    """All centres are below it."""
    bins_per_octave: PositiveInt = 48
    powers: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.24, 0.6, 1.0)
    """Of the spectrum, of the cepstrum and of its spectrum."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Settings:
        if self.window >= self.dft_size:
            raise ValueError(
                f"window={self.window} is not shorter than the DFT, sample_rate_hz / resolution_hz = "
                f"{self.dft_size}; take a shorter window or a smaller resolution_hz"
            )
        if round(self.sample_rate_hz / self.min_hz) > self.dft_size // 2:
            raise ValueError(
                f"min_hz={self.min_hz:g} is below two bins of resolution_hz={self.resolution_hz:g}; "
                "take a higher min_hz or a smaller resolution_hz"
            )
        if round(self.max_hz / self.resolution_hz) >= self.dft_size // 2:
            raise ValueError(
                f"max_hz={self.max_hz:g} is not below half of sample_rate_hz={self.sample_rate_hz}; "
                "take a lower max_hz or a higher sample_rate_hz"
            )
        if len(self._centres_hz()) < 3:
            raise ValueError(
                f"min_hz={self.min_hz:g}, max_hz={self.max_hz:g} and bins_per_octave={self.bins_per_octave} make fewer "
                "than 3 centre frequencies; take a wider range or more bins"
            )
        return self

    def _centres_hz(self) -> NDArray[np.float64]:
        """The corners of the bands, (F + 1,)."""
        count = math.ceil(math.log2(max(self.max_hz / self.min_hz, 1)) * self.bins_per_octave) + 1
        centres = self.min_hz * 2 ** (np.arange(count) / self.bins_per_octave)
        return centres[centres < self.max_hz]

    @property
    def dft_size(self) -> int:
        """N."""
        return int(self.sample_rate_hz / self.resolution_hz)

    @property
    def num_bins(self) -> int:
        """F, the rows of a channel."""
        return len(self._centres_hz()) - 1

    @property
    def hop_s(self) -> float:
        """Seconds from a frame to the next."""
        return self.hop / self.sample_rate_hz

    def frequencies_hz(self) -> NDArray[np.float64]:
        """Centre frequencies of the rows, (F,), ascending."""
        return self._centres_hz()[:-1]

    def pitches_hz(self) -> NDArray[np.float64]:
        """Pitches of rows 1 ... F of a model's output, (F,), ascending, where row 0 is "no melody".

        Row r has the pitch min_hz 2^(r / bins_per_octave), as in the labels that the published models were trained on:
        the frequency of bin r of the feature.
        """
        return self._centres_hz()[1:]

    def num_frames(self, num_samples: int) -> int:
        """T, the frames of a clip: as many as there are multiples of `hop` among the places 1 ... num_samples - 1."""
        return max(0, (num_samples - 1) // self.hop)

    def frame_times_s(self, num_frames: int) -> NDArray[np.float64]:
        """Seconds from the clip's start to the centres of its frames, (T,)."""
        return np.arange(1, num_frames + 1) * self.hop / self.sample_rate_hz


class Range:
    """Smallest and largest value of each channel, (3,), over all frames seen so far."""

    def __init__(self) -> None:
        self.minimum = np.full(3, np.inf, np.float32)
        self.maximum = np.full(3, -np.inf, np.float32)

    def add(self, raw: Array) -> None:
        """See frames (t, 3, F)."""
        if len(raw):
            self.minimum = np.minimum(self.minimum, raw.min(axis=(0, 2)))
            self.maximum = np.maximum(self.maximum, raw.max(axis=(0, 2)))

    def scale(self, raw: Array) -> Array:
        """Frames (t, 3, F) mapped from the range to [0, 1]; a channel that never changed gives 0."""
        if not len(raw):
            return raw.copy()
        size = self.maximum - self.minimum
        if not np.isfinite(size).all():
            raise ValueError("a range that has seen no frames can't scale any; add the clip's frames first")
        scaled: Array = raw - self.minimum[:, None]
        scaled /= np.where(size > 0, size, np.float32(np.inf))[:, None]
        return np.clip(scaled, 0, 1, out=scaled)


class Cfp:
    """CFP of mono sound at `settings.sample_rate_hz`; holds tables only, so that threads may share it.

    The value of a frame depends on nothing but the samples under its window and their place in it: neither on how the
    sound comes in blocks nor on what follows.
    """

    def __init__(self, settings: Settings) -> None:
        from scipy.signal.windows import blackmanharris

        self.settings = settings
        self._half = (settings.window - 1) // 2
        weights = np.roll(blackmanharris(settings.window), 1)[: 2 * self._half]
        self._weights = weights / np.linalg.norm(weights)
        self._cut_quefrency = round(settings.sample_rate_hz / settings.max_hz)
        self._cut_frequency = round(settings.min_hz / settings.resolution_hz)
        self._num_bins = settings.num_bins
        self._over_frequency = _frequency_bands(settings)
        self._over_quefrency = _quefrency_bands(settings)

    def __call__(self, samples: ArrayLike) -> Array:
        """CFP (T, 3, F) of a clip (n,), each channel scaled to [0, 1] over the clip. Errors as of `stream`."""
        raw = self.raw(samples)
        seen = Range()
        seen.add(raw)
        return seen.scale(raw)

    def raw(self, samples: ArrayLike) -> Array:
        """CFP (T, 3, F) of a clip (n,) before scaling. T is 0 for a clip of at most `hop` samples."""
        array = _checked(samples)
        raw = np.empty((self.settings.num_frames(len(array)), 3, self._num_bins), np.float32)
        start = 0
        for part in self.stream([array]):
            raw[start : start + len(part)] = part
            start += len(part)
        return raw

    def stream(self, blocks: Iterable[NDArray[Any]]) -> Iterator[Array]:
        """The rows of `raw` of the concatenated blocks, some (t, 3, F) at a time, in memory of a few chunks.

        A block is (n,) floats, full scale 1; n is of no importance. Raises ValueError for another shape or type of
        block and for samples that are not finite.
        """
        hop, rows = self.settings.hop, _FRAMES_PER_CHUNK
        work = _Work(self.settings)
        # Row r of a chunk begins at place hop (r + 1) of the buffer; the first chunk's buffer begins before sample 0.
        buffer = np.zeros(rows * hop + len(self._weights), np.float32)
        low = filled = self._half + 1
        num_samples = 0

        for block in blocks:
            samples = _checked(block)
            while len(samples):
                if filled == len(buffer):  # and one sample is left over, as the last is in no frame
                    yield self._chunk(work, buffer, low, filled)
                    low, filled = _forget(buffer, rows * hop, low, filled)
                piece = samples[: len(buffer) - filled]
                largest = np.abs(piece).max()
                if not largest <= _LARGEST_SAMPLE:
                    bad = int(np.argmin(np.abs(piece) <= _LARGEST_SAMPLE))
                    raise ValueError(
                        f"sample {num_samples + bad} is {piece[bad]}; samples must be finite, with full scale at 1"
                    )
                buffer[filled : filled + len(piece)] = piece
                filled += len(piece)
                num_samples += len(piece)
                samples = samples[len(piece) :]

        while (left := (filled - self._half - 2) // hop) > 0:
            yield self._chunk(work, buffer, low, filled - 1)[:left]
            if left <= rows:
                return
            low, filled = _forget(buffer, rows * hop, low, filled)

    def _chunk(self, work: _Work, buffer: Array, low: int, high: int) -> Array:
        """CFP (rows, 3, F) of the frames in a buffer whose places low ... high - 1 hold samples."""
        import ducc0

        powers = self.settings.powers
        raw = np.empty((len(work.frames), 3, self._num_bins), np.float32)
        kernels.fill_frames(buffer, low, high, self.settings.hop, self._weights, work.frames)
        ducc0.fft.r2c(work.frames, axes=(1,), out=work.spectra, nthreads=1)
        kernels.magnitudes_to_power(work.parts, np.float32(powers[0]), work.values)
        kernels.log_bands(work.values, *self._over_frequency, raw[:, 0])

        work.transform()
        kernels.rectify_to_power(work.sums, work.scale, self._cut_quefrency, np.float32(powers[1]), work.values)
        kernels.log_bands(work.values, *self._over_quefrency, raw[:, 2])

        work.values[:, self._cut_quefrency] *= 0.5  # its mirror image is one of the places set to 0
        work.transform()
        kernels.rectify_to_power(work.sums, work.scale, self._cut_frequency, np.float32(powers[2]), work.values)
        kernels.log_bands(work.values, *self._over_frequency, raw[:, 1])
        return raw


def _forget(buffer: Array, count: int, low: int, filled: int) -> tuple[int, int]:
    """Move the contents of a buffer, low ... filled - 1, to `count` places before; return where they are."""
    buffer[: filled - count] = buffer[count:filled]
    return max(0, low - count), filled - count


class _Work:
    """The arrays that a chunk passes through, used again by the next."""

    def __init__(self, settings: Settings) -> None:
        size, rows = settings.dft_size, _FRAMES_PER_CHUNK
        self.size = size
        self.scale = np.float32(1 / math.sqrt(size))
        self.frames = np.zeros((rows, size))
        self.spectra = np.empty((rows, size // 2 + 1), np.complex128)
        self.parts = self.spectra.view(np.float64)
        self.values = np.empty(self.spectra.shape, np.float32)
        self.sums = np.empty(self.spectra.shape, np.float32)

    def transform(self) -> None:
        """sums = Re F values, where the rows of both are the first halves of N places with mirror symmetry."""
        import ducc0

        if self.size % 2 == 0:
            ducc0.fft.dct(self.values, type=1, axes=(1,), out=self.sums, nthreads=1)
        else:
            whole = np.concatenate([self.values, self.values[:, :0:-1]], axis=1)
            self.sums[:] = ducc0.fft.r2c(whole, axes=(1,), nthreads=1).real


def _checked(block: ArrayLike) -> Array:
    samples = np.asarray(block)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"sound has shape {samples.shape} and type {samples.dtype}; give (n,) floats, full scale 1")
    return samples.astype(np.float32, copy=False)


_Bands = tuple[NDArray[np.int64], NDArray[np.int64], Array]


def _bands(rows: list[tuple[int, NDArray[np.float64]]]) -> _Bands:
    """First place and weights of each row, as `kernels.log_bands` takes them; row 0, which is empty, comes on top."""
    firsts = np.array([0, *(first for first, _ in rows)])
    offsets = np.cumsum([0, 0, *(len(weights) for _, weights in rows)])
    return firsts, offsets, np.concatenate([weights for _, weights in rows]).astype(np.float32)


def _triangle(x: NDArray[np.float64], low: float, peak: float, high: float) -> NDArray[np.float64]:
    """1 at the peak, falling to 0 at low and high and staying there."""
    return np.maximum(np.minimum((x - low) / (peak - low), (high - x) / (high - peak)), 0)


def _frequency_bands(settings: Settings) -> _Bands:
    """Bands over the DFT's bins."""
    centres, step = settings._centres_hz(), settings.resolution_hz
    spacing = settings.sample_rate_hz / 2 / (round(settings.dft_size / 2) - 1)
    rows = []
    for low, peak, high in zip(centres, centres[1:], centres[2:], strict=False):
        first, last = round(low / step), round(high / step)
        bins = np.arange(first, last + 1)
        rows.append((first, _triangle(bins * spacing, low, peak, high) if last > first else np.ones(1)))
    return _bands(rows)


def _quefrency_bands(settings: Settings) -> _Bands:
    """Bands over the periods, in samples."""
    centres, rate = settings._centres_hz(), settings.sample_rate_hz
    rows = []
    for low, peak, high in zip(centres, centres[1:], centres[2:], strict=False):
        periods = np.arange(round(rate / high), round(rate / low) + 1)
        rows.append((int(periods[0]), _triangle(rate / periods, low, peak, high)))
    return _bands(rows)
