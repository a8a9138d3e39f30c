"""Decoding, resizing and preparing images, against Pillow, torch's DataLoader and ray.data.read_images.

    taskset -c 0 python benchmarks/images.py decode [--rounds 9] [--images FOLDER ...]
    python benchmarks/images.py read [--number 6000] [--rounds 3] [--covers FOLDER]

`decode`, one thread: JPEG files to 224 x 224 x 3 bytes. CPU time of the process, all methods in turn, medians of the
rounds; ratios are medians over the rounds. Two sets of 200 made-up images (300 x 300, and 500 x 375 and the like), or
the JPEG files below each FOLDER. Limit: decoding alone.

`read`, 2 processes: as many made-up covers as files in folders, wall time, in turn. mmray's parts as Ray Data tasks,
rows made and counted, of parts that are planned as the DataLoader's paths are listed: before; a DataLoader of 2 workers
with torchvision's decoder and resizing; read_images; and mmray's whole preparation, planned each time, Parquet written.
Ray's workers are as nice as the DataLoader's. The first round, in which workers start and import torch, does not count.
`--covers` keeps the covers in a folder, for the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as v2

from mmray import config, lookup, preparation
from mmray.datasets.synthetic import album_covers, pets
from mmray.features import images

SIZE = 224
PART_MB = 8  # Ray Data looks for tasks that ended every 0.1 s, which one of 2 MB takes
SETTINGS = images.Settings(size=(SIZE, SIZE))


def by_mmray(data: bytes) -> bytes:
    return images.encode(images.read(data, SETTINGS), SETTINGS)


def by_pillow(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image).tobytes()


def decoded_alone(data: bytes) -> Any:
    return decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


METHODS = {"mmray": by_mmray, "Pillow": by_pillow, "decoding alone": decoded_alone}


def timed(methods: dict[str, Callable[[], object]], clock: Callable[[], float], rounds: int) -> dict[str, list[float]]:
    """Seconds of each method in each round."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            began = clock()
            method()
            times[name].append(clock() - began)
    return times


def show(times: dict[str, list[float]], number: int, targets: dict[str, float]) -> None:
    first = next(iter(times))
    for name, values in times.items():
        ratio = statistics.median(b / a for a, b in zip(times[first], values, strict=True))
        target = f" (target {targets[name]:g})" if name in targets else ""
        told = "" if name == first else f"  {first} is {ratio:4.2f} x as fast{target}"
        print(f"    {name:22} {number / statistics.median(values):8,.0f} images/s{told}")


def decode(files: Sequence[bytes], name: str, rounds: int) -> None:
    worst = max(
        int(np.abs(np.frombuffer(by_mmray(f), np.uint8).astype(int) - np.frombuffer(by_pillow(f), np.uint8)).max())
        for f in files[:50]
    )
    size = np.mean([len(f) for f in files]) / 1000
    print(f"  {name}: {len(files)} files of {size:.0f} KB; the two differ by {worst} levels at most")

    def one_by_one(method: Callable[[bytes], object]) -> Callable[[], object]:
        def run() -> None:
            for file in files:
                method(file)  # each result is let go: else the cost is that of fresh memory for all of them

        return run

    methods = {name: one_by_one(method) for name, method in METHODS.items()}
    show(timed(methods, time.process_time, rounds), len(files), {"Pillow": 1.8})


def made_up() -> dict[str, list[bytes]]:
    covers = album_covers.Config(size=300)
    animals = pets.Config(size=500, oddities=False)
    plan = pets.pet_plan(animals)[:200]
    return {
        "300 x 300": [album_covers.draw_cover(covers, number) for number in range(200)],
        "500 x 375 and the like": [pets._file(animals, pet) for pet in plan],
    }


