"""An answer that may be long in coming: signs of life until it begins, then the answer itself, or what went wrong."""

import asyncio
from typing import Final

from starlette.types import Message, Scope, Send

from rag_stack.api.admission import is_content
from rag_stack.api.engine import json_start, shape_error
from rag_stack.api.http import dumps, error_body, error_response, header
from rag_stack.api.sse import DONE
from rag_stack.errors import RagStackError, UnavailableError

_COMMENT: Final = b": the engine starts\n\n"
_SPACE: Final = b" "
_LAST_FRAME: Final = b"data: " + DONE + b"\n\n"
_FAILED: Final = 400
_NO_ROUTE: Final = 404
_UNAVAILABLE: Final = 503
_GONE_S: Final = 5
_BEATS_A_READ: Final = 3.0
# However short a time a client says it waits: beats cost, and it is the client that asks for them.
_SHORTEST_BEAT_S: Final = 1.0
# The share of a client's read timeout that may pass in silence; the rest is for what is then sent to get there.
_QUIET: Final = 0.8


class HeldAnswer:
    """The `send` of the app behind, for one request. `begun` is set once something of the answer itself is out.

    Until the first sign of life nothing is changed, but for errors, which get OpenAI's shape. From then on the status
    is 200: a failure becomes an error frame in a stream, an error object in the place of any other answer.
    """

    def __init__(self, send: Send, *, streams: bool) -> None:
        self.begun = asyncio.Event()
        self._send = send
        self.streams = streams
        self._turn = asyncio.Lock()
        self._start: Message | None = None
        self._opened = False
        self._complete = False
        self._error = b""

    async def __call__(self, message: Message) -> None:
        """Take the app's next message."""
        async with self._turn:
            if message["type"] == "http.response.start":
                self._start = message  # kept until its body comes, since a sign of life may come first
            elif message["type"] == "http.response.body" and self._start is not None and not self._complete:
                await self._body(message, self._start)

    async def beat(self) -> None:
        """A sign of life: a comment in a stream, a space before any other answer. Nothing once the answer has begun."""
        async with self._turn:
            # Whose start has come with a status or a length of its own has its body at hand.
            at_hand = self._start is not None and (self._start["status"] >= _FAILED or not self.streams)
            if self.begun.is_set() or self._complete or (at_hand and not self._opened):
                return
            if not self._opened:
                await self._send(self._start or early_start(streams=self.streams))
                self._opened = True
            await self._send(_part(_COMMENT if self.streams else _SPACE))

    async def fail(self, error: RagStackError) -> None:
        """Say why there is no answer, or no more of it. Nothing after an answer's end."""
        async with self._turn:
            if self._complete:
                return
            self._complete = True
            if not self._opened:
                await error_response(error)({"type": "http"}, _nothing, self._send)
            elif self.streams or not self.begun.is_set():
                await self._send(self._last(dumps(error_body(error))))
            # Half a JSON answer cannot be mended: the connection that closes early is what tells.

    @property
    def opened(self) -> bool:
        """Whether the client has its status, so that it cannot be sent away with another."""
        return self._opened

    @property
    def complete(self) -> bool:
        """Whether the answer has come to its end."""
        return self._complete

    async def _body(self, message: Message, start: Message) -> None:
        self._complete = not message.get("more_body", False)
        if start["status"] >= _FAILED:
            self._error += message.get("body", b"")
            if self._complete:
                await self._tell(start)
            return
        if not self._opened:
            self._opened = True
            await self._send(start)
        # A replica whose queue it has come to says so in comments or spaces, at a pace that is not this client's.
        if self._complete or is_content(message.get("body", b"")):
            self.begun.set()
        await self._send(message)

    async def _tell(self, start: Message) -> None:
        """The app's own error, whole."""
        gone = UnavailableError("the engine is taken away or not there yet; try again", retry_after_s=_GONE_S)
        is_gone = _is_no_route(start)
        body = dumps(error_body(gone) if is_gone else shape_error(self._error, status=start["status"]))
        if self._opened:
            await self._send(self._last(body))
        elif is_gone:
            await error_response(gone)({"type": "http"}, _nothing, self._send)
        else:
            await self._send(_when_to_ask_again(json_start(start, body)))
            await self._send({"type": "http.response.body", "body": body})
        self.begun.set()

    def _last(self, error: bytes) -> Message:
        body = b"data: " + error + b"\n\n" + _LAST_FRAME if self.streams else error
        return {"type": "http.response.body", "body": body, "more_body": False}


def early_start(*, streams: bool) -> Message:
    """The start of an answer of which nothing is known yet."""
    content_type = b"text/event-stream; charset=utf-8" if streams else b"application/json"
    headers = [(b"content-type", content_type), (b"cache-control", b"no-cache")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def beat_s(scope: Scope, heartbeat_s: float) -> float:
    """Seconds between two signs of life: the client hears three within what it says it waits for a byte, from 3 s."""
    patience_s = read_timeout_s(scope)
    if patience_s is None:
        return heartbeat_s
    return min(heartbeat_s, max(_SHORTEST_BEAT_S, patience_s / _BEATS_A_READ))


def quiet_s(scope: Scope, heartbeat_s: float) -> float:
    """Seconds for which a client can be told nothing and still hears what it is told then.

    A heartbeat where it does not say how long it waits; never less than between two signs of life.
    """
    patience_s = read_timeout_s(scope)
    return heartbeat_s if patience_s is None else max(beat_s(scope, heartbeat_s), patience_s * _QUIET)


def read_timeout_s(scope: Scope) -> float | None:
    """How long the official client waits for the next byte, as it says itself."""
    try:
        told_s = float(header(scope, b"x-stainless-read-timeout"))
    except ValueError:
        return None
    return told_s if told_s > 0 else None


def _is_no_route(start: Message) -> bool:
    """Whether Serve knows no application for a path that is the engine's; our own 404 is JSON.

    So it is while the engine's application is being deleted, and for who never asks again after a 404.
    """
    types = [v for k, v in start.get("headers", []) if k.lower() == b"content-type"]
    return bool(start["status"] == _NO_ROUTE and types and types[0].startswith(b"text/plain"))


def _when_to_ask_again(start: Message) -> Message:
    """Serve's own 503, of a deployment that cannot be had, does not say it."""
    headers = start["headers"]
    if start["status"] != _UNAVAILABLE or any(k.lower() == b"retry-after" for k, _ in headers):
        return start
    return {**start, "headers": [*headers, (b"retry-after", str(_GONE_S).encode())]}


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
