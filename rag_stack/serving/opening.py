"""Opens what a pinned release names: artifacts to this node, embedder and indexes into this process, one layer."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rag_stack.api.auth import KeyRing
from rag_stack.api.health import Health, Readiness
from rag_stack.api.models import Models
from rag_stack.api.rag_layer import RagLayer
from rag_stack.api.retrieval_request import RequestReader
from rag_stack.api.vector_stores import StoreCard, VectorStores
from rag_stack.artifacts.manifest import ArtifactKind
from rag_stack.artifacts.tiers import LocalArtifact, Tiers
from rag_stack.config import Release
from rag_stack.generation.engine_settings import context_tokens
from rag_stack.generation.tokenizer import GeneratorTokenizer
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, ARTIFACT_LOAD_SECONDS, Recorder
from rag_stack.rag.citations import Citer
from rag_stack.rag.pipeline import Pipeline
from rag_stack.rag.prompt import PromptBuilder
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.retriever import Retriever
from rag_stack.serving.pinning import PinnedRelease
from rag_stack.serving.stages import Stage, StageClock


@dataclass(frozen=True, slots=True)
class OpenRetrieval:
    """Retrieval that is ready to search, with what is told about its stores."""

    retriever: Retriever
    cards: tuple[StoreCard, ...]


def fetch(tiers: Tiers, kind: ArtifactKind, name: str, version: str | None, *, clock: StageClock) -> LocalArtifact:
    """An artifact on this node, as a stage of the start."""
    local = tiers.ensure_local(tiers.catalog.resolve(kind, name, version))
    clock.add(Stage(f"fetch {kind}/{name}", local.seconds, local.size_bytes, local.source))
    return local


def open_retrieval(pinned: PinnedRelease, tiers: Tiers, *, clock: StageClock, recorder: Recorder) -> OpenRetrieval:
    """Embedder and indexes, mapped and prefaulted. Blocking: seconds.

    Raises EmbedderMismatchError, IndexVersionError or an ArtifactError, each with what to do.
    """
    release = pinned.release
    local = fetch(tiers, "models", release.embedder.name, release.embedder.version, clock=clock)
    with clock.time("load embedder"):
        embedder = Embedder.load(
            local.path,
            name=release.embedder.name,
            digest=local.manifest.digest,
            threads=release.retrieval.threads_per_search,
        )
    indexes = open_indexes(release, tiers, embedder_digest=embedder.digest, clock=clock)
    for name, index in indexes.items():
        _prefault(name, index, clock=clock, recorder=recorder)
    retriever = Retriever(
        embedder,
        indexes,
        threads=release.retrieval.threads,
        threads_per_search=release.retrieval.threads_per_search,
        queue=release.retrieval.queue,
        recorder=recorder,
    )
    return OpenRetrieval(retriever, _cards(pinned, indexes))


def open_indexes(release: Release, tiers: Tiers, *, embedder_digest: str, clock: StageClock) -> dict[str, IndexVersion]:
    """The index version of every store, opened and checked, by the store's name."""
    indexes: dict[str, IndexVersion] = {}
    for store in release.stores:
        local = fetch(tiers, "indexes", store.index, store.version, clock=clock)
        with clock.time(f"open {store.name}"):
            indexes[store.name] = IndexVersion.open(local.path, local.manifest, embedder_digest=embedder_digest)
    return indexes


def build_layer(
    pinned: PinnedRelease,
    retrieval: OpenRetrieval,
    *,
    model_directory: Path,
    readiness: Callable[[], Awaitable[Readiness]],
    recorder: Recorder,
) -> RagLayer:
    """The layer that goes around an engine's app."""
    release = pinned.release
    stores = tuple(store.name for store in release.stores)
    tokenizer = GeneratorTokenizer(model_directory)
    prompt = PromptBuilder(
        system=release.prompt.system,
        context_tokens=context_tokens(release.engine, model_directory),
        reserve_tokens=release.prompt.reserve_tokens,
        tokenizer=tokenizer,
        special_tokens=tokenizer.special_tokens,
    )
    return RagLayer(
        pipeline=Pipeline(
            retrieval.retriever, prompt=prompt, citer=Citer(), retrieval=release.retrieval, recorder=recorder
        ),
        reader=RequestReader(release.model.name, stores, release.default_store),
        vector_stores=vector_stores(pinned, retrieval),
        models=Models(release.model.name, stores, pinned.created_at),
        health=Health(readiness),
        keys=KeyRing(release.server.api_key_sha256),
        recorder=recorder,
        release=release.name,
        max_body_bytes=release.server.max_body_bytes,
    )


def vector_stores(pinned: PinnedRelease, retrieval: OpenRetrieval) -> VectorStores:
    """The handlers of /v1/vector_stores."""
    return VectorStores(retrieval.cards, retrieval.retriever, pinned.release.server.max_body_bytes)


def _prefault(name: str, index: IndexVersion, *, clock: StageClock, recorder: Recorder) -> None:
    with clock.time(f"prefault {name}"):
        size_bytes = index.prefault()
    seconds = clock.stages()[-1].seconds
    labels = {"kind": "indexes", "stage": "prefault", "source": "cache"}
    recorder.record(ARTIFACT_LOAD_SECONDS, seconds, labels)
    recorder.record(ARTIFACT_LOAD_BYTES, size_bytes, labels)


def _cards(pinned: PinnedRelease, indexes: Mapping[str, IndexVersion]) -> tuple[StoreCard, ...]:
    return tuple(
        StoreCard(
            name=store.name,
            description=store.description,
            index_version=indexes[store.name].version,
            created_at=pinned.created_at,
            documents=indexes[store.name].document_count,
            usage_bytes=indexes[store.name].usage_bytes,
        )
        for store in pinned.release.stores
    )
