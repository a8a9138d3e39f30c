"""Pitch shift and time stretch: ours against librosa, and how near each is to librosa run in float64.

    taskset -c 0 python benchmarks/audio_augment.py [--rounds 9] [--seconds 30] [--audio FILE ...]

The same sound at 16 kHz (chords over soft noise, or files), in one thread. Times are CPU time of the process, all
methods in turn, medians of the rounds; ratios are medians over the rounds. Limit: the two Fourier transforms of every
frame alone, as ours calls them. `high` is measured where python-stretch is installed; it is another method, so it has
no agreement to show. Clicks: how far single clicks over soft noise move, and the standard deviation of their energy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import ducc0
import librosa
import numpy as np
from numpy.typing import NDArray

from mmray.features import audio
from mmray.features.audio_augment import Quality, pitch_shift, time_stretch
from mmray.features.phase_vocoder import FRAME, HOP

RATE_HZ = 16000
Array = NDArray[np.float32]


def chords(seconds: float) -> Array:
    """Chords that change twice a second, each fading, over soft noise."""
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    sound = 0.002 * rng.standard_normal(len(t))
    for start in range(0, len(t), RATE_HZ // 2):
        part = t[start : start + RATE_HZ // 2]
        for f0_hz in rng.choice([220, 247, 277, 330, 370, 440], 3, replace=False):
            for k in range(1, 9):
                fading = 0.1 / k * np.exp(-3 * (part - part[0]))
                sound[start : start + len(part)] += fading * np.sin(2 * np.pi * k * f0_hz * part)
    return sound.astype(np.float32)


def snr_db(reference: NDArray[np.float64], sound: Array) -> float:
    return float(10 * np.log10(np.sum(reference**2) / np.sum((reference - sound) ** 2)))


def librosa_stretch(samples: NDArray[np.floating], rate: float) -> NDArray[np.floating]:
    return librosa.effects.time_stretch(samples, rate=rate)


def librosa_shift(samples: NDArray[np.floating], semitones: float) -> NDArray[np.floating]:
    return librosa.effects.pitch_shift(samples, sr=RATE_HZ, n_steps=semitones)


def transforms(num_samples: int, rate: float) -> Callable[[], None]:
    """The transforms of a stretch, 16 frames at a time."""
    frames, spectra = np.ones((16, FRAME)), np.empty((16, FRAME // 2 + 1), np.complex128)
    steps, pieces = np.ones(spectra.shape, np.complex64), np.empty((16, FRAME + 16), np.float32)[:, :FRAME]

    def run() -> None:
        for _ in range(0, num_samples // HOP + 1, 16):
            ducc0.fft.r2c(frames, axes=(1,), out=spectra, nthreads=1)
        for _ in range(0, round(num_samples / rate / HOP) + 1, 16):
            ducc0.fft.c2r(steps, axes=(1,), lastsize=FRAME, forward=False, out=pieces, nthreads=1)

    return run


def cpu_s(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def compare(
    name: str,
    samples: Array,
    ours: Callable[[Array, Quality], Array],
    theirs: Callable[[NDArray[np.floating]], NDArray[np.floating]],
    rate: float,
    rounds: int,
) -> None:
    reference = np.asarray(theirs(samples.astype(np.float64)), np.float64)
    agreement = {"ours": snr_db(reference, ours(samples, "fast")), "librosa": snr_db(reference, theirs(samples))}
    methods: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(samples, "fast"),
        "librosa": lambda: theirs(samples),
        "limit": transforms(len(samples), rate),
    }
    if find_spec("python_stretch") is not None:
        methods["high"] = lambda: ours(samples, "high")
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method, function in methods.items():
            times[method].append(cpu_s(function))
    seconds = len(samples) / RATE_HZ
    print(f"  {name}")
    for method, values in times.items():
        median = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(times["librosa"], values, strict=True))
        exact = f"{agreement[method]:6.1f} dB" if method in agreement else " " * 9
        print(
            f"    {method:8} {1000 * median:7.1f} ms {seconds / median:6.0f} x real time {exact} {ratio:5.2f} x librosa"
        )


def spread_of_clicks() -> None:
    clicks = 0.001 * np.random.default_rng(0).standard_normal(4 * RATE_HZ).astype(np.float32)
    places = np.array([14000, 21500, 33333, 45000])
    for place in places:
        clicks[place - 10 : place + 10] += np.hanning(20)
    for quality in ("fast", "high"):
        if quality == "high" and find_spec("python_stretch") is None:
            continue
        for rate in (0.8, 1.2):
            sound = time_stretch(clicks, rate, quality, RATE_HZ)
            moved, widths = [], []
            for centre in np.round(places / rate).astype(int):
                energy = sound[centre - 1600 : centre + 1600].astype(np.float64) ** 2
                t = np.arange(-1600, 1600) / RATE_HZ * 1000
                mean = np.average(t, weights=energy)
                moved.append(abs(mean))
                widths.append(np.sqrt(np.average((t - mean) ** 2, weights=energy)))
            print(f"  {quality} {rate}: moved by up to {max(moved):.1f} ms, spread {np.mean(widths):.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--audio", type=Path, nargs="*", default=[], help="sound files to take in place of the chords")
    options = parser.parse_args()
    sounds = {"chords": chords(options.seconds)}
    if options.audio:
        sounds = {path.name: audio.read(path, RATE_HZ)[: round(options.seconds * RATE_HZ)] for path in options.audio}
    for name, samples in sounds.items():
        print(f"{name}: {len(samples) / RATE_HZ:g} s")
        for rate in (0.8, 1.2):
            compare(
                f"stretch {rate}", samples,
                lambda x, quality, rate=rate: time_stretch(x, rate, quality, RATE_HZ),
                lambda x, rate=rate: librosa_stretch(x, rate), rate, options.rounds,
            )  # fmt: skip
        for semitones in (2, -2):
            compare(
                f"pitch {semitones:+}", samples,
                lambda x, quality, semitones=semitones: pitch_shift(x, RATE_HZ, semitones, quality),
                lambda x, semitones=semitones: librosa_shift(x, semitones), 2 ** (-semitones / 12), options.rounds,
            )  # fmt: skip
    print("clicks")
    spread_of_clicks()


if __name__ == "__main__":
    main()
