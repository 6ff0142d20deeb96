"""An answer as it comes: its sources first, then its text piece by piece, then the whole."""

from types import TracebackType
from typing import Self

from openai import AsyncStream, Stream

from rag_stack.client.answer import Answer, AnswerBuilder
from rag_stack.client.endpoint import Endpoint
from rag_stack.client.failure import translated
from rag_stack.protocol import RagSource


class _Progress:
    """How far an answer has come: what both streams share."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._builder = AnswerBuilder()
        self._ahead = ""
        self._ended = False
        self._answer: Answer | None = None

    @property
    def sources(self) -> tuple[RagSource, ...]:
        """What went into the prompt: known before the first word."""
        return self._builder.sources

    @property
    def answer(self) -> Answer:
        """The whole answer, once the stream has been read to its end."""
        if self._answer is None:
            raise RuntimeError("the answer is not complete: read the stream to its end first")
        return self._answer

    def _finish(self) -> None:
        self._ended = True
        self._answer = self._builder.answer()

    def _take_ahead(self) -> str:
        text, self._ahead = self._ahead, ""
        return text


class AnswerStream(_Progress):
    """Iterate over it for the text. Closing it early, or leaving its `with` block, stops the generation."""

    def __init__(self, chunks: Stream[object], *, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._chunks = chunks

    def open(self) -> Self:
        """Wait for the first chunk: it brings the sources, or the failure that came in its place."""
        self._ahead = self._pull()
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        text = self._take_ahead()
        while not text and not self._ended:
            text = self._pull()
        if not text:
            raise StopIteration
        return text

    def close(self) -> None:
        """Close the connection; the server then stops generating."""
        self._ended = True
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _pull(self) -> str:
        """The next chunk's text, often empty; empty too at the end."""
        try:
            with translated(self._endpoint, in_stream=True):
                chunk = next(self._chunks, None)
            if chunk is not None:
                return self._builder.feed(chunk)
            self._finish()
        except BaseException:
            self.close()
            raise
        return ""


class AsyncAnswerStream(_Progress):
    """Iterate over it with `async for`. Closing it early, or leaving its `async with` block, stops the generation."""

    def __init__(self, chunks: AsyncStream[object], *, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._chunks = chunks

    async def open(self) -> Self:
        """Wait for the first chunk: it brings the sources, or the failure that came in its place."""
        self._ahead = await self._pull()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        text = self._take_ahead()
        while not text and not self._ended:
            text = await self._pull()
        if not text:
            raise StopAsyncIteration
        return text

    async def close(self) -> None:
        """Close the connection; the server then stops generating."""
        self._ended = True
        await self._chunks.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _pull(self) -> str:
        try:
            with translated(self._endpoint, in_stream=True):
                chunk = await anext(self._chunks, None)
            if chunk is not None:
                return self._builder.feed(chunk)
            self._finish()
        except BaseException:
            await self.close()
            raise
        return ""
