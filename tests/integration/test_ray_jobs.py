"""Stages as Ray Jobs on a real ``ray start --head``, with data and models on an S3 server that refuses bad keys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.versions import open_dataset
from tests.conftest import S3Server, free_port, running

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A running head node: its dashboard and the environment of whoever talks to it."""

    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def head(s3_process: S3Server) -> Iterator[Head]:
    """A cluster of one node, whose own environment has the keys of the S3 server; jobs are not given them."""
    # Its sockets lie below, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="bxm", dir="/tmp"))
    port, dashboard, agent = free_port(), free_port(), free_port()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
    submitter = {**clean, "RAY_AUTH_MODE": "disabled", "PATH": f"{BIN}{os.pathsep}{clean['PATH']}"}
    command = [os.fspath(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=true", f"--temp-dir={folder}/ray"]
    log = folder / "head.log"
    with (
        log.open("wb") as output,
        running(command, env=submitter | s3_process.environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        address = f"http://127.0.0.1:{dashboard}"
        _wait_for_jobs_api(address, process, log)
        yield Head(address=address, environment=submitter)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def drawn(s3_process: S3Server) -> str:
    """A small drawn dataset on S3, written by a process of its own with the server's keys."""
    uri = s3_process.uri("jobs/drawn")
    command = [BIN / "boxmill", "ingest", "synthetic", "--dataset", uri, "--num-train", "8", "--num-val", "4", "--json"]
    done = _run(command, os.environ | s3_process.environment)
    assert json.loads(done.stdout)["num_images"] == 12
    return uri


@pytest.mark.long
def test_train_and_label_run_as_ray_jobs_against_s3(head, drawn, s3_server):
    model = s3_server.uri("jobs/model")
    # As a user would: the checkout is sent along, without .venv, which .gitignore names.
    command = [BIN / "ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--"]
    command += ["python", "-m", "flows.cli", "train", drawn, "--out", model, "--epochs", "1", "--image-size", "128"]
    command += ["--workers", "1", "--batch-size", "4", "--set", "cpus_per_worker=1"]
    done = _run(command, head.environment)
    assert "succeeded" in done.stdout, done.stdout

    # And by the command line itself, which submits, follows and fetches the result. It has no keys of the store.
    command = [BIN / "boxmill", "label", drawn, "--model", model, "--out", "predictions", "--split", "val"]
    command += ["--workers", "1", "--ray-address", head.address, "--json"]
    first = json.loads(_run(command, head.environment).stdout)
    assert (first["num_images"], first["num_quarantined"], first["found"]) == (4, 0, False)
    ids = [row[0] for row in open_dataset(first["reference"]).annotations()]
    assert sorted(ids) == [f"val/{n:06d}.jpg" for n in range(4)]

    again = json.loads(_run(command, head.environment).stdout)
    assert (again["reference"], again["digest"], again["found"]) == (first["reference"], first["digest"], True)

    jobs = _get(f"{head.address}/api/jobs/")
    ours = [job for job in jobs if (job["submission_id"] or "").startswith("boxmill-label-")]
    assert len(ours) == 1, "the same work has the same submission id"
    secrets = s3_server.access_key, s3_server.secret_key
    assert not any(secret in json.dumps(jobs) for secret in secrets), "keys must not be shown on the dashboard"


def test_bad_input_of_a_job_is_told_as_such(head, drawn):
    command = [BIN / "boxmill", "label", drawn, "--model", f"{drawn}/no-model", "--ray-address", head.address]
    done = _run(command, head.environment, code=3)
    assert "no model at" in done.stderr and "Traceback" not in done.stderr


def test_a_dashboard_that_does_not_answer_is_bad_input(drawn):
    address = f"http://127.0.0.1:{free_port()}"
    done = _run([BIN / "boxmill", "label", drawn, "--model", "m", "--ray-address", address], dict(os.environ), code=3)
    assert f"no Ray dashboard answers at '{address}'" in done.stderr


def _run(command: list, environment, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [os.fspath(word) for word in command],
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


def _wait_for_jobs_api(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            _get(f"{address}/api/jobs/")
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)


def _get(url: str):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)
