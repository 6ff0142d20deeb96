"""The real layer around the tiny engine: real FAISS indexes on disk, real retrieval, prompt and citations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.types import ASGIApp

from rag_stack.api.admission import Admission
from rag_stack.api.auth import KeyRing, digest
from rag_stack.api.health import Health, Readiness
from rag_stack.api.models import Models
from rag_stack.api.rag_layer import RagLayer
from rag_stack.api.retrieval_request import RequestReader
from rag_stack.api.vector_stores import StoreCard, VectorStores
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.config import RetrievalConfig
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import Document
from rag_stack.index.format import EmbedderRef, Lexical
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import MemoryRecorder, Recorder
from rag_stack.rag.citations import Citer
from rag_stack.rag.pipeline import Pipeline
from rag_stack.rag.prefill import PrefillSettings
from rag_stack.rag.prompt import PromptBuilder
from rag_stack.retrieval.retriever import Reranker, Retriever
from rag_stack.retrieval.shelf import Shelf
from rag_stack.tracing.tracer import UNTRACED, Tracer
from tests.embedder import WordEmbedder

CREATED_AT = 1_700_000_000
LIGHTHOUSE = Document(
    document_id="lighthouse",
    text="The lighthouse of Alden burns whale oil in nine copper lamps. Its keeper climbs 200 steps every night.",
    title="The lighthouse",
    uri="https://docs.example/lighthouse",
    attributes={"filename": "lighthouse.txt", "year": 1901.0},
)
HARBOUR = Document(
    document_id="harbour",
    text="The harbour of Alden freezes in January and closes to fishing boats. Northern storms break over its pier.",
    title="The harbour",
    uri="https://docs.example/harbour",
    attributes={"filename": "harbour.txt", "year": 1950.0},
)
BAKERY = Document(
    document_id="bakery",
    text="The bakery sells rye bread with caraway seeds. Every Friday the oven also roasts chestnuts.",
    title="The bakery",
    uri="",
    attributes={"filename": "bakery.txt"},
)
TOWN = (LIGHTHOUSE, HARBOUR, BAKERY)


def build_index(directory: Path, documents: Sequence[Document], *, embedder: WordEmbedder, name: str) -> IndexVersion:
    """Build an index version in `directory`, a passage a document, and open it."""
    directory.mkdir(parents=True)
    cut = cut_documents(documents, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens, chunking=None)
    ref = EmbedderRef(name=embedder.name, digest=embedder.digest)
    metadata = write_index(directory, cut, embedder.encode(cut.inputs), embedder=ref, lexical=Lexical())
    manifest = Manifest(
        kind="indexes", name=name, version="v1", files=describe_files(directory), metadata=metadata.to_json()
    )
    return IndexVersion.open(directory, manifest, embedder_digest=embedder.digest)


def publish_index(
    catalog: Catalog,
    directory: Path,
    documents: Sequence[Document],
    *,
    embedder: WordEmbedder,
    name: str,
    digest: str | None = None,
    version: str | None = None,
) -> Manifest:
    """Build an index version in `directory` and publish it, as if its embedder had `digest`; it is not promoted."""
    directory.mkdir(parents=True)
    cut = cut_documents(documents, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens, chunking=None)
    ref = EmbedderRef(name=embedder.name, digest=digest or embedder.digest)
    metadata = write_index(directory, cut, embedder.encode(cut.inputs), embedder=ref, lexical=Lexical()).to_json()
    return catalog.publish(directory, kind="indexes", name=name, metadata=metadata, version=version)


def shelf_of(indexes: Mapping[str, IndexVersion]) -> Shelf:
    """A shelf of index versions that are open."""
    shelf = Shelf()
    for name, index in indexes.items():
        shelf.add(name, index)
    return shelf


def build_layer(
    engine: Starlette,
    directory: Path,
    *,
    stores: Mapping[str, Sequence[Document]] | None = None,
    default_store: str | None = "town",
    keys: Sequence[str] = (),
    top_k: int = 2,
    queue: int = 8,
    context_tokens: int | None = None,
    recorder: Recorder | None = None,
    admission: Admission | None = None,
    tracer: Tracer = UNTRACED,
    reranker: Reranker | None = None,
    prefill: PrefillSettings | None = None,
) -> ASGIApp:
    """The layer around `engine`, with its stores' indexes in `directory`. By default one store, "town"."""
    recorder = recorder or MemoryRecorder()
    embedder = WordEmbedder()
    indexes = {
        name: build_index(directory / name, documents, embedder=embedder, name=name)
        for name, documents in (stores if stores is not None else {"town": TOWN}).items()
    }
    retriever = Retriever(
        embedder,
        shelf_of(indexes),
        threads=1,
        queue=queue,
        recorder=recorder,
        reranker=reranker,
        tracer=tracer,
    )
    prompt = PromptBuilder(
        system="Answer from the documents.",
        context_tokens=context_tokens or engine.state.max_model_len,
        reserve_tokens=256,
        tokenizer=engine.state.vocabulary,
    )
    layer = RagLayer(
        pipeline=Pipeline(
            retriever,
            prompt=prompt,
            citer=Citer(),
            retrieval=RetrievalConfig(top_k=top_k),
            recorder=recorder,
            tracer=tracer,
        ),
        reader=RequestReader(engine.state.model, lambda: tuple(indexes), default_store),
        vector_stores=VectorStores(lambda: [_card(name, index) for name, index in indexes.items()], retriever, 1 << 20),
        models=Models(engine.state.model, lambda: tuple(indexes), CREATED_AT),
        health=Health(_ready),
        keys=KeyRing([digest(key) for key in keys]),
        recorder=recorder,
        release="test-release",
        release_version="0123456789ab",
        max_body_bytes=1 << 20,
        admission=admission,
        tracer=tracer,
        prefill=prefill,
    )
    return layer.around(engine)


def _card(name: str, index: IndexVersion) -> StoreCard:
    return StoreCard(
        name=name,
        description=f"about {name}",
        index_version=index.version,
        created_at=CREATED_AT,
        documents=index.document_count,
        usage_bytes=index.usage_bytes,
    )


async def _ready() -> Readiness:
    return Readiness(ready=True, parts={"engine": "ready"})
