"""An open loop of streamed chats: each comes at its own time, whether the ones before it are answered or not."""

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_TIMEOUT = httpx.Timeout(120.0, connect=30.0)
_LIMITS = httpx.Limits(max_connections=2000, max_keepalive_connections=200)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to come: when, since the beginning, whose, and how long an answer it asks for."""

    at_s: float
    key: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. `status` is 0 where the connection failed; times are since it was to be sent."""

    arrival: Arrival
    status: int
    ttft_s: float | None = None
    total_s: float = 0.0
    complete: bool = False
    retry_after: str | None = None

    def good(self, *, target_s: float) -> bool:
        """Whether it was answered whole, and begun within the target."""
        return self.complete and self.ttft_s is not None and self.ttft_s <= target_s


def poisson(rates: Mapping[str, float], *, seconds: float, tokens: Sequence[int], seed: int) -> list[Arrival]:
    """Poisson arrivals of each key at its rate a second, in the order of time."""
    draw = random.Random(seed)
    arrivals = []
    for key, rate in sorted(rates.items()):
        at_s = draw.expovariate(rate)
        while at_s < seconds:
            arrivals.append(Arrival(at_s, key, draw.choice(tokens)))
            at_s += draw.expovariate(rate)
    return sorted(arrivals, key=lambda each: each.at_s)


async def run(url: str, arrivals: Sequence[Arrival], *, model: str) -> list[Outcome]:
    """Send each at its time; returns when all are over."""
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=_LIMITS) as client:
        began_s = time.perf_counter()
        tasks = []
        for arrival in arrivals:
            await asyncio.sleep(max(0.0, began_s + arrival.at_s - time.perf_counter()))
            tasks.append(asyncio.create_task(_ask(client, arrival, model=model, due_s=began_s + arrival.at_s)))
        return list(await asyncio.gather(*tasks))


async def saturate(url: str, *, model: str, key: str, concurrency: int, tokens: Sequence[int], seconds: float) -> float:
    """Answers a second in a closed loop that keeps so many requests under way: the capacity."""
    draw, answered, began_s = random.Random(0), 0, time.perf_counter()

    async def keep_asking(client: httpx.AsyncClient) -> None:
        nonlocal answered
        while time.perf_counter() - began_s < seconds:
            arrival = Arrival(0.0, key, draw.choice(tokens))
            outcome = await _ask(client, arrival, model=model, due_s=time.perf_counter())
            answered += outcome.complete

    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=_LIMITS) as client:
        await asyncio.gather(*(keep_asking(client) for _ in range(concurrency)))
    return answered / (time.perf_counter() - began_s)


async def _ask(client: httpx.AsyncClient, arrival: Arrival, *, model: str, due_s: float) -> Outcome:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"What burns in the lighthouse at {arrival.at_s:.3f}?"}],
        "max_tokens": arrival.max_tokens,
        "stream": True,
    }
    ttft_s, complete = None, False
    try:
        headers = {"authorization": f"Bearer {arrival.key}"}
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if ttft_s is None and line.startswith("data: ") and "choices" in json.loads(line[6:]):
                    ttft_s = time.perf_counter() - due_s
                complete = line == "data: [DONE]"
                if complete:
                    break
            total_s = time.perf_counter() - due_s
            retry_after = answer.headers.get("retry-after")
            return Outcome(arrival, answer.status_code, ttft_s, total_s, complete, retry_after)
    except httpx.HTTPError:
        return Outcome(arrival, 0)
