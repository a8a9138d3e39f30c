"""Features of sound: ours against librosa's functions, each on its own and on one spectrum.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/audio_features.py [--rounds 7] [--seconds 30] [--sound FILE]

All start from the same samples (a gliding, noisy tone, or those of a sound file) and end at the features, in one
thread. Separate: each of librosa's functions is called with the samples. Shared: with a spectrum that is computed once,
in power for mel bands and in amplitude for contrast. Limit: the Fourier transforms alone, as ours calls them. Times are
CPU time of the process, the methods in turn. Difference: the largest from librosa's, in dB and units of an MFCC.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ducc0
import librosa
import numpy as np
from numpy.typing import NDArray

from mmray.features import audio
from mmray.features.audio_features import Extractor, Settings

SETTINGS = {
    "MFCC 20 and contrast, 16 kHz": Settings(),
    "MFCC 20, contrast and log-mel 64, 16 kHz": Settings(log_mel=64),
    "log-mel 64 alone, 16 kHz": Settings(mfcc=0, contrast_bands=0, log_mel=64),
    "MFCC 20 and contrast, 44.1 kHz, frames of 4096": Settings(sample_rate_hz=44100, n_fft=4096, hop=1024),
}


def sound(sample_rate_hz: int, seconds: float) -> NDArray[np.float32]:
    t = np.arange(round(sample_rate_hz * seconds)) / sample_rate_hz
    cycles = 220 * t + 8 * np.sin(t) + 0.3 * np.sin(33 * t)
    tones = sum(np.sin(2 * np.pi * k * cycles) / k for k in range(1, 9))
    return np.asarray(0.1 * tones + 0.01 * np.random.default_rng(0).standard_normal(len(t)), np.float32)


def separate(samples: NDArray[np.float32], s: Settings) -> NDArray[np.float32]:
    given = {"y": samples, "sr": s.sample_rate_hz, "n_fft": s.n_fft, "hop_length": s.hop}
    parts = []
    if s.mfcc:
        parts.append(librosa.feature.mfcc(**given, n_mfcc=s.mfcc))
    if s.contrast_bands:
        parts.append(librosa.feature.spectral_contrast(**given, n_bands=s.contrast_bands))
    if s.log_mel:
        parts.append(librosa.power_to_db(librosa.feature.melspectrogram(**given, n_mels=s.log_mel)))
    return np.concatenate(parts).T


def shared(samples: NDArray[np.float32], s: Settings) -> NDArray[np.float32]:
    amplitude = np.abs(librosa.stft(samples, n_fft=s.n_fft, hop_length=s.hop))
    power = amplitude**2
    given = {"sr": s.sample_rate_hz, "n_fft": s.n_fft, "hop_length": s.hop}
    parts = []
    if s.mfcc:
        mel = librosa.power_to_db(librosa.feature.melspectrogram(S=power, **given))
        parts.append(librosa.feature.mfcc(S=mel, n_mfcc=s.mfcc))
    if s.contrast_bands:
        parts.append(librosa.feature.spectral_contrast(S=amplitude, **given, n_bands=s.contrast_bands))
    if s.log_mel:
        parts.append(librosa.power_to_db(librosa.feature.melspectrogram(S=power, **given, n_mels=s.log_mel)))
    return np.concatenate(parts).T


def transforms(settings: Settings, num_frames: int) -> Callable[[], None]:
    """The transforms of that many frames, 16 at a time."""
    frames, spectra = np.ones((settings.n_fft, 16)), np.empty((settings.n_fft // 2 + 1, 16), np.complex128)

    def run() -> None:
        for _ in range(0, num_frames, 16):
            ducc0.fft.r2c(frames, axes=(0,), out=spectra, nthreads=1)

    return run


def cpu_s(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def compare(name: str, settings: Settings, samples: NDArray[np.float32], rounds: int) -> None:
    seconds = len(samples) / settings.sample_rate_hz
    ours = Extractor(settings)
    difference = np.abs(ours(samples) - separate(samples, settings)).max()  # compiles, too
    methods: dict[str, Callable[[], object]] = {
        "librosa, separate": lambda: separate(samples, settings),
        "librosa, shared": lambda: shared(samples, settings),
        "ours": lambda: ours(samples),
        "limit": transforms(settings, settings.num_frames(len(samples))),
    }
    times: dict[str, list[float]] = {method: [] for method in methods}
    for counted in range(-1, rounds):
        for method, function in methods.items():
            took = cpu_s(function)
            if counted >= 0:
                times[method].append(took)
    print(f"{name}: {seconds:g} s of sound, largest difference {difference:.1e}")
    for method, values in times.items():
        median = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(values, times["ours"], strict=True))
        print(f"  {method:17} {1000 * median:7.1f} ms {seconds / median:7.0f} x real time {ratio:6.2f} x ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--sound", type=Path)
    options = parser.parse_args()
    for name, settings in SETTINGS.items():
        rate = settings.sample_rate_hz
        if options.sound:
            samples = audio.read(options.sound, rate)[: round(options.seconds * rate)]
        else:
            samples = sound(rate, options.seconds)
        compare(name, settings, samples, options.rounds)


if __name__ == "__main__":
    main()
