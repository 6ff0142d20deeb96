"""Opens what a pinned release names: artifacts to this node, models and indexes into this process, one layer."""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from rag_stack.api.auth import KeyRing
from rag_stack.api.health import Health, Readiness
from rag_stack.api.models import Models
from rag_stack.api.rag_layer import RagLayer
from rag_stack.api.retrieval_request import RequestReader
from rag_stack.api.vector_stores import StoreCard, VectorStores
from rag_stack.artifacts.manifest import ArtifactKind, Manifest
from rag_stack.artifacts.tiers import LocalArtifact, Tiers
from rag_stack.config import ArtifactChoice, Release, StoreConfig
from rag_stack.errors import IndexVersionError, NotFoundError
from rag_stack.generation.engine_settings import context_tokens
from rag_stack.generation.kv_settings import KvCapacity
from rag_stack.generation.tokenizer import GeneratorTokenizer
from rag_stack.index.gpu_memory import GpuMemory
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import Recorder, record_load
from rag_stack.rag.cache_mirror import UNKNOWN_CACHE, CacheShape
from rag_stack.rag.citations import Citer
from rag_stack.rag.ordering import document_order
from rag_stack.rag.pipeline import Pipeline
from rag_stack.rag.prefill import PrefillSettings
from rag_stack.rag.prompt import PromptBuilder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.fusion import Ranking
from rag_stack.retrieval.preparation import Preparation, Ready
from rag_stack.retrieval.query_cache import QueryCache
from rag_stack.retrieval.retriever import Retriever
from rag_stack.retrieval.rollout import FollowedStore, Target
from rag_stack.retrieval.shelf import Shelf
from rag_stack.timeline import Timeline
from rag_stack.tracing.tracer import UNTRACED, Tracer

if TYPE_CHECKING:
    from rag_stack.retrieval.reranker import CrossEncoder

_UNMAP_LIMIT_S = 10.0
# For vLLM the greatest priority is served last.
_LAST = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenRetrieval:
    """Retrieval that is ready to search.

    `cards` tells about the stores that there are now; `following` are those whose index is followed, and what of each
    was opened.
    """

    embedder: Embedder
    retriever: Retriever
    reranker: "CrossEncoder | None"
    shelf: Shelf
    tiers: Tiers
    cards: Callable[[], Sequence[StoreCard]]
    following: Mapping[FollowedStore, Target]
    gpu: GpuMemory | None = None


def fetch_model(
    tiers: Tiers, choice: ArtifactChoice, *, timeline: Timeline, check: Callable[[Manifest], None] = lambda _: None
) -> LocalArtifact:
    """A model on this node, as a stage of the start; `check` raises for one that shall not come."""
    return _fetch(tiers, "models", choice.name, choice, timeline=timeline, check=check)


def fetch_index(tiers: Tiers, store: StoreConfig, *, timeline: Timeline) -> LocalArtifact:
    """A store's index version on this node, as a stage of the start."""
    return _fetch(tiers, "indexes", store.index, store, timeline=timeline, check=lambda _: None)


def open_retrieval(
    pinned: PinnedRelease,
    tiers: Tiers,
    *,
    timeline: Timeline,
    recorder: Recorder,
    fetch_beside: Callable[[Manifest], None],
    tracer: Tracer = UNTRACED,
    gpu: GpuMemory | None = None,
) -> OpenRetrieval:
    """Embedder, reranker and indexes, mapped and ready to search. Blocking: seconds.

    The indexes are prefaulted in the background, and nobody waits for that: their answers are right from the first
    query on, and only slower by what each reads from the disk. A replica that held its readiness back would delay
    questions for the seconds to minutes that a large index takes, and would never be as ready as it waits to be with
    one that is larger than its memory.

    `fetch_beside` is for later versions of the indexes, see Preparation. To a `gpu` the indexes are copied once they
    are prefaulted; until then the host answers. Raises EmbedderMismatchError, IndexVersionError or an ArtifactError,
    each with what to do.
    """
    release = pinned.release
    local = fetch_model(tiers, release.embedder, timeline=timeline)
    with _loading(timeline, recorder, "load embedder", kind="models", stage="load"):
        embedder = Embedder.load(
            local.path,
            name=release.embedder.name,
            digest=local.manifest.digest,
            threads=release.retrieval.threads_per_search,
        )
    preparation = Preparation(
        tiers,
        recorder,
        embedder_digest=embedder.digest,
        both_resident=release.swap.both_resident,
        fetch_beside=fetch_beside,
        gpu=gpu,
    )
    shelf = Shelf(preparation, max_stores=release.swap.max_stores)
    indexes = open_indexes(release, tiers, embedder_digest=embedder.digest, timeline=timeline, recorder=recorder)
    for name, ready in indexes.items():
        shelf.add(name, ready.index, pin=ready.pin)
    beside = {"shelf": shelf, "timeline": timeline, "recorder": recorder, "gpu": gpu}
    Thread(target=prefault, kwargs=beside, name="prefault", daemon=True).start()
    reranker = open_reranker(release, tiers, timeline=timeline, recorder=recorder)
    retriever = Retriever(
        embedder,
        shelf,
        reranker=reranker,
        threads=release.retrieval.threads,
        threads_per_search=release.retrieval.threads_per_search,
        queue=release.retrieval.queue,
        recorder=recorder,
        ranking=Ranking.of(release.retrieval),
        cache=QueryCache(recorder, entries=release.retrieval.query_cache) if release.retrieval.query_cache else None,
        tracer=tracer,
    )
    return OpenRetrieval(
        embedder, retriever, reranker, shelf, tiers, lambda: _cards(pinned, shelf), following(pinned), gpu
    )


