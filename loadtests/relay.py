"""Counts, byte for byte, what a server sends to its clients: the kernel's counts of its process hold more than that.

It may also stand for a store that is far away, busy, or down: a bandwidth that all connections share, and a latency.
"""

import re
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_PIECE_BYTES = 1 << 20
_REQUEST = re.compile(rb"^[A-Z]+ ([^ ?]+)[^ ]* HTTP/1")


class Relay(socketserver.ThreadingTCPServer):
    """A running relay: a client that has `url` in place of the server's reaches the server through it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, server_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        parts = urlsplit(server_url)
        self.target = (str(parts.hostname), int(parts.port or 80))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._lock = threading.Lock()
        self._sent = 0
        self._paths: Counter[str] = Counter()
        self._rate: float | None = None
        self._latency_s = 0.0
        self._free_s = 0.0

    def limit(self, bytes_per_s: float | None, *, latency_s: float = 0.0) -> None:
        """From now on all answers together go at this rate, each after a latency; None: as fast as they can, 0: none.

        What is refused at a rate of 0 ends with its connection.
        """
        with self._lock:
            self._rate, self._latency_s, self._free_s = bytes_per_s, latency_s, 0.0

    def down(self) -> bool:
        """Whether nothing goes through now."""
        with self._lock:
            return self._rate == 0

    def delay_s(self, size_bytes: int) -> float:
        """How long a piece of an answer has to wait for its turn on the line that all connections share."""
        with self._lock:
            if not self._rate:
                return 0.0
            now_s = time.monotonic()
            self._free_s = max(now_s, self._free_s) + size_bytes / self._rate
            return self._free_s - now_s

    @property
    def latency_s(self) -> float:
        """What a request takes on its way, both ways together."""
        with self._lock:
            return self._latency_s

    def bytes_sent(self) -> int:
        """Bytes of all answers so far, their headers included."""
        with self._lock:
            return self._sent

    def sent_by_path(self) -> Mapping[str, int]:
        """The same, by the path that was asked for, without its query."""
        with self._lock:
            return dict(self._paths)

    def count(self, size_bytes: int, path: str = "") -> None:
        """Called before the bytes go on, so that who has an answer finds it counted."""
        with self._lock:
            self._sent += size_bytes
            self._paths[path] += size_bytes


class _Connection(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        if self.server.down():
            return
        self._path = ""
        with socket.create_connection(self.server.target) as upstream:
            thread = threading.Thread(target=self._pump, args=(self.request, upstream, self._asked), daemon=True)
            thread.start()
            self._pump(upstream, self.request, self._answered)
            thread.join()

    def _asked(self, data: bytes) -> None:
        """Clients ask one thing at a time on a connection: what is answered from now on is for this path."""
        if found := _REQUEST.match(data):
            self._path = found.group(1).decode("latin-1")
            time.sleep(self.server.latency_s)

    def _answered(self, data: bytes) -> None:
        self.server.count(len(data), self._path)
        time.sleep(self.server.delay_s(len(data)))

    def _pump(self, source: socket.socket, target: socket.socket, passing: Callable[[bytes], None]) -> None:
        """Pass bytes on until either side ends, or the relay is down, and then end both ways."""
        with suppress(OSError):
            while (data := source.recv(_PIECE_BYTES)) and not self.server.down():
                passing(data)
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(server_url: str) -> Iterator[Relay]:
    """A relay on a free port of the loopback interface until the block ends."""
    with Relay(server_url) as server:
        thread = threading.Thread(target=server.serve_forever, name="relay", daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
