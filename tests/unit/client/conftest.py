"""One set of tests for both clients."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from rag_stack.client import Answer, AsyncClient, Client
from rag_stack.protocol import RagSource


@dataclass(frozen=True)
class ReadStream:
    """What a stream gave: its sources before the first word, its pieces, and the whole."""

    sources: tuple[RagSource, ...]
    texts: list[str]
    answer: Answer


@dataclass(frozen=True)
class Caller:
    """Calls a method of a fresh client by name; `settings` are the client's."""

    kind: str

    def __call__(
        self, base_url: str, method: str, *args: Any, settings: dict[str, Any] | None = None, **kw: Any
    ) -> Any:
        settings = {"max_retries": 0, **(settings or {})}
        if self.kind == "sync":
            with Client(base_url=base_url, **settings) as client:
                return _read(client, *args, **kw) if method == "stream" else getattr(client, method)(*args, **kw)
        return asyncio.run(self._await(base_url, method, args, kw, settings))

    async def _await(self, base_url: str, method: str, args: Any, kw: Any, settings: dict[str, Any]) -> Any:
        async with AsyncClient(base_url=base_url, **settings) as client:
            if method != "stream":
                return await getattr(client, method)(*args, **kw)
            async with await client.stream(*args, **kw) as stream:
                sources = stream.sources
                return ReadStream(sources, [text async for text in stream], stream.answer)


def _read(client: Client, *args: Any, **kw: Any) -> ReadStream:
    with client.stream(*args, **kw) as stream:
        sources = stream.sources
        return ReadStream(sources, list(stream), stream.answer)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`call(base_url, "ask", "...", store="town")`, with the sync and with the async client."""
    return Caller(request.param)
