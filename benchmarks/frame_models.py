"""Models of frames: a training step against the same layers as usually written, its padding, and its memory.

    taskset -c 0 python benchmarks/frame_models.py [--rows 16] [--rounds 3] [--part speed] [--dtype float32]

speed: forward and backward of rows of 60 to 300 frames of 1,152 features, 4,716 classes, one thread. Peers hold the
same weights. They pad all rows to the longest one, dequantise what that makes, and mask: LSTM A by torch's own packed
sequences, and padded; DBoF A picks its frames from the padded ones; NeXtVLAD multiplies padded rows at once. CPU time
of the thread, so that other programs matter less; rounds alternate, medians.

padding: what a model that pads computes per frame that is there, and steps of a recurrence, at batches of 128 rows in
8 micro-batches, with rows in the order of training and by length; over 60 to 300 frames, and over AudioSet's.

memory: peak of the resident set of a process that takes two steps with Adam, the published sizes, one micro-batch of
`--rows` rows.

wait: the share of a training epoch, the second, that LSTM A and DBoF A wait for their input; in one process, from the
prepared dataset of a synthetic corpus of videos of 60 to 300 frames, 200 classes, batches of 32 in 2 micro-batches; 256
videos for LSTM A, 2,048 for DBoF A, so that both are at it for most of a minute. Rows are mixed over 32 MB: an epoch
begins by filling that buffer, and the usual 256 MB would be most of such a corpus.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from mmray import config, preparation, prepared, tasks
from mmray.datasets.synthetic import youtube8m
from mmray.models import dbof, lstm, nextvlad
from mmray.models._frames import FrameClassifier, FrameConfig
from mmray.training import feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit

SIZE, CLASSES = 1152, 4716
# (frames, segments) of 255 of AudioSet's shards: most are 10 s long.
AUDIOSET = ((2, 1), (3, 4), (4, 4), (5, 2), (6, 5), (7, 4), (8, 3), (9, 10), (10, 1376))
MODELS: dict[str, FrameConfig] = {
    "LSTM A": lstm.Config(),
    "LSTM B": lstm.Config(hidden_size=512, num_layers=4, num_experts=4),
    "DBoF A": dbof.Config(),
    "DBoF B": dbof.Config(num_frames=60, projection_size=16384, hidden_size=2048, num_experts=16),
    "NeXtVLAD": nextvlad.Config(),
}


def make_batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(60, 301, (rows,), generator=generator)
    frames = torch.randint(0, 256, (int(lengths.sum()), SIZE), dtype=torch.uint8, generator=generator)
    labels = torch.rand(rows, CLASSES, generator=generator) < 3.4 / CLASSES
    return frames, F.pad(lengths.cumsum(0), (1, 0)), labels


def padded(frames: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, D) features, 0 beyond the lengths, and the lengths."""
    lengths = offsets.diff()
    rows = nn.utils.rnn.pad_sequence(list(frames.split(lengths.tolist())), batch_first=True)
    there = torch.arange(rows.shape[1]) < lengths.unsqueeze(1)
    return (rows.float() * (4 / 255) + (4 / 512 - 2)) * there.unsqueeze(2), lengths


def packed_lstm(encoder: lstm.Encoder, frames: Tensor, offsets: Tensor) -> Tensor:
    x, lengths = padded(frames, offsets)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    states: Tensor = encoder.lstm(packed)[1][0][-1]
    return states


def padded_lstm(encoder: lstm.Encoder, frames: Tensor, offsets: Tensor) -> Tensor:
    x, lengths = padded(frames, offsets)
    states: Tensor = encoder.lstm(x.transpose(0, 1))[0][lengths - 1, torch.arange(len(lengths))]
    return states


def padded_dbof(encoder: dbof.Encoder, frames: Tensor, offsets: Tensor) -> Tensor:
    x, lengths = padded(frames, offsets)
    places = (torch.rand(len(x), encoder.num_frames) * lengths.unsqueeze(1)).long()
    x = x[torch.arange(len(x)).unsqueeze(1), places].flatten(0, 1)
    x = F.relu(encoder.projection_norm(encoder.projection(encoder.input_norm(x))))
    pooled = x.unflatten(0, places.shape).amax(1)
    return F.relu(encoder.hidden_norm(encoder.hidden(pooled)))


def padded_nextvlad(encoder: nextvlad.Encoder, frames: Tensor, offsets: Tensor) -> Tensor:
    x, lengths = padded(frames, offsets)
    num_rows, num_frames = x.shape[:2]
    there = (torch.arange(num_frames) < lengths.unsqueeze(1)).unsqueeze(2)
    expanded = encoder.expand(x)
    attention = torch.sigmoid(encoder.attention(expanded)) * there
    assignment = encoder.assignment_norm(encoder.assignment(expanded).flatten(0, 1))
    weights = assignment.view(num_rows, -1, encoder.clusters).softmax(2) * attention.view(num_rows, -1, 1)
    sums = weights.transpose(1, 2) @ expanded.view(num_rows, num_frames * encoder.groups, -1)
    vlad = F.normalize(sums - weights.sum(1).unsqueeze(2) * encoder.centres, dim=2).flatten(1)
    hidden = encoder.hidden_norm(encoder.hidden(encoder.vlad_dropout(encoder.vlad_norm(vlad))))
    return hidden * torch.sigmoid(encoder.excite(F.relu(encoder.squeeze_norm(encoder.squeeze(hidden)))))


