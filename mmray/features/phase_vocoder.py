"""Sound made faster or slower at the same pitch: the phase vocoder of `librosa.effects.time_stretch`, without angles.

Frames of 2,048 samples every 512, under a periodic Hann window and centred, zeros beyond the edges, become spectra
c[0], c[1], .... Step t of the output stands at frame x = t * rate, between k = floor(x) and k + 1. Its magnitudes are
interpolated between theirs; its phases go on from step t - 1 by as much as those of the input do from a frame to the
next. In a vocoder written down with angles these differences are wrapped and summed. Written with unit numbers
u = c / |c| a sum of angles is a product, and no wrapping is needed:

    step[t] = z[t] * ((1 - a) |c[k]| + a |c[k + 1]|),    a = x - k
    z[t + 1] = z[t] * u[k + 1] * conj(u[k]),             z[0] = u[0]

This needs one square root and one division a bin in the place of an arctangent, a sine and a cosine, and it loses
nothing: sums of angles in float32, as librosa makes them of float32 sound, soon grow to where float32 goes on in steps
of a tenth of a radian. The transform to spectra is in float64, for a bin may be far weaker than its neighbours when its
phase is taken, and strong later.

A place without sound has no phase; u is 1 there.

After J. L. Flanagan and R. M. Golden, "Phase vocoder" (Bell System Technical Journal 45(9), 1966), and M. Dolson, "The
phase vocoder: a tutorial" (Computer Music Journal 10(4), 1986).
"""
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-untyped-def"

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.features.native import compiled

Array = NDArray[np.float32]

FRAME = 2048
HOP = FRAME // 4
LARGEST_SAMPLE = 1e15  # the square of a spectrum is then within float32
_BINS = FRAME // 2 + 1
_STEPS_PER_CHUNK = 16  # their spectra stay in a core's second-level cache
_FULL_WEIGHT = 1.5  # the sum of squared Hann windows a quarter of their length apart

_f = np.float32
_SILENT = _f(1e-36)  # |c|^2, some -370 dB of full scale


