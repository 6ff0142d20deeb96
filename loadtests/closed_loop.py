"""A closed loop of streamed chat requests: `concurrency` callers, each asks its next question when it has an answer."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

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


async def _ask_all(url: str, bodies: Sequence[Mapping[str, Any]], *, concurrency: int) -> list[Answer]:
    answers: list[Answer] = []
    waiting = iter(enumerate(bodies))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits) as client:

        async def caller() -> None:
            for question, body in waiting:
                answers.append(await _ask(client, body, question=question))

        try:
            async with asyncio.TaskGroup() as callers:
                for _ in range(concurrency):
                    callers.create_task(caller())
        except* (httpx.HTTPError, LoadError) as group:
            raise LoadError(f"{url}: {group.exceptions[0]!r}") from group
    return sorted(answers, key=lambda answer: answer.question)


async def _ask(client: httpx.AsyncClient, body: Mapping[str, Any], *, question: int) -> Answer:
    data = json.dumps(body).encode()
    started = time.perf_counter()
    async with client.stream(
        "POST", "/v1/chat/completions", content=data, headers={"content-type": "application/json"}
    ) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode(errors="replace")
            raise LoadError(f"question {question} was answered {response.status_code}: {text[:500]}")
        return await _read(_chunks(response), started=started, question=question)


async def _chunks(response: httpx.Response) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """The stream's chunks with the time each arrived at."""
    async for line in response.aiter_lines():
        arrived = time.perf_counter()
        if line.startswith("data: ") and line != "data: [DONE]":
            yield arrived, json.loads(line[6:])


async def _read(chunks: AsyncIterator[tuple[float, dict[str, Any]]], *, started: float, question: int) -> Answer:
    first: float | None = None
    last = started
    text: list[str] = []
    usage: dict[str, Any] | None = None
    timings: Mapping[str, float] = {}
    async for arrived, chunk in chunks:
        last = arrived
        if "error" in chunk:
            raise LoadError(f"question {question} broke off: {chunk['error']}")
        usage = chunk.get("usage") or usage
        timings = (chunk.get("rag") or {}).get("timings_ms") or timings
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content") or ""
            text.append(piece)
            if first is None and (piece or choice.get("finish_reason") is not None):
                first = arrived
    if first is None or usage is None:
        raise LoadError(f"the stream for question {question} ended without text or without usage")
    return Answer(
        question=question,
        ttft_ms=(first - started) * 1e3,
        total_ms=(last - started) * 1e3,
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        output_tokens=usage["completion_tokens"],
        output_sha256=hashlib.sha256("".join(text).encode()).hexdigest()[:16],
        timings_ms=dict(timings),
    )
