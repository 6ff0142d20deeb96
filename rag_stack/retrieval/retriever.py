"""The search path on one page: wait for a thread, embed the query, search the store, cut the list."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Final

import numpy as np

from rag_stack.errors import OverloadedError, UnavailableError
from rag_stack.index.reader import IndexVersion, Rows, Vectors, set_search_threads
from rag_stack.metrics import RETRIEVAL_MS, RETRIEVAL_QUEUE, Recorder
from rag_stack.protocol import Filter
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.filters import Mask, check
from rag_stack.retrieval.shelf import OpenStore, Shelf
from rag_stack.tracing.tracer import UNTRACED, Tracer
from rag_stack.types import Hit, Retrieval, Timings

# A search's stages, one after another, and the names of their spans.
_STAGES: Final = {"queue": "wait for a search thread", "embed": "embed", "search": "search"}


class Retriever:
    """Searches open stores. At most `threads` searches run and `queue` wait; the event loop is never blocked."""

    def __init__(
        self,
        embedder: Embedder,
        shelf: Shelf,
        *,
        threads: int,
        queue: int,
        recorder: Recorder,
        threads_per_search: int = 1,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._embedder = embedder
        self._shelf = shelf
        self._capacity = threads + queue
        self._held = 0
        self._lock = Lock()
        self._recorder = recorder
        self._tracer = tracer
        self._threads = ThreadPoolExecutor(
            threads, thread_name_prefix="retrieval", initializer=set_search_threads, initargs=(threads_per_search,)
        )
        recorder.record(RETRIEVAL_QUEUE, 0)

    async def retrieve(
        self,
        query: str | Sequence[str],
        *,
        store: str,
        top_k: int,
        filters: Filter | None = None,
        score_threshold: float = 0.0,
    ) -> Retrieval:
        """The best passages of a store for a query, best first; of several queries, each passage's best score counts.

        Texts that are the same to the character are given once. Raises NotFoundError, InvalidRequestError for a filter
        that makes no sense, and OverloadedError when too many searches wait already.
        """
        if store not in self._shelf:
            raise self._shelf.unknown(store)
        if filters is not None:
            check(filters)
        queries = [query] if isinstance(query, str) else list(query)
        self._enter()
        queued_s, queued = time.time(), time.perf_counter()
        try:
            future = self._threads.submit(self._search, queries, store, filters, top_k, score_threshold, queued)
        except RuntimeError as exc:
            self._leave()
            raise UnavailableError("this server is shutting down; try again", retry_after_s=1) from exc
        # A caller that goes away frees its place in the queue at once; a search that runs keeps it until it ends.
        future.add_done_callback(lambda _: self._leave())
        found = await asyncio.wrap_future(future)
        began_s = queued_s
        for stage in _STAGES:
            took_ms = getattr(found.timings, f"{stage}_ms")
            self._recorder.record(RETRIEVAL_MS, took_ms, {"stage": stage})
            ended_s = began_s + took_ms / 1e3
            self._tracer.add(_STAGES[stage], began_s, ended_s)
            began_s = ended_s
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

    def _search(
        self,
        queries: list[str],
        store: str,
        filters: Filter | None,
        top_k: int,
        score_threshold: float,
        queued: float,
    ) -> Retrieval:
        started = time.perf_counter()
        vectors = self._embedder.encode(queries)
        embedded = time.perf_counter()
        # Leased here and not while it waited, so that every search is in the newest version, and in one only.
        with self._shelf.lease(store) as opened:
            hits, version = _found(opened, vectors, top_k=top_k, filters=filters), opened.version
        found = time.perf_counter()
        timings = Timings(
            queue_ms=(started - queued) * 1e3, embed_ms=(embedded - started) * 1e3, search_ms=(found - embedded) * 1e3
        )
        kept = tuple(hit for hit in hits if hit.score >= score_threshold)
        return Retrieval(hits=kept, store=store, index_version=version, timings=timings)


def _found(opened: OpenStore, vectors: Vectors, *, top_k: int, filters: Filter | None) -> list[Hit]:
    if opened.index is None or opened.masks is None:
        if opened.empty:
            return []
        raise UnavailableError(f"the store {opened.name!r} is being opened by this server; try again", retry_after_s=1)
    allowed = opened.masks.row_mask(filters) if filters is not None else None
    return _best(opened.index, vectors, top_k=top_k, allowed=allowed)


def _best(index: IndexVersion, vectors: Vectors, *, top_k: int, allowed: Mask | None) -> list[Hit]:
    """The best passages with different texts; looks further where equal texts leave places empty."""
    k = min(2 * top_k, index.ntotal)
    while True:
        scores, rows = index.search(vectors, k, allowed=allowed)
        hits: dict[str, Hit] = {}
        for row, score in _merged(scores, rows):
            passage = index.passages.get(row)
            hits.setdefault(passage.text, Hit(passage, min(1.0, max(0.0, score))))
            if len(hits) == top_k:
                return list(hits.values())
        if k >= index.ntotal or (rows < 0).any():
            return list(hits.values())
        k = min(2 * k, index.ntotal)


def _merged(scores: Vectors, rows: Rows) -> list[tuple[int, float]]:
    """Each row once, with its best score, best first; equal scores in the order of rows."""
    best: dict[int, float] = {}
    for row, score in zip(rows.ravel().tolist(), scores.ravel().tolist(), strict=True):
        if row >= 0 and np.isfinite(score):
            best[row] = max(score, best.get(row, score))
    return sorted(best.items(), key=lambda item: (-item[1], item[0]))
