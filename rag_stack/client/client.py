"""The two clients: thin shells that run plans over the official client's connection."""

from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import openai
from openai import AsyncStream, Stream

from rag_stack.client.answer import Answer
from rag_stack.client.endpoint import Endpoint, resolve_endpoint
from rag_stack.client.failure import translated
from rag_stack.client.plan import CHAT_PATH, AskOptions, Plan, Plans, SearchOptions, SearchResults
from rag_stack.client.stream import AnswerStream, AsyncAnswerStream
from rag_stack.protocol import VectorStore

ResultT = TypeVar("ResultT")


class Client:
    """Talks to a rag_stack server. Safe to share between threads; close it, or use it in a `with` block.

    `base_url` and `api_key` default to RAG_STACK_BASE_URL and RAG_STACK_API_KEY. `timeout` is in seconds (default 600:
    a cold start is part of an answer). Every method raises the exceptions of `rag_stack.errors`.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        max_retries: int = openai.DEFAULT_MAX_RETRIES,
    ) -> None:
        self._endpoint = resolve_endpoint(base_url, api_key=api_key)
        self.openai = openai.OpenAI(**_settings(self._endpoint, timeout=timeout, max_retries=max_retries))
        self._plans = Plans()

    def ask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """The answer to a question, with sources and citations."""
        return self._run(self._plans.ask(question, options))

    def stream(self, question: str, **options: Unpack[AskOptions]) -> AnswerStream:
        """The same, as it is generated: `for text in stream`, then `stream.answer`; `stream.sources` at once."""
        body = self._run(self._plans.stream(question, options))
        with translated(self._endpoint):
            chunks = self.openai.post(CHAT_PATH, cast_to=object, body=body, stream=True, stream_cls=Stream[object])
        return AnswerStream(chunks, endpoint=self._endpoint).open()

    def search(self, query: str, **options: Unpack[SearchOptions]) -> SearchResults:
        """The passages nearest to a query, without an answer."""
        return self._run(self._plans.search(query, options))

    def stores(self) -> tuple[VectorStore, ...]:
        """What can be searched."""
        return self._run(self._plans.stores())

    def models(self) -> tuple[str, ...]:
        """What can answer: the model, and `model@store` for each store."""
        return self._run(self._plans.models())

    def close(self) -> None:
        """Close the connections."""
        self.openai.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, plan: Plan[ResultT]) -> ResultT:
        reply: object = None
        while True:
            try:
                call = plan.send(reply)
            except StopIteration as done:
                result: ResultT = done.value
                return result
            with translated(self._endpoint):
                if call.method == "GET":
                    reply = self.openai.get(call.path, cast_to=object, options={"params": call.query})
                else:
                    reply = self.openai.post(call.path, cast_to=object, body=call.body)


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float | None = None,
        max_retries: int = openai.DEFAULT_MAX_RETRIES,
    ) -> None:
        self._endpoint = resolve_endpoint(base_url, api_key=api_key)
        self.openai = openai.AsyncOpenAI(**_settings(self._endpoint, timeout=timeout, max_retries=max_retries))
        self._plans = Plans()

    async def ask(self, question: str, **options: Unpack[AskOptions]) -> Answer:
        """The answer to a question, with sources and citations."""
        return await self._run(self._plans.ask(question, options))

    async def stream(self, question: str, **options: Unpack[AskOptions]) -> AsyncAnswerStream:
        """The same, as it is generated: `async for text in await client.stream(...)`."""
        body = await self._run(self._plans.stream(question, options))
        with translated(self._endpoint):
            chunks = await self.openai.post(
                CHAT_PATH, cast_to=object, body=body, stream=True, stream_cls=AsyncStream[object]
            )
        return await AsyncAnswerStream(chunks, endpoint=self._endpoint).open()

    async def search(self, query: str, **options: Unpack[SearchOptions]) -> SearchResults:
        """The passages nearest to a query, without an answer."""
        return await self._run(self._plans.search(query, options))

    async def stores(self) -> tuple[VectorStore, ...]:
        """What can be searched."""
        return await self._run(self._plans.stores())

    async def models(self) -> tuple[str, ...]:
        """What can answer: the model, and `model@store` for each store."""
        return await self._run(self._plans.models())

    async def close(self) -> None:
        """Close the connections."""
        await self.openai.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, plan: Plan[ResultT]) -> ResultT:
        reply: object = None
        while True:
            try:
                call = plan.send(reply)
            except StopIteration as done:
                result: ResultT = done.value
                return result
            with translated(self._endpoint):
                if call.method == "GET":
                    reply = await self.openai.get(call.path, cast_to=object, options={"params": call.query})
                else:
                    reply = await self.openai.post(call.path, cast_to=object, body=call.body)


def _settings(endpoint: Endpoint, *, timeout: float | None, max_retries: int) -> dict[str, Any]:
    """What both official clients are made with. What the environment holds for OpenAI itself is not sent."""
    return {
        "base_url": endpoint.base_url,
        "api_key": endpoint.api_key or "none",
        "default_headers": {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()},
        "timeout": openai.NOT_GIVEN if timeout is None else timeout,
        "max_retries": max_retries,
    }
