"""The search path on one page: wait for a thread, embed, search every store, fuse, leave out doubles, rerank, cut."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Event, Lock
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from rag_stack.errors import InvalidRequestError, OverloadedError, UnavailableError
from rag_stack.index.reader import Vectors, set_search_threads
from rag_stack.metrics import RETRIEVAL_MS, RETRIEVAL_QUEUE, Recorder
from rag_stack.protocol import Filter
from rag_stack.retrieval.candidates import Candidates, candidates
from rag_stack.retrieval.diversity import distinct
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.filters import check
from rag_stack.retrieval.fusion import Ranking
from rag_stack.retrieval.query_cache import QueryCache, ResultKey
from rag_stack.retrieval.shelf import OpenStore, Shelf
from rag_stack.tracing.tracer import UNTRACED, Tracer
from rag_stack.types import Hit, Passage, Retrieval, Timings

# A search's stages, one after another, and the names of their spans.
_STAGES: Final = {"queue": "wait for a search thread", "embed": "embed", "search": "search", "rerank": "rerank"}

OnProvisional = Callable[[tuple[Hit, ...]], None]


class Reranker(Protocol):
    """Says how well passages answer a query: float32 [n], 0..1. Blocking; called from several threads at once.

    Once `stopped` is true nobody waits for the scores, and it may raise concurrent.futures.CancelledError.
    """

    def scores(
        self, query: str, passages: Sequence[Passage], *, stopped: Callable[[], bool]
    ) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class _Asked:
    queries: tuple[str, ...]
    stores: tuple[str, ...]
    top_k: int
    filters: Filter | None
    score_threshold: float
    ranking: Ranking
    on_provisional: OnProvisional | None
    # The caller has gone: what has not begun need not.
    gone: Event = field(default_factory=Event, compare=False)


class Retriever:
    """Searches open stores. At most `threads` searches run and `queue` wait; the event loop is never blocked.

    `ranking` is how it searches where a request does not say, `reranker` what has the last word, `cache` what it
    remembers.
    """

    def __init__(
        self,
        embedder: Embedder,
        shelf: Shelf,
        *,
        threads: int,
        queue: int,
        recorder: Recorder,
        threads_per_search: int = 1,
        ranking: Ranking | None = None,
        reranker: Reranker | None = None,
        cache: QueryCache | None = None,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._embedder = embedder
        self._shelf = shelf
        self._ranking = ranking or Ranking()
        self._reranker = reranker
        self._cache = cache
        self._capacity = threads + queue
        self._held = 0
        self._lock = Lock()
        self._recorder = recorder
        self._tracer = tracer
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix="retrieval", initializer=set_search_threads, initargs=(threads_per_search,)
        )
        recorder.record(RETRIEVAL_QUEUE, 0)

    @property
    def ranking(self) -> Ranking:
        """How it searches where a request does not say."""
        return self._ranking

    async def retrieve(
        self,
        query: str | Sequence[str],
        *,
        stores: Sequence[str],
        top_k: int,
        filters: Filter | None = None,
        score_threshold: float = 0.0,
        ranking: Ranking | None = None,
        on_provisional: OnProvisional | None = None,
    ) -> Retrieval:
        """The best passages of some stores for a query, best first; of several queries, the best score counts.

        Texts that are the same to the character are given once. `on_provisional` is called with what was found before
        it is reranked, in the search's thread, and only when it will be. Raises NotFoundError, InvalidRequestError for
        a filter that makes no sense or a search in no store, and OverloadedError when too many searches wait already.
        """
        asked = _Asked(
            queries=(query,) if isinstance(query, str) else tuple(query),
            stores=tuple(dict.fromkeys(stores)),
            top_k=top_k,
            filters=filters,
            score_threshold=score_threshold,
            ranking=ranking or self._ranking,
            on_provisional=on_provisional,
        )
        if not asked.stores:
            raise InvalidRequestError("a search needs a store", param="vector_store_ids")
        for store in asked.stores:
            if store not in self._shelf:
                raise self._shelf.unknown(store)
        if filters is not None:
            check(filters)
        self._enter()
        queued_s, queued = time.time(), time.perf_counter()
        try:
            future = self._threads.submit(self._search, asked, queued)
        except RuntimeError as exc:
            self._leave()
            raise UnavailableError("this server is shutting down; try again", retry_after_s=1) from exc
        # A caller that goes away frees its place in the queue at once; a search that runs keeps it until it ends, which
        # a rerank does before its next passage.
        future.add_done_callback(lambda _: self._leave())
        try:
            found = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            asked.gone.set()
            raise
        self._tell(found.timings, began_s=queued_s)
        return found

    def close(self) -> None:
        """Drop what waits and let what runs end. Blocking."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _enter(self) -> None:
        with self._lock:
            if self._held >= self._capacity:
                raise OverloadedError(f"{self._held} searches run or wait, no more can; try again", retry_after_s=1)
            self._held += 1
            self._recorder.record(RETRIEVAL_QUEUE, self._held)

    def _leave(self) -> None:
        with self._lock:
            self._held -= 1
            self._recorder.record(RETRIEVAL_QUEUE, self._held)

    def _tell(self, timings: Timings, *, began_s: float) -> None:
        for stage, span in _STAGES.items():
            took_ms = getattr(timings, f"{stage}_ms")
            if took_ms:
                self._recorder.record(RETRIEVAL_MS, took_ms, {"stage": stage})
                self._tracer.add(span, began_s, began_s + took_ms / 1e3)
            began_s += took_ms / 1e3

    def _search(self, asked: _Asked, queued: float) -> Retrieval:
        started = time.perf_counter()
        with ExitStack() as leases:
            # Leased here and not while it waited, so that every search is in the newest versions, and in one of each.
            opened = [leases.enter_context(self._shelf.lease(store)) for store in asked.stores]
            versions = {each.name: each.version for each in opened}
            # One that is not open yet has no digest, as one that is empty: what is remembered of that is not its.
            searched = {each.name: each for each in opened if _searchable(each)}
            key = _key(asked, opened)
            timings = Timings(queue_ms=(started - queued) * 1e3)
            hits = self._cache.result(key) if self._cache else None
            if hits is None:
                hits, timings = self._looked_up(asked, searched, leases, timings)
                if self._cache:
                    self._cache.keep_result(key, hits)
        kept = tuple(hit for hit in hits if hit.score >= asked.score_threshold)
        return Retrieval(hits=kept, index_versions=versions, timings=timings)

    def _looked_up(
        self, asked: _Asked, stores: Mapping[str, OpenStore], leases: ExitStack, timings: Timings
    ) -> tuple[tuple[Hit, ...], Timings]:
        """What no cache knows, and how long each stage took; one that did not run took nothing."""
        began = time.perf_counter()
        vectors, embed_ms = self._embedded(asked.queries)
        reranked = self._reranked_passages(asked)
        hits = _found(stores, asked, vectors, wanted=max(asked.top_k, reranked))
        found = ended = time.perf_counter()
        # What was found are copies: nobody waits for a reranker to unmap a version.
        leases.close()
        if reranked and hits:
            hits = self._reranked(asked, hits, reranked)
            ended = time.perf_counter()
        search_ms, rerank_ms = (found - began) * 1e3 - embed_ms, (ended - found) * 1e3
        return hits[: asked.top_k], replace(timings, embed_ms=embed_ms, search_ms=search_ms, rerank_ms=rerank_ms)

    def _embedded(self, queries: Sequence[str]) -> tuple[Vectors, float]:
        """The vectors of queries, and the milliseconds that the embedder took for those that were not remembered."""
        cache, digest = self._cache, self._embedder.digest
        known = {text: cache.vector(digest, text) if cache else None for text in dict.fromkeys(queries)}
        missing = [text for text, vector in known.items() if vector is None]
        embed_ms = 0.0
        if missing:
            began = time.perf_counter()
            encoded = self._embedder.encode(missing)
            embed_ms = (time.perf_counter() - began) * 1e3
            for text, vector in zip(missing, encoded, strict=True):
                known[text] = vector
                if cache:
                    cache.keep_vector(digest, text, vector)
        return np.stack([vector for text in queries if (vector := known[text]) is not None]), embed_ms

    def _reranked_passages(self, asked: _Asked) -> int:
        """How many passages are reranked: as many as leave no more than `rerank_candidates` pairs with the queries."""
        if self._reranker is None or not asked.ranking.rerank:
            return 0
        return asked.ranking.rerank_candidates // max(1, len(asked.queries))

    def _reranked(self, asked: _Asked, hits: tuple[Hit, ...], count: int) -> tuple[Hit, ...]:
        """The first `count` ordered by the reranker's scores; of several queries each passage's best counts.

        Those that it does not look at stay behind, with scores that are no higher.
        """
        if asked.on_provisional is not None:
            asked.on_provisional(hits[: asked.top_k])
        if self._reranker is None:
            return hits
        passages = [hit.passage for hit in hits[:count]]
        gone = asked.gone.is_set
        scores = np.max([self._reranker.scores(query, passages, stopped=gone) for query in asked.queries], axis=0)
        if gone():
            raise CancelledError("nobody waits for this search any more")
        scored = [replace(hit, score=score) for hit, score in zip(hits, scores.tolist(), strict=False)]
        lowest = min(hit.score for hit in scored)
        rest = [replace(hit, score=min(hit.score, lowest)) for hit in hits[count:]]
        return (*sorted(scored, key=lambda hit: -hit.score), *rest)


