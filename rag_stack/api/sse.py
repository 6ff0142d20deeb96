"""Server-sent events: cut a byte stream into frames, read a frame's data, write a frame."""

from collections.abc import Mapping
from typing import Any

from rag_stack.api.http import dumps

DONE = b"[DONE]"


class FrameSplitter:
    """Cuts a stream of bytes, however it is chunked, into frames that end with an empty line."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, each with its closing empty line."""
        if not self._buffer and data.find(b"\n\n") == len(data) - 2 >= 0 and b"\r" not in data:
            return [data]  # one whole frame, as engines send them
        # Joined first: a line end of two bytes may come in two pieces.
        *frames, self._buffer = (self._buffer + data).replace(b"\r\n", b"\n").split(b"\n\n")
        return [frame + b"\n\n" for frame in frames]

    def rest(self) -> bytes:
        """What came after the last complete frame."""
        return self._buffer


def data_of(frame: bytes) -> bytes | None:
    """The frame's data, or None for a comment or another event type."""
    if frame.startswith(b"data:") and frame.find(b"\n") == len(frame) - 2 and frame.endswith(b"\n\n"):
        return frame[5:-2].lstrip(b" ")  # one line, as most are
    lines = [line[5:].lstrip(b" ") for line in frame.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def encode(body: Mapping[str, Any]) -> bytes:
    """A data frame."""
    return b"data: " + dumps(body) + b"\n\n"
