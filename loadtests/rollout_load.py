"""Steady chats while releases change: streams and whole answers, in sessions and not, by a client without retries."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rag_stack.releases.plan import RolloutPlan

# How long after the plan has moved an answer may still come from what was allowed before: the replicas hear of it
# within a second or two, Serve's controller asks them each second, and tells the routers.
SLACK_S = 6.0
_SESSIONS = 40


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `problem` is what a client sees when it fails; `release` is the version that the answer names."""

    began_s: float
    seconds: float
    stream: bool
    session: str
    release: str
    problem: str


@dataclass(frozen=True, slots=True)
class Moment:
    """The plan from a time on."""

    at_s: float
    plan: RolloutPlan


class Load:
    """Asks at a fixed rate, whether or not answers come."""

    def __init__(self, url: str, *, model: str, rate: float, max_tokens: int, seed: int = 0) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self._model = model
        self._rate = rate
        self._max_tokens = max_tokens
        self._draw = random.Random(seed)

    async def run(self) -> None:
        """Until cancelled; then all that is under way is waited for."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=60.0, limits=limits) as client,
            asyncio.TaskGroup() as all_,
        ):
            began_s = time.monotonic()
            try:
                for number in itertools.count():
                    await asyncio.sleep(max(0.0, began_s + number / self._rate - time.monotonic()))
                    stream = self._draw.random() < 0.75
                    session = f"session-{self._draw.randrange(_SESSIONS)}" if self._draw.random() < 0.3 else ""
                    all_.create_task(self._ask(client, number, stream=stream, session=session))
            except asyncio.CancelledError:
                return

    async def shares(self, count: int, *, at_once: int) -> list[str]:
        """The release of each of so many answers to requests without a session. Raises httpx.HTTPError."""
        waiting = iter(range(count))
        found: list[str] = []
        async with httpx.AsyncClient(base_url=self.url, timeout=60.0) as client:

            async def caller() -> None:
                for number in waiting:
                    body = self._body(f"held {number}", stream=False) | {"max_tokens": 1}
                    answer = await client.post("/v1/chat/completions", json=body)
                    answer.raise_for_status()
                    found.append(_version(answer))

            await asyncio.gather(*(caller() for _ in range(at_once)))
        return found

    async def _ask(self, client: httpx.AsyncClient, number: int, *, stream: bool, session: str) -> None:
        began_s = time.time()
        release, problem = "", ""
        headers = {"x-session-id": session} if session else {}
        body = self._body(f"What does the keeper do on day {number}?", stream=stream)
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
                text = (await answer.aread()).decode()
                release, problem = _version(answer), _problem(answer.status_code, text, stream=stream)
        except httpx.HTTPError as exc:
            problem = repr(exc)
        self.asked.append(Asked(began_s, time.time() - began_s, stream, session, release, problem))

    def _body(self, question: str, *, stream: bool) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {"model": self._model, "messages": messages, "max_tokens": self._max_tokens, "stream": stream}


def wrong_release(asked: Sequence[Asked], moments: Sequence[Moment]) -> list[Asked]:
    """The answers of a version that no plan allowed between shortly before they were asked and their end."""
    wrong = []
    for each in asked:
        if each.problem:
            continue
        until_s = each.began_s + each.seconds
        ends = [*(moment.at_s for moment in moments[1:]), float("inf")]
        during = [
            moment.plan
            for moment, end_s in zip(moments, ends, strict=True)
            if moment.at_s <= until_s and end_s >= each.began_s - SLACK_S
        ]
        if not any(each.release in allowed(plan) for plan in during):
            wrong.append(each)
    return wrong


def allowed(plan: RolloutPlan) -> set[str]:
    """The versions that may answer. Neither is refused in the other's place while both are good."""
    if plan.new is None:
        return {plan.old}
    both = plan.state == "promoting" or (plan.state == "canary" and plan.share > 0)
    return {plan.old, plan.new} if both else {plan.old}


def moved_too_often(asked: Sequence[Asked], moments: Sequence[Moment]) -> int:
    """Sessions that went to the new release more than once in one rollout, or came back though it was promoted."""
    rollouts = {(m.plan.began_s, m.plan.old, m.plan.new) for m in moments if m.plan.state == "canary"}
    count = 0
    for _, old, new in rollouts:
        for session in {each.session for each in asked if each.session}:
            own = sorted(
                (e for e in asked if e.session == session and e.release in (old, new)), key=lambda e: e.began_s
            )
            releases = [release for release, _ in itertools.groupby(each.release for each in own)]
            count += releases.count(new or "") > 1
    return count


def _began(asked: Asked) -> float:
    return asked.began_s


def _version(answer: httpx.Response) -> str:
    return answer.headers.get("x-rag-release", "").partition("@")[2]


def _problem(status: int, text: str, *, stream: bool) -> str:
    if status != 200:
        return f"{status}: {text[:300]}"
    if not stream:
        return "" if json.loads(text)["choices"] else f"no choices: {text[:300]}"
    if 'data: {"error"' in text:
        return f"an error frame: {text[-300:]}"
    return "" if text.rstrip().endswith("data: [DONE]") else f"a stream without its end: {text[-300:]}"
