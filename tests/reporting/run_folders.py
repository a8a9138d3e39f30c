"""Run folders as the trainer and the evaluation leave them, and the report page read back."""

import base64
import json
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


MELODY_METRICS = (
    "overall_accuracy",
    "raw_pitch_accuracy",
    "raw_chroma_accuracy",
    "voicing_recall",
    "voicing_false_alarm",
)


def per_clip(num_clips, seed=0):
    """Scores of clips of made-up singers, every metric of every clip another number."""
    scores = np.random.default_rng(seed).uniform(0.3, 0.99, (num_clips, len(MELODY_METRICS)))
    return [
        {"id": f"singer{i % 3}_{i:02d}", "group": f"singer{i % 3}"} | dict(zip(MELODY_METRICS, row, strict=True))
        for i, row in enumerate(scores.tolist())
    ]


def write_melody_evaluation(run, name, clips):
    """`evaluation/<name>.json`: means over the clips, None where a clip has none."""
    values = {metric: [clip[metric] for clip in clips if clip[metric] is not None] for metric in MELODY_METRICS}
    evaluation = {
        "split": "test",
        "checkpoint": "checkpoints/step-00000120",
        "rows": len(clips),
        "metrics": {metric: sum(of_one) / len(of_one) if of_one else None for metric, of_one in values.items()},
        "baselines": {},
        "per_clip": clips,
    }
    path = run / "evaluation" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(evaluation))


