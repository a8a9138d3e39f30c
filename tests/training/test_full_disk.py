"""A disk that is full: nothing half-written is left, the error says how much is missing, and the run goes on."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import TRAIN, MakeDataset, MakeRun, curve, train

from mmray import config, preparation
from mmray.datasets.synthetic import youtube8m
from mmray.training import checkpoint
from mmray.training.checkpoint import TrainState


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB; the test is skipped where one may not mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs leave to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """Put a file on a disk so that it has little room left."""
    rest = disk / "rest"
    status = subprocess.run(["df", "--output=avail", "-B1", str(disk)], capture_output=True, text=True, check=True)
    rest.write_bytes(b"x" * (int(status.stdout.split()[1]) - leave_bytes))
    return rest


def test_checkpoint_that_does_not_fit(small_disk: Path) -> None:
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpoint.save(small_disk, TrainState(step=1), model, optimizer)
    before = sorted(small_disk.rglob("*"))
    rest = fill(small_disk, 200_000)
    with pytest.raises(OSError, match=r"the checkpoint of step 2 takes about 0\.3 MB, 0\.2 MB are free") as caught:
        checkpoint.save(small_disk, TrainState(step=2), model, optimizer)
    assert caught.value.errno == errno.ENOSPC
    assert "0.2 MB are missing" in str(caught.value)
    assert sorted(path for path in small_disk.rglob("*") if path != rest) == before
    rest.unlink()
    checkpoint.save(small_disk, TrainState(step=2), model, optimizer)
    assert [state.step for state in checkpoint.list_states(small_disk)] == [1, 2]


def test_run_goes_on_when_there_is_room_again(
    make_run: MakeRun, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full as the optimiser's state of the second checkpoint is written."""
    folder = make_dataset()
    settings = TRAIN | {"checkpoint_every_steps": 5}
    undisturbed = train(make_run(train=settings), folder)
    run = make_run(name="stopped", train=settings)
    write = checkpoint.save_file
    written = []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        written.append(path)
        if len(written) == 4:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(OSError, match=r"disk of .* is full: the checkpoint of step 10 takes"):
            train(run, folder)
    assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == ["step-00000005"]
    np.testing.assert_array_equal(curve(train(run, folder)), curve(undisturbed))


def test_part_that_does_not_fit(small_disk: Path, tmp_path: Path, make_run: Callable[..., config.Run]) -> None:
    """A part of a prepared dataset of 1.5 MB on a disk of 1 MB, then on one with room."""
    corpus = tmp_path / "corpus"
    made = youtube8m.Config(num_videos=400, num_classes=12, rgb_size=1024, audio_size=128)
    youtube8m.generate(corpus, made, lambda done, total: None)
    dataset = {"name": "youtube8m", "path": str(corpus), "level": "video", "num_classes": 12}
    run = make_run(dataset=dataset, prepare={"out": str(small_disk)})
    plan = preparation.plan(run)
    part = max(plan.parts, key=lambda part: sum(source.num_bytes for source in part.sources))
    with pytest.raises(OSError, match="No space left on device"):
        preparation.write_part(run, part, small_disk)
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
    note = preparation.write_part(run, part, tmp_path / "elsewhere")
    assert sum(split.rows for split in note.splits.values()) > 200
