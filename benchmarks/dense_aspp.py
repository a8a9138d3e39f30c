"""DenseASPP: forward and backward over crops of 256 bins x 256 frames, ours against the layers as usually written.

    taskset -c 0 python benchmarks/dense_aspp.py [--threads 1] [--batch-size 8] [--rounds 5] [--growth 10]

Naive: batch norm, convolution and SELU modules one after another on tensors (B, C, F, T), with every concatenation.
bf16 is autocast. The loss is that of the task. Errors are those of the gradient of all parameters, relative to the
naive gradient in fp32. Ratios are those of CPU time, of all threads and of the kernel's page faults, for it doesn't
depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

from mmray.losses import pitch_loss
from mmray.models import dense_aspp

NUM_BINS = NUM_FRAMES = 256


def layer(inputs: int, outputs: int, dilation: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(nn.BatchNorm2d(inputs), convolution, nn.SELU())


class Naive(nn.Module):
    """The model as its definition reads."""

    def __init__(self, config: dense_aspp.Config) -> None:
        super().__init__()
        growth, self.copies = config.growth, config.skip_copies
        self.encoder = nn.ModuleList(layer(3 + i * growth, growth, d) for i, d in enumerate(config.dilations))
        self.decoder = layer(3 * (1 + self.copies) + growth * len(config.dilations), 64)
        self.refine, self.pitch, self.no_melody = layer(64, 32), layer(32, 1), layer(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, F + 1, T) of x (B, 3, F, T)."""
        maps = x
        for layer_of_encoder in self.encoder:
            maps = torch.cat([maps, layer_of_encoder(maps)], dim=1)
        maps = self.decoder(torch.cat([maps, *[x] * self.copies], dim=1))
        no_melody = self.no_melody(maps).mean(dim=2, keepdim=True)
        return torch.cat([no_melody, self.pitch(self.refine(maps))], dim=2).squeeze(1)


def make_pair(config: dense_aspp.Config) -> tuple[Naive, nn.Module]:
    """Both with the same weights."""
    torch.manual_seed(0)
    naive, ours = Naive(config), config.build(NUM_BINS)
    state = {
        key.replace(".0.", ".norm.").replace(".1.", ".conv.") if "encoder" not in key else encoder_key(key): value
        for key, value in naive.state_dict().items()
    }
    ours.load_state_dict(state)
    return naive, ours


def encoder_key(key: str) -> str:
    name, number, part, tensor = key.split(".")
    return f"{name}.{number}.{'norm' if part == '0' else 'conv'}.{tensor}"


def train_step(model: nn.Module, x: Tensor, rows: Tensor, dtype: torch.dtype) -> None:
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(x)
    pitch_loss(logits, rows, torch.ones_like(rows, dtype=torch.bool)).backward()


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--growth", type=int, default=10, choices=[10, 20])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = dense_aspp.Config(growth=arguments.growth, skip_copies=8 if arguments.growth == 10 else 1)
    naive, ours = make_pair(config)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(arguments.batch_size, 3, NUM_BINS, NUM_FRAMES, generator=generator)
    rows = torch.randint(0, NUM_BINS + 1, (arguments.batch_size, NUM_FRAMES), generator=generator)

    runs = {
        f"{name} {label}": (model, dtype)
        for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        for name, model in (("naive", naive), ("ours", ours))
    }
    wall_s: dict[str, list[float]] = {name: [] for name in runs}
    cpu_s: dict[str, list[float]] = {name: [] for name in runs}
    gradients = {}
    for round_number in range(arguments.rounds + 1):
        for name, (model, dtype) in runs.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            train_step(model, x, rows, dtype)
            if round_number > 0:
                cpu_s[name].append(time.process_time() - cpu_start)
                wall_s[name].append(time.perf_counter() - start)
            gradients[name] = gradient(model)
    print(f"growth {config.growth}, {arguments.threads} threads, batch {arguments.batch_size}")
    base = statistics.median(cpu_s["naive fp32"])
    per_crop = 1000 / arguments.batch_size
    for name in runs:
        wall, cpu = statistics.median(wall_s[name]), statistics.median(cpu_s[name])
        error = (gradients[name] - gradients["naive fp32"]).norm() / gradients["naive fp32"].norm()
        print(
            f"{name:<12} {per_crop * wall:8.1f} ms/crop {per_crop * cpu:8.1f} CPU ms/crop"
            f" {base / cpu:6.2f} x naive fp32  gradient error {float(error):.1e}"
        )


if __name__ == "__main__":
    main()
