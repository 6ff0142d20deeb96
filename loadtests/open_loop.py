"""An open loop of streamed chats: each comes at its own time, whether the ones before it are answered or not."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from loadtests import streamed

T = TypeVar("T")
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


async def at_their_times(times_s: Sequence[float], ask: Callable[[int, float], Coroutine[Any, Any, T]]) -> list[T]:
    """What `ask` gives for each number and the moment it was due at, by `time.perf_counter`; all of them awaited."""
    began_s = time.perf_counter()
    tasks = []
    for number, at_s in enumerate(times_s):
        await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(number, began_s + at_s)))
    return list(await asyncio.gather(*tasks))


async def run(url: str, arrivals: Sequence[Arrival], *, model: str) -> list[Outcome]:
    """Send each at its time; returns when all are over."""
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=_LIMITS) as client:

        async def ask(number: int, due_s: float) -> Outcome:
            return await _ask(client, arrivals[number], model=model, due_s=due_s)

        return await at_their_times([arrival.at_s for arrival in arrivals], ask)


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
    headers = {"authorization": f"Bearer {arrival.key}"}
    came = await streamed.ask(client, body, headers=headers, since=due_s)
    return Outcome(
        arrival,
        0 if came.problem in ("connection", "timeout") else came.status,
        None if came.ttft_ms is None else came.ttft_ms / 1e3,
        came.total_ms / 1e3,
        not came.problem,
        came.headers.get("retry-after"),
    )
