"""Addresses in a store do what paths of this machine do; a store that stumbles is asked again; nothing is seen half."""

from __future__ import annotations

import errno
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mmray import config, files, prepared, storage, stores
from mmray.datasets._text_table import TextColumns, TextTable
from mmray.features import word_vectors
from mmray.storage import RemotePath, at
from mmray.training.run_folder import new_lines

MakeRun = Callable[..., config.Run]
MakeDataset = Callable[..., Path]

_numbers = itertools.count()


@pytest.fixture
def store() -> Path:
    """An empty place in a store of this process."""
    return at(f"memory://store-{next(_numbers)}/folder")


class _Stumbling(MemoryFileSystem):
    """A store that answers the next requests with `errors`, then as it should."""

    protocol = "stumbling"
    errors: list[Exception] = []  # noqa: RUF012
    asked = 0

    def info(self, path: str, **options: Any) -> Any:
        _Stumbling.asked += 1
        if _Stumbling.errors:
            raise _Stumbling.errors.pop(0)
        return super().info(path, **options)


fsspec.register_implementation("stumbling", _Stumbling, clobber=True)


def copied(folder: Path, to: Path) -> Path:
    for file in folder.rglob("*"):
        if file.is_file():
            (to / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
    return to


# ---- As a path


def test_addresses_are_named_and_joined_as_paths_are() -> None:
    for text in ("s3://bucket/a/b.tar.gz", "gs://bucket/a", "memory://x/y"):
        here, there = Path("/" + text.partition("://")[2]), at(text)
        assert str(there) == text
        assert str(there / "c") == f"{text}/c"
        for name in ("name", "stem", "suffix"):
            assert getattr(there, name) == getattr(here, name)
        assert there.with_name("z") == there.parent / "z"
        assert pickle.loads(pickle.dumps(there)) == there
        assert (there / "c" / "d").relative_to(there).as_posix() == "c/d"
        assert there.is_absolute()
        assert there.absolute() is there
    assert at("runs/a") == Path("runs/a")
    assert type(at("runs/a")) is type(Path("runs/a"))
    assert at("file:///tmp/x") == Path("/tmp/x")
    assert at("s3://bucket//a/") == at("s3://bucket/a")


@pytest.mark.parametrize("pattern", ["*", "*.txt", "a/*.txt", "*/c.txt", "**/*.txt", "a/**/*", "[ab]/?.txt", "a/b.txt"])
def test_patterns_find_what_they_find_on_this_machine(tmp_path: Path, store: Path, pattern: str) -> None:
    for name in ("t.txt", "u.csv", "a/b.txt", "a/c.txt", "a/d/c.txt", "b/c.txt", "b/.e.txt"):
        for root in (tmp_path, store):
            files.write_text(root / name, name)
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern))
    assert sorted(path.relative_to(store).as_posix() for path in store.glob(pattern)) == found
    assert storage.matching(f"{store}/a/*.txt") == [store / "a/b.txt", store / "a/c.txt"]
    hidden = {path.name for path in storage.files_below(store)} & {".e.txt"}
    assert not hidden
    assert len(list(storage.files_below(store))) == len(list(storage.files_below(tmp_path))) == 6


def test_reading_in_ranges_and_whole(store: Path) -> None:
    data = np.random.default_rng(0).bytes(9_000_001)
    (store / "data").write_bytes(data)
    assert (store / "data").read_bytes() == data
    with (store / "data").open("rb") as file:
        assert file.read(7) == data[:7]
        file.seek(-5, 2)
        assert file.read() == data[-5:]
        file.seek(4_194_300)
        assert file.read(100_000) == data[4_194_300:4_294_300]
    (store / "lines").write_text("ä\nb\n")
    assert list((store / "lines").open()) == ["ä\n", "b\n"]
    with storage.fetched(store / "data") as here, storage.fetched(str(store / "data")) as again:
        assert here == again
        assert here.read_bytes() == data
    assert not here.exists()


def test_text_that_is_replaced_while_it_is_read_is_read_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "log").write_text("two lines\nof text\n")
    whole, times = RemotePath.read_bytes, [0]

    def cut_once(path: RemotePath) -> bytes:
        times[0] += 1
        return whole(path)[: 5 if times[0] == 1 else None]

    monkeypatch.setattr(RemotePath, "read_bytes", cut_once)
    assert (store / "log").read_text() == "two lines\nof text\n"
    assert times == [2]


