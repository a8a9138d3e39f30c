"""`mmray dashboard`: a study in optuna-dashboard, its trials in TensorBoard, the cluster in Ray's own dashboard."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from mmray import study
from mmray.console import say
from mmray.on_ray.access import is_loopback
from mmray.on_ray.samplers import storage_of


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
    if tensorboard:
        say(f"TensorBoard: {_tensorboard(folder / 'trials', listen, port or 6006)}  (tab HPARAMS: trials side by side)")
    if optuna:
        assert run.tune is not None
        import optuna_dashboard

        at = 8080 if port is None else port + int(tensorboard)
        say(f"optuna-dashboard: http://{listen}:{at}/")
        optuna_dashboard.run_server(storage_of(run.tune.storage, folder), host=listen, port=at)
    elif tensorboard:
        from threading import Event

        Event().wait()


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
