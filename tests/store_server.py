"""Stores over HTTP in one process: real state on a real object store, real indexes, the tiny engine for answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.api.auth import KeyRing, digest
from rag_stack.api.files import FilesEndpoint
from rag_stack.api.gate import Gate
from rag_stack.api.health import Health, Readiness
from rag_stack.api.models import Models
from rag_stack.api.rag_layer import RagLayer
from rag_stack.api.retrieval_request import RequestReader
from rag_stack.api.store_control import StoreControl
from rag_stack.api.store_encoding import ChunkingLimits
from rag_stack.api.store_keeper import StoreKeeper
from rag_stack.api.vector_stores import StoreCard, VectorStores
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import RetrievalConfig
from rag_stack.index.format import Chunking
from rag_stack.jobs.store_build import StoreBuild
from rag_stack.metrics import MemoryRecorder
from rag_stack.rag.citations import Citer
from rag_stack.rag.pipeline import Pipeline
from rag_stack.rag.prompt import PromptBuilder
from rag_stack.retrieval.local_rollout import LocalRollout
from rag_stack.retrieval.preparation import Preparation
from rag_stack.retrieval.retriever import Retriever
from rag_stack.retrieval.shelf import Shelf
from rag_stack.stores.files import Files
from rag_stack.stores.ingest import Build, Ingest, Patience, Rollout
from rag_stack.stores.register import Register
from tests.embedder import WordEmbedder
from tests.engine import build_engine
from tests.layer import CREATED_AT, TOWN, build_index
from tests.servers import serve

MAX_FILE_BYTES = 100 << 20
CHUNKING = Chunking(max_tokens=120, overlap_tokens=20)
PATIENCE = Patience(attempts=3, backoff_s=0.05, max_backoff_s=0.2, settle_s=10.0, rescan_s=60.0)


@dataclass(frozen=True)
class StoreServer:
    """What is being served, with what a test needs to look at."""

    url: str
    register: Register
    files: Files
    shelf: Shelf
    catalog: Catalog


Around = Callable[[Build, Rollout], tuple[Build, Rollout]]


@contextlib.contextmanager
def serve_stores(
    root_url: str,
    directory: Path,
    *,
    keys: Sequence[str] = (),
    around: Around = lambda build, rollout: (build, rollout),
    wait_s: float = 20.0,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> Iterator[StoreServer]:
    """Everything a server of stores needs, over the object store at a URL, with "town" as the release's one store."""
    engine, recorder, embedder = build_engine(), MemoryRecorder(), WordEmbedder()
    object_store = open_store(root_url)
    tiers = Tiers(Catalog(object_store), NodeCache(directory / "cache"), recorder)
    shelf = Shelf(Preparation(tiers, recorder, embedder_digest=embedder.digest))
    town = directory / "town"
    shelf.add("town", build_index(town, TOWN, embedder=embedder, name="town"))
    retriever = Retriever(embedder, shelf, threads=1, queue=32, recorder=recorder)
    register, files = Register(object_store), Files(object_store)
    build, rollout = around(StoreBuild(files, tiers, embedder, chunking=CHUNKING), LocalRollout(shelf, tiers.catalog))
    ingest = Ingest(register, build, rollout, patience=PATIENCE)
    reading = VectorStores(lambda: [_card(shelf)], retriever, 4 << 20)
    limits = ChunkingLimits(CHUNKING, embedder.max_tokens)
    keeper = StoreKeeper(register, files, ingest, limits, lambda: ("town",), wait_s=wait_s)
    endpoint = FilesEndpoint(files, keeper.remove_everywhere, max_file_bytes)
    ring = KeyRing([digest(key) for key in keys])
    control = Gate(
        [*StoreControl(reading, keeper).routes(), *endpoint.routes()], keys=ring, open_paths=(), recorder=recorder
    )
    layer = _layer(engine, retriever, reading, shelf, ring, recorder)
    app = _App(control, layer, ingest)
    try:
        with serve(app) as url:
            yield StoreServer(url, register, files, shelf, tiers.catalog)
    finally:
        retriever.close()


class _App:
    """Requests go where HAProxy would send them; the ingest runs as long as the server does."""

    def __init__(self, control: ASGIApp, layer: ASGIApp, ingest: Ingest) -> None:
        self._control, self._layer, self._ingest = control, layer, ingest
        self._router = Router(lifespan=self._lifespan)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._router(scope, receive, send)
        elif scope["path"].startswith(("/v1/vector_stores", "/v1/files")):
            await self._control(scope, receive, send)
        else:
            await self._layer(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        task = asyncio.create_task(self._ingest.run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _layer(
    engine: Starlette,
    retriever: Retriever,
    reading: VectorStores,
    shelf: Shelf,
    keys: KeyRing,
    recorder: MemoryRecorder,
) -> ASGIApp:
    prompt = PromptBuilder(
        system="Answer from the documents.",
        context_tokens=engine.state.max_model_len,
        reserve_tokens=256,
        tokenizer=engine.state.vocabulary,
    )

    async def ready() -> Readiness:
        return Readiness(ready=True, parts={})

    return RagLayer(
        pipeline=Pipeline(
            retriever, prompt=prompt, citer=Citer(), retrieval=RetrievalConfig(top_k=2), recorder=recorder
        ),
        reader=RequestReader(engine.state.model, shelf.names, "town"),
        vector_stores=reading,
        models=Models(engine.state.model, shelf.names, CREATED_AT),
        health=Health(ready),
        keys=keys,
        recorder=recorder,
        release="test-release",
        max_body_bytes=4 << 20,
    ).around(engine)


def _card(shelf: Shelf) -> StoreCard:
    state = shelf.state()["town"]
    return StoreCard("town", "about town", state.version, CREATED_AT, state.documents, state.usage_bytes)
