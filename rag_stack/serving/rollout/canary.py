"""A replica answers a release's canary questions: the whole way of a request, in process.

Before it takes any other; or beside them, where it served before the rollout began.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
from starlette.types import ASGIApp

from rag_stack.config import Canary, Release
from rag_stack.errors import OverloadedError
from rag_stack.releases.progress import CanaryResult

# Longer than any answer takes that a client would wait for.
_LIMIT_S: Final = 120.0
_SHOWN: Final = 200


async def ask_canaries(
    app: ASGIApp, release: Release, canaries: Sequence[Canary], *, limit_s: float = _LIMIT_S
) -> tuple[CanaryResult, ...]:
    """What came of each question, one after the other, each within `limit_s`. `app` asks for no key.

    Whatever is no answer as expected has not passed, and says why. What is refused as too much (429), or not answered
    in time, was not answered.
    """
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://replica", timeout=limit_s) as client:
        return tuple([await _ask(client, release, canary, limit_s=limit_s) for canary in canaries])


async def _ask(client: httpx.AsyncClient, release: Release, canary: Canary, *, limit_s: float) -> CanaryResult:
    body = {
        "model": release.model.name,
        "messages": [{"role": "user", "content": canary.question}],
        "temperature": 0,
        **_search(release),
    }
    told, answered = "", True
    try:
        async with asyncio.timeout(limit_s):
            answer = await client.post("/v1/chat/completions", json=body)
        told, answered = answer.text[:_SHOWN], answer.status_code != OverloadedError.status
        detail = f"status {answer.status_code}: {told}" if answer.status_code != 200 else _wrong(canary, answer.json())
    except (TimeoutError, httpx.TimeoutException):
        answered, detail = False, f"no answer within {limit_s:g} s"
    except Exception as exc:  # whatever form it has: a release that answers so is not what was expected of it
        detail = f"not an answer as it should be ({type(exc).__name__}: {exc}): {told}"
    return CanaryResult(question=canary.question, passed=not detail, answered=answered, detail=detail)


def _search(release: Release) -> dict[str, Any]:
    """As a client would who asks this release: in its default store, or else in its first one."""
    store = release.default_store or next((store.name for store in release.stores), None)
    return {"tools": [{"type": "file_search", "vector_store_ids": [store]}]} if store else {}


def _wrong(canary: Canary, body: Mapping[str, Any]) -> str:
    """What is not as expected, or an empty text."""
    text = body["choices"][0]["message"]["content"] or ""
    if canary.answer_contains.casefold() not in text.casefold():
        return f"the answer does not hold {canary.answer_contains!r}: {text[:_SHOWN]!r}"
    sources = body.get("rag", {}).get("sources", [])
    found = {source[key] for source in sources for key in ("filename", "file_id")}
    if canary.expect and not found & set(canary.expect):
        expected, came = ", ".join(canary.expect)[:_SHOWN], ", ".join(sorted(found))[:_SHOWN]
        return f"none of {expected} is among the sources: {came or 'there are none'}"
    return ""
