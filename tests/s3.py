"""A proxy in front of a real S3 server that does to its answers what bad networks and bad servers do.

It passes on the bytes of each request as they came, so that signatures stay right, and one request a connection.
"""

import os
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest

from loadtests.s3_server import S3Server

_PIECE_BYTES = 64 * 1024
_END = b"\r\n\r\n"
_ERROR = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}, injected</Message></Error>"


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls the answers to requests of a method whose path holds `path`, `times` times (None: always).

    error    the answer is `status` with S3's error `code`
    cut      the connection ends after `after_bytes` of the body, though more were announced
    reset    the same, with a reset
    stall    the same, but the connection stays open and silent
    shorten  a whole and valid answer of no more than `after_bytes` bytes
    flip     the byte after `after_bytes` is another
    """

    kind: Literal["error", "cut", "reset", "stall", "shorten", "flip"]
    after_bytes: int = 0
    times: int | None = None
    path: str = ""
    method: str = "GET"
    status: int = 503
    code: str = "SlowDown"


class FaultProxy(socketserver.ThreadingTCPServer):
    """A running proxy; a client with its `environment` reaches the server through it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, server: S3Server) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        target = urlsplit(server.url)
        self.target = (str(target.hostname), int(target.port or 80))
        self.environment = {**server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}"}
        self.fired = 0
        self.requests: list[str] = []
        self.stalled = threading.Event()
        self.ended = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def inject(self, *faults: Fault) -> None:
        """Replace all faults; none lets everything pass. What fired before is forgotten."""
        with self._lock:
            self._faults, self.fired, self.requests = list(faults), 0, []
            self.stalled.clear()

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The fault for one request, which counts as fired."""
        with self._lock:
            self.requests.append(f"{method} {path}")
            for place, fault in enumerate(self._faults):
                if fault.method == method and fault.path in path and fault.times != 0:
                    self.fired += 1
                    if fault.times is not None:
                        self._faults[place] = replace(fault, times=fault.times - 1)
                    return fault
        return None


@contextmanager
def fault_proxy(server: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of a server until the block ends."""
    with FaultProxy(server) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, name="fault-proxy")
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            proxy.shutdown()
            thread.join()


def use(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Have this process's S3 clients reach a server, or a proxy, and know nothing of this machine's own account."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def damage(path: Path, *, offset: int) -> None:
    """Flip a byte of a file, and leave its size as it was."""
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 0xFF]))


class _Exchange(socketserver.BaseRequestHandler):
    """One request and its answer."""

    request: socket.socket
    server: FaultProxy

    def handle(self) -> None:
        with suppress(ConnectionError):
            head, rest = _head(self.request)
            if not head:
                return
            method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            fault = self.server.next_fault(method, path)
            if fault is not None and fault.kind == "error":
                self._refuse(fault)
                return
            # A client that asks first would wait for ever: nothing of its body has come that could be passed on.
            head, asks_first = _without(head, b"expect")
            if asks_first:
                self.request.sendall(b"HTTP/1.1 100 Continue" + _END)
            with socket.create_connection(self.server.target) as upstream:
                upstream.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + _END)
                self._forward(upstream, rest, _length(head))
                self._answer(upstream, fault)

    def _forward(self, upstream: socket.socket, rest: bytes, length: int) -> None:
        if rest:
            upstream.sendall(rest)
        left = length - len(rest)
        while left > 0 and (piece := self.request.recv(min(left, _PIECE_BYTES))):
            upstream.sendall(piece)
            left -= len(piece)

    def _answer(self, upstream: socket.socket, fault: Fault | None) -> None:
        head, rest = _head(upstream)
        if fault is not None and fault.kind == "shorten":
            head = _announcing(head, min(_length(head), fault.after_bytes))
        self.request.sendall(head + _END)
        sent, piece = 0, rest
        while piece or (piece := upstream.recv(_PIECE_BYTES)):
            if fault is not None and sent + len(piece) > fault.after_bytes >= sent:
                place = fault.after_bytes - sent
                if fault.kind != "flip":
                    self.request.sendall(piece[:place])
                    self._break_off(fault)
                    return
                piece = piece[:place] + bytes([piece[place] ^ 0xFF]) + piece[place + 1 :]
            self.request.sendall(piece)
            sent, piece = sent + len(piece), b""

    def _break_off(self, fault: Fault) -> None:
        if fault.kind == "stall":
            self.server.stalled.set()
            self.server.ended.wait()
        if fault.kind == "reset":
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.request.close()

    def _refuse(self, fault: Fault) -> None:
        body = _ERROR.format(code=fault.code).encode()
        lines = [f"HTTP/1.1 {fault.status} Injected", "Content-Type: application/xml", "Connection: close"]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}"]).encode()
        self.request.sendall(head + _END + (b"" if fault.method == "HEAD" else body))


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head without the empty line that ends it, and what came after that line; two times nothing at the end."""
    data = b""
    while _END not in data:
        piece = connection.recv(_PIECE_BYTES)
        if not piece:
            return b"", b""
        data += piece
    head, _, rest = data.partition(_END)
    return head, rest


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _announcing(head: bytes, length: int) -> bytes:
    return _without(head, b"content-length")[0] + f"\r\nContent-Length: {length}".encode()


def _without(head: bytes, name: bytes) -> tuple[bytes, bool]:
    """The head without a header, whose name is given in lower case, and whether it was there."""
    lines = head.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(name + b":")]
    return b"\r\n".join(kept), len(kept) < len(lines)
