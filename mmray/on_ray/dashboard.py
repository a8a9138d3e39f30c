"""`mmray dashboard`: a study in optuna-dashboard, its trials in TensorBoard, the cluster in Ray's own dashboard."""

from __future__ import annotations

import importlib.util
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmray import study
from mmray.console import say
from mmray.on_ray.access import is_loopback
from mmray.on_ray.study_storage import FILES, copy_file, storage_of
from mmray.storage import fetched, is_remote

_LOOK_EVERY_S = 10.0


def serve(folder: Path, optuna: bool, tensorboard: bool, ray: bool, host: str | None, port: int | None) -> None:
    """Serve dashboards of a study until interrupted; of none is chosen, optuna-dashboard and TensorBoard.

    They listen on this machine alone unless `host` is given. `port` is that of the first one, the next has the next.
    ValueError where the folder is no study's, or a dashboard is not there.
    """
    run = study.read_run(folder)
    if not (optuna or tensorboard or ray):
        optuna = tensorboard = True
    if optuna and importlib.util.find_spec("optuna_dashboard") is None:
        raise ValueError("optuna-dashboard is not installed: pip install 'mmray[dashboard]', or --tensorboard")
    listen = host or "127.0.0.1"
    if host is not None and not is_loopback(host):
        say(
            f"warning: listening on {host}: whoever reaches this machine there can read the study, and in "
            f"optuna-dashboard change and delete it; nobody is asked for a password"
        )
    if ray:
        say(f"Ray: {_ray_url()}")
    if not (optuna or tensorboard):
        return
    with _on_this_machine(folder) as here:
        if tensorboard:
            url = _tensorboard(here / "trials", listen, port or 6006)
            say(f"TensorBoard: {url}  (tab HPARAMS: trials side by side)")
        if optuna:
            assert run.tune is not None
            import optuna_dashboard

            at = 8080 if port is None else port + int(tensorboard)
            say(f"optuna-dashboard: http://{listen}:{at}/")
            optuna_dashboard.run_server(storage_of(run.tune.storage, here), host=listen, port=at)
        else:
            threading.Event().wait()


@contextmanager
def _on_this_machine(folder: Path) -> Iterator[Path]:
    """The folder of a study; of one in a store a copy of what dashboards read of it, which follows what changes."""
    if not is_remote(folder):
        yield folder
        return
    ended, known = threading.Event(), dict[Path, int]()

    def follow() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            try:
                _bring(folder, here, known)
            except (OSError, sqlite3.Error) as error:  # a store that stumbles, or a file replaced while it was read
                say(f"warning: {error}")

    with tempfile.TemporaryDirectory(prefix="mmray-", ignore_cleanup_errors=True) as name:
        here = Path(name)
        _bring(folder, here, known)
        say(f"{folder} is looked at every {_LOOK_EVERY_S:g} s; what is changed in optuna-dashboard does not last")
        threading.Thread(target=follow, name="mmray-dashboard", daemon=True).start()
        try:
            yield here
        finally:
            ended.set()


def _bring(folder: Path, here: Path, known: dict[Path, int]) -> None:
    """Have in `here` what dashboards read of a study and is of another version than `known`."""
    files = [file for file in folder.glob("study.*") if file.name in FILES.values()]
    for file in [*files, *folder.glob("trials/*/tensorboard/*")]:
        target, version = here / file.relative_to(folder).as_posix(), file.stat().st_mtime_ns
        if known.get(target) != version:
            target.parent.mkdir(parents=True, exist_ok=True)
            with fetched(file) as copy:
                copy_file(copy, target)
            known[target] = version


def _tensorboard(trials: Path, host: str, port: int) -> str:
    from tensorboard import program

    server = program.TensorBoard()
    server.configure(argv=[None, "--logdir", str(trials), "--host", host, "--port", str(port)])
    try:
        url: str = server.launch()
    except program.TensorBoardServerException as error:
        raise ValueError(f"TensorBoard can't listen on {host}:{port}: {error}; choose another --port") from None
    return url


def _ray_url() -> Any:
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        raise ValueError(
            "a search on this machine alone has no Ray dashboard; start a cluster with `ray start --head`, set "
            "RAY_ADDRESS for `mmray tune`, and this shows its dashboard"
        )
    if address.startswith("http"):
        return address
    import ray

    return f"http://{ray.init(address, logging_level='ERROR').dashboard_url}"
