"""Sends a workload's sessions to a server: at their times, or so many at once; a session's turns one after another."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import httpx

from loadtests import streamed
from loadtests.closed_loop import in_turn
from loadtests.open_loop import at_their_times
from loadtests.streamed import Streamed
from loadtests.workload_trace import Session, Turn

_LIMITS: Final = httpx.Limits(max_connections=2000, max_keepalive_connections=500)


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how it is asked. `extra` goes into every body, such as `ignore_eos` or a store's id."""

    url: str
    model: str
    key: str = ""
    timeout_s: float = 120.0
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a workload. `at_s` is when it was to be sent, seconds since the beginning of the run."""

    session: str
    turn: int
    at_s: float
    question: str
    max_tokens: int
    came: Streamed


async def run(
    target: Target, sessions: Sequence[Session], *, concurrency: int | None, limit_s: float
) -> tuple[list[Asked], int]:
    """All requests that came to an end, in the order of sending, and how many were left unasked or cut at `limit_s`.

    Without a `concurrency` sessions begin when the trace says, whether the ones before have ended or not.
    """
    timeout = httpx.Timeout(target.timeout_s, connect=min(30.0, target.timeout_s))
    asked: list[Asked] = []
    async with httpx.AsyncClient(base_url=target.url, timeout=timeout, limits=_LIMITS) as client:
        began_s = time.perf_counter()

        async def hold(session: Session, due_s: float | None) -> None:
            await _converse(client, target, session, asked=asked, began_s=began_s, due_s=due_s)

        try:
            async with asyncio.timeout(limit_s):
                if concurrency is None:
                    times_s = [session.at_s for session in sessions]
                    await at_their_times(times_s, lambda number, due_s: hold(sessions[number], due_s))
                else:
                    await in_turn(len(sessions), lambda n: hold(sessions[n], None), concurrency=concurrency)
        except TimeoutError:
            pass
    left = sum(len(session.turns) for session in sessions) - len(asked)
    return sorted(asked, key=lambda each: each.at_s), left


async def _converse(
    client: httpx.AsyncClient,
    target: Target,
    session: Session,
    *,
    asked: list[Asked],
    began_s: float,
    due_s: float | None,
) -> None:
    """A session's turns, each with what was said before; one that fails ends the conversation."""
    messages: list[dict[str, str]] = []
    headers = {"x-session-id": session.name}
    if target.key:
        headers["authorization"] = f"Bearer {target.key}"
    for number, turn in enumerate(session.turns):
        if number:
            await asyncio.sleep(turn.think_s)
        since = due_s if due_s is not None and number == 0 else time.perf_counter()
        messages.append({"role": "user", "content": turn.question})
        came = await streamed.ask(client, _body(target, messages, turn), headers=headers, since=since)
        asked.append(Asked(session.name, number, since - began_s, turn.question, turn.max_tokens, came))
        if came.problem:
            return
        messages.append({"role": "assistant", "content": came.text})


def _body(target: Target, messages: Sequence[Mapping[str, str]], turn: Turn) -> dict[str, Any]:
    return {
        "model": target.model,
        "messages": list(messages),
        "temperature": 0,
        "max_tokens": turn.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **(target.extra or {}),
    }
