"""What many tests share: one small Ray cluster, one S3 server that refuses bad keys, the real data.

Each is started at most once a session and stopped by whoever started it, by process id.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before torch, Ray or Prefect are imported by anything: one thread each, no telemetry, nothing written to the home.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# Tests choose their clusters and servers themselves; the caller's must not slip in.
for name in ("RAY_ADDRESS", "PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(name, None)

pytest_plugins = ["tests.s3.rgw"]


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster(s3_process: S3Server) -> Iterator[str]:
    """An embedded Ray with 4 logical CPUs for the whole session; ``ray_session`` in workers joins it.

    Its nodes have the keys of the S3 server in their environment, as those of a real cluster would: tests that come
    later run on it whether they ask for it or not.
    """
    from workers.cluster import ray_session

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in s3_process.environment.items():
                patch.setenv(name, value)
            address = stack.enter_context(ray_session("local", num_cpus=4))
        yield address


@pytest.fixture(scope="session")
def boxmill_data() -> Path:
    """The folder with ``bccd`` and ``coco-mini``; the test is skipped where BOXMILL_DATA does not name one."""
    value = os.environ.get("BOXMILL_DATA")
    if not value:
        pytest.skip("BOXMILL_DATA is not set: it names the folder with the real images (bccd, coco-mini)")
    root = Path(value).resolve()
    if not (root / "coco-mini").is_dir():
        pytest.skip(f"BOXMILL_DATA={value} has no folder coco-mini")
    return root


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """A running S3 server.

    Attributes:
        endpoint: ``http://127.0.0.1:PORT``.
        bucket: an existing bucket that the keys may read and write.
        access_key, secret_key: the only keys that it accepts.
        environment: the AWS_* variables that a process needs to reach it.
    """

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str
    environment: dict[str, str]

    def uri(self, path: str) -> str:
        """``s3://bucket/path``."""
        return f"s3://{self.bucket}/{path}"


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_s3(tmp_path_factory.mktemp("s3") / "moto.log") as server:
        yield server


@contextmanager
def serve_s3(log: Path) -> Iterator[S3Server]:
    """moto's server with authentication on: a wrong or missing key is answered with 403."""
    port = free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
        # As many calls as the set-up below makes go unchecked; every later one is.
        "INITIAL_NO_AUTH_ACTION_COUNT": "3",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        log.open("wb") as output,
        running(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        _wait_for_port(port, process, log)
        yield _make_user_and_bucket(f"http://127.0.0.1:{port}", "boxmill-test")


@pytest.fixture
def s3_server(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with the AWS_* variables of this process set to reach it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    _forget_s3_filesystems()
    return s3_process


def _make_user_and_bucket(endpoint: str, bucket: str) -> S3Server:
    import boto3

    def client(service: str, key: str, secret: str):
        return boto3.client(
            service,
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    iam = client("iam", "setup", "setup")
    iam.create_user(UserName="boxmill")
    keys = iam.create_access_key(UserName="boxmill")["AccessKey"]
    everything = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
    }
    iam.put_user_policy(UserName="boxmill", PolicyName="s3", PolicyDocument=json.dumps(everything))
    client("s3", keys["AccessKeyId"], keys["SecretAccessKey"]).create_bucket(Bucket=bucket)
    return S3Server(
        endpoint=endpoint,
        bucket=bucket,
        access_key=keys["AccessKeyId"],
        secret_key=keys["SecretAccessKey"],
        environment={
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            # Never ask a cloud's metadata service for keys.
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        },
    )


def _forget_s3_filesystems() -> None:
    """fsspec keeps filesystems by their arguments, and the endpoint is in the environment."""
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    boto3.DEFAULT_SESSION = None  # it keeps the first keys that it was asked for


def free_port() -> int:
    """A TCP port that nothing on 127.0.0.1 listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(command: list[str], **options) -> Iterator[subprocess.Popen]:
    """A process in a group of its own; the whole group is ended when the block is left."""
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
            except ProcessLookupError:
                break
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                continue
            break


def _wait_for_port(port: int, process: subprocess.Popen, log: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"server ended with {process.returncode}: {log.read_text()[-2000:]}")
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing listens on port {port} after {seconds} s: {log.read_text()[-2000:]}")
