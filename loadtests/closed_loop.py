"""A closed loop of streamed chat requests: `concurrency` callers, each asks its next question when it has an answer."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from loadtests import streamed
from loadtests.streamed import Streamed

T = TypeVar("T")
Messages = Sequence[Mapping[str, Any]]
_TIMEOUT = httpx.Timeout(600.0, connect=30.0)


class LoadError(Exception):
    """A server could not be measured: it did not start, refused a request or broke off an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome. Times are milliseconds since just before the request was sent.

    ttft_ms     to the first chunk with text in it, or to the chunk that ends an answer without text
    timings_ms  what our layer reports of its own stages; empty where there is no such layer
    """

    question: int
    ttft_ms: float
    total_ms: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_sha256: str
    timings_ms: Mapping[str, float] = field(default_factory=dict)


def request_body(model: str, messages: Messages, *, max_tokens: int, salt: str) -> dict[str, Any]:
    """A request whose work is the same in every server: greedy, always `max_tokens` long, a prefix cache of its own.

    vLLM shares cached prefixes only between requests of one `cache_salt`, so a fresh salt is as good as a reset.
    """
    return {
        "model": model,
        "messages": list(messages),
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_salt": salt,
    }


def ask_all(url: str, bodies: Sequence[Mapping[str, Any]], *, concurrency: int) -> list[Answer]:
    """Stream an answer to every body, in their order, `concurrency` at a time. Blocking. Raises LoadError."""
    return asyncio.run(_ask_all(url, bodies, concurrency=concurrency))


def final_messages(url: str, bodies: Sequence[Mapping[str, Any]]) -> list[Messages]:
    """What our layer gives the engine for each body: `rag.messages`. Blocking. Raises LoadError."""
    found: list[Messages] = []
    with httpx.Client(base_url=url, timeout=_TIMEOUT) as client:
        for body in bodies:
            asked = {k: v for k, v in body.items() if k != "stream_options"}
            try:
                answer = client.post(
                    "/v1/chat/completions", json={**asked, "stream": False, "include": ["rag.messages"]}
                )
            except httpx.HTTPError as exc:
                raise LoadError(f"{url} did not answer: {exc!r}") from exc
            messages = (answer.json().get("rag") or {}).get("messages") if answer.status_code == 200 else None
            if not messages:
                raise LoadError(f"expected an answer with rag.messages, got {answer.status_code}: {answer.text[:500]}")
            found.append(messages)
    return found


async def in_turn(count: int, ask: Callable[[int], Awaitable[T]], *, concurrency: int) -> list[T]:
    """What `ask` gives for 0 to count - 1, in their order, while `concurrency` callers take one after another."""
    found: dict[int, T] = {}
    waiting = iter(range(count))

    async def caller() -> None:
        for number in waiting:
            found[number] = await ask(number)

    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller())
    return [found[number] for number in range(count)]


async def _ask_all(url: str, bodies: Sequence[Mapping[str, Any]], *, concurrency: int) -> list[Answer]:
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits) as client:

        async def answered(question: int) -> Answer:
            return _answer(await streamed.ask(client, bodies[question]), question=question)

        try:
            return await in_turn(len(bodies), answered, concurrency=concurrency)
        except* LoadError as group:
            raise LoadError(f"{url}: {group.exceptions[0]!r}") from group


def _answer(came: Streamed, *, question: int) -> Answer:
    if came.problem:
        raise LoadError(f"question {question}: {came.problem}, status {came.status}: {came.detail}")
    if came.ttft_ms is None or not came.usage:
        raise LoadError(f"the stream for question {question} ended without text or without usage")
    return Answer(
        question=question,
        ttft_ms=came.ttft_ms,
        total_ms=came.total_ms,
        prompt_tokens=came.usage["prompt_tokens"],
        cached_tokens=came.cached_tokens,
        output_tokens=came.usage["completion_tokens"],
        output_sha256=hashlib.sha256(came.text.encode()).hexdigest()[:16],
        timings_ms=dict(came.rag.get("timings_ms") or {}),
    )
