"""A client as the official one is: two retries, a growing pause, `Retry-After`; and what it saw, whole.

A stream that has begun is not asked again, by it or by the official client: it ends with `[DONE]`, with an error that
the client raises, or silently, which no server may do.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import httpx

Json: TypeAlias = dict[str, Any]
# How a request ended, for who asked. `left`: the client went away on purpose.
Ending: TypeAlias = Literal["ok", "gave up", "broken", "error frame", "silent", "left", "wrong"]
Kind: TypeAlias = Literal["chat", "stream", "search", "session", "leaver", "models"]

RETRIES: Final = 2
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 8.0
_LONGEST_RETRY_AFTER_S: Final = 60.0
_RETRIED: Final = frozenset({408, 409, 429})
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a client, with its retries. Seconds of the monotonic clock.

    `failures` are the tries that failed, as a client without retries would have seen them; `version` is the index
    version that the answer names; `detail` says what was wrong.
    """

    kind: Kind
    began_s: float
    ended_s: float
    ending: Ending
    failures: tuple[str, ...] = ()
    first_s: float | None = None
    version: str = ""
    detail: str = ""

    def during(self, began_s: float, ended_s: float) -> bool:
        """Whether the request was under way at some time of a span."""
        return self.began_s <= ended_s and self.ended_s >= began_s


class TryError(Exception):
    """A try that failed, and after how long the server wants the next."""

    def __init__(self, told: str, *, retry_after_s: float | None = None, final: bool = False) -> None:
        super().__init__(told)
        self.retry_after_s = retry_after_s
        self.final = final


class RetryingClient:
    """Asks until there is an answer or the retries are used up."""

    def __init__(self, url: str, *, seed: int, retries: int = RETRIES) -> None:
        # A connection for each request, so that nothing is learnt from the one before: the worst case of a client.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits)
        self._random = random.Random(seed)
        self._retries = retries

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(
        self,
        kind: Kind,
        path: str,
        body: Json | None,
        *,
        headers: Mapping[str, str] | None = None,
        judge: Callable[[Json], str] = lambda _: "",
    ) -> Asked:
        """One answer that is not streamed; `judge` says what is wrong with it, and nothing of one that is right."""
        began_s = time.monotonic()
        failures: list[str] = []
        while True:
            try:
                answer = await self._whole(path, body, headers)
                wrong, told = judge(answer), {"version": _version_of(answer), "failures": tuple(failures)}
                return Asked(kind, began_s, time.monotonic(), "wrong" if wrong else "ok", detail=wrong, **told)
            except TryError as exc:
                failures.append(str(exc))
                if exc.final or len(failures) > self._retries:
                    return Asked(kind, began_s, time.monotonic(), "gave up", tuple(failures), detail=str(exc))
                await asyncio.sleep(self._pause(len(failures), exc.retry_after_s))

    async def stream(self, kind: Kind, path: str, body: Json, *, leave_after_s: float | None = None) -> Asked:
        """One streamed answer; a client that leaves closes its connection after so long."""
        began_s = time.monotonic()
        failures: list[str] = []
        while True:
            try:
                async with asyncio.timeout(leave_after_s):
                    ending, first_s, detail = await self._streamed(path, {**body, "stream": True}, began_s)
                return Asked(kind, began_s, time.monotonic(), ending, tuple(failures), first_s, detail=detail)
            except TimeoutError:
                return Asked(kind, began_s, time.monotonic(), "left", tuple(failures))
            except TryError as exc:
                failures.append(str(exc))
                if exc.final or len(failures) > self._retries:
                    return Asked(kind, began_s, time.monotonic(), "gave up", tuple(failures), detail=str(exc))
                await asyncio.sleep(self._pause(len(failures), exc.retry_after_s))

    async def _whole(self, path: str, body: Json | None, headers: Mapping[str, str] | None) -> Json:
        try:
            method = "GET" if body is None else "POST"
            response = await self._http.request(method, path, json=body, headers=headers)
            check(response)
            answer: Json = response.json()
        except httpx.HTTPError as exc:
            raise TryError(f"{type(exc).__name__}") from exc
        except json.JSONDecodeError as exc:
            raise TryError(f"not JSON: {response.text[:80]!r}", final=True) from exc
        if "error" in answer:  # after the headers were sent, as a keep-alive while a wake goes on makes it
            raise TryError(f"200 with an error: {answer['error']}"[:200], final=True)
        return answer

    async def _streamed(self, path: str, body: Json, began_s: float) -> tuple[Ending, float | None, str]:
        first_s: float | None = None
        try:
            async with self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                check(response)
                async for line in response.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    first_s = first_s if first_s is not None else time.monotonic() - began_s
                    frame = line.removeprefix("data:").strip()
                    if frame == "[DONE]":
                        return "ok", first_s, ""
                    if "error" in (told := json.loads(frame)):
                        return "error frame", first_s, str(told["error"])[:200]
                return "silent", first_s, "the body ended without [DONE] and without an error"
        except httpx.HTTPError as exc:
            if first_s is None:
                raise TryError(type(exc).__name__) from exc
            return "broken", first_s, f"{type(exc).__name__}: {exc}"

    def _pause(self, tries: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None and 0 < retry_after_s <= _LONGEST_RETRY_AFTER_S:
            return retry_after_s
        longest = min(_FIRST_PAUSE_S * 2 ** (tries - 1), _LONGEST_PAUSE_S)
        return float(longest * (1 - 0.25 * self._random.random()))


def check(response: httpx.Response) -> None:
    """Raise TryError for a status that is not 200: final when the official client would not ask again."""
    if response.status_code == 200:
        return
    final = response.status_code < 500 and response.status_code not in _RETRIED
    told = f"{response.status_code} {response.text[:120]}"
    raise TryError(told, retry_after_s=_seconds(response.headers.get("retry-after")), final=final)


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _version_of(answer: Json) -> str:
    """The index version that an answer names: a search's on its page, a chat's under `rag`."""
    named = answer.get("index_version") or (answer.get("rag") or {}).get("index_version") or ""
    return str(named)