def _found(stores: Mapping[str, OpenStore], asked: _Asked, vectors: Vectors, *, wanted: int) -> tuple[Hit, ...]:
    """The best passages with different texts; looks further where equal texts leave places empty."""
    ranking = asked.ranking
    k = 2 * wanted if ranking.mode == "dense" else max(ranking.candidates, 2 * wanted)
    while True:
        found = {name: _candidates(store, asked, vectors, k=k) for name, store in stores.items()}
        hits = tuple(islice(distinct(_merged(found, stores), duplicates=ranking.duplicates), wanted))
        if len(hits) == wanted or not any(each.more for each in found.values()):
            return hits
        k *= 2


def _searchable(store: OpenStore) -> bool:
    """Whether there is something to search. Raises UnavailableError while nobody knows yet."""
    if store.index is None and not store.empty:
        raise UnavailableError(f"the store {store.name!r} is being opened by this server; try again", retry_after_s=1)
    return store.index is not None


def _candidates(store: OpenStore, asked: _Asked, vectors: Vectors, *, k: int) -> Candidates:
    if store.index is None or store.masks is None:
        return Candidates((), more=False)
    allowed = store.masks.row_mask(asked.filters) if asked.filters is not None else None
    return candidates(store.index, asked.queries, vectors, k=k, ranking=asked.ranking, allowed=allowed)


def _merged(found: Mapping[str, Candidates], stores: Mapping[str, OpenStore]) -> Iterator[Hit]:
    """The passages of all stores, best first; equal scores in the order of stores, then of rows."""
    ranked = [(-score, place, row, name) for place, name in enumerate(found) for row, score in found[name].ranked]
    for score, _, row, name in sorted(ranked) if len(found) > 1 else ranked:
        index = stores[name].index
        if index is not None:
            yield Hit(index.passages.get(row), min(1.0, max(0.0, -score)), store=name)


def _key(asked: _Asked, opened: Sequence[OpenStore]) -> ResultKey:
    return ResultKey(
        versions=tuple((each.name, each.index.digest if each.index else "") for each in opened),
        queries=asked.queries,
        filters="" if asked.filters is None else asked.filters.model_dump_json(),
        top_k=asked.top_k,
        ranking=asked.ranking,
    )
