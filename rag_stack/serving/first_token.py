"""A replica asks itself one question before it takes any: its start ends with its first token."""

import asyncio
import logging
from typing import Any

import httpx
from starlette.types import ASGIApp

from rag_stack.config import Release

_LIMIT_S = 600.0
_LOG = logging.getLogger("ray.serve")


async def first_token(app: ASGIApp, release: Release) -> bool:
    """Whether the app, which asks for no key, answered: the whole way of a request, with one passage and one token.

    An engine that breaks raises here, or TimeoutError, and Serve starts the replica again. One that refuses the
    question, for want of a chat template say, may still answer others: that is logged, and False.
    """
    transport = httpx.ASGITransport(app)
    async with asyncio.timeout(_LIMIT_S), httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        answer = await client.post("/v1/chat/completions", json=_question(release), timeout=None)
    if answer.status_code >= 500:
        raise RuntimeError(f"the engine did not answer its first question: {answer.status_code} {answer.text[:500]}")
    if answer.status_code != 200:
        _LOG.warning("the first question was refused: %s %s", answer.status_code, answer.text[:500])
    return answer.status_code == 200


def _question(release: Release) -> dict[str, Any]:
    store = release.default_store or next((store.name for store in release.stores), None)
    search = {"type": "file_search", "vector_store_ids": [store], "max_num_results": 1}
    return {
        "model": release.model.name,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        **({"tools": [search]} if store else {}),
    }
