"""Counts, byte for byte, what a server sends to its clients: the kernel's counts of its process hold more than that."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_PIECE_BYTES = 1 << 20


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

    def bytes_sent(self) -> int:
        """Bytes of all answers so far, their headers included."""
        with self._lock:
            return self._sent

    def count(self, size_bytes: int) -> None:
        """Called before the bytes go on, so that who has an answer finds it counted."""
        with self._lock:
            self._sent += size_bytes


class _Connection(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as upstream:
            thread = threading.Thread(target=_pump, args=(self.request, upstream), daemon=True)
            thread.start()
            _pump(upstream, self.request, self.server)
            thread.join()


def _pump(source: socket.socket, target: socket.socket, counter: Relay | None = None) -> None:
    """Pass bytes on until either side ends, and then end both ways."""
    with suppress(OSError):
        while data := source.recv(_PIECE_BYTES):
            if counter:
                counter.count(len(data))
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
