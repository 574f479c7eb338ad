"""The fault-injecting proxy does what its rules say, and nothing else."""

from __future__ import annotations

import http.client
import http.server
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from tests.faults.proxy import FaultProxy
from tests.faults.rules import FAULTS, Rule

CONTENT = bytes(range(256)) * 40


class _Keeper(http.server.BaseHTTPRequestHandler):
    """A server that keeps what is PUT and gives it back; everything else is CONTENT."""

    protocol_version = "HTTP/1.1"
    kept: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._reply(self.kept.get(self.path, CONTENT), self.headers["Host"])

    def do_HEAD(self) -> None:
        self._reply(CONTENT, "", send=False)

    def do_PUT(self) -> None:
        self.kept[self.requestline.split()[1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._reply(b"kept", "")

    def _reply(self, body: bytes, host: str, *, send: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Host", host)
        self.end_headers()
        if send:
            self.wfile.write(body)


@pytest.fixture
def keeper() -> Iterator[tuple[FaultProxy, dict[str, bytes]]]:
    kept: dict[str, bytes] = {}
    handler = type("Handler", (_Keeper,), {"kept": kept})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    with FaultProxy(f"http://127.0.0.1:{server.server_address[1]}") as proxy:
        yield proxy, kept
    server.shutdown()
    server.server_close()


def ask(proxy: FaultProxy, method: str = "GET", path: str = "/a", body: bytes | None = None):
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    connection.request(method, path, body)
    response = connection.getresponse()
    return response, response.read()


def test_without_rules_everything_passes_unchanged_on_one_connection(keeper):
    proxy, kept = keeper
    connection = http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=10)
    for path in ("/a", "//double//slash", "/a%20b?x=%2F"):
        connection.request("PUT", path, path.encode())
        assert connection.getresponse().read() == b"kept"
        assert kept[path] == path.encode()
    connection.request("GET", "/other")
    response = connection.getresponse()
    assert response.read() == CONTENT
    # The client's Host, which S3 signatures cover.
    assert response.headers["X-Host"] == proxy.endpoint.removeprefix("http://")
    connection.request("HEAD", "/other")
    head = connection.getresponse()
    assert (head.read(), head.headers["Content-Length"]) == (b"", str(len(CONTENT)))
    assert proxy.script.faults() == []


def test_a_rule_counts_its_own_requests_only(keeper):
    proxy, _ = keeper
    proxy.script.set_rules([Rule(fault="error_503", method="GET", path="shard", skip=1, count=2)])
    statuses = []
    for _ in range(4):
        statuses.append(ask(proxy, path="/shard")[0].status)
        assert ask(proxy, path="/index")[0].status == 200
        assert ask(proxy, "PUT", "/shard", b"x")[0].status == 200
    assert statuses == [200, 503, 503, 200]
    assert [entry.path for entry in proxy.script.faults()] == ["/shard", "/shard"]


def test_503_and_reset_never_reach_the_server(keeper):
    proxy, kept = keeper
    proxy.script.set_rules([Rule(fault="error_503", method="PUT"), Rule(fault="reset", method="PUT", skip=1)])
    response, body = ask(proxy, "PUT", "/x", b"1")
    assert response.status == 503 and b"SlowDown" in body
    with pytest.raises(ConnectionResetError):
        ask(proxy, "PUT", "/x", b"2")
    assert kept == {}
    ask(proxy, "PUT", "/x", b"3")
    assert kept == {"/x": b"3"}


def test_a_lost_answer_was_committed(keeper):
    proxy, kept = keeper
    proxy.script.set_rules([Rule(fault="lose_answer", method="PUT")])
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy, "PUT", "/x", b"1")
    assert kept == {"/x": b"1"}
    assert [(e.fault, e.status) for e in proxy.script.faults()] == [("lose_answer", 200)]


def test_cut_and_flipped_bodies(keeper):
    proxy, _ = keeper
    proxy.script.set_rules([Rule(fault="cut"), Rule(fault="flip", skip=1)])
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(proxy)
    assert caught.value.partial == CONTENT[: len(CONTENT) // 2]
    _, body = ask(proxy)
    different = [i for i in range(len(CONTENT)) if body[i] != CONTENT[i]]
    assert len(body) == len(CONTENT) and len(different) == 1
    assert (body[different[0]] ^ CONTENT[different[0]]).bit_count() == 1
    assert ask(proxy)[1] == CONTENT


def test_a_stall_holds_the_second_half(keeper):
    proxy, _ = keeper
    proxy.script.set_rules([Rule(fault="stall", seconds=0.4)])
    start = time.monotonic()
    assert ask(proxy)[1] == CONTENT
    assert time.monotonic() - start >= 0.4


def test_a_wrong_rule_is_refused():
    with pytest.raises(ValueError, match="none of"):
        Rule(fault="explode")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no paths"):
        Rule.from_json({"fault": "cut", "paths": "x"})


def test_the_control_port_serves_another_process(keeper):
    proxy, _ = keeper
    command = [sys.executable, "-m", "tests.faults.proxy", proxy.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            ports = json.loads(process.stdout.readline())

            def control(method: str, path: str, value: object = None) -> object:
                body = None if value is None else json.dumps(value).encode()
                request = urllib.request.Request(ports["control"] + path, body, method=method)
                with urllib.request.urlopen(request, timeout=10) as response:
                    return json.load(response)

            control("PUT", "/rules", [{"fault": "error_503", "name": "first"}])
            statuses = []
            for _ in range(2):
                connection = http.client.HTTPConnection(ports["endpoint"].removeprefix("http://"), timeout=10)
                connection.request("GET", "/z")
                statuses.append(connection.getresponse().status)
            assert statuses == [503, 200]
            log = control("GET", "/log")
            assert [(entry["fault"], entry["rule"]) for entry in log] == [("error_503", "first"), (None, "")]
            assert log[0]["time"] <= log[1]["time"] <= time.time()
            assert control("GET", "/log?1") == log[1:]
            control("DELETE", "/")
            assert control("GET", "/log") == []
        finally:
            process.terminate()


def _client(endpoint: str):
    # No retries: the test counts answers.
    return boto3.client("s3", endpoint_url=endpoint, config=Config(retries={"total_max_attempts": 1}))


def test_s3_signatures_hold_through_the_proxy(s3_server):
    with FaultProxy(s3_server.endpoint) as proxy:
        s3 = _client(proxy.endpoint)
        key = "proxy/ü b%+'.bin"
        s3.put_object(Bucket=s3_server.bucket, Key=key, Body=CONTENT)
        assert s3.get_object(Bucket=s3_server.bucket, Key=key)["Body"].read() == CONTENT
        proxy.script.set_rules([Rule(fault="error_503", path="proxy")])
        with pytest.raises(ClientError, match="SlowDown"):
            s3.get_object(Bucket=s3_server.bucket, Key=key)


def test_a_lost_conditional_put_is_seen_by_the_retry(s3_server):
    with FaultProxy(s3_server.endpoint) as proxy:
        s3 = _client(proxy.endpoint)
        proxy.script.set_rules([Rule(fault="lose_answer", method="PUT", path="once")])
        request = {"Bucket": s3_server.bucket, "Key": "proxy/once", "Body": b"mine", "IfNoneMatch": "*"}
        with pytest.raises(ConnectionClosedError):
            s3.put_object(**request)
        with pytest.raises(ClientError, match="PreconditionFailed"):
            s3.put_object(**request)
        assert s3.get_object(Bucket=s3_server.bucket, Key="proxy/once")["Body"].read() == b"mine"


def test_every_fault_has_a_rule_that_parses():
    assert [Rule.from_json({"fault": fault}).fault for fault in FAULTS] == list(FAULTS)
