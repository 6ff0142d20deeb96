"""POST /v1/rerank and /v2/rerank: documents in the order in which they answer a query, by the release's reranker.

The body is Cohere's and Jina's: `model`, `query`, `documents` (texts, or objects with a `text`), `top_n`, and
`return_documents`. The search of a release uses the same reranker by itself; this is for passages from elsewhere.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api.http import read_json, while_connected
from rag_stack.api.validation import validated
from rag_stack.errors import InvalidRequestError, NotFoundError, OverloadedError, UnavailableError
from rag_stack.protocol import MAX_QUERY_CHARS, Wire

PATHS: Final = ("/v1/rerank", "/v2/rerank")
_MAX_DOCUMENTS: Final = 1000
# Requests that may be here at once: one is computed, the others wait for it. One whose client has gone counts until its
# thread has noticed.
_AT_ONCE: Final = 16


class TextReranker(Protocol):
    """`rag_stack.retrieval.reranker.CrossEncoder`, or a test's."""

    name: str

    def text_scores(self, query: str, texts: Sequence[str], *, stopped: Callable[[], bool]) -> npt.NDArray[np.float32]:
        """Float32 [n], 0..1. Blocking. Once `stopped` is true it may raise concurrent.futures.CancelledError."""
        ...


class _Document(Wire):
    text: str = Field(min_length=1)


class _RerankRequest(Wire):
    query: str = Field(min_length=1, max_length=MAX_QUERY_CHARS)
    documents: list[str | _Document] = Field(min_length=1, max_length=_MAX_DOCUMENTS)
    model: str | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True


@dataclass(slots=True)
class RerankEndpoint:
    """The handler; without a reranker it says what to do. One request is computed at a time, in a thread of its own."""

    reranker: TextReranker | None
    max_body_bytes: int
    _here: int = field(default=0, init=False)
    _lock: Lock = field(default_factory=Lock, init=False)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="rerank"), init=False
    )

    def routes(self) -> list[Route]:
        """What this owns."""
        return [Route(path, self.rerank, methods=["POST"]) for path in PATHS]

    async def rerank(self, request: Request) -> JSONResponse:
        """Answer one request."""
        body = await read_json(request.scope, request.receive, max_bytes=self.max_body_bytes)
        if self.reranker is None:
            raise NotFoundError(
                "this release has no reranker: name one as `reranker:` in the release file (`rag-stack model import` "
                "publishes it)",
                param="model",
            )
        asked = validated(_RerankRequest, body)
        if asked.model not in (None, self.reranker.name):
            raise NotFoundError(
                f"the model {asked.model!r} does not exist here; the release's reranker is {self.reranker.name!r}",
                param="model",
            )
        if not asked.query.strip():
            raise InvalidRequestError("`query` must not be empty", param="query")
        texts = [each if isinstance(each, str) else each.text for each in asked.documents]
        began = time.perf_counter()
        scores = await self._scores(self.reranker, asked.query, texts, request)
        results = _results(texts, scores, top_n=asked.top_n, with_text=asked.return_documents)
        took_ms = round((time.perf_counter() - began) * 1e3, 1)
        return JSONResponse({"model": self.reranker.name, "results": results, "timings_ms": {"rerank": took_ms}})

    def close(self) -> None:
        """Drop what waits; what runs ends by itself. Does not block."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _scores(
        self, reranker: TextReranker, query: str, texts: Sequence[str], request: Request
    ) -> npt.NDArray[np.float32]:
        gone = Event()
        self._enter()
        try:
            future = self._thread.submit(reranker.text_scores, query, texts, stopped=gone.is_set)
        except RuntimeError as exc:
            self._leave()
            raise UnavailableError("this server is shutting down; try again", retry_after_s=1) from exc
        future.add_done_callback(lambda _: self._leave())
        try:
            return await while_connected(_result(future), request.receive)
        finally:
            gone.set()

    def _enter(self) -> None:
        with self._lock:
            if self._here >= _AT_ONCE:
                raise OverloadedError(
                    f"{self._here} requests to rerank run or wait, no more can; try again", retry_after_s=1
                )
            self._here += 1

    def _leave(self) -> None:
        with self._lock:
            self._here -= 1


async def _result(future: "Future[npt.NDArray[np.float32]]") -> npt.NDArray[np.float32]:
    return await asyncio.wrap_future(future)


def _results(
    texts: Sequence[str], scores: npt.NDArray[np.float32], *, top_n: int | None, with_text: bool
) -> list[dict[str, Any]]:
    """Best first; equal scores in the order of the documents."""
    order = np.argsort(-scores, kind="stable")[:top_n]
    return [
        {
            "index": int(n),
            "relevance_score": round(float(scores[n]), 6),
            **({"document": {"text": texts[n]}} if with_text else {}),
        }
        for n in order
    ]
