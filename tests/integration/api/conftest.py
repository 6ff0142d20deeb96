"""Layers behind real servers."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from openai import OpenAI
from starlette.applications import Starlette
from starlette.types import ASGIApp

from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.retriever import Retriever
from tests.engine import build_engine
from tests.integration.api.layered import Layered, Settings, Watched, layer
from tests.layer import shelf_of
from tests.servers import serve

OpenLayer = Callable[..., Layered]


@pytest.fixture
def open_layer(indexes: Mapping[str, IndexVersion], embedder: Embedder) -> Iterator[OpenLayer]:
    """Serve a layer: `open_layer(engine, around=..., embedder=..., **Settings)`; closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_one(
            engine: Starlette | None = None,
            *,
            around: Callable[[ASGIApp], ASGIApp] = lambda app: app,
            embedder: Embedder = embedder,
            **settings: Any,
        ) -> Layered:
            engine = engine or build_engine()
            chosen, recorder, watched = Settings(**settings), MemoryRecorder(), Watched(engine)
            retriever = Retriever(
                embedder, shelf_of(indexes), threads=chosen.threads, queue=chosen.queue, recorder=recorder
            )
            stack.callback(retriever.close)
            app = layer(watched, engine.state, indexes, retriever, settings=chosen, recorder=recorder)
            url = stack.enter_context(serve(around(app)))
            return Layered(url, engine, watched, recorder, retriever)

        yield open_one


@pytest.fixture
def layered(open_layer: OpenLayer) -> Layered:
    """The usual layer: stores "atlas" and "kitchen", no default store, no keys."""
    return open_layer()


@pytest.fixture
def client(layered: Layered) -> Iterator[OpenAI]:
    """The official client of `layered`."""
    with layered.openai() as client:
        yield client
