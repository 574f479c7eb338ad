"""A real Prefect server: the deployments of prefect.yaml deploy, their schedule makes runs, their parameters are
checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import free_port, running

ROOT = Path(__file__).resolve().parents[2]
PREFECT = [sys.executable, "-m", "prefect"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a running server with a database of its own and prefect.yaml deployed."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": os.fspath(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLI_PROMPT": "false",
        # Look for schedules at once, not after a minute.
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_UI_ENABLED": "false",
    }
    api = f"http://127.0.0.1:{port}/api"
    log = home / "server.log"
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output, running(command, env=environment, stdout=output, stderr=subprocess.STDOUT):
        _wait_until(lambda: _is_healthy(api), 180, lambda: log.read_text()[-3000:])
        environment["PREFECT_API_URL"] = api
        for arguments in (
            ["work-pool", "create", "--type", "process", "boxmill"],
            ["--no-prompt", "deploy", "--all"],
        ):
            done = subprocess.run(
                [*PREFECT, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180
            )
            assert done.returncode == 0, done.stdout + done.stderr
        yield environment


@pytest.mark.timeout(600)
def test_every_flow_is_deployed_with_its_config_as_schema(server):
    deployments = _post(server, "deployments/filter", {})
    flows = {flow["id"]: flow["name"] for flow in _post(server, "flows/filter", {})}
    found = {flows[d["flow_id"]]: d for d in deployments}
    names = ["evaluate", "export", "gallery", "ingest", "label", "lifecycle", "maintain", "relabel", "route", "train"]
    assert sorted(found) == names and len(deployments) == len(names) + 1  # maintain is there by hand and weekly
    for name, deployment in found.items():
        schema = deployment["parameter_openapi_schema"]
        assert "config" in schema["properties"], name
    definitions = found["train"]["parameter_openapi_schema"]["definitions"]
    assert definitions["TrainConfig"]["additionalProperties"] is False
    assert definitions["TrainConfig"]["properties"]["epochs"]["default"] == 15
    settings = found["ingest"]["parameter_openapi_schema"]["definitions"]["IngestConfig"]["properties"]
    assert {"deep_check", "dedupe", "near_duplicates", "split_ratio", "split_by"} <= set(settings)


@pytest.mark.timeout(600)
def test_a_schedule_creates_runs(server):
    """With too new a sqlalchemy the scheduler dies in silence: nothing fails, and nothing is ever run."""

    def scheduled() -> list[dict]:
        filters = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "deployment_id": {"is_null_": False}}}
        return _post(server, "flow_runs/filter", filters)

    times = {"02:30", "05:30"}  # of nightly and of weekly

    def starts() -> list[str]:
        return [run["expected_start_time"] for run in scheduled()]

    _wait_until(
        lambda: len(starts()) >= 4 and {start[11:16] for start in starts()} == times,
        90,
        lambda: f"the schedules have created the runs {starts()} alone",
    )
    assert all(run["auto_scheduled"] for run in scheduled())
    assert len(set(starts())) == len(starts())


@pytest.mark.timeout(600)
def test_the_server_refuses_an_unknown_setting(server):
    deployment = next(
        d for d in _post(server, "deployments/filter", {}) if d["entrypoint"] == "flows/lifecycle.py:lifecycle"
    )
    parameters = {"config": {"out": "runs/x", "train": {"epochz": 3}}}
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(server, f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    assert refused.value.code == 409
    assert "epochz" in refused.value.read().decode()


def _post(environment: dict[str, str], path: str, body: dict):
    request = urllib.request.Request(
        f"{environment['PREFECT_API_URL']}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def _is_healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def _wait_until(is_true, seconds: float, explain) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, explain()
        time.sleep(0.5)
