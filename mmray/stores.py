"""The stores behind addresses: their file systems, and patience with them.

A store that stumbles (no answer, 5xx, a reset connection) is asked again, at growing random intervals, for
`MMRAY_STORAGE_PATIENCE_S` seconds, 120 by default; what is not there or not allowed is an error at once. Credentials
are the environment's or the machine's own.
"""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mmray.console import say

if TYPE_CHECKING:
    import pyarrow.fs as pa_fs

T = TypeVar("T")

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.2, 15.0


def patience_s() -> float:
    """For how long a store that stumbles is asked again; ValueError where the environment says no seconds."""
    text = os.environ.get("MMRAY_STORAGE_PATIENCE_S", "120")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ValueError(f"MMRAY_STORAGE_PATIENCE_S={text!r}: expected seconds, such as 120")
    return value


def steadily(address: str, operation: Callable[[], T]) -> T:
    """What `operation`, which may be done twice, gives; done again while the store stumbles.

    FileNotFoundError, PermissionError or another OSError, which names the address and a remedy. An error that is not
    the store's, and any of a path of this machine, is passed on.
    """
    if "://" not in address:
        return operation()
    patience, began, delay_s, told = patience_s(), time.monotonic(), _FIRST_DELAY_S, False
    for attempt in itertools.count(1):
        try:
            return operation()
        except Exception as error:
            if not _is_of_the_store(error):
                raise
            reason = _one_line(error)
            if final := _final(error, reason, address):
                raise final from error
            waited = time.monotonic() - began
            if waited >= patience:
                raise OSError(
                    errno.EIO,
                    f"the store gave no answer in {attempt} tries over {waited:.0f} s (MMRAY_STORAGE_PATIENCE_S): "
                    f"{reason}; check it, the network and the endpoint, then give the same command again",
                    address,
                ) from error
            if waited > 5 and not told:
                told = True
                say(f"{address}: the store stumbles ({reason[:200]}); trying for {patience - waited:.0f} s more")
            time.sleep(min(delay_s * random.uniform(0.5, 1.0), max(0.0, patience - waited)))
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
    raise AssertionError


_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG)
# What stores answer in words where the request itself is wrong: of S3 as pyarrow tells it, of Google, of HTTP.
_DENIED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|EXPIRED_?TOKEN"
    r"|InvalidAccessKeyId|ExpiredToken|InvalidToken|PERMISSION_DENIED|UNAUTHENTICATED|HTTP status 40[13]",
    re.IGNORECASE,
)
_MISSING = re.compile(
    r"NO_SUCH_BUCKET|NO_SUCH_KEY|NOT_FOUND|NoSuchBucket|bucket does not exist|HTTP status 404|Path does not exist",
    re.IGNORECASE,
)
_WRONG = re.compile(r"INVALID_ARGUMENT|HTTP status (400|405|409|412|501)|Invalid S3|Bucket names", re.IGNORECASE)


def _is_of_the_store(error: Exception) -> bool:
    """Whether an error may have come from a store or the way to it, not from a mistake in this program or its input."""
    if isinstance(error, OSError):
        return error.errno not in _LOCAL_ERRORS
    module = type(error).__module__.partition(".")[0]
    return module in ("aiohttp", "botocore", "google", "gcsfs", "httpx", "httpcore", "huggingface_hub", "requests")


def _final(error: Exception, reason: str, address: str) -> OSError | None:
    """The error to end with where asking again would not help."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, FileNotFoundError) or status == 404 or (not status and _MISSING.search(reason)):
        return FileNotFoundError(errno.ENOENT, f"there is no such object or bucket ({reason})", address)
    if isinstance(error, PermissionError) or status in (401, 403) or (not status and _DENIED.search(reason)):
        return PermissionError(
            errno.EACCES,
            f"the store refuses ({reason}); check the credentials in the environment or of this machine, and what "
            f"they allow",
            address,
        )
    if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError) or (
        _WRONG.search(reason) if not status else 400 <= status < 500 and status not in (408, 425, 429)
    ):
        return OSError(errno.EINVAL, f"the store does not take this request ({reason})", address)
    return None


def _one_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:500]


# ---- The stores


def store_of(address: str) -> tuple[pa_fs.FileSystem, str]:
    """The file system of an address, and what it calls the place."""
    scheme, _, rest = address.partition("://")
    if scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return _s3(rest.partition("/")[0] if not region and not endpoint else "", region, endpoint), rest
    if scheme in ("gs", "gcs"):
        return _gcs(os.environ.get("STORAGE_EMULATOR_HOST")), rest
    filesystem, strip = _fsspec(scheme)
    return filesystem, strip(address)


@functools.lru_cache(maxsize=64)
def _s3(bucket: str, region: str | None, endpoint: str | None) -> pa_fs.FileSystem:
    """S3, or what speaks its protocol at an endpoint. Without either setting the bucket is asked for its region."""
    import pyarrow.fs as pa_fs

    if bucket:
        region = pa_fs.resolve_s3_region(bucket)
    options: dict[str, Any] = {"connect_timeout": 10, "request_timeout": 20}
    if region:
        options["region"] = region
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    return pa_fs.S3FileSystem(retry_strategy=pa_fs.AwsStandardS3RetryStrategy(max_attempts=2), **options)


@functools.lru_cache(maxsize=4)
def _gcs(emulator: str | None) -> pa_fs.FileSystem:
    import datetime

    import pyarrow.fs as pa_fs

    options: dict[str, Any] = {"retry_time_limit": datetime.timedelta(seconds=10)}
    if emulator:
        scheme, _, host = emulator.rpartition("://")
        options |= {"endpoint_override": host, "scheme": scheme or "http", "anonymous": True}
    return pa_fs.GcsFileSystem(**options)


@functools.lru_cache(maxsize=64)
def _fsspec(scheme: str) -> tuple[pa_fs.FileSystem, Callable[[str], str]]:
    import fsspec  # type: ignore[import-untyped]
    import pyarrow.fs as pa_fs

    try:
        filesystem = fsspec.filesystem(scheme, use_listings_cache=False)
    except (ImportError, ValueError) as error:  # a package that this kind of address takes, or no such kind
        raise ValueError(f"{scheme}://: {error}") from None
    return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(filesystem)), filesystem._strip_protocol
