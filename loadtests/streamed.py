"""One streamed answer of any OpenAI-compatible server, read chunk by chunk: what the load generators are made of."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx

CHAT: Final = "/v1/chat/completions"
Problem = Literal["", "connection", "timeout", "refused", "status", "error frame", "cut off"]
_REFUSED: Final = 429
_TOLD_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of one request. Times are milliseconds since it was sent, or since it was to be sent.

    `text_ms` are the arrivals of the chunks with text in them; `ended_ms` that of the first chunk that ends an answer,
    with or without text. `problem` is empty for an answer that came whole; `detail` is what the server said.
    """

    status: int
    text_ms: tuple[float, ...] = ()
    ended_ms: float | None = None
    total_ms: float = 0.0
    text: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    rag: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    problem: Problem = ""
    detail: str = ""

    @property
    def ttft_ms(self) -> float | None:
        """To the first chunk with text, or to the one that ends an answer without text."""
        return self.text_ms[0] if self.text_ms else self.ended_ms

    @property
    def gaps_ms(self) -> tuple[float, ...]:
        """Between one chunk with text and the next."""
        return tuple(later - earlier for earlier, later in zip(self.text_ms, self.text_ms[1:], strict=False))

    @property
    def output_tokens(self) -> int:
        """As the server counts them; where it does not say, chunks with text."""
        return int(self.usage.get("completion_tokens") or len(self.text_ms))

    @property
    def tpot_ms(self) -> float | None:
        """Mean time of a token after the first; none for answers of one token."""
        if len(self.text_ms) < 2 or self.output_tokens < 2:
            return None
        return (self.text_ms[-1] - self.text_ms[0]) / (self.output_tokens - 1)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that the engine had in its cache, as far as the server tells."""
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def ask(
    client: httpx.AsyncClient,
    body: Mapping[str, Any],
    *,
    path: str = CHAT,
    headers: Mapping[str, str] | None = None,
    since: float | None = None,
) -> Streamed:
    """Send a chat request and read its stream to the end. What goes wrong is told in the outcome and never raised.

    `since` is when it was to be sent, by `time.perf_counter`; so what waits behind a slow server is seen to wait.
    """
    data = json.dumps(body).encode()
    started = time.perf_counter() if since is None else since
    reading = _Reading(started)
    sent = {"content-type": "application/json", **(headers or {})}
    try:
        async with client.stream("POST", path, content=data, headers=sent) as response:
            reading.status, reading.headers = response.status_code, dict(response.headers)
            if response.status_code != 200:
                told = (await response.aread()).decode(errors="replace")[:_TOLD_CHARS]
                return reading.outcome("refused" if response.status_code == _REFUSED else "status", told)
            await reading.read(response.aiter_lines())
    except httpx.TimeoutException as exc:
        return reading.outcome("timeout", repr(exc))
    except httpx.HTTPError as exc:
        return reading.outcome("cut off" if reading.text_ms else "connection", repr(exc))
    if reading.error:
        return reading.outcome("error frame", reading.error)
    # Not every server says [DONE]; all of them end an answer with a reason.
    whole = reading.done or reading.ended_ms is not None
    return reading.outcome("" if whole else "cut off", "" if whole else "the stream ended without an end")


class _Reading:
    """What has come of a stream so far."""

    def __init__(self, started: float) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text_ms: list[float] = []
        self.ended_ms: float | None = None
        self.error = ""
        self.done = False
        self._started = started
        self._last = started
        self._text: list[str] = []
        self._usage: Mapping[str, Any] = {}
        self._rag: Mapping[str, Any] = {}

    async def read(self, lines: AsyncIterator[str]) -> None:
        async for line in lines:
            if not line.startswith("data:"):
                continue
            self._last = time.perf_counter()
            if (data := line[5:].strip()) == "[DONE]":
                self.done = True
                return
            self._take(json.loads(data))

    def _take(self, chunk: Mapping[str, Any]) -> None:
        if "error" in chunk:
            self.error = json.dumps(chunk["error"])[:_TOLD_CHARS]
            return
        self._usage = chunk.get("usage") or self._usage
        self._rag = chunk.get("rag") or self._rag
        for choice in chunk.get("choices") or ():
            piece = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
            if piece:
                self._text.append(piece)
                self.text_ms.append((self._last - self._started) * 1e3)
            if choice.get("finish_reason") is not None and self.ended_ms is None:
                self.ended_ms = (self._last - self._started) * 1e3

    def outcome(self, problem: Problem, detail: str) -> Streamed:
        if self.status == 0 or problem in ("status", "refused", "timeout", "connection"):
            self._last = time.perf_counter()
        return Streamed(
            status=self.status,
            text_ms=tuple(self.text_ms),
            ended_ms=self.ended_ms,
            total_ms=(self._last - self._started) * 1e3,
            text="".join(self._text),
            usage=self._usage,
            rag=self._rag,
            headers=self.headers,
            problem=problem,
            detail=detail,
        )