def open_reranker(release: Release, tiers: Tiers, *, timeline: Timeline, recorder: Recorder) -> "CrossEncoder | None":
    """The release's reranker, tried out; None where it names none. Blocking. Raises an ArtifactError."""
    if release.reranker is None:
        return None
    # Brings ONNX Runtime, for those alone that have one.
    from rag_stack.retrieval.reranker import CrossEncoder, check_reranker

    local = fetch_model(tiers, release.reranker, timeline=timeline, check=check_reranker)
    with _loading(timeline, recorder, "load reranker", kind="models", stage="load"):
        return CrossEncoder.load(
            local.path,
            name=release.reranker.name,
            digest=local.manifest.digest,
            threads=release.retrieval.rerank_threads,
        )


def close_retrieval(retrieval: OpenRetrieval) -> None:
    """End what runs, unmap the indexes and let go of their pins. Blocking: as long as a search takes."""
    retrieval.retriever.close()
    for name in retrieval.shelf.names():
        retrieval.shelf.drop(name)
    retrieval.shelf.wait_unmapped(_UNMAP_LIMIT_S)


def open_indexes(
    release: Release, tiers: Tiers, *, embedder_digest: str, timeline: Timeline, recorder: Recorder
) -> dict[str, Ready]:
    """The index version of every store, opened and checked, by the store's name."""
    indexes: dict[str, Ready] = {}
    for store in release.stores:
        local = fetch_index(tiers, store, timeline=timeline)
        with _loading(timeline, recorder, f"open {store.name}", kind="indexes", stage="open"):
            index = IndexVersion.open(local.path, local.manifest, embedder_digest=embedder_digest)
        indexes[store.name] = Ready(index, local.pin)
    return indexes


def prefault(shelf: Shelf, *, timeline: Timeline, recorder: Recorder, gpu: GpuMemory | None = None) -> None:
    """Read the indexes ahead of their queries, one after another, each as it is when its turn comes. Blocking.

    With a `gpu` each is copied there, too.

    The source is `cache` for one that was in memory already, as a second replica's on a node, else `disk`.
    """
    for name in shelf.names():
        began_s = time.time()
        try:
            with shelf.lease(name) as opened:
                if opened.index is None:
                    continue
                done = opened.index.prefault()
                if gpu is not None:
                    opened.index.place(gpu)
        except NotFoundError:
            continue
        except IndexVersionError:
            # Searches that need that part of the file will fail too; all others are answered.
            logging.getLogger(__name__).exception("the store %s is searched without a prefault", name)
            continue
        source, size = ("disk", done.read_bytes) if done.read_bytes else ("cache", done.size_bytes)
        span = timeline.add(f"prefault {name}", began_s, time.time(), kind="indexes", size_bytes=size, source=source)
        record_load(recorder, kind="indexes", stage="prefault", source=source, seconds=span.seconds, size_bytes=size)


