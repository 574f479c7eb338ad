"""A TCP proxy that breaks HTTP/1.1 on purpose, between an S3 client and a real server.

Requests go on unchanged, Host header included: a client signs for the proxy's address, and the server checks the
signature against the Host that it is sent. Bodies are held in memory.

    with FaultProxy("http://127.0.0.1:5000") as proxy:
        proxy.script.set_rules([Rule(fault="lose_answer", method="PUT", path="_delta_log")])
        ...  # talk to proxy.endpoint
        assert [entry.status for entry in proxy.script.faults()] == [200]

From another process: ``python -m tests.faults.proxy UPSTREAM`` prints the two ports as JSON; on the control port
``PUT /rules`` takes a JSON list of rules, ``GET /log`` gives the log (``GET /log?N`` from its entry N), ``DELETE /``
forgets both.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

from tests.faults.rules import Entry, Rule, Script

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>'
)
# Between this hop only; the rest goes on as it is.
_HOP_HEADERS = frozenset({"connection", "keep-alive", "expect", "proxy-connection"})
_NO_BODY = frozenset({204, 304})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server said. ``headers`` are without those of framing; ``length`` is the declared Content-Length."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    length: int


class FaultProxy:
    """The proxy and its control port, each on a free port of 127.0.0.1.

    Args:
        upstream: ``http://host:port`` of the server.
        port, control_port: 0 for any free one.
    """

    def __init__(self, upstream: str, *, port: int = 0, control_port: int = 0) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise ValueError(f"upstream {upstream!r} must be http://host:port")
        self.script = Script()
        self.stopping = threading.Event()
        self.upstream = (parts.hostname, parts.port)
        self._server = _Server(("127.0.0.1", port), _ProxyHandler, self)
        self._control = _Server(("127.0.0.1", control_port), _ControlHandler, self)
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            for server in (self._server, self._control)
        ]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def control(self) -> str:
        return f"http://127.0.0.1:{self._control.server_address[1]}"

    def __enter__(self) -> FaultProxy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        for server in (self._server, self._control):
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(address, handler)

    def handle_error(self, request, client_address) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # a client that hangs up is no error of ours
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections, and answers Expect: 100-continue
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def proxy(self) -> FaultProxy:
        return self.server.proxy

    def read_body(self) -> bytes:
        """The request's body; a chunked one with its framing, to be sent on as it is."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._read_chunks()
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _read_chunks(self) -> bytes:
        raw = bytearray()
        while True:
            line = self.rfile.readline()
            raw += line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            raw += self.rfile.read(size + 2)
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            raw += line
        return bytes(raw + b"\r\n")

    def send(self, answer: Answer, body: bytes) -> None:
        """The answer's head, then ``body``, which may be less than the head declares."""
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status not in _NO_BODY:
            self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


class _ProxyHandler(_Handler):
    def handle_request(self) -> None:
        # self.path has leading slashes merged, which would break the signature of such a key.
        method, path = self.requestline.split(" ")[:2]
        body = self.read_body()
        rule = self.proxy.script.choose(method, path)
        fault = rule.fault if rule else None
        if fault in ("error_503", "reset"):
            self._log(method, path, rule, None)
            if fault == "reset":
                return self._reset()
            return self.send(_answer(503, "Slow Down", _SLOW_DOWN), b"" if method == "HEAD" else _SLOW_DOWN)
        answer = self._ask(method, path, body)
        self._log(method, path, rule, answer.status)
        half = len(answer.body) // 2
        match fault:
            case "lose_answer":
                self._hang_up()
            case "cut":
                self.send(answer, answer.body[:half])
                self._hang_up()
            case "stall":
                assert rule is not None
                self.send(answer, answer.body[:half])
                self.proxy.stopping.wait(rule.seconds)
                self.wfile.write(answer.body[half:])
            case "flip" if answer.body:
                turned = bytes([answer.body[half] ^ 1])
                self.send(answer, answer.body[:half] + turned + answer.body[half + 1 :])
            case _:
                self.send(answer, answer.body)
        return None

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_request

    def _log(self, method: str, path: str, rule: Rule | None, status: int | None) -> None:
        fault, name = (rule.fault, rule.name) if rule else (None, "")
        self.proxy.script.record(Entry(method=method, path=path, fault=fault, status=status, rule=name))

    def _ask(self, method: str, path: str, body: bytes) -> Answer:
        upstream = http.client.HTTPConnection(*self.proxy.upstream, timeout=120)
        try:
            upstream.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_HEADERS:
                    upstream.putheader(name, value)
            upstream.putheader("Connection", "close")
            upstream.endheaders(body or None)
            response = upstream.getresponse()
            content = response.read()
            headers = tuple(
                (name, value)
                for name, value in response.getheaders()
                if name.lower() not in _HOP_HEADERS | {"transfer-encoding", "content-length"}
            )
            declared = response.getheader("Content-Length")
            length = int(declared) if method == "HEAD" and declared else len(content)
            return Answer(status=response.status, reason=response.reason, headers=headers, body=content, length=length)
        except (OSError, http.client.HTTPException) as error:
            return _answer(502, "Bad Gateway", f"the proxy's upstream failed: {error!r}".encode())
        finally:
            upstream.close()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        self.close_connection = True
        # Lingering for 0 seconds makes close() send RST instead of FIN. The files share the descriptor.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()


class _ControlHandler(_Handler):
    def do_PUT(self) -> None:
        try:
            self.proxy.script.set_rules([Rule.from_json(values) for values in json.loads(self.read_body())])
        except (ValueError, TypeError) as error:
            self._reply(400, {"error": str(error)})
        else:
            self._reply(200, {})

    def do_GET(self) -> None:
        first = int(urlsplit(self.path).query or 0)
        self._reply(200, [entry.to_json() for entry in self.proxy.script.log[first:]])

    def do_DELETE(self) -> None:
        self.proxy.script.clear()
        self._reply(200, {})

    def _reply(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send(_answer(status, "", content), content)


def _answer(status: int, reason: str, body: bytes) -> Answer:
    return Answer(status=status, reason=reason, headers=(), body=body, length=len(body))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("upstream", help="http://host:port of the server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--control-port", type=int, default=0)
    args = parser.parse_args()
    with FaultProxy(args.upstream, port=args.port, control_port=args.control_port) as proxy:
        print(json.dumps({"endpoint": proxy.endpoint, "control": proxy.control}), flush=True)
        proxy.stopping.wait()


if __name__ == "__main__":
    main()