class Files(torch.utils.data.Dataset[torch.Tensor]):
    """The images of a list of files, for a DataLoader."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> torch.Tensor:
        return v2.resize(decoded_alone(Path(self.paths[place]).read_bytes()), [SIZE, SIZE], antialias=True).contiguous()


def read_by_loader(paths: Sequence[str]) -> None:
    loader = torch.utils.data.DataLoader(Files(paths), batch_size=64, num_workers=2)
    assert sum(len(batch) for batch in loader) == len(paths)


def read_by_ray(folder: Path, number: int) -> None:
    import ray.data

    data = ray.data.read_images(str(folder), size=(SIZE, SIZE), mode="RGB", file_extensions=["jpg"])
    assert sum(len(batch["image"]) for batch in data.iter_batches(batch_size=64)) == number


def read_by_mmray(plan: preparation.Plan, number: int) -> None:
    """Rows of all parts as Ray Data tasks, in Arrow, brought here as the other two bring theirs."""
    import pyarrow as pa
    import ray.data

    values = plan.run.to_dict()

    def read(batch: dict[str, Any]) -> Any:
        run = config.from_dict(values)
        dataset = lookup.load("dataset", "album_covers")
        for source in (s for part in batch["part"] for s in preparation.Part.from_json(part).sources):
            for rows in dataset.read(run.dataset, source, print):
                yield pa.table({"image": rows.column("image")})

    items = [{"part": part.to_json()} for part in plan.parts]
    parts = ray.data.from_items(items, override_num_blocks=len(items))
    blocks = parts.map_batches(read, batch_size=1).iter_batches(batch_size=None, batch_format="pyarrow")
    batches = (block.slice(start, 64) for block in blocks for start in range(0, block.num_rows, 64))  # no copies
    assert sum(batch.num_rows for batch in batches) == number


def prepare_by_mmray(run: config.Run, number: int) -> None:
    import shutil

    from mmray.on_ray.prepare import prepare
    from mmray.prepared import read_info

    shutil.rmtree(run.prepare.out, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        folder = prepare(run)
    assert read_info(folder).rows_out == number


def read(number: int, rounds: int, covers: Path | None) -> None:
    from mmray.on_ray import runtime

    os.environ.setdefault("RAY_worker_niceness", "0")

    with tempfile.TemporaryDirectory() as name:
        root, covers = Path(name), covers or Path(name) / "covers"
        made = album_covers.Config(num_images=number, size=300)
        began = time.perf_counter()
        album_covers.generate(covers, made, lambda done, total: None)
        print(f"  made {number:,} covers: {number / (time.perf_counter() - began):,.0f} images/s in one process")
        run = config.from_dict(
            {
                "name": "images", "task": "video_classification", "model": "logistic",
                "dataset": {"name": "album_covers", "path": str(covers), "image": {"size": SIZE}},
                "prepare": {"out": str(root / "prepared"), "part_mb": PART_MB},
            }
        )  # fmt: skip
        began = time.perf_counter()
        plan = preparation.plan(run)
        print(f"  listed, compared and divided in {time.perf_counter() - began:.2f} s, {len(plan.parts)} parts")
        paths = sorted(str(path) for path in covers.glob("*/*.jpg"))
        runtime.start()
        methods: dict[str, Callable[[], object]] = {
            "mmray by Ray Data": lambda: read_by_mmray(plan, number),
            "DataLoader, 2 workers": lambda: read_by_loader(paths),
            "ray.data.read_images": lambda: read_by_ray(covers, number),
            "mmray prepare": lambda: prepare_by_mmray(run, number),
        }
        timed(methods, time.perf_counter, 1)
        targets = {"DataLoader, 2 workers": 0.7, "ray.data.read_images": 2.5}
        show(timed(methods, time.perf_counter, rounds), number, targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["decode", "read"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--number", type=int, default=6_000)
    parser.add_argument("--covers", type=Path)
    parser.add_argument("--images", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "read":
        read(arguments.number, arguments.rounds or 3, arguments.covers)
        return
    found = {str(f): [path.read_bytes() for path in sorted(f.rglob("*.jpg"))[:200]] for f in arguments.images}
    for name, files in (found or made_up()).items():
        decode(files, name, arguments.rounds or 9)


if __name__ == "__main__":
    main()
