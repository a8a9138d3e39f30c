"""Preparing long recordings: one file of more than 4 GB in little memory, and altered copies against librosa.

    python benchmarks/long_audio.py [--gigabytes 4.5] [--minutes 60] [--rounds 1]

First a stereo RF64 of noise is made and prepared by two processes, part by part as `mmray prepare` does, and deleted;
the peak resident memory is that of the larger process. Then recordings of ten minutes (44.1 kHz, stereo, 16 bits) are
prepared with two altered copies of each segment, shifted in pitch and stretched in time, by two processes of mmray and
by two of a plain script on librosa, in turn. Both start warm, with everything imported and compiled.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mmray import config, preparation
from mmray.features import audio_features

FILE_RATE_HZ = 44_100
SEGMENT_S = 30
COPIES = {"copies": 2, "pitch_shift_semitones": [-2, 2], "time_stretch_rates": [0.8, 1.2]}


def make_run(corpus: Path, out: Path, augment: dict[str, Any]) -> config.Run:
    """Everything in one split, so that every segment has its copies."""
    return config.from_dict(
        {
            "name": "long-audio", "task": "video_classification", "model": "logistic",
            "dataset": {
                "name": "audio_folder", "path": str(corpus), "augment": augment, "split": {"fractions": {"train": 1}}
            },
            "prepare": {"out": str(out)},
        }
    )  # fmt: skip


def write_recording(path: Path, seconds: float, seed: int) -> None:
    """Ten seconds of tones and noise, again and again."""
    rng = np.random.default_rng(seed)
    n = 10 * FILE_RATE_HZ
    tones = np.sin(np.arange(n)[:, None] * rng.uniform(0.01, 0.3, 2))
    block = np.rint(32767 * (0.4 * tones + 0.05 * rng.standard_normal((n, 2)))).clip(-32768, 32767).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", FILE_RATE_HZ, 2, "PCM_16") as file:
        for start in range(0, round(seconds * FILE_RATE_HZ), n):
            file.write(block[: round(seconds * FILE_RATE_HZ) - start])


def write_part(job: tuple[dict[str, Any], preparation.Part, Path]) -> tuple[int, float]:
    """Rows, and the seconds of CPU time that they took."""
    values, part, folder = job
    began = time.process_time()
    note = preparation.write_part(config.from_dict(values), part, folder)
    return sum(split.rows for split in note.splits.values()), time.process_time() - began


def prepare(pool: Pool, corpus: Path, out: Path, augment: dict[str, Any]) -> tuple[int, float]:
    """Rows of the corpus, prepared, and the CPU time of all processes."""
    run = make_run(corpus, out, augment)
    plan = preparation.plan(run)
    shutil.rmtree(plan.aside, ignore_errors=True)
    return added(pool.imap_unordered(write_part, [(run.to_dict(), part, plan.aside) for part in plan.parts]))


def added(pairs: Iterable[tuple[int, float]]) -> tuple[int, float]:
    rows, cpu_s = zip(*pairs, strict=True)
    return sum(rows), sum(cpu_s)


def prepare_plainly(job: tuple[Path, Path]) -> tuple[int, float]:
    """One recording by librosa, as a script would: whole into memory, cut, altered, stored."""
    import librosa

    began = time.process_time()
    path, out = job
    settings = audio_features.Settings()
    rate = settings.sample_rate_hz
    rng = np.random.default_rng(0)
    samples, _ = librosa.load(path, sr=rate)
    rows = []
    for start in range(0, len(samples), SEGMENT_S * rate):
        segment = samples[start : start + SEGMENT_S * rate]
        versions = [
            segment,
            librosa.effects.pitch_shift(segment, sr=rate, n_steps=rng.choice([-2, 2])),
            librosa.effects.time_stretch(segment, rate=rng.choice([0.8, 1.2])),
        ]
        for version in versions:
            sizes = {"n_fft": settings.n_fft, "hop_length": settings.hop}
            mfcc = librosa.feature.mfcc(y=version, sr=rate, n_mfcc=settings.mfcc, **sizes)
            contrast = librosa.feature.spectral_contrast(y=version, sr=rate, n_bands=settings.contrast_bands, **sizes)
            rows.append(np.concatenate([mfcc, contrast]).astype(np.float32))
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / f"{path.stem}.npz", *rows)
    return len(rows), time.process_time() - began


def peak_mb(_: int) -> float:
    time.sleep(0.5)  # so that each process answers once
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(function: Callable[[], tuple[int, float]]) -> tuple[float, int, float]:
    """Seconds that passed, rows, seconds of CPU time."""
    began = time.perf_counter()
    rows, cpu_s = function()
    return time.perf_counter() - began, rows, cpu_s


def large_file(root: Path, gigabytes: float) -> None:
    seconds = gigabytes * 1e9 / (4 * FILE_RATE_HZ)
    path = root / "large/music/long.rf64"
    write_recording(path, seconds, seed=0)
    size = path.stat().st_size
    write_recording(root / "small/music/short.wav", 31, seed=1)
    with mp.get_context("spawn").Pool(2) as pool:
        prepare(pool, root / "small", root / "prepared", {})
        took, rows, cpu_s = timed(lambda: prepare(pool, root / "large", root / "prepared", {}))
        peak = max(pool.map(peak_mb, range(2), chunksize=1))
    assert rows == -(-round(seconds * FILE_RATE_HZ) // (SEGMENT_S * FILE_RATE_HZ))
    print(f"RF64 of {size / 1e9:.2f} GB, {seconds / 3600:.2f} h: {rows:,} segments in {took:.0f} s by 2 processes")
    speeds = f"{seconds / took:,.0f} x real time, {seconds / cpu_s:,.0f} x by CPU time"
    print(f"  {speeds}, peak resident memory of a process {peak:.0f} MB")
    shutil.rmtree(root / "large")
    shutil.rmtree(root / "small")


def altered_copies(root: Path, minutes: int, rounds: int) -> None:
    corpus = root / "copies"
    for number in range(max(2, minutes // 10)):
        write_recording(corpus / f"music/{number}.wav", min(600, 30 * minutes), seed=number)
    paths = sorted(corpus.rglob("*.wav"))
    seconds = sum(soundfile.info(path).duration for path in paths)
    small = root / "small"
    for number in range(2):
        write_recording(small / f"music/{number}.wav", 31, seed=100 + number)
    times: dict[str, list[tuple[float, float]]] = {"librosa": [], "mmray": []}
    spawn = mp.get_context("spawn")
    with spawn.Pool(2) as ours, spawn.Pool(2) as plain:
        prepare(ours, small, root / "prepared", COPIES)
        plain.map(prepare_plainly, [(path, root / "plain") for path in sorted(small.rglob("*.wav"))], chunksize=1)
        for _ in range(rounds):
            jobs = [(path, root / "plain") for path in paths]
            took, plain_rows, cpu_s = timed(lambda jobs=jobs: added(plain.imap_unordered(prepare_plainly, jobs)))
            times["librosa"].append((took, cpu_s))
            took, rows, cpu_s = timed(lambda: prepare(ours, corpus, root / "prepared", COPIES))
            times["mmray"].append((took, cpu_s))
            assert rows == plain_rows
        peaks = {"librosa": max(plain.map(peak_mb, range(2), 1)), "mmray": max(ours.map(peak_mb, range(2), 1))}
    print(f"{seconds / 60:.0f} minutes with 2 altered copies a segment, {rows:,} rows, 2 processes each")
    for name, taken in times.items():
        took, cpu_s = (statistics.median(values) for values in zip(*taken, strict=True))
        print(
            f"  {name:8} {took:7.1f} s {seconds / took:6.0f} x real time, CPU {cpu_s:6.1f} s {seconds / cpu_s:6.0f} x, "
            f"peak {peaks[name]:.0f} MB a process"
        )
    pairs = list(zip(times["librosa"], times["mmray"], strict=True))
    ratio, cpu_ratio = (statistics.median(plain[i] / ours[i] for plain, ours in pairs) for i in range(2))
    print(f"  librosa / mmray {ratio:.2f} x, by CPU time {cpu_ratio:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.5, help="0 leaves the large file out")
    parser.add_argument("--minutes", type=int, default=60, help="0 leaves the altered copies out")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="a folder with room for the files; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        if options.gigabytes:
            large_file(Path(folder), options.gigabytes)
        if options.minutes:
            altered_copies(Path(folder), options.minutes, options.rounds)


if __name__ == "__main__":
    main()
