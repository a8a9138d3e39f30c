"""Speaking to a cluster over HTTP: where it is, and the token that it asks for.

The token is that of RAY_AUTH_TOKEN, of the file RAY_AUTH_TOKEN_PATH, or of ~/.ray/auth_token, as Ray itself has it. It
is sent as a header and stands in no argument, log or file that mmray writes.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


def token_file() -> Path:
    """The file that holds the token: that of RAY_AUTH_TOKEN_PATH, else the one that Ray looks for."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token() -> str | None:
    """The token of this machine; None where it has none, or where RAY_AUTH_MODE is disabled."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    try:
        return token_file().read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def own_token_file() -> Path:
    """The token file, made if need be, readable by its owner alone. A link or another's file is refused."""
    path = token_file()
    if path.is_symlink() or (path.exists() and path.stat().st_uid != os.getuid()):
        raise ValueError(f"{path} is a link, or another user's; set RAY_AUTH_TOKEN_PATH to a file of your own")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        path.unlink(missing_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
    path.chmod(0o600)  # Ray makes it readable by everybody
    return path


def named(address: str | None) -> str | None:
    """The address as given, else that of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, if there is one."""
    return address or next((os.environ[name] for name in _VARIABLES if os.environ.get(name)), None)


def address_of(address: str | None) -> str:
    """The address of a cluster's dashboard: see `named`. ValueError where there is none, or it is no such address."""
    found = named(address)
    if found is None:
        raise ValueError("no cluster is named; give --address http://127.0.0.1:8265, or set RAY_API_SERVER_ADDRESS")
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--address {found}: expected the dashboard's address, such as http://127.0.0.1:8265")
    if parts.username or parts.password:
        raise ValueError("--address holds a user or password; leave it out, the token goes by RAY_AUTH_TOKEN")
    return found.rstrip("/")


def client(address: str | None) -> JobSubmissionClient:
    """A client of the cluster's jobs. ValueError, with the remedy, where it can't be reached or refuses the token."""
    url = address_of(address)
    held = token()
    parts = urlsplit(url)
    if held and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        print(
            f"warning: the token goes to {parts.hostname} unencrypted; an SSH tunnel hides it: "
            f"ssh -N -L 8265:127.0.0.1:8265 {parts.hostname}, then --address http://127.0.0.1:8265",
            file=sys.stderr,
        )
    headers = {"Authorization": f"Bearer {held}"} if held else None
    with _alone(url):
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:  # only after the import, which sets their own level
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            return JobSubmissionClient(url, headers=headers)
        except AuthenticationError:
            raise ValueError(_refused(url, held)) from None
        except ConnectionError:
            raise ValueError(
                f"no cluster answers at {url}; is it up (mmray up --local, ray up cluster.yaml), and is the tunnel to "
                f"it open (ray dashboard cluster.yaml)?"
            ) from None


def _refused(url: str, held: str | None) -> str:
    source = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(token_file())
    if held is None:
        why = "RAY_AUTH_MODE is not token" if "RAY_AUTH_MODE" in os.environ else f"there is none in {source}"
        return f"{url} asks for a token, and {why}; copy the cluster's into {token_file()} (mode 600)"
    return f"{url} refuses the token of {source}; it is another cluster's, or was changed: copy this cluster's there"


@contextmanager
def _alone(url: str) -> Iterator[None]:
    """Let no variable of the environment take the place of `url`, as Ray would have it."""
    before = {name: os.environ.pop(name, None) for name in _VARIABLES}
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        yield
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def is_loopback(host: str) -> bool:
    """Whether only this machine itself is reached by that name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
