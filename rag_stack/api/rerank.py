"""POST /v1/rerank and /v2/rerank: documents in the order in which they answer a query, by the release's reranker.

The body is Cohere's and Jina's: `model`, `query`, `documents` (texts, or objects with a `text`), `top_n`, and
`return_documents`. The search of a release uses the same reranker by itself; this is for passages from elsewhere.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api.http import read_json, while_connected
from rag_stack.api.validation import validated
from rag_stack.errors import InvalidRequestError, NotFoundError, OverloadedError
from rag_stack.protocol import MAX_QUERY_CHARS, Wire

PATHS: Final = ("/v1/rerank", "/v2/rerank")
_MAX_DOCUMENTS: Final = 1000
# Documents between two looks at whether the client is still there.
_STEP: Final = 32
# Requests that may be here at once: one is computed, the others wait for it.
_AT_ONCE: Final = 16


class TextReranker(Protocol):
    """`rag_stack.retrieval.reranker.CrossEncoder`, or a test's."""

    name: str

    def text_scores(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Float32 [n], 0..1. Blocking."""
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
    """The handler; without a reranker it says what to do. One request is computed at a time, in a thread."""

    reranker: TextReranker | None
    max_body_bytes: int
    _here: int = field(default=0, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

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

    async def _scores(
        self, reranker: TextReranker, query: str, texts: Sequence[str], request: Request
    ) -> npt.NDArray[np.float32]:
        if self._here >= _AT_ONCE:
            raise OverloadedError(
                f"{self._here} requests to rerank run or wait, no more can; try again", retry_after_s=1
            )
        self._here += 1
        try:
            return await while_connected(self._computed(reranker, query, texts), request.receive)
        finally:
            self._here -= 1

    async def _computed(self, reranker: TextReranker, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        async with self._turn:
            steps = [texts[start : start + _STEP] for start in range(0, len(texts), _STEP)]
            return np.concatenate([await asyncio.to_thread(reranker.text_scores, query, step) for step in steps])


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
