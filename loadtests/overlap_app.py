"""What `loadtests.overlap` asks: the release's retrieval and our layer, in this process, with prefill or without."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx
import numpy as np
import numpy.typing as npt
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rag_stack.api.health import Readiness
from rag_stack.api.http import while_connected
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import Release
from rag_stack.metrics import PREFILLS, MemoryRecorder
from rag_stack.rag.prefill import PrefillSettings
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.retrieval.fusion import Ranking
from rag_stack.retrieval.retriever import Reranker, Retriever
from rag_stack.serving.opening import OpenRetrieval, build_layer, fetch_model, open_retrieval
from rag_stack.timeline import Timeline
from rag_stack.types import Passage

SETTINGS: Final = PrefillSettings(at_once=2, least_share=0.1)
_OUTCOMES: Final = ("started", "used", "cancelled", "failed")


@dataclass(frozen=True, slots=True)
class TimedReranker:
    """A reranker that takes `seconds` of nobody's CPU, and leaves the first `stay` passages where they are.

    The others come in the opposite order, so that none of the first ones stands in its place any more.
    """

    seconds: float
    stay: int

    def scores(
        self,
        query: str,  # noqa: ARG002
        passages: Sequence[Passage],
        *,
        stopped: Callable[[], bool] | None = None,  # noqa: ARG002
    ) -> npt.NDArray[np.float32]:
        """From 1 to 0.5, in the order in which they are to be."""
        time.sleep(self.seconds)
        count = len(passages)
        order = [*range(min(self.stay, count)), *reversed(range(min(self.stay, count), count))]
        scores = np.empty(count, np.float32)
        scores[order] = np.linspace(1.0, 0.5, count, dtype=np.float32)
        return scores


class EngineElsewhere:
    """An engine's app that is a server's: what goes in and out passes unchanged, and a client that is gone is told."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(300.0))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = (await receive())["body"]
        await while_connected(self._pass(scope, body, send), receive)

    async def _pass(self, scope: Scope, body: bytes, send: Send) -> None:
        headers = {"content-type": "application/json"}
        async with self._client.stream(scope["method"], scope["path"], content=body, headers=headers) as answer:
            kept = [(k, v) for k, v in answer.headers.raw if k.lower() == b"content-type"]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True, slots=True)
class Opened:
    """The release, open in this process."""

    pinned: PinnedRelease
    retrieval: OpenRetrieval
    tiers: Tiers

    def app(self, engine: ASGIApp, reranker: Reranker, *, prefill: bool, recorder: MemoryRecorder) -> ASGIApp:
        """The layer around an engine, with a retriever of its own over the same index."""
        release = self.pinned.release
        retriever = Retriever(
            self.retrieval.embedder,
            self.retrieval.shelf,
            threads=2,
            queue=64,
            recorder=recorder,
            ranking=Ranking.of(release.retrieval),
            reranker=reranker,
        )
        directory = fetch_model(self.tiers, release.model, timeline=Timeline()).path
        opened = replace(self.retrieval, retriever=retriever)
        layer = build_layer(self.pinned, opened, model_directory=directory, readiness=_ready, recorder=recorder)
        return replace(layer, prefill=SETTINGS if prefill else None).around(engine)


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: seconds to its first token, what was said and cited, and the retrieval's stages in milliseconds."""

    ttft_s: float
    text: str
    sources: tuple[str, ...]
    citations: tuple[tuple[int, int, int], ...]
    timings_ms: dict[str, float]

    @property
    def retrieval_s(self) -> float:
        """Until the final prompt was there."""
        return sum(self.timings_ms.values()) / 1e3

    @property
    def rerank_s(self) -> float:
        """The rerank alone."""
        return self.timings_ms.get("rerank", 0.0) / 1e3


def open_release(release: Release) -> Opened:
    """Everything but the engine. Blocking."""
    recorder = MemoryRecorder()
    tiers = open_tiers(release.artifacts, recorder)
    pinned = pin(release, tiers)
    retrieval = open_retrieval(pinned, tiers, timeline=Timeline(), recorder=recorder, fetch_beside=lambda _: None)
    return Opened(pinned, retrieval, tiers)


async def ask(app: ASGIApp, question: str, *, model: str, max_tokens: int, salt: str) -> Answered:
    """Ask once, streamed, in process. Raises RuntimeError for anything but a whole answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "cache_salt": salt,
    }
    stream = _Stream(json.dumps(body).encode())
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, stream.receive, stream.send)
    return stream.answered()


def told(recorder: MemoryRecorder) -> dict[str, int]:
    """How many prompts were read ahead, and what became of them."""
    return {outcome: len(recorder.values(PREFILLS, {"outcome": outcome})) for outcome in _OUTCOMES}


@asynccontextmanager
async def closing(engine: EngineElsewhere) -> AsyncIterator[EngineElsewhere]:
    """The engine until the block ends."""
    try:
        yield engine
    finally:
        await engine._client.aclose()


class _Stream:
    """A client of its own request: it never goes away."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._began = time.perf_counter()
        self._ttft_s: float | None = None
        self._received = b""
        self._status = 0

    async def receive(self) -> Message:
        """The body, and then nothing for as long as anybody listens."""
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Note when the first token comes."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            return
        piece = message.get("body", b"")
        self._received += piece
        if self._ttft_s is None and any(_text(frame) for frame in _frames(piece)):
            self._ttft_s = time.perf_counter() - self._began

    def answered(self) -> Answered:
        """What came."""
        frames = _frames(self._received)
        if self._status != 200 or self._ttft_s is None:
            raise RuntimeError(f"expected a streamed answer, got {self._status}: {self._received[:300]!r}")
        rag = next((frame["rag"] for frame in reversed(frames) if frame.get("rag")), {})
        return Answered(
            ttft_s=self._ttft_s,
            text="".join(_text(frame) for frame in frames),
            sources=tuple(str(each.get("passage_id") or each.get("file_id")) for each in rag.get("sources", ())),
            citations=tuple(
                (each["source"], each["start_index"], each["end_index"]) for each in rag.get("citations", ())
            ),
            timings_ms={key: float(value) for key, value in rag.get("timings_ms", {}).items()},
        )


def _frames(data: bytes) -> list[dict[str, Any]]:
    lines = (line.removeprefix(b"data: ") for line in data.split(b"\n") if line.startswith(b"data: {"))
    return [json.loads(line) for line in lines if line.endswith(b"}")]


def _text(frame: dict[str, Any]) -> str:
    choices = frame.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


async def _ready() -> Readiness:
    return Readiness(ready=True)