def write_melody_run(folder, evaluations, name=None, published=None, environment=None, dataset_id="mir1k-12ab34cd"):
    """A run folder of the melody task; `evaluations` maps names to the scores of `per_clip`."""
    folder.mkdir(parents=True)
    config = {
        "name": name or folder.name,
        "task": {"name": "melody_extraction", "decode": "argmax"},
        "seed": 0,
        "dataset": {"name": "mir1k", "path": "data/mir1k"},
        "model": {"name": "dense_aspp", "growth": 10},
        "train": {"epochs": 1},
        "published": published,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps({"num_cpus": 2} | (environment or {})))
    dataset = {
        "id": dataset_id,
        "columns": [{"name": "cfp", "dtype": "float16", "shape": [None, 3, 256], "unit": ""}],
        "class_names": [],
        "splits": {split: {"rows": rows, "label_counts": None} for split, rows in (("train", 680), ("val", 60))},
        "rows_in": 740,
        "rows_out": 740,
        "rejected": 0,
        "rejected_reasons": {},
        "split_rule": "test: singers leon, stool, tammy, titon, yifen",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    epoch = {"event": "epoch", "epoch": 0, "step": 85, "train/loss": 0.02, "val/overall_accuracy": 0.75, "epoch_s": 9.5}
    (folder / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    for evaluation, clips in evaluations.items():
        write_melody_evaluation(folder, evaluation, clips)
    return folder


MELODY_FACTS = {"hop_s": "0.016", "first_frame_s": "0.016", "min_hz": "31.0", "bins_per_octave": "48"}


def melody_clip(clip_id, num_frames=100, f0_hz=220.0, ref_f0_hz=220.0, num_bins=256, with_reference=True, seed=0):
    """A stored clip: noise for a map, an estimate and a reference; pitches are one for all frames, or one a frame."""
    times_s = 0.01 + 0.02 * np.arange(int(num_frames * 0.8) + 2)
    return {
        "id": clip_id,
        "cfp": np.random.default_rng(seed).random((num_frames, 3, num_bins)).astype(np.float16).tobytes(),
        "est_f0_hz": np.broadcast_to(f0_hz, num_frames).astype(np.float32),
        "confidence": np.full(num_frames, 0.5, np.float32),
        "ref_times_s": times_s if with_reference else [],
        "ref_f0_hz": np.broadcast_to(ref_f0_hz, len(times_s)) if with_reference else [],
    }


def write_examples(run, name, clips, facts=MELODY_FACTS, left_out=()):
    """`evaluation/<name>.examples.parquet`."""
    types = {
        "id": pa.string(),
        "cfp": pa.large_binary(),
        "est_f0_hz": pa.list_(pa.float32()),
        "confidence": pa.list_(pa.float32()),
        "ref_times_s": pa.list_(pa.float64()),
        "ref_f0_hz": pa.list_(pa.float64()),
    }
    columns = {key: pa.array([c[key] for c in clips], of) for key, of in types.items() if key not in left_out}
    table = pa.table(columns).replace_schema_metadata({f"mmray.{key}": value for key, value in facts.items()})
    path = run / "evaluation" / f"{name}.examples.parquet"
    pq.write_table(table, path)
    return path


def write_image_run(folder, recalls, class_names, counts=None, phases=(), evaluation=None, dataset_id="pets-1"):
    """A run folder of image classification: the accuracy of each class, epochs in phases of (name, val accuracies)."""
    (folder / "evaluation").mkdir(parents=True)
    config = {"name": folder.name, "task": {"name": "image_classification"}, "model": {"name": "timm"}, "train": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text("{}")
    counts = [4] * len(class_names) if counts is None else counts
    dataset = {"id": dataset_id, "class_names": class_names, "splits": {"test": {"rows": sum(counts)}}}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    epochs = [(name, accuracy) for name, accuracies in phases for accuracy in accuracies]
    lines = [
        {"event": "epoch", "epoch": e, "step": 10 * e + 10, "phase": name, "trained_parameters": 100 * len(name)}
        | {"train/loss": 1 / (e + 1), "val/loss": 1.5 / (e + 1), "val/accuracy": accuracy}
        for e, (name, accuracy) in enumerate(epochs)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    zipped = enumerate(zip(class_names, recalls, counts, strict=True))
    content = {
        "split": "test",
        "checkpoint": "checkpoints/step-00000010",
        "rows": sum(counts),
        "metrics": {"accuracy": 0.5},
        "per_class": [
            {"class": c, "name": name, "train_count": 9, "precision": 0.5, "recall": recall, "f1": 0.5, "count": count}
            for c, (name, recall, count) in zipped
        ],
        "confusion": np.diag(counts).tolist(),
    }
    (folder / "evaluation" / "test.json").write_text(json.dumps(content | (evaluation or {})))
    return folder


def write_image_examples(run, rows, size, store="uint8", heat=None, facts=None):
    """`evaluation/test.examples.parquet`: rows of (id, scores, stored bytes), and the heat (N, H, W) of their model."""
    ids, scores, images = zip(*rows, strict=True)
    columns = {
        "id": pa.array(ids),
        "scores": pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(scores, np.float32)),
        "image": pa.array(images, pa.large_binary()),
    }
    metadata = {"image": json.dumps({"size": size, "store": store})}
    if heat is not None:
        columns["heat"] = pa.FixedShapeTensorArray.from_numpy_ndarray(heat)
        metadata["heat"] = "Grad-CAM of layer4"
    metadata = metadata if facts is None else facts
    table = pa.table(columns).replace_schema_metadata({f"mmray.{key}": value for key, value in metadata.items()})
    pq.write_table(table, run / "evaluation" / "test.examples.parquet")


class Reader(HTMLParser):
    """What a page shows: its tables as rows of cell texts by id or class, its attributes, its text, its images."""

    def __init__(self, html):
        super().__init__()
        self.tables, self.attributes, self.tags, self.text, self.images = {}, [], [], "", []
        self.photos = []
        self.bold = []
        self._cell = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.attributes += attrs.items()
        if tag == "table":
            key = attrs.get("id") or attrs["class"]
            self._rows = self.tables.setdefault(key, [])
            if key in ("classes", "clips"):  # there may be several of them
                self._rows.append([])
                self._rows = self._rows[-1]
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._cell = ""
            self._is_best = attrs.get("class") == "best"
        elif tag == "img":
            kind, data = attrs["src"].removeprefix("data:image/").split(";base64,")
            (self.images if kind == "png" else self.photos).append(base64.b64decode(data, validate=True))

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self._cell is not None:
            self._rows[-1].append(" ".join(self._cell.split()))
            if self._is_best:
                self.bold.append(self._rows[-1][-1])
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data


def report(tmp_path, *runs):
    index = page.write_report(list(runs), tmp_path / "report")
    assert index == tmp_path / "report" / "index.html"
    html = index.read_text(encoding="utf-8")
    return Reader(html), html


def load(run, name):
    return json.loads((run / name).read_text())


def change(run, name, edit):
    content = load(run, name)
    edit(content)
    (run / name).write_text(json.dumps(content))
