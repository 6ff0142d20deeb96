"""The way into the engine's app, and what its failures look like on the way out."""

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_stack.api.http import dumps

# What Starlette's router of ours left in the scope must not reach the engine's router.
_ROUTERS = frozenset({"app", "endpoint", "path_params", "route", "router"})
# Nor what we note there ourselves: who asks, and since when it was held.
_OURS: Final = "rag_stack."
# All that the engine is told. Keys and cookies are not its business, and other headers steer it: vLLM takes a priority
# and a data-parallel rank from them.
_HEADERS = frozenset({b"accept", b"content-type", b"traceparent", b"tracestate", b"user-agent", b"x-request-id"})


async def forward(app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, body: Mapping[str, Any]) -> None:
    """Call the engine's app with another body. It hears of a closed client through `receive`, and aborts."""
    data = dumps(body)
    inner = inner_scope(scope)
    inner["headers"] = [*inner["headers"], (b"content-length", str(len(data)).encode())]
    sent = False

    async def receive_body() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": data, "more_body": False}

    await app(inner, receive_body, send)


def inner_scope(scope: Scope) -> Scope:
    """The scope as the engine may see it."""
    inner = {k: v for k, v in scope.items() if k not in _ROUTERS and not k.startswith(_OURS)}
    return {**inner, "headers": [(k, v) for k, v in scope["headers"] if k in _HEADERS]}


class EngineErrors:
    """A `send` that gives every failed answer of the engine OpenAI's shape; the rest passes untouched."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Take the engine's next message."""
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
            return
        if self._start is None or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        body = dumps(shape_error(self._body, status=self._start["status"]))
        await self._send(json_start(self._start, body))
        await self._send({"type": "http.response.body", "body": body})
        self._start = None


def shape_error(body: bytes, *, status: int) -> dict[str, Any]:
    """An engine's error body with all of `message, type, param, code`."""
    try:
        given = json.loads(body)
    except ValueError:
        given = None
    error = given.get("error") if isinstance(given, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return {"error": {"type": "server_error", "param": None, "code": status, **error}}
    detail = given.get("detail") if isinstance(given, dict) else None
    text = detail if isinstance(detail, str) else body.decode("utf-8", "replace")[:500]
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": text or f"the engine answered {status}", "type": kind, "param": None, "code": status}}


def json_start(start: Message, body: bytes) -> Message:
    """A response start for another JSON body."""
    drop = (b"content-length", b"content-type", b"transfer-encoding")
    headers = [(k, v) for k, v in start.get("headers", []) if k.lower() not in drop]
    length = (b"content-length", str(len(body)).encode())
    return {**start, "headers": [*headers, (b"content-type", b"application/json"), length]}
