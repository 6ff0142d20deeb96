"""The real layer around the tiny engine, with what a test needs to look at."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai import OpenAI
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.api.auth import KeyRing, digest
from rag_stack.api.health import Health, Readiness
from rag_stack.api.models import Models
from rag_stack.api.rag_layer import RagLayer
from rag_stack.api.retrieval_request import RequestReader
from rag_stack.api.vector_stores import StoreCard, VectorStores
from rag_stack.config import RetrievalConfig
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import MemoryRecorder
from rag_stack.rag.cache_mirror import UNKNOWN_CACHE
from rag_stack.rag.citations import Citer
from rag_stack.rag.ordering import document_order
from rag_stack.rag.pipeline import Pipeline
from rag_stack.rag.prompt import PromptBuilder
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.retriever import Retriever

MAX_BODY_BYTES = 1 << 20
SYSTEM = "Answer from the documents."
WAIT_S = 30.0
VERSION = "0123456789ab"


@dataclass(frozen=True)
class Settings:
    """How a test's layer differs from the usual one."""

    default_store: str | None = None
    keys: Sequence[str] = ()
    threads: int = 1
    queue: int = 8
    top_k: int = 2
    special_tokens: tuple[str, ...] = ()
    release_version: str = VERSION
    readiness: Readiness = field(default_factory=lambda: Readiness(ready=True, parts={"engine": "open"}))


class Watched:
    """An engine's app that remembers the scopes it was called with."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.scopes.append(scope)
        await self._app(scope, receive, send)

    def headers(self) -> dict[str, str]:
        """The headers of the latest call."""
        return {key.decode(): value.decode() for key, value in self.scopes[-1]["headers"]}


class HeldEmbedder(Embedder):
    """The real embedder behind a door: `entered` tells that a search stands there, `open` lets all through."""

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self.tokenizer, self.name, self.digest = inner.tokenizer, inner.name, inner.digest
        self.dimension, self.max_tokens = inner.dimension, inner.max_tokens
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Any:
        self.entered.release()
        assert self.open.wait(WAIT_S), "the test never opened the door"
        return self._inner.encode(texts, batch_size=batch_size)


@dataclass(frozen=True)
class Layered:
    """A layer that is being served."""

    url: str
    engine: Starlette
    watched: Watched
    recorder: MemoryRecorder
    retriever: Retriever

    def openai(self, *, key: str = "none", **options: Any) -> OpenAI:
        """The official client, which tries once and waits no longer than a test would."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=WAIT_S, **options)

    def http(self, **options: Any) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.url, timeout=WAIT_S, **options)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        """POST a JSON body."""
        with self.http() as client:
            return client.post(path, json=body, **options)

    def chat(self, body: Mapping[str, Any], **options: Any) -> httpx.Response:
        """POST a chat for the engine's model."""
        return self.post("/v1/chat/completions", {"model": "tiny", **body}, **options)

    @property
    def asked(self) -> dict[str, Any]:
        """The latest body that reached the engine."""
        return dict(self.engine.state.requests[-1])


@dataclass(frozen=True)
class Streamed:
    """A stream as it came: JSON chunks, and whether `[DONE]` ended it."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    @classmethod
    def of(cls, response: httpx.Response) -> "Streamed":
        assert response.headers["content-type"].startswith("text/event-stream"), response.text
        data = [frame.removeprefix("data: ") for frame in response.text.split("\n\n") if frame]
        return cls([json.loads(each) for each in data if each != "[DONE]"], done=data[-1] == "[DONE]")

    def deltas(self, index: int = 0) -> list[dict[str, Any]]:
        """One choice's deltas."""
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices", [])]
        return [choice["delta"] for choice in choices if choice["index"] == index]

    def text(self, index: int = 0) -> str:
        """One choice's text."""
        return "".join(delta.get("content") or "" for delta in self.deltas(index))

    def annotations(self, index: int = 0) -> list[dict[str, Any]]:
        """One choice's annotations."""
        return [each for delta in self.deltas(index) for each in delta.get("annotations") or []]


def layer(
    engine: ASGIApp,
    state: Any,
    indexes: Mapping[str, IndexVersion],
    retriever: Retriever,
    *,
    settings: Settings,
    recorder: MemoryRecorder,
) -> ASGIApp:
    """Put together as `rag_stack.serving.opening` does it."""
    prompt = PromptBuilder(
        system=SYSTEM,
        context_tokens=state.max_model_len,
        reserve_tokens=64,
        tokenizer=state.vocabulary,
        special_tokens=settings.special_tokens,
        ordering=document_order("cached", UNKNOWN_CACHE),
    )

    async def readiness() -> Readiness:
        return settings.readiness

    return RagLayer(
        pipeline=Pipeline(
            retriever, prompt=prompt, citer=Citer(), retrieval=RetrievalConfig(top_k=settings.top_k), recorder=recorder
        ),
        reader=RequestReader(state.model, lambda: tuple(indexes), settings.default_store),
        vector_stores=VectorStores(
            lambda: [_card(name, each) for name, each in indexes.items()], retriever, MAX_BODY_BYTES
        ),
        models=Models(state.model, lambda: tuple(indexes), 1_700_000_000),
        health=Health(readiness),
        keys=KeyRing([digest(key) for key in settings.keys]),
        recorder=recorder,
        release="test-release",
        release_version=settings.release_version,
        max_body_bytes=MAX_BODY_BYTES,
    ).around(engine)


def _card(name: str, index: IndexVersion) -> StoreCard:
    return StoreCard(
        name=name,
        description=f"about {name}",
        index_version=index.version,
        created_at=1_700_000_000,
        documents=index.document_count,
        usage_bytes=index.usage_bytes,
    )
