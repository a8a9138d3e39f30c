"""Mixture of experts, 1152 inputs -> 4716 classes: forward and backward, ours against the layer as usually written.

    taskset -c 0 python benchmarks/moe.py [--threads 1] [--rounds 5]

Naive: two Linear layers, softmax over the innermost dimension, sigmoid, sum, cross-entropy with an epsilon, all through
autograd. Limit: the two matrix products alone (activations, weight gradient), in the same type. bf16 is autocast.
Memory is the peak of the resident set above that of the process, the parameters and their gradients.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mmray.models import moe

INPUT_SIZE, NUM_CLASSES = 1152, 4716


class Naive(nn.Module):
    """The layer as usually written: batch first, experts innermost."""

    def __init__(self, input_size: int, num_classes: int, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.gates = nn.Linear(input_size, num_classes * (num_experts + 1), bias=False)
        self.experts = nn.Linear(input_size, num_classes * num_experts)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean over rows of the cross-entropy summed over classes."""
        gates = self.gates(x).view(*labels.shape, self.num_experts + 1).softmax(dim=-1)
        experts = self.experts(x).view(*labels.shape, self.num_experts).sigmoid()
        p = (gates[..., : self.num_experts] * experts).sum(dim=-1).float()
        y = labels.float()
        return -(y * torch.log(p + 1e-5) + (1 - y) * torch.log(1 - p + 1e-5)).sum(dim=1).mean()


def make_batch(batch_size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, INPUT_SIZE, generator=generator)
    return x, torch.rand(batch_size, NUM_CLASSES, generator=generator) < 3.4 / NUM_CLASSES


def train_step(model: nn.Module, x: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model.loss(x, labels)
    loss.backward()


def matrix_products(rows: int, batch_size: int, dtype: torch.dtype) -> Callable[[], object]:
    weight, x = torch.randn(rows, INPUT_SIZE, dtype=dtype), torch.randn(batch_size, INPUT_SIZE, dtype=dtype)
    units, gradient = torch.empty(rows, batch_size, dtype=dtype), torch.empty_like(weight)

    def run() -> None:
        torch.mm(weight, x.T, out=units)
        torch.mm(units, x, out=gradient)

    return run


def compare_speed(num_experts: int, batch_size: int, rounds: int) -> None:
    x, labels = make_batch(batch_size)
    naive = Naive(INPUT_SIZE, NUM_CLASSES, num_experts)
    ours = moe.Config(num_experts=num_experts).build(INPUT_SIZE, NUM_CLASSES)
    rows = NUM_CLASSES * (2 * num_experts + 1)
    runs: dict[str, Callable[[], object]] = {
        "naive fp32": lambda: train_step(naive, x, labels, torch.float32),
        "ours fp32": lambda: train_step(ours, x, labels, torch.float32),
        "limit fp32": matrix_products(rows, batch_size, torch.float32),
        "naive bf16": lambda: train_step(naive, x, labels, torch.bfloat16),
        "ours bf16": lambda: train_step(ours, x, labels, torch.bfloat16),
        "limit bf16": matrix_products(rows, batch_size, torch.bfloat16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_number > 0:
                seconds[name].append(time.perf_counter() - start)
    rate = {name: batch_size / statistics.median(times) for name, times in seconds.items()}
    for name, samples_per_s in rate.items():
        limit = rate["limit " + name.split()[1]]
        print(
            f"{num_experts:3d} {batch_size:6d} {name:<12} {samples_per_s:10.0f} samples/s"
            f" {samples_per_s / rate['naive fp32']:8.2f} x naive fp32 {samples_per_s / limit:6.2f} of limit"
        )


def resident_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) / 1024


def report_memory(kind: str, num_experts: int, batch_size: int, dtype: torch.dtype) -> None:
    x, labels = make_batch(batch_size)
    small = moe.Config(num_experts=1).build(4, 4)  # what the first call loads and compiles is not the layer's memory
    small.loss(x[:1, :4], labels[:1, :4]).backward()
    before = resident_mib("VmRSS")
    model: nn.Module
    if kind == "ours":
        model = moe.Config(num_experts=num_experts).build(INPUT_SIZE, NUM_CLASSES)
    else:
        model = Naive(INPUT_SIZE, NUM_CLASSES, num_experts)
    for _ in range(3):
        start = time.perf_counter()
        train_step(model, x, labels, dtype)
    seconds = time.perf_counter() - start
    parameters = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    extra = resident_mib("VmHWM") - before - 2 * parameters
    label = f"{kind} {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
    print(
        f"{num_experts:3d} {batch_size:6d} {label:<12} {batch_size / seconds:10.1f} samples/s"
        f" {extra:8.0f} MiB above {2 * parameters:.0f} MiB of parameters and gradients"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=["naive", "ours"], help="one process's part of the memory table")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-size", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        report_memory(arguments.memory_of, 32, arguments.batch_size, getattr(torch, arguments.dtype))
        return
    print("  E  batch")
    for num_experts in (2, 4):
        compare_speed(num_experts, 512, arguments.rounds)
    for batch_size, dtype in ((128, "float32"), (128, "bfloat16"), (512, "bfloat16")):
        for kind in ("naive", "ours"):
            command = [sys.executable, __file__, "--threads", str(arguments.threads), "--memory-of", kind]
            subprocess.run([*command, "--batch-size", str(batch_size), "--dtype", dtype], check=True)


if __name__ == "__main__":
    main()
