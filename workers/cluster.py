"""Where Ray runs: the one place that connects to a cluster or starts one, and leaves the process as it found it."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Once in a process: Ray's native token loader keeps the first token it sees, so a second embedded cluster of the
# same process must be started with the same one.
_EMBEDDED_TOKEN = secrets.token_hex(32)

_STARTS = 3
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # Ray says it in a warning at every start, and the new behaviour is what we want.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# Ray's own processes poll, measure and report all the time, for a dashboard and an autoscaler that an embedded cluster
# does not have: at rest a quarter of a core, which on a laptop is what a tenth of the labelling could be done with.
# Here is what only the node's own processes do.
_EMBEDDED = {
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
    "RAY_memory_monitor_refresh_ms": "1000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "AUTOSCALER_UPDATE_INTERVAL_S": "60",
}
# And what workers do too: another quarter of it. Ray 2.60's core hung at some workers' exit with these settings and
# was not seen to without them.
_LEAN = {
    "RAY_enable_metrics_collection": "false",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_event_stats": "0",
}


@contextmanager
def ray_session(
    address: str | None = None, num_cpus: int | None = None, *, lean_workers: bool = False
) -> Iterator[str]:
    """Ray for the length of a ``with`` block: joined where there is one, else started and stopped again.

    An open connection of this process (an enclosing session, or a notebook's own ``ray.init``) is used as it is and
    left open. Otherwise the cluster is, in this order: ``address``; ``RAY_ADDRESS`` (which Ray sets inside a job); an
    embedded cluster in this machine's processes. A cluster that merely happens to run on this host is never joined.

    Args:
        address: ``host:port``, ``ray://host:port``, ``auto``, or ``local`` for an embedded cluster in any case.
        num_cpus: logical CPUs of an embedded cluster; all cores by default. Ignored when a cluster is joined.
        lean_workers: those of an embedded cluster measure and report nothing; for workers that ``exits.exit_within``.

    Yields:
        The address that is in use: ``local`` or the cluster's.

    Raises:
        ValueError: the cluster at ``address`` cannot be reached.
    """
    with _environment(_QUIET):
        import ray

        if ray.is_initialized():
            yield ray.get_runtime_context().gcs_address
            return
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        embedded: dict[str, str] = {}
        if where == "local":
            embedded = _EMBEDDED | _LEAN if lean_workers else _EMBEDDED
        with _restored_sigterm(), _embedded_authentication(where), _environment(embedded):
            _connect(where, num_cpus)
            try:
                yield where
            finally:
                ray.shutdown()


def _connect(where: str, num_cpus: int | None) -> None:
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if where == "local":
            _start(num_cpus)
        else:
            ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if where == "local":
            raise
        raise ValueError(
            f"no Ray cluster answers at {where!r}: {error}. Check --ray-address or RAY_ADDRESS (unset both to run on "
            "this machine), and that RAY_AUTH_MODE is the same here as on the cluster"
        ) from error


def _start(num_cpus: int | None) -> None:
    """An embedded cluster. On a busy machine Ray may not find its own node within the 30 seconds that it waits."""
    import ray

    for attempt in range(_STARTS):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises no more than this
            if "timed out during startup" not in str(error) or attempt == _STARTS - 1:
                raise
            ray.shutdown()


@contextmanager
def _embedded_authentication(where: str) -> Iterator[None]:
    """Keeps an embedded cluster's token out of the user's home, and its mode out of this process afterwards.

    With RAY_AUTH_MODE unset Ray turns token authentication on for a cluster that it starts, writes the token to
    ``~/.ray`` (from where every later cluster of this user would take it) and leaves RAY_AUTH_MODE=token behind. We
    only hand it a token: setting the mode ourselves comes too late once Ray has been imported.
    """
    if where != "local" or "RAY_AUTH_MODE" in os.environ:
        yield
        return
    with _environment({"RAY_AUTH_TOKEN": _EMBEDDED_TOKEN}):
        try:
            yield
        finally:
            os.environ.pop("RAY_AUTH_MODE", None)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets what the user has not set himself, and unsets it at the end."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _restored_sigterm() -> Iterator[None]:
    """``ray.init`` in the main thread takes over SIGTERM, which Prefect needs for cancelling a run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None: a handler that was not installed from Python, which cannot be put back from Python either.
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
