"""The report page, read back: every number on it must be one of the run folder's."""

import base64
import json
import re
import struct
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from mmray.reporting import page

NAMES = ("Game", "Vehicle", "Concert", "Guitar", "Cooking", "Dance", "Animation", "Football", "Train", "Garden")


def write_run(folder, name="moe", model="moe", num_classes=200, num_epochs=10, seed=0, quality=1.0, splits=("test",)):
    """A run folder as the trainer leaves it: long-tailed labels, a falling loss, an evaluation per split."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = {
        "name": name,
        "task": {"name": "video_classification"},
        "seed": seed,
        "dataset": {"name": "youtube8m", "root": "/data/youtube8m", "num_classes": num_classes},
        "prepare": {"on_bad_input": "skip", "max_bad_fraction": 0.001},
        "model": {"name": model, "num_experts": 8 if model == "moe" else 1},
        "train": {"epochs": num_epochs, "batch_size": 128, "lr": 0.01},
        "resources": {"num_workers": 2},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {
        "mmray": "0.1.0",
        "python": "3.11.7",
        "torch": "2.11.0",
        "ray": "2.60.0",
        "platform": "Linux-6.1-x86_64",
        "cpu": "Intel Xeon Platinum 8481C",
        "num_cpus": 2,
        "memory_gb": 23.4,
        "gpus": ["NVIDIA H200", "NVIDIA H200"],
        "num_workers": 2,
        "device": "cpu",
        "num_parameters": 4_147_200,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    share = 1 / np.arange(1, num_classes + 1) ** 1.5
    frequency = np.random.default_rng(5).permutation((9_000 * share).astype(int))
    names = [f"{NAMES[c % len(NAMES)]} {c}" if c >= len(NAMES) else NAMES[c] for c in range(num_classes)]
    counts = {"train": frequency, "val": frequency // 5, "test": frequency // 5}
    rows = {"train": 14_000, "val": 2_998, "test": 3_000}
    dataset = {
        "id": "youtube8m-ab12cd34",
        "columns": [
            {"name": "id", "dtype": "string", "shape": [], "unit": ""},
            {"name": "labels", "dtype": "int32", "shape": [None], "unit": "class"},
            {"name": "mean_rgb", "dtype": "float32", "shape": [1024], "unit": ""},
        ],
        "class_names": names,
        "splits": {s: {"rows": rows[s], "label_counts": counts[s].tolist()} for s in rows},
        "rows_in": 20_000,
        "rows_out": 19_998,
        "rejected": 2,
        "rejected_reasons": {"data CRC mismatch": 2},
        "split_rule": "by corpus file names",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))

    lines = []
    for epoch in range(num_epochs):
        for step in range(epoch * 110, (epoch + 1) * 110):
            if (step + 1) % 10 == 0:
                loss = 2.2 / quality * np.exp(-step / 300) + 0.9 + rng.normal(0, 0.06)
                lines.append(
                    {"event": "step", "epoch": epoch, "step": step + 1, "train/loss": loss, "lr": 0.01 * 0.95**epoch}
                    | {"rows_per_s": 5000 + rng.normal(0, 200), "input_wait_percent": abs(rng.normal(1.2, 0.4))}
                    | {"device_memory_mb": 512.0, "time_s": step * 0.1}
                )
        fit = 1 - np.exp(-(epoch + 1) / 3)
        lines.append(
            {"event": "epoch", "epoch": epoch, "step": (epoch + 1) * 110, "train/loss": 3.1 - 2.1 * quality * fit}
            | {"val/loss": 3.15 - 1.9 * quality * fit, "val/gap": 0.7 * quality * fit, "val/map": 0.4 * quality * fit}
            | {"val/hit_at_1": 0.8 * quality * fit, "val/perr": 0.66 * quality * fit, "rows_per_s": 5000.0 + epoch}
            | {"input_wait_percent": 1.2, "epoch_s": 10.2 + epoch / 10, "time_s": 11.0 * (epoch + 1), "lr": 0.01}
            | {"train_rows": 14_000, "val_rows": 2_998}
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    (folder / "evaluation").mkdir()
    for split in splits:
        rank = np.argsort(np.argsort(-frequency, kind="stable"))
        ap = np.clip(quality * 0.9 * np.exp(-rank / num_classes * 1.5) + rng.normal(0, 0.08, num_classes), 0, 1)
        per_class = [
            {"class": c, "name": names[c], "train_count": int(frequency[c]), "count": int(counts[split][c])}
            | {"ap": float(ap[c]) if counts[split][c] else None}
            for c in range(num_classes)
        ]
        evaluation = {
            "split": split,
            "checkpoint": "checkpoints/step-00001100",
            "rows": rows[split],
            "rows_with_labels": rows[split],
            "metrics": {"gap": 0.7112 * quality, "map": 0.4021 * quality, "hit_at_1": 0.8, "perr": 0.6634 * quality},
            "baselines": {"prior": {"gap": 0.1123, "map": 0.00851, "hit_at_1": 0.3, "perr": 0.1511}},
            "per_class": per_class,
        }
        (folder / "evaluation" / f"{split}.json").write_text(json.dumps(evaluation))
    return folder
