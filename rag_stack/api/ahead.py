"""A prompt that the engine reads ahead of its request: asked in process, with an answer that nobody hears."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.types import ASGIApp, Message, Scope, Send

from rag_stack.api.admission import Admission, is_content
from rag_stack.api.engine import forward
from rag_stack.rag.prefill import Ask, Prefill

_FAILED: Final = 400
_REQUEST_ID: Final = b"x-request-id"
# Stands in the scope of what is read ahead, for who counts requests before the engine; the engine does not mind.
AHEAD: Final = "ahead"


def ahead_of(engine: ASGIApp, scope: Scope) -> Ask:
    """How the engine is asked ahead of the request in `scope`: by the same route, under a name of its own."""

    async def ask(body: Mapping[str, Any], over: asyncio.Event) -> bool:
        headers = [(k, b"ahead-" + v if k == _REQUEST_ID else v) for k, v in scope["headers"]]
        status = 0

        async def closed() -> Message:
            # Its client goes away when the reading is over, and so the engine aborts what is left of it.
            await over.wait()
            return {"type": "http.disconnect"}

        async def unheard(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        await forward(engine, {**scope, "headers": headers, AHEAD: True}, closed, unheard, body=body)
        return over.is_set() or 0 < status < _FAILED

    return ask


def has_room(admission: Admission | None) -> Callable[[], bool]:
    """Whether nobody waits for the engine: what is read ahead of one request would delay another one's."""
    return lambda: admission is None or not admission.snapshot().waiting


def noting_first_token(prefill: Prefill | None, send: Send) -> Send:
    """A stream's `send` that tells when its first token passes."""
    if prefill is None:
        return send
    noted, streams = prefill, False

    async def watched(message: Message) -> None:
        nonlocal streams
        if message["type"] == "http.response.start":
            streams = any(k == b"content-type" and b"event-stream" in v for k, v in message.get("headers", []))
        elif streams and is_content(message.get("body", b"")):
            noted.first_token()
        await send(message)

    return watched
