"""A trace against real replicas: the requests are sent when they come, and the fleet is looked at all the while."""

import asyncio
import contextlib
import itertools
import json
import time
from dataclasses import dataclass

import httpx
import ray
from ray import serve
from ray.serve.schema import ReplicaState

from loadtests.autoscale_simulator import Outcome, Point
from loadtests.autoscale_trace import Trace
from rag_stack.serving.prefixes import ENGINE_APP

_LOOK_S = 0.5
_TIMEOUT = httpx.Timeout(300.0)
_LOADING = frozenset({ReplicaState.STARTING, ReplicaState.UPDATING})


@dataclass(frozen=True, slots=True)
class Seen:
    """Replicas at one instant: those that serve and those that load."""

    running: int
    loading: int


@dataclass(frozen=True, slots=True)
class Live:
    """What happened, and what it took: of each start how many loaded at once, and the seconds until it served."""

    outcome: Outcome
    starts: tuple[tuple[int, float], ...]
    failed: int


def fleet() -> Seen:
    """The engine's replicas, from Serve's controller."""
    states = serve.status().applications[ENGINE_APP].deployments["ScriptedServer"].replica_states
    return Seen(states.get(ReplicaState.RUNNING, 0), sum(states.get(state, 0) for state in _LOADING))


def until_settled(replicas: int, *, limit_s: float = 300.0) -> None:
    """Block until so many serve and none loads. Raises TimeoutError."""
    deadline = time.monotonic() + limit_s
    while fleet() != Seen(replicas, 0):
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected {replicas} replicas and no more within {limit_s:.0f} s, got {fleet()}")
        time.sleep(_LOOK_S)


def replay(url: str, trace: Trace, *, model: str, max_tokens: int, ttft_target_s: float) -> Live:
    """Send the trace. Blocking: as long as it lasts, and until the last answer has come."""
    return asyncio.run(_replay(url, trace, model=model, max_tokens=max_tokens, ttft_target_s=ttft_target_s))


async def _replay(url: str, trace: Trace, *, model: str, max_tokens: int, ttft_target_s: float) -> Live:
    began_s = time.monotonic()
    under_way = 0
    ttft_s: list[float] = []
    failed = 0

    async def ask(client: httpx.AsyncClient, number: int, at_s: float) -> None:
        nonlocal under_way, failed
        await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
        under_way += 1
        try:
            ttft_s.append(await _first_token(client, url, number, model=model, max_tokens=max_tokens))
        except (httpx.HTTPError, ValueError):
            failed += 1
        finally:
            under_way -= 1

    points: list[Point] = []

    async def look() -> None:
        while True:
            seen = await asyncio.to_thread(fleet)
            points.append(Point(time.monotonic() - began_s, seen.running + seen.loading, seen.running, under_way))
            await asyncio.sleep(_LOOK_S)

    looking = asyncio.create_task(look())
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=_TIMEOUT, limits=limits) as client:
        await asyncio.gather(*(ask(client, n, at_s) for n, at_s in enumerate(trace.arrivals_s)))
    await asyncio.sleep(max(0.0, began_s + trace.duration_s - time.monotonic()))
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    good = sum(took <= ttft_target_s for took in ttft_s)
    within = tuple(point for point in points if point.at_s <= trace.duration_s)
    outcome = Outcome(len(trace.arrivals_s), good, _replica_seconds(within), _changes(within), within, tuple(ttft_s))
    return Live(outcome, _starts(points), failed)


async def _first_token(client: httpx.AsyncClient, url: str, number: int, *, model: str, max_tokens: int) -> float:
    """Seconds to the first chunk with text; the answer is read to its end. Raises ValueError for any but an answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"question {number}"}],
        "max_tokens": max_tokens,
        "stream": True,
    }
    sent_s, first_s = time.monotonic(), None
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise ValueError(f"expected 200, got {answer.status_code}")
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and first_s is None:
                chunk = json.loads(line[6:])
                if chunk.get("error"):
                    raise ValueError(f"expected an answer, got {chunk['error']}")
                if any(choice.get("delta", {}).get("content") for choice in chunk["choices"]):
                    first_s = time.monotonic()
    if first_s is None:
        raise ValueError("expected text, got none")
    return first_s - sent_s


def _replica_seconds(points: tuple[Point, ...]) -> float:
    return sum(a.target * (b.at_s - a.at_s) for a, b in itertools.pairwise(points))


def _changes(points: tuple[Point, ...]) -> int:
    return sum(a.target != b.target for a, b in itertools.pairwise(points))


def _starts(points: list[Point]) -> tuple[tuple[int, float], ...]:
    """Each that loads from when it was asked for to when one more serves; the first asked for is the first to serve."""
    asked: list[tuple[float, int]] = []
    starts = []
    for a, b in itertools.pairwise(points):
        more = (b.target - b.running) - (a.target - a.running) + max(0, b.running - a.running)
        asked += [(b.at_s, b.target - b.running)] * max(0, more)
        for _ in range(max(0, b.running - a.running)):
            if asked:
                at_s, at_once = asked.pop(0)
                starts.append((at_once, b.at_s - at_s))
        del asked[max(0, b.target - b.running) :]
    return tuple(starts)


def redeploy(target: serve.RunTarget) -> None:
    """The engine application with other settings of its scaling; its replicas stay."""
    if not ray.is_initialized():
        raise RuntimeError("expected a Ray that runs, got none")
    serve.run_many([target])