def test_statuses_change_with_what_is_written(store: Path, tmp_path: Path) -> None:
    paths = [str(store / name) for name in "abc"]
    for path in paths:
        at(path).write_text("x")
    local = tmp_path / "d"
    local.write_text("four")
    found = storage.statuses([*paths, str(local)])
    assert [found[path].st_size for path in (*paths, str(local))] == [1, 1, 1, 4]
    time.sleep(0.01)
    (store / "b").write_text("y")
    again = storage.statuses(paths)
    assert [again[path] == found[path] for path in paths] == [True, False, True]
    with pytest.raises(FileNotFoundError, match="nosuch"):
        storage.statuses([*paths, str(store / "nosuch")])


def test_a_copy_on_this_node_is_fetched_once_and_anew_when_it_changes(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path))
    copied_from = store / "vectors"
    (copied_from / "a.npy").write_text("1")
    (copied_from / "b" / "c").write_text("2")
    first = storage.on_this_node(copied_from)
    assert (first / "a.npy").read_text() + (first / "b/c").read_text() == "12"
    assert storage.on_this_node(copied_from) == first
    time.sleep(0.01)
    (copied_from / "a.npy").write_text("3")
    assert (storage.on_this_node(copied_from) / "a.npy").read_text() == "3"
    assert storage.on_this_node(tmp_path) is tmp_path
    assert not list(tmp_path.glob(".writing-*"))


# ---- Whole or absent


def test_what_fails_half_way_is_not_there(store: Path) -> None:
    def fail() -> None:
        with files.written_whole(store / "x") as aside:
            aside.write_text("half")
            raise RuntimeError

    def fail_in_a_folder() -> None:
        with files.written_folder(store / "y") as aside:
            (aside / "part").write_text("half")
            raise RuntimeError

    for one in (fail, fail_in_a_folder):
        with pytest.raises(RuntimeError):
            one()
    assert list(store.rglob("*")) == []
    with pytest.raises(ValueError, match="bit by bit"):
        (store / "x").open("w")


