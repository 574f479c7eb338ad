"""A real S3 server for tests marked ``s3real``: Ceph's RADOS Gateway on one monitor and one disk of its own.

    apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd

It takes about 15 seconds to start, once a session. Everything lies in a temporary folder and listens on 127.0.0.1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import S3Server

_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool", "radosgw", "radosgw-admin")
_KEYS = ("testkey", "testsecret")

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
log_file = {folder}/$name.log
keyring = {folder}/keyring
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
# One disk: one copy of everything, few placement groups.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = 8589934592
osd_memory_target = 939524096
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{rgw}
rgw_dns_name = localhost
"""


class Gateway:
    """The three processes; each ends with the stack that it was started in.

    Args:
        folder: an empty one, for everything.
        stack: ends the processes when it is closed.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        from tests.conftest import free_port

        self.folder = folder
        self.stack = stack
        self.port = free_port()
        self.fsid = str(uuid.uuid4())
        self.mon_ports = (free_port(), free_port())
        self.environment = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._configure()
        self._make_keys()
        self._daemon("ceph-mon", "-i", "a", "-f")
        disk = str(uuid.uuid4())
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._daemon("ceph-osd", "-i", "0", "-f")
        access, secret = _KEYS
        self._run(
            *("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test"),
            *("--access-key", access, "--secret-key", secret),
        )
        self._daemon("radosgw", "-n", "client.rgw", "-f")
        self._wait()

    def _configure(self) -> None:
        for name in ("mon", "osd", "run"):
            (self.folder / name).mkdir()
        v2, v1 = self.mon_ports
        text = _CONFIGURATION.format(fsid=self.fsid, folder=self.folder, mon_v2=v2, mon_v1=v1, rgw=self.port)
        (self.folder / "ceph.conf").write_text(text)

    def _make_keys(self) -> None:
        keyring = str(self.folder / "keyring")
        monmap = str(self.folder / "monmap")
        self._run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        capabilities = [word for service in ("mon", "osd", "mgr") for word in ("--cap", service, "allow *")]
        for who in ("client.admin", "osd.0", "client.rgw"):
            self._run("ceph-authtool", keyring, "--gen-key", "-n", who, *capabilities)
        v2, v1 = self.mon_ports
        address = f"[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]"
        self._run("monmaptool", "--create", "--clobber", "--fsid", self.fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, env=self.environment, capture_output=True, timeout=60, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")

    def _daemon(self, *command: str) -> None:
        from tests.conftest import running

        log = self.stack.enter_context((self.folder / f"{command[0]}.out").open("wb"))
        self.stack.enter_context(running(list(command), env=self.environment, stdout=log, stderr=subprocess.STDOUT))

    def _wait(self, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(self.endpoint, timeout=2).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"radosgw does not answer after {seconds} s; see {self.folder}/*.out")


@pytest.fixture(scope="session")
def rgw_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A RADOS Gateway with one bucket; skipped where Ceph is not installed."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd")
    if os.geteuid() != 0:
        pytest.skip("Ceph's programs change their user, which only root may")
    with ExitStack() as stack:
        gateway = Gateway(tmp_path_factory.mktemp("rgw"), stack)
        gateway.start()
        yield _make_bucket(gateway.endpoint)


def _make_bucket(endpoint: str) -> S3Server:
    import boto3

    from tests.conftest import S3Server

    access, secret = _KEYS
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        # This gateway is older than the checksums that clients send by default.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    server = S3Server(
        endpoint=endpoint, bucket="boxmill-test", access_key=access, secret_key=secret, environment=environment
    )
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
    )
    client.create_bucket(Bucket=server.bucket)
    return server


@pytest.fixture
def rgw_server(rgw_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The gateway, with the AWS_* variables of this process set to reach it."""
    use_server(rgw_process, monkeypatch)
    return rgw_process


@pytest.fixture(params=["moto", pytest.param("rgw", marks=pytest.mark.s3real)])
def any_s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each S3 server in turn."""
    return request.getfixturevalue({"moto": "s3_server", "rgw": "rgw_server"}[request.param])


def use_server(server: S3Server, monkeypatch: pytest.MonkeyPatch, *, endpoint: str | None = None) -> None:
    """Point the AWS_* variables of this process at a server, or at ``endpoint`` in front of it."""
    import boto3
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    if endpoint is not None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    # fsspec keeps filesystems by their arguments, and the endpoint is in the environment.
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.DEFAULT_SESSION = None  # it keeps the first keys that it was asked for
