"""Optuna's storage of a study: a file of the study, or a database that `tune.storage` names.

Optuna needs a file system for its file. That of a study in a store is worked on on this machine, and what the store has
is a copy as of the last `Storage.keep`.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from mmray.files import written_whole
from mmray.storage import fetched, is_remote

FILES = {"sqlite": "study.db", "journal": "study.journal"}


class Storage:
    """What `tune.storage` means for the study in `folder`; `optuna` is Optuna's own."""

    def __init__(self, storage: str, folder: Path) -> None:
        self.name = storage
        self._file, self._copy = None, None
        if storage in FILES and is_remote(folder):
            here = Path(tempfile.mkdtemp(prefix="mmray-"))
            weakref.finalize(self, shutil.rmtree, here, ignore_errors=True)
            self._file, self._copy = here / FILES[storage], folder / FILES[storage]
            if self._copy.exists():
                with fetched(self._copy) as copy:
                    copy_file(copy, self._file)
            folder = here
        self.optuna = storage_of(storage, folder)

    def keep(self) -> None:
        """Have all that it was told outlive this process: of a study in a store, have it there."""
        if self._file is not None and self._copy is not None:
            with written_whole(self._copy) as aside:
                copy_file(self._file, aside)


def open_study(storage: Storage, name: str, directions: Sequence[str], is_new: bool) -> optuna.Study:
    """The study of a search in its storage; ValueError where a new search finds another's trials there."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=storage.optuna,
        study_name=name,
        directions=[{"max": "maximize", "min": "minimize"}[direction] for direction in directions],
        load_if_exists=True,
    )
    if is_new and study.get_trials(deepcopy=False):
        raise ValueError(
            f"tune.storage={storage.name} holds trials of another search called {name}; give this one a name of its "
            f"own, --set name=..."
        )
    return study


def storage_of(storage: str, folder: Path) -> optuna.storages.BaseStorage:
    """Optuna's storage for a study in a folder of this machine; ValueError where a database can't be opened."""
    if storage == "sqlite":
        found = optuna.storages.RDBStorage(f"sqlite:///{(folder / FILES[storage]).absolute()}")
        sqlalchemy.event.listen(found.engine, "connect", _write_ahead)
        found.engine.dispose()  # the connections that were made before
        return found
    if storage == "journal":
        backend = optuna.storages.journal.JournalFileBackend(str(folder / FILES[storage]))
        return optuna.storages.JournalStorage(backend)
    try:
        return optuna.storages.RDBStorage(storage)
    except Exception as error:  # whatever the driver of a database may raise
        raise ValueError(f"tune.storage={storage}: {type(error).__name__}: {str(error).splitlines()[0]}") from None


def copy_file(file: Path, to: Path) -> None:
    """Make `to` the same as a storage's file, whole, also while the one is written and the other read."""
    if file.name != FILES["sqlite"]:  # a journal, to which whole lines are added
        shutil.copyfile(file, to)
        return
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)  # with what stands in the file beside it, in one transaction


def _write_ahead(connection: Any, _: Any) -> None:
    """Have SQLite wait for the disk once in a while, not at each of the ten writes of a trial: twice as fast.

    A killed process loses nothing by it; a machine that loses power may lose the last writes.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