PEERS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "LSTM A": {"torch, packed": packed_lstm, "torch, padded": padded_lstm},
    "DBoF A": {"padded": padded_dbof},
    "NeXtVLAD": {"padded": padded_nextvlad},
}


def compare_speed(rows: int, rounds: int, dtype: torch.dtype) -> None:
    """Rows a second, ours and the peers'."""
    frames, offsets, labels = make_batch(rows)
    print(f"forward and backward, {rows} rows, {len(frames)} frames, {dtype}")
    for name, peers in PEERS.items():
        model = MODELS[name].build(SIZE, CLASSES)

        def step(encode: Callable[..., Tensor] | None, model: FrameClassifier = model) -> None:
            model.zero_grad()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                summary = model.embed(frames, offsets) if encode is None else encode(model.encoder, frames, offsets)
                loss = model.mixture.loss(summary, labels)
            loss.backward()

        runs: dict[str, Callable[..., Tensor] | None] = {"ours": None, **peers}
        seconds: dict[str, list[float]] = {run: [] for run in runs}
        for number in range(rounds + 1):
            for run, encode in runs.items():
                began = time.thread_time()
                step(encode)
                if number:
                    seconds[run].append(time.thread_time() - began)
        for run, times in seconds.items():
            median = statistics.median(times)
            ratio = median / statistics.median(seconds["ours"])
            print(f"  {name:<9} {run:<14} {rows / median:8.1f} rows/s   ours is {ratio:5.2f} x as fast")


def report_padding() -> None:
    """Frames computed by a model that pads per frame that is there, and steps of a recurrence."""
    rng = np.random.default_rng(0)
    lengths, counts = np.array(AUDIOSET).T
    audioset = rng.choice(lengths, (200, 128), p=counts / counts.sum())
    corpora = {"60 to 300 frames": rng.integers(60, 301, (200, 128)), "AudioSet": audioset}
    print("at 128 rows a step in 8 micro-batches           padded / real frames   steps of the recurrence")
    for corpus, steps in corpora.items():
        for order in ("as they come", "by length"):
            rows = np.sort(steps, axis=1) if order == "by length" else steps
            longest = rows.reshape(len(rows), 8, 16).max(axis=2)
            ratio = 16 * longest.sum() / steps.sum()
            print(f"  {corpus:<18} {order:<14} {ratio:28.3f} {longest.sum(axis=1).mean():25.0f}")


def report_memory(name: str, rows: int, dtype: torch.dtype) -> None:
    """Peak of this process."""
    model = MODELS[name].build(SIZE, CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), foreach=True)
    batch = make_batch(rows)
    for _ in range(2):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"  {name:<9} {parameters / 1e6:7.1f} M parameters {rows:4d} rows, {len(batch[0])} frames {peak:8.2f} GiB peak"
    )


def report_wait(root: Path, precision: str) -> None:
    """Train for two epochs without Ray and read the log."""
    print(f"share of an epoch spent waiting for input, {precision}")
    for name, number in {"LSTM A": 256, "DBoF A": 2048}.items():
        made = {"num_videos": number, "num_classes": 200, "level": "frame", "train_fraction": 0.9, "val_fraction": 0.05}
        corpus = root / f"corpus-{number}"
        youtube8m.generate(corpus, youtube8m.Config.model_validate(made), lambda done, total: None)
        run = config.from_dict(
            {
                "name": MODELS[name].name, "out": str(root / "runs"), "task": "video_classification",
                "dataset": {"name": "youtube8m", "path": str(corpus), "level": "frame", "num_classes": 200},
                "prepare": {"out": str(root / "prepared")},
                "model": MODELS[name].model_dump(),
                "train": {
                    "epochs": 2, "batch_size": 32, "accumulate": 2, "precision": precision, "shuffle_mb": 32,
                },
            }
        )  # fmt: skip
        plan = preparation.plan(run)
        if not (plan.folder / "dataset.json").exists():
            preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
        info = prepared.read_info(plan.folder)
        context, task = Context(run_folder.open_run(run, info)), tasks.build(run, info)
        fit(run, task, *feed.tables(run, task, plan.folder, context), context)
        epoch = [line for line in run_folder.read_log(run.run_dir) if line["event"] == "epoch"][-1]
        print(f"  {name:<9} {epoch['rows_per_s']:8.1f} rows/s {epoch['input_wait_percent']:8.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["speed", "padding", "memory", "wait"], help="default: all")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--memory-of", choices=list(MODELS), help="one process's part of the memory table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, arguments.dtype)
    if arguments.memory_of:
        report_memory(arguments.memory_of, arguments.rows, dtype)
        return
    if arguments.part in (None, "speed"):
        compare_speed(arguments.rows, arguments.rounds, dtype)
    if arguments.part in (None, "padding"):
        report_padding()
    if arguments.part in (None, "memory"):
        print(f"one training step with Adam, {SIZE} features, {CLASSES} classes, {arguments.dtype}", flush=True)
        for name in MODELS:
            command = [sys.executable, __file__, "--memory-of", name, "--rows", str(arguments.rows)]
            subprocess.run([*command, "--dtype", arguments.dtype], check=True)
    if arguments.part in (None, "wait"):
        with tempfile.TemporaryDirectory() as folder:
            report_wait(Path(folder), "fp32" if dtype == torch.float32 else "bf16")


if __name__ == "__main__":
    main()
