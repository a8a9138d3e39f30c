"""The CFP feature: ours against the definition written down plainly in float64; memory of a short and a long stream.

    taskset -c 0 python benchmarks/cfp.py [--rounds 5] [--seconds 30]

Both start from the same sound (a gliding, noisy tone) and end at the scaled feature, in one thread. Plain: frames cut
in a loop, complex transforms of whole frames in one matrix, dense filterbanks whose triangles were made beforehand.
Limit: the three Fourier transforms alone, as ours calls them. Times are CPU time of the process, ours and theirs in
turn. Memory is the peak of the resident set of a process above that after one second of sound.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import ducc0
import numpy as np
from numpy.typing import NDArray
from scipy.signal.windows import blackmanharris

from mmray.features.cfp import Cfp, Range, Settings

SETTINGS = {
    "16 kHz, hop 256, window 2049": Settings(),
    "8 kHz, hop 160, window 768": Settings(sample_rate_hz=8000, hop=160, window=768),
}


def sound(sample_rate_hz: int, seconds: float) -> NDArray[np.float32]:
    t = np.arange(round(sample_rate_hz * seconds)) / sample_rate_hz
    cycles = 220 * t + 8 * np.sin(t) + 0.3 * np.sin(33 * t)
    tones = sum(np.sin(2 * np.pi * k * cycles) / k for k in range(1, 9))
    return np.asarray(0.1 * tones + 0.01 * np.random.default_rng(0).standard_normal(len(t)), np.float32)


class Plain:
    """The feature as one would write it down."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.size = settings, settings.dft_size
        self.window = blackmanharris(settings.window)
        rate, step = settings.sample_rate_hz, settings.resolution_hz
        self.num_bins, self.num_periods = round(settings.max_hz / step) + 1, round(rate / settings.min_hz) + 1
        corners = np.append(settings.frequencies_hz(), settings.pitches_hz()[-1])
        self.over_frequency = np.zeros((settings.num_bins, self.num_bins))
        self.over_quefrency = np.zeros((settings.num_bins, self.num_periods))
        for row in range(1, settings.num_bins):
            low, peak, high = corners[row - 1 : row + 2]
            first, last = round(low / step), round(high / step)
            bins_hz = np.arange(first, last + 1) * (rate / 2 / (round(self.size / 2) - 1))
            rises, falls = (bins_hz - low) / (peak - low), (high - bins_hz) / (high - peak)
            triangle = np.maximum(np.minimum(rises, falls), 0) if first < last else 1
            self.over_frequency[row, first : last + 1] = triangle
            first, last = round(rate / high), round(rate / low)
            periods_hz = rate / np.arange(first, last + 1)
            rises, falls = (periods_hz - low) / (peak - low), (high - periods_hz) / (high - peak)
            self.over_quefrency[row, first : last + 1] = np.maximum(np.minimum(rises, falls), 0)

    def power(self, x: NDArray[np.float64], power: float, cut: int) -> NDArray[np.float64]:
        """The transform of mirror-symmetric columns, cleared at both ends and raised to a power."""
        x = np.fft.fft(x, axis=0).real / np.sqrt(self.size)
        x[x < 0] = 0
        x[:cut] = 0
        x[-cut:] = 0
        return x**power

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float64]:
        """The scaled feature, (T, 3, F)."""
        settings, x = self.settings, samples.astype(np.float64)
        half = (settings.window - 1) // 2
        centres = range(settings.hop, len(x), settings.hop)
        frames = np.zeros((self.size, len(centres)))
        for column, centre in enumerate(centres):
            places = np.arange(max(-half - 1, -centre), min(half - 1, len(x) - 1 - centre))
            weights = self.window[half + places]
            frames[places % self.size, column] = x[centre + places] * weights / np.linalg.norm(weights)
        spectrum = np.abs(np.fft.fft(frames, axis=0)) ** settings.powers[0]
        cepstrum = self.power(spectrum, settings.powers[1], round(settings.sample_rate_hz / settings.max_hz))
        again = self.power(cepstrum, settings.powers[2], round(settings.min_hz / settings.resolution_hz))
        channels = [
            self.over_frequency @ spectrum[: self.num_bins],
            self.over_frequency @ again[: self.num_bins],
            self.over_quefrency @ cepstrum[: self.num_periods],
        ]
        logs = np.log1p(np.stack([channel.T for channel in channels], axis=1))
        low, high = logs.min(axis=(0, 2), keepdims=True), logs.max(axis=(0, 2), keepdims=True)
        return (logs - low) / (high - low)


def transforms(settings: Settings, num_frames: int) -> Callable[[], None]:
    """The transforms of that many frames, 16 at a time."""
    frames, spectra = np.ones((16, settings.dft_size)), np.empty((16, settings.dft_size // 2 + 1), np.complex128)
    values = np.ones(spectra.shape, np.float32)
    sums = np.empty_like(values)

    def run() -> None:
        for _ in range(0, num_frames, 16):
            ducc0.fft.r2c(frames, axes=(1,), out=spectra, nthreads=1)
            for _ in range(2):
                ducc0.fft.dct(values, type=1, axes=(1,), out=sums, nthreads=1)

    return run


def cpu_s(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def compare_speed(name: str, settings: Settings, seconds: float, rounds: int) -> None:
    samples = sound(settings.sample_rate_hz, seconds)
    ours, plain = Cfp(settings), Plain(settings)
    differences = np.abs(ours(samples) - plain(samples))  # compiles, too
    limit = transforms(settings, settings.num_frames(len(samples)))
    limit()
    times: dict[str, list[float]] = {"plain": [], "ours": [], "limit": []}
    for _ in range(rounds):
        times["plain"].append(cpu_s(lambda: plain(samples)))
        times["ours"].append(cpu_s(lambda: ours(samples)))
        times["limit"].append(cpu_s(limit))
    medians = {method: statistics.median(values) for method, values in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["plain"], times["ours"], strict=True))
    print(f"{name}: {seconds:g} s of sound")
    for method, value in medians.items():
        print(f"  {method:6} {1000 * value:8.0f} ms {seconds / value:7.0f} x real time")
    print(f"  ours / plain {ratio:.1f} x, ours / limit {medians['limit'] / medians['ours']:.2f}")
    print(f"  agreement after scaling: largest {differences.max():.1e}, 99.9 % {np.quantile(differences, 0.999):.1e}")


def stream_memory_mb(minutes: float) -> float:
    """Peak memory of a stream above that of one second, in MB; to be asked once in a process."""
    settings = Settings()
    feature = Cfp(settings)
    second = sound(settings.sample_rate_hz, 1)
    feature(second)

    def seconds(count: int) -> Iterator[NDArray[np.float32]]:
        for _ in range(count):
            yield second

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen, num_frames = Range(), 0
    for part in feature.stream(seconds(round(60 * minutes))):
        seen.add(part)
        num_frames += len(part)
    assert num_frames == settings.num_frames(round(60 * minutes) * len(second))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--memory-of-minutes", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of_minutes:
        print(stream_memory_mb(options.memory_of_minutes))
        return
    for name, settings in SETTINGS.items():
        compare_speed(name, settings, options.seconds, options.rounds)
    for minutes in (3, 30):
        command = [sys.executable, __file__, "--memory-of-minutes", str(minutes)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"stream of {minutes} minutes at 16 kHz: {float(answer):.1f} MB more than one second")


if __name__ == "__main__":
    main()
