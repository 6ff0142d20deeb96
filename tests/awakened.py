"""A service that is woken: what answers behind an activator, and an activator in front of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from starlette.types import Message, Receive, Scope, Send

from rag_stack.activator.activator import Activator
from rag_stack.activator.settings import Settings
from tests.api_server import NAMESPACE, SERVICE, ApiServer
from tests.loop_server import listening

CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
WHOLE = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}


@dataclass
class Behind:
    """The RayService's own Service. `go`: it answers; `next`: a stream goes on after its first frame."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    next: asyncio.Event = field(default_factory=asyncio.Event)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    parts: "asyncio.Queue[bytes]" = field(default_factory=asyncio.Queue)
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    breaks: bool = False

    def __post_init__(self) -> None:
        self.go.set()
        self.next.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        self.came.set()
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            body += message.get("body", b"")
            if message.get("body"):
                self.parts.put_nowait(message["body"])
            more = message.get("more_body", False)
        path = scope["path"] + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        self.requests.append((scope["method"], path, headers, body))
        gone = asyncio.create_task(self._gone(receive))
        answer = asyncio.create_task(self._answer(scope, body, send))
        await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
        for task in (gone, answer):
            task.cancel()
        await asyncio.gather(gone, answer, return_exceptions=True)

    async def _gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        await self.go.wait()
        asked = json.loads(body) if body.startswith(b"{") else {}
        if scope["path"] == "/v1/files":
            await _json(send, {"id": "file-1", "object": "file", "bytes": len(body)})
        elif asked.get("stream"):
            await self._stream(send)
        else:
            message = {"role": "assistant", "content": "hello"}
            await _json(send, {**WHOLE, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    async def _stream(self, send: Send) -> None:
        await send(_start([(b"content-type", b"text/event-stream"), (b"keep-alive", b"timeout=5"), (b"x-own", b"1")]))
        await send(_part(_frame("hel")))
        await self.next.wait()
        if self.breaks:
            return
        await send(_part(_frame("lo")))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


def _frame(text: str) -> bytes:
    chunk = {**CHUNK, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _start(headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _json(send: Send, told: dict[str, Any]) -> None:
    await send(_start([(b"content-type", b"application/json")]))
    await send({"type": "http.response.body", "body": json.dumps(told).encode(), "more_body": False})


SETTINGS = Settings(
    namespace=NAMESPACE,
    service=SERVICE,
    identity="pod-a",
    upstream="",
    idle_s=0.0,
    lease_s=5.0,
    beat_s=0.05,
    heartbeat_s=0.05,
    wake_limit_s=60.0,
)


@asynccontextmanager
async def activator(
    api_url: str, upstream: str, settings: Settings = SETTINGS, **fields: Any
) -> AsyncIterator[tuple[Activator, str]]:
    """One that runs, and the URL of its door."""
    async with httpx.AsyncClient(base_url=api_url, timeout=60) as client:
        made = Activator(replace(settings, upstream=upstream, **fields), client)
        async with made.running(), listening(made.door) as url:
            yield made, url


async def known(server: ApiServer, made: Activator, phase: str, limit_s: float = 60.0) -> None:
    """Wait until the activator knows that the service is there."""
    async with asyncio.timeout(limit_s):
        await made.watch.until(type(made.watch.phase)(phase))


def caller(url: str) -> httpx.AsyncClient:
    """A client that does not mind a machine with much to do."""
    return httpx.AsyncClient(base_url=url, timeout=60)


def chat(*, stream: bool = True, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "who?"}], "stream": stream, **fields}