def build_layer(
    pinned: PinnedRelease,
    retrieval: OpenRetrieval,
    *,
    model_directory: Path,
    readiness: Callable[[], Awaitable[Readiness]],
    recorder: Recorder,
    tracer: Tracer = UNTRACED,
    kv_capacity: KvCapacity | None = None,
) -> RagLayer:
    """The layer that goes around an engine's app, with what that has told of its cache."""
    release = pinned.release
    stores = retrieval.shelf.names
    tokenizer = GeneratorTokenizer(model_directory)
    prompt = PromptBuilder(
        system=release.prompt.system,
        context_tokens=context_tokens(release.engine, model_directory),
        reserve_tokens=release.prompt.reserve_tokens,
        tokenizer=tokenizer,
        special_tokens=tokenizer.special_tokens,
        ordering=document_order(release.prompt.order, _cache_shape(kv_capacity)),
    )
    return RagLayer(
        pipeline=Pipeline(
            retrieval.retriever,
            prompt=prompt,
            citer=Citer(),
            retrieval=release.retrieval,
            recorder=recorder,
            tracer=tracer,
        ),
        reader=RequestReader(release.model.name, stores, release.default_store),
        vector_stores=vector_stores(pinned, retrieval),
        models=Models(release.model.name, stores, pinned.created_at),
        health=Health(readiness),
        keys=KeyRing(release.server.api_key_sha256),
        recorder=recorder,
        release=release.name,
        release_version=pinned.version,
        max_body_bytes=release.server.max_body_bytes,
        tracer=tracer,
        reranker=retrieval.reranker,
        prefill=prefill_settings(release),
        usage_forced=bool(release.engine.get("enable_force_include_usage")),
    )


def _cache_shape(capacity: KvCapacity | None) -> CacheShape | None:
    """The prefix cache that documents are ordered for; of an engine that tells nothing, what most engines have."""
    if capacity is None:
        return UNKNOWN_CACHE
    return CacheShape(capacity.block_tokens, capacity.blocks) if capacity.prefixes else None


def prefill_settings(release: Release) -> PrefillSettings | None:
    """How prompts are read ahead; None where the release wants none, has no rerank to wait for, or caches no prefix."""
    cached = release.engine.get("enable_prefix_caching") is not False
    if release.prefill.mode == "off" or release.reranker is None or not cached:
        return None
    return PrefillSettings(
        at_once=release.prefill.at_once,
        least_share=release.prefill.least_share,
        # An engine that schedules first come, first served refuses a priority.
        priority=_LAST if release.engine.get("scheduling_policy") == "priority" else None,
    )


def vector_stores(pinned: PinnedRelease, retrieval: OpenRetrieval) -> VectorStores:
    """The handlers of /v1/vector_stores."""
    return VectorStores(retrieval.cards, retrieval.retriever, pinned.release.server.max_body_bytes)


def _fetch(
    tiers: Tiers,
    kind: ArtifactKind,
    name: str,
    choice: ArtifactChoice | StoreConfig,
    *,
    timeline: Timeline,
    check: Callable[[Manifest], None],
) -> LocalArtifact:
    """What the node's cache has moves no bytes; where the digest is given, the object store is not even asked."""
    began_s = time.time()
    manifest = tiers.resolve(kind, name, choice.version, digest=choice.digest)
    check(manifest)
    local = tiers.ensure_local(manifest)
    moved = sum(local.moved.values())
    timeline.add(f"fetch {name}", began_s, time.time(), kind=kind, size_bytes=moved, source=local.source)
    return local


@contextmanager
def _loading(timeline: Timeline, recorder: Recorder, name: str, *, kind: ArtifactKind, stage: str) -> Iterator[None]:
    """Time the block as a span and as an artifact's load from the node's cache."""
    began_s = time.time()
    yield
    span = timeline.add(name, began_s, time.time(), kind=kind, source="cache")
    record_load(recorder, kind=kind, stage=stage, source="cache", seconds=span.seconds)


def _cards(pinned: PinnedRelease, shelf: Shelf) -> tuple[StoreCard, ...]:
    descriptions = {store.name: store.description for store in pinned.release.stores}
    return tuple(
        StoreCard(
            name=name,
            description=descriptions.get(name, ""),
            index_version=state.version,
            created_at=pinned.created_at,
            documents=state.documents,
            usage_bytes=state.usage_bytes,
        )
        for name, state in shelf.state().items()
    )


def following(pinned: PinnedRelease) -> dict[FollowedStore, Target]:
    """The stores of a release whose indexes are followed, and what they begin with."""
    stores = [store for store in pinned.release.stores if store.name in pinned.followed]
    return {
        FollowedStore(store.name, store.index, of_release=True): Target(
            version=store.version or "", digest=store.digest or ""
        )
        for store in stores
    }
