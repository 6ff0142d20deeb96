"""Who asks a sleeping engine: official OpenAI clients with a read timeout of 15 s, and searches beside them."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai

QUESTION = "What is a context manager?"
READ_TIMEOUT_S = 15.0
_TOKENS = 8
_SEARCH_S = 0.5
_SEARCH_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One client's request. `problem` is empty when it was answered, else `timeout`, or what it was told."""

    streams: bool
    text: str
    first_s: float
    seconds: float
    problem: str = ""

    @property
    def answer_sha256(self) -> str:
        """Of the answer's text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Burst:
    """What all of them saw, and how many searches beside them failed before anybody had a first token."""

    asked: Sequence[Asked]
    searches: int
    searches_failed: int


def burst(url: str, *, model: str, store: str, streams: int, wholes: int, limit_s: float) -> Burst:
    """So many clients at once, each with a connection of its own and without a second try. Blocking."""
    return asyncio.run(_burst(url, model=model, store=store, streams=streams, wholes=wholes, limit_s=limit_s))


def ask_once(url: str, *, model: str) -> Asked:
    """One stream. Blocking."""
    return asyncio.run(_ask(url, model, streams=True, heard=lambda: None, limit_s=600.0))


async def _burst(url: str, *, model: str, store: str, streams: int, wholes: int, limit_s: float) -> Burst:
    heard = asyncio.Event()
    kinds = [True] * streams + [False] * wholes
    searching = asyncio.create_task(_search(url, store, until=heard))
    try:
        asking = [_ask(url, model, streams=kind, heard=heard.set, limit_s=limit_s) for kind in kinds]
        asked = await asyncio.gather(*asking)
    finally:
        heard.set()
    searches = await searching
    return Burst(asked, len(searches), searches.count(False))


async def _ask(url: str, model: str, *, streams: bool, heard: Callable[[], None], limit_s: float) -> Asked:
    began_s = time.perf_counter()
    first_s = 0.0
    text: list[str] = []
    problem = ""
    timeout = httpx.Timeout(READ_TIMEOUT_S)
    try:
        async with (
            asyncio.timeout(limit_s),
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=timeout, max_retries=0) as client,
        ):
            async for piece in _pieces(client, model, streams=streams):
                if not text:
                    first_s = time.perf_counter() - began_s
                    heard()
                text.append(piece)
    except (openai.APITimeoutError, httpx.TimeoutException):
        problem = "timeout"
    except TimeoutError:
        problem = f"no end within {limit_s:.0f} s"
    except (openai.OpenAIError, httpx.HTTPError) as exc:
        problem = f"{type(exc).__name__}: {exc}"[:300]
    if not text and not problem:
        problem = "an empty answer"
    return Asked(streams, "".join(text), first_s, time.perf_counter() - began_s, problem)


async def _pieces(client: openai.AsyncOpenAI, model: str, *, streams: bool) -> AsyncIterator[str]:
    messages: Any = [{"role": "user", "content": QUESTION}]
    if not streams:
        answer = await client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=_TOKENS)
        yield answer.choices[0].message.content or ""
        return
    stream = await client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=_TOKENS, stream=True
    )
    async for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                yield choice.delta.content


async def _search(url: str, store: str, *, until: asyncio.Event) -> list[bool]:
    """Whether each search was answered."""
    told: list[bool] = []
    async with httpx.AsyncClient(timeout=_SEARCH_TIMEOUT_S) as client:
        while not until.is_set():
            try:
                answer = await client.post(f"{url}/v1/vector_stores/{store}/search", json={"query": QUESTION})
                told.append(answer.status_code == 200 and bool(answer.json()["data"]))
            except (httpx.HTTPError, ValueError, KeyError):
                told.append(False)
            await asyncio.sleep(_SEARCH_S)
    return told