def test_notes_of_a_folder_come_last_and_go_first(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    upload, unlink, below = (getattr(storage.RemotePath, name) for name in ("upload", "unlink", "delete_below"))
    monkeypatch.setattr(storage.RemotePath, "upload", lambda s, f: (done.append(f"+{s.name}"), upload(s, f)))
    monkeypatch.setattr(storage.RemotePath, "unlink", lambda s, **k: (done.append(f"-{s.name}"), unlink(s, **k)))
    monkeypatch.setattr(storage.RemotePath, "delete_below", lambda s: (done.append("-*"), below(s)))
    for name in ("state.json", "a", "sub/z.json", "zz"):
        files.write_text(tmp_path / "aside" / name, name)
    files.publish_folder(tmp_path / "aside", store / "final")
    assert done[0] == "-*"
    assert done[-1] == "+state.json"
    assert sorted(done[1:]) == ["+a", "+state.json", "+z.json", "+zz"]
    done.clear()
    files.delete_folder(store / "final")
    assert done == ["-state.json", "-*"]
    assert not (store / "final").exists()


def test_a_folder_that_failed_between_its_files_has_no_note(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload, calls = storage.RemotePath.upload, itertools.count()

    def fail_at_the_second(path: storage.RemotePath, source: Path) -> None:
        if next(calls) == 1:
            raise OSError(errno.EIO, "gone", str(path))
        upload(path, source)

    monkeypatch.setattr(storage.RemotePath, "upload", fail_at_the_second)

    def write() -> None:
        with files.written_folder(store / "step") as aside:
            for name in ("model", "optimizer", "state.json"):
                (aside / name).write_text(name)

    with pytest.raises(OSError, match="gone"):
        write()
    assert not (store / "step" / "state.json").exists()
    write()
    assert sorted(path.name for path in (store / "step").glob("*")) == ["model", "optimizer", "state.json"]


# ---- Who may write


def test_one_holds_a_lock_and_others_wait_or_are_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_RENEW_S", 0.1)
    inside, most = [0], [0]

    def work() -> None:
        with files.locked(store / ".lock", "working", wait=True):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    with (
        files.locked(store / ".lock", "working", wait=False),
        pytest.raises(ValueError, match="another process is wor"),
    ):
        files.locked(store / ".lock", "working", wait=False).__enter__()
    assert not list((store / ".lock").glob("*"))


def test_who_fails_while_asking_for_a_lock_leaves_no_claim(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, living = [0], files._Claims.living

    def second_fails(claims: files._Claims, but: Path | None = None) -> list[Path]:
        looks[0] += 1
        if looks[0] == 2:
            assert len(list((store / ".lock").glob("*"))) == 1
            raise PermissionError("no more")
        return living(claims, but)

    monkeypatch.setattr(files._Claims, "living", second_fails)
    with pytest.raises(PermissionError, match="no more"), files.locked(store / ".lock", "working", wait=True):
        pass
    assert not list((store / ".lock").glob("*"))


def test_what_is_deleted_while_it_is_listed_is_left_out(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (store / name).write_text(name)
    asked = storage._status_of

    def gone(filesystem: Any, info: Any) -> Any:
        if info.path.endswith("/b"):
            raise FileNotFoundError(info.path)
        return asked(filesystem, info)

    monkeypatch.setattr(storage, "_status_of", gone)
    assert [path.name for path in store.iterdir()] == ["a", "c"]


def test_the_lock_of_the_dead_is_taken(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CLAIM_S", 0.3)
    (store / ".lock" / "of another machine").write_text("its kernel\nits space\n1")
    began = time.monotonic()
    with files.locked(store / ".lock", "working", wait=False):
        assert time.monotonic() - began > 0.3
    monkeypatch.setattr(files, "CLAIM_S", 1e9)
    (store / ".lock" / "of this one").write_text("\n".join([*files._kernel(), str(2**22 + 1)]))  # no such process
    with files.locked(store / ".lock", "working", wait=False):
        pass


def test_time_without_the_store_does_not_count_against_a_holder(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CLAIM_S", 60.0)
    (store / ".lock" / "held").write_text("its kernel\nits space\n1")
    now = [0.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    claims = files._Claims(store / ".lock")
    for now[0] in (0.0, 5.0, 305.0, 310.0, 355.0):  # the store was away for 300 s, then for 45 s
        assert claims.living()
    for now[0] in (360.0, 365.0, 370.0, 375.0, 380.0, 385.0, 390.0, 395.0, 400.0, 405.0):
        assert claims.living()
    for now[0] in (410.0, 415.0):  # 5 + 5 + 60 s
        claims.living()
    assert not claims.living()


# ---- A store that stumbles


@pytest.fixture
def stumbling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    monkeypatch.setattr(stores, "_FIRST_DELAY_S", 0.001)
    path = at("stumbling://place/x")
    path.write_text("here")

    def fail_with(*errors: Exception) -> Path:
        _Stumbling.errors, _Stumbling.asked = list(errors), 0
        return path

    yield fail_with
    _Stumbling.errors = []


def test_what_passes_is_asked_for_again(stumbling: Callable[..., Path]) -> None:
    path = stumbling(
        ConnectionResetError("reset"), TimeoutError("slow"), OSError("AWS Error SLOW_DOWN (HTTP status 503)")
    )
    assert path.stat().st_size == 4
    assert _Stumbling.asked == 3 + 2  # what it is, and its version


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError("no"), PermissionError),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation"), PermissionError),
        (OSError("AWS Error UNKNOWN (HTTP status 403)"), PermissionError),
        (OSError("AWS Error NO_SUCH_BUCKET during PutObject operation"), FileNotFoundError),
    ],
)
def test_what_does_not_pass_is_told_at_once(stumbling: Callable[..., Path], error: OSError, kind: type) -> None:
    path = stumbling(error, error)
    with pytest.raises(kind, match="stumbling://place/x"):
        path.stat()
    assert _Stumbling.asked == 1


def test_patience_ends(stumbling: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = stumbling(*[ConnectionResetError("connection reset")] * 1000)
    monkeypatch.setenv("MMRAY_STORAGE_PATIENCE_S", "0.05")
    with pytest.raises(OSError, match=r"MMRAY_STORAGE_PATIENCE_S\): connection reset.*stumbling://place/x"):
        path.stat()
    assert 1 < _Stumbling.asked < 1000
    monkeypatch.setenv("MMRAY_STORAGE_PATIENCE_S", "soon")
    with pytest.raises(ValueError, match="MMRAY_STORAGE_PATIENCE_S='soon'"):
        path.stat()


def test_mistakes_and_full_disks_are_not_asked_again() -> None:
    for error in (ValueError("a mistake"), KeyError("x"), OSError(errno.ENOSPC, "no space")):
        calls = []

        def fail(error: Exception = error, calls: list[int] = calls) -> None:
            calls.append(1)
            raise error

        with pytest.raises(type(error)):
            stores.steadily("s3://bucket/x", fail)
        assert calls == [1]


# ---- Addresses


@pytest.mark.parametrize(
    "text", ["s3://name:hidden@bucket/x", "s3://hidden@bucket/x", "gs://a:hidden@b", "s3://b/../hidden/c@d"]
)
def test_addresses_hold_no_password(text: str, make_run: MakeRun) -> None:
    with pytest.raises(ValueError, match=r"name or password|no meaning") as error:
        at(text)
    if "@bucket" in text:
        assert "hidden" not in str(error.value)
        with pytest.raises(ValueError, match="tiny-run: out: ") as error:
            config.from_dict(make_run().to_dict() | {"out": text}, where="tiny-run")
        assert "hidden" not in str(error.value)


def test_an_address_without_a_place_or_a_package() -> None:
    with pytest.raises(ValueError, match="no place"):
        at("s3://")
    with pytest.raises(ValueError, match="nosuch://"):
        at("nosuch://a/b").exists()


# ---- Data and runs


def test_rows_are_those_of_this_machine(make_dataset: MakeDataset, store: Path) -> None:
    here = make_dataset()
    there = copied(here, store / "data")
    info = prepared.read_info(there)
    assert info == prepared.read_info(here)
    rows = np.random.default_rng(0).permutation(101)
    local, remote = (prepared.SplitReader(f, info.split("train"), ("id", "a", "labels")) for f in (here, there))
    assert remote.take(rows).equals(local.take(rows))
    assert list(remote.batches(3, 90, 10)) == list(local.batches(3, 90, 10))


def test_parquet_files_are_read_by_row_group(store: Path, tmp_path: Path) -> None:
    table = pa.table({"x": range(1000), "y": range(1000)})
    with files.written_whole(store / "t.parquet") as aside:
        pq.write_table(table, aside, row_group_size=100)
    assert storage.read_table(store / "t.parquet").equals(table)
    found = list(storage.record_batches(store / "t.parquet", 64, ["y"]))
    assert pa.Table.from_batches(found).equals(table.select(["y"]))


def test_tables_of_words_are_kept_in_a_store_and_mapped_on_the_node(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "node"))
    (store / "words.txt").write_text("2 3\ncat 1 2 3\ndog 4 5 6\n")
    vectors = word_vectors.opened(str(store / "words.txt"), str(store / "cache"))
    assert vectors.matrix.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert pickle.loads(pickle.dumps(vectors)).matrix.tolist() == vectors.matrix.tolist()
    assert [path.name for path in store.glob("cache/*/word_vectors.json")] == ["word_vectors.json"]
    (store / "videos.csv").write_text("id,title,keywords\na,A cat,cats\nb,A dog,dogs\n")
    table = TextTable.made([store / "videos.csv"], TextColumns(), "refuse", str(store / "cache"))
    assert table.take(np.array([1, -1, 0])) == (["A dog", "", "A cat"], ["dogs", "", "cats"])


def test_the_log_is_followed(store: Path) -> None:
    def line(step: int) -> str:
        return f'{{"event": "step", "step": {step}}}\n'

    lines = new_lines(store)
    assert next(lines) == []
    (store / "metrics.jsonl").write_text(line(1))
    assert [one["step"] for one in next(lines)] == [1]
    assert next(lines) == []
    (store / "metrics.jsonl").write_text(line(1) + line(2) + line(3))
    assert [one["step"] for one in next(lines)] == [2, 3]
