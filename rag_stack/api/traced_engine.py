"""The engine's part of a request as a span, with its first and its last token; the engine's own spans go below it."""

from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_stack.api.admission import is_content
from rag_stack.api.engine import forward
from rag_stack.tracing.tracer import OpenSpan, Tracer


async def forward_traced(
    tracer: Tracer, app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, body: Mapping[str, Any]
) -> None:
    """See `engine.forward`; the engine is told of the span as its parent."""
    if not tracer.enabled:
        await forward(app, scope, receive, send, body=body)
        return
    span = tracer.open("engine", {"gen_ai.request.model": str(body.get("model", ""))})
    scope = {**scope, "headers": span.carried(scope["headers"])}
    try:
        await forward(app, scope, receive, _Tokens(span, send), body=body)
    except BaseException as exc:
        span.note({"error.type": type(exc).__name__})
        raise
    finally:
        span.end()


class _Tokens:
    """A `send` that notes when the first token comes and when the last has."""

    def __init__(self, span: OpenSpan, send: Send) -> None:
        self._span = span
        self._send = send
        self._began = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._span.note({"http.response.status_code": message["status"]})
        elif message["type"] == "http.response.body":
            # An answer in one piece has its first token with its last.
            if not self._began and is_content(message.get("body", b"")):
                self._began = True
                self._span.event("first token")
            if not message.get("more_body", False):
                self._span.event("last token")
        await self._send(message)
