"""Running a command as a Ray Job on a cluster that is only reached through its dashboard's address.

The job's standard output carries three kinds of marked lines back: progress, its result, its error. Ray appends the
output of a job to that of an earlier one of the same id, so each line also names the attempt that it belongs to.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

PROGRESS, RESULT, ERROR = "BOXMILL_PROGRESS", "BOXMILL_RESULT", "BOXMILL_ERROR"
_POLL_SECONDS = 1.0


class JobFailed(RuntimeError):
    """A Ray Job ended without a result."""


def submit_job(
    address: str,
    command: Sequence[str],
    *,
    submission_id: str,
    working_dir: str | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Runs a command on a cluster and waits for its result.

    A job of the same id that is still running is joined, so a retry after a lost connection finds its own job; one
    that has ended is replaced, because the work itself knows what is done already.

    Args:
        address: of the cluster's dashboard, ``http://host:8265``.
        command: the program and its arguments, to which the attempt's name is appended; it prints one ``RESULT`` or
            ``ERROR`` line, see ``marked_line``.
        submission_id: names the job; derive it from what the job does.
        working_dir: local folder sent along (what its .gitignore names is left out); None for what the cluster has
            installed.
        progress: called with what the ``PROGRESS`` lines say.
    Returns:
        The JSON after ``RESULT``.
    Raises:
        ValueError: the cluster does not answer, or the job says that its input is wrong.
        JobFailed: anything else that ended it.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(
            f"no Ray dashboard answers at {address!r}: {error}. Give the address that `ray start --head` prints, and "
            "the RAY_AUTH_MODE (and token) of the cluster"
        ) from error
    attempt = _running_attempt(client, submission_id) or _start(client, command, submission_id, working_dir)
    seen = 0
    while True:
        # The status first: what was logged before the end is then complete.
        status = client.get_job_status(submission_id)
        log = client.get_job_logs(submission_id)
        lines = log[: log.rfind("\n") + 1].splitlines()  # A line that is still being written waits.
        if progress is not None:
            for told in _marked(lines[seen:], PROGRESS, attempt):
                progress(told.pop("stage"), told.pop("done"), told.pop("total"), **told)
            seen = len(lines)
        if status.is_terminal():
            message = client.get_job_info(submission_id).message
            return _outcome(lines, attempt, f"Ray Job {submission_id}", f"{status} ({message})")
        time.sleep(_POLL_SECONDS)


def _start(client: Any, command: Sequence[str], submission_id: str, working_dir: str | None) -> str:
    """Starts an attempt, or joins that of somebody who submitted the same job in this moment; returns its name."""
    attempt = uuid4().hex
    try:
        # Credentials and endpoints are not sent: a job's runtime_env is shown to everybody on the dashboard. The
        # nodes have them in their own environment.
        client.submit_job(
            entrypoint=shlex.join([*command, attempt]),
            submission_id=submission_id,
            metadata={"attempt": attempt},
            runtime_env={"working_dir": working_dir} if working_dir else {},
        )
    except RuntimeError:
        joined = _running_attempt(client, submission_id)
        if joined is None:
            raise
        return joined
    return attempt


def source_root() -> str | None:
    """The folder to send to a cluster: the checkout this runs from, None where boxmill is installed as a package."""
    root = Path(__file__).resolve().parent.parent
    return os.fspath(root) if (root / "pyproject.toml").exists() else None


def marked_line(mark: str, attempt: str, what: Mapping[str, Any]) -> str:
    """A line for ``submit_job`` to read in the output of a job."""
    return f"{mark} {attempt} {json.dumps(what)}"


def _running_attempt(client: Any, submission_id: str) -> str | None:
    """The attempt of a job that has not ended; a job that has is removed, as its id can be used once at a time."""
    known = {job.submission_id: job for job in client.list_jobs()}
    if submission_id not in known:
        return None
    if not known[submission_id].status.is_terminal():
        return str(known[submission_id].metadata["attempt"])
    client.delete_job(submission_id)
    return None


def _outcome(lines: Sequence[str], attempt: str, job: str, ending: str) -> dict[str, Any]:
    for result in _marked(lines, RESULT, attempt):
        return result
    for error in _marked(lines, ERROR, attempt):
        if error["bad_input"]:
            raise ValueError(error["message"])
        raise JobFailed(f"{job}: {error['message']}")
    tail = "\n".join(lines[-20:])
    raise JobFailed(f"{job} ended as {ending} without a result; its last lines:\n{tail}")


def _marked(lines: Sequence[str], mark: str, attempt: str) -> Iterator[dict[str, Any]]:
    start = f"{mark} {attempt} "
    for line in lines:
        if line.startswith(start):
            yield json.loads(line[len(start) :])
