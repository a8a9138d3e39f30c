"""Files and folders are whole or absent, and processes keep apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmray import files


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    files.write_text(path, "old")

    def fail_half_way() -> None:
        with files.written_whole(path) as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert content(tmp_path) == {"a/file": "old"}
    files.write_text(path, "new")
    assert content(tmp_path) == {"a/file": "new"}
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert content(tmp_path) == {}


def test_folder_takes_the_place_of_a_remnant(tmp_path: Path) -> None:
    """What an interrupted removal left must not stand in the way of finished work."""
    for name in ("final", "aside"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / name).write_text(name)
    files.publish_folder(tmp_path / "aside", tmp_path / "final")
    assert content(tmp_path) == {"final/sub/aside": "aside"}
    files.delete_folder(tmp_path / "final")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_crash_go(tmp_path: Path) -> None:
    for name in (".writing-x", ".deleted-y", "kept"):
        (tmp_path / name).mkdir()
    files.delete_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_lock_keeps_other_processes_out_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""
from pathlib import Path
from mmray.files import locked
try:
    with locked(Path({str(path)!r}), "training x", wait=False):
        print("got it")
except ValueError as error:
    print(error)
"""

    def other_process() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    with files.locked(path, "training x", wait=False):
        assert other_process() == f"another process is training x (it holds {path}); wait for it or end it\n"
    assert other_process() == "got it\n"


def test_log_is_followed_across_a_rewrite(tmp_path: Path) -> None:
    from mmray.training.run_folder import new_lines

    path, log = tmp_path / "metrics.jsonl", new_lines(tmp_path)

    def line(event: str, step: int) -> str:
        return json.dumps({"event": event, "step": step}) + "\n"

    assert next(log) == []
    path.write_text(line("step", 1) + line("step", 2)[:5])
    assert [x["step"] for x in next(log)] == [1]
    with path.open("a") as file:
        file.write(line("step", 2)[5:] + line("epoch", 2))
    assert [(x["event"], x["step"]) for x in next(log)] == [("step", 2), ("epoch", 2)]
    assert next(log) == []
    files.write_text(path, line("step", 1))  # a run that goes on from step 1
    with path.open("a") as file:
        file.write(line("step", 2) + line("step", 3))
    assert [x["step"] for x in next(log)] == [3]
