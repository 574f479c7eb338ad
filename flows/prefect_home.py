"""Where Prefect keeps its state, decided before Prefect is imported (it reads its settings then).

Who has a Prefect server, a profile or a PREFECT_HOME of his own keeps it. Otherwise each run's ephemeral server gets
a database of its own: two servers on one SQLite file lock each other out, and nothing is left in the user's home.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_EPHEMERAL = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # Two slow cores that also import torch take longer than the default.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The caller tells the error, in one line; Prefect would print its traceback three times before.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
}


def has_prefect_api() -> bool:
    """True where the environment or the active Prefect profile names a server."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return False
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
    return bool(profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL"))


@contextmanager
def prefect_home(out: str | None = None) -> Iterator[Path | None]:
    """Within the block, flows run on the configured server, or on an ephemeral one that collides with no other.

    Args:
        out: local folder of the run's results; the ephemeral server's database is kept in its ``prefect`` folder
            (``PREFECT_HOME=<out>/prefect prefect server start`` shows the run afterwards). None, a URL, or a folder
            that another run is using: a temporary one.
    Yields:
        The ephemeral server's home; None where the user has configured Prefect himself.
    """
    if has_prefect_api() or os.environ.get("PREFECT_HOME"):
        yield None
        return
    for name, value in _EPHEMERAL.items():
        os.environ.setdefault(name, value)
    with _home(out) as home:
        os.environ["PREFECT_HOME"] = os.fspath(home)
        try:
            yield home
        finally:
            del os.environ["PREFECT_HOME"]


@contextmanager
def _home(out: str | None) -> Iterator[Path]:
    if out is not None and "://" not in out:
        home = Path(out).resolve() / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                yield home
                return
    # The server's last writes may come while the folder is removed.
    with tempfile.TemporaryDirectory(prefix="boxmill-prefect-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)
