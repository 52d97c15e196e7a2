"""moto's S3 on this machine's loopback, behind a proxy that injects faults and latency by the number of a request."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

BUSY, RESET, SLOW = 7, 11, 13  # every so many-th request for an object's bytes
SLOW_S = 0.3


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: tuple[str, int], faults: bool, latency_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.faults, self.latency_s = upstream, faults, latency_s
        self.requests, self.injected, self._lock = 0, 0, threading.Lock()

    def next(self) -> int:
        with self._lock:
            self.requests += 1
            return self.requests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        time.sleep(self.server.latency_s)
        number = self.server.next() if self.command == "GET" else 0
        fault = self.server.faults and number
        if fault and not number % BUSY:
            self.server.injected += 1
            self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>")
            return
        upstream = http.client.HTTPConnection(*self.server.upstream)
        upstream.request(self.command, self.path, body, dict(self.headers))
        response = upstream.getresponse()
        data = response.read()
        headers = {k: v for k, v in response.getheaders() if k.lower() not in ("content-length", "connection")}
        if fault and not number % RESET and len(data) > 1000:
            self.server.injected += 1
            self._answer(response.status, headers, data, cut=len(data) // 2)
            return
        if fault and not number % SLOW:
            self.server.injected += 1
            time.sleep(SLOW_S)
        self._answer(response.status, headers, data, length=response.getheader("Content-Length"))

    def _answer(
        self, status: int, headers: dict, data: bytes, cut: int | None = None, length: str | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])
        if cut is not None:  # a reset, not an end
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on

    def handle(self) -> None:
        with suppress(OSError):  # whoever asked is gone
            super().handle()

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def s3_server(faults: bool = False, latency_s: float = 0.0) -> Iterator[tuple[dict[str, str], Proxy]]:
    """(the environment that leads there, the proxy)"""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).read()  # of what another test left
    proxy = Proxy(server.get_host_and_port(), faults, latency_s)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield (
            {
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "hunter2-testing",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}",
            },
            proxy,
        )
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()