def stretch(samples: Array, rate: float) -> Array:
    """The sound (n,) at `rate` times its speed, (round(n / rate),), in memory of a few chunks besides both.

    Samples are finite and within +-LARGEST_SAMPLE, the rate is above 0 and round(n / rate) is at least 1: the caller
    has checked. The definition, of edges too, is that of `librosa.effects.time_stretch` with its defaults.
    """
    import ducc0

    num_samples, num_frames = round(len(samples) / rate), 1 + len(samples) // HOP
    places = np.arange(0, num_frames, rate)[: math.ceil((num_samples + FRAME) / HOP)]
    before = places.astype(np.int64)
    fractions = (places - before).astype(np.float32)
    wanted = np.union1d(before, before + 1)  # the frames that some step needs
    starts = np.where(wanted < num_frames, wanted * HOP - FRAME // 2, len(samples))  # after the last comes silence
    rows = np.searchsorted(wanted, before)

    window = _hann()
    scaled_window = (window / (FRAME * _FULL_WEIGHT)).astype(np.float32)
    sound = np.zeros(num_samples, np.float32)
    work = _Work()
    for first in range(0, len(places), _STEPS_PER_CHUNK):
        last = min(first + _STEPS_PER_CHUNK, len(places)) - 1
        low, count = rows[first], rows[last] + 2 - rows[first]  # a frame between two chunks is made twice
        _cut_frames(samples, starts[low : low + count], window, work.frames)
        ducc0.fft.r2c(work.frames[:count], axes=(1,), out=work.spectra[:count], nthreads=1)
        _to_polar(work.spectra[:count].view(np.float64), work.magnitudes, work.real, work.imaginary)
        if first == 0:
            work.phases[:] = work.real[0], work.imaginary[0]
        chunk = slice(first, last + 1)
        _advance(
            work.magnitudes, work.real, work.imaginary, rows[chunk] - low, fractions[chunk], work.phases, work.parts
        )
        ducc0.fft.c2r(work.steps, axes=(1,), lastsize=FRAME, forward=False, out=work.pieces[:, :FRAME], nthreads=1)
        _overlap_add(work.pieces[: last + 1 - first], scaled_window, first * HOP - FRAME // 2, sound)

    # Fewer windows than four overlap before the first full one and after the last.
    tail = max(HOP, len(places) * HOP - FRAME // 2)
    for edge in (np.arange(min(HOP, num_samples)), np.arange(tail, num_samples)):
        sound[edge] *= _FULL_WEIGHT / _weights(edge, len(places))
    return sound


class _Work:
    """The arrays that a chunk of steps passes through, used again by the next."""

    def __init__(self) -> None:
        rows = 2 * _STEPS_PER_CHUNK
        self.frames = np.empty((rows, FRAME))
        self.spectra = np.empty((rows, _BINS), np.complex128)
        self.magnitudes, self.real, self.imaginary = np.empty((3, rows, _BINS), np.float32)
        self.phases = np.empty((2, _BINS), np.float32)
        self.steps = np.zeros((_STEPS_PER_CHUNK, _BINS), np.complex64)
        self.parts = self.steps.view(np.float32)
        # Rows that are a power of two apart would share the same few places of the cache: a third of the speed.
        self.pieces = np.empty((_STEPS_PER_CHUNK, FRAME + 16), np.float32)


@lru_cache(maxsize=1)
def _hann() -> NDArray[np.float64]:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)


def _weights(samples: NDArray[np.int64], num_steps: int) -> NDArray[np.float64]:
    """The sum of the squared windows of all steps at some samples of the output."""
    squared, sums = _hann() ** 2, np.zeros(len(samples))
    last, inside = np.divmod(samples + FRAME // 2, HOP)  # the last window that has begun, and where in its first hop
    for back in range(FRAME // HOP):
        step = last - back
        sums += np.where((step >= 0) & (step < num_steps), squared[inside + back * HOP], 0)
    return sums


# Loops run over slices from 0 on, for numba only then sees that no index is negative, and makes vector code.


@compiled
def _cut_frames(samples: Any, starts: Any, window: Any, frames: Any):
    """Row r of `frames` is the samples from place `starts[r]` on, zeros beyond both ends, under the window."""
    for r in range(len(starts)):
        low = min(max(-starts[r], 0), len(window))
        high = max(min(len(samples) - starts[r], len(window)), low)
        frames[r, :low] = 0
        source, weights, target = samples[starts[r] + low : starts[r] + high], window[low:high], frames[r, low:high]
        for j in range(high - low):
            target[j] = source[j] * weights[j]
        frames[r, high:] = 0


@compiled
def _to_polar(spectra: Any, magnitudes: Any, real: Any, imaginary: Any):
    """Magnitudes and unit numbers, (rows, bins) each, of spectra (rows, 2 bins), parts in turn."""
    for r in range(len(spectra)):
        for k in range(magnitudes.shape[1]):
            a, b = _f(spectra[r, 2 * k]), _f(spectra[r, 2 * k + 1])
            square = a * a + b * b
            sounds = square > _SILENT
            magnitude = np.sqrt(square if sounds else _f(1))
            inverse = np.divide(_f(1), magnitude)  # `/` would test for zero and keep the loop from vector code
            magnitudes[r, k] = magnitude if sounds else _f(0)
            real[r, k] = a * inverse if sounds else _f(1)
            imaginary[r, k] = b * inverse if sounds else _f(0)


@compiled
def _advance(magnitudes: Any, real: Any, imaginary: Any, rows: Any, fractions: Any, phases: Any, steps: Any):
    """Steps (n, 2 bins), parts in turn, each between its row of the input and the next; `phases` (2, bins) go on."""
    for t in range(len(rows)):
        before, after, fraction = rows[t], rows[t] + 1, fractions[t]
        for k in range(phases.shape[1]):
            x, y = phases[0, k], phases[1, k]
            low = magnitudes[before, k]
            magnitude = low + fraction * (magnitudes[after, k] - low)
            steps[t, 2 * k] = magnitude * x
            steps[t, 2 * k + 1] = magnitude * y
            a, b, c, d = real[before, k], imaginary[before, k], real[after, k], imaginary[after, k]
            turn_x, turn_y = c * a + d * b, d * a - c * b
            new_x, new_y = x * turn_x - y * turn_y, x * turn_y + y * turn_x
            unit = _f(1.5) - _f(0.5) * (new_x * new_x + new_y * new_y)  # keeps rounding errors out of the length
            phases[0, k] = new_x * unit
            phases[1, k] = new_y * unit


@compiled
def _overlap_add(pieces: Any, window: Any, first: Any, sound: Any):
    """Add the rows of `pieces` under the window, HOP apart from place `first` of `sound` on; what is beyond is lost."""
    for r in range(len(pieces)):
        start = first + r * HOP
        low = min(max(-start, 0), len(window))
        high = max(min(len(sound) - start, len(window)), low)
        target, weights, piece = sound[start + low : start + high], window[low:high], pieces[r, low:high]
        for j in range(high - low):
            target[j] += piece[j] * weights[j]
