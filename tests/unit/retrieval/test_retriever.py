"""From a question to hits: order, limits, queue. Real FAISS indexes, an embedder that counts words."""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from rag_stack.errors import InvalidRequestError, NotFoundError, OverloadedError, UnavailableError
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import RETRIEVAL_MS, RETRIEVAL_QUEUE, MemoryRecorder, Metric
from rag_stack.protocol import ComparisonFilter
from rag_stack.retrieval.fusion import Ranking
from rag_stack.retrieval.retriever import Retriever
from tests.embedder import WordEmbedder
from tests.layer import BAKERY, HARBOUR, LIGHTHOUSE, TOWN, Document, build_index, shelf_of


class GatedEmbedder(WordEmbedder):
    """Embeds once its gate is open; tells when a query is at the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        self.arrived.release()
        assert self.gate.wait(30)
        return super().encode(texts, batch_size=batch_size)


class WatchedRecorder(MemoryRecorder):
    """Lets a test wait for the queue to have a length."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None:
        with self._changed:
            super().record(metric, value, labels)
            self._changed.notify_all()

    async def queue_is(self, length: int) -> None:
        await asyncio.to_thread(self._wait, length)

    def _wait(self, length: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.values(RETRIEVAL_QUEUE)[-1:] == [length], timeout=30)


@pytest.fixture
def embedder() -> GatedEmbedder:
    return GatedEmbedder()


@pytest.fixture
def recorder() -> WatchedRecorder:
    return WatchedRecorder()


@pytest.fixture
def index(tmp_path: Path) -> IndexVersion:
    return build_index(tmp_path / "town", TOWN, embedder=WordEmbedder(), name="town")


@pytest.fixture
def retriever(embedder: GatedEmbedder, index: IndexVersion, recorder: WatchedRecorder) -> Iterator[Retriever]:
    made = Retriever(embedder, shelf_of({"town": index}), threads=1, queue=1, recorder=recorder)
    yield made
    embedder.gate.set()
    made.close()


async def _arrived(embedder: GatedEmbedder) -> None:
    assert await asyncio.to_thread(embedder.arrived.acquire, timeout=30)


async def test_the_best_come_first_with_scores_and_timings(retriever: Retriever, recorder: WatchedRecorder) -> None:
    found = await retriever.retrieve("rye bread with caraway", stores=["town"], top_k=2)
    assert found.hits[0].passage.document_id == "bakery"
    assert found.hits[0].score > found.hits[1].score >= 0
    assert found.index_versions == {"town": "v1"}
    assert found.hits[0].passage.text == BAKERY.text
    for stage in ("queue", "embed", "search"):
        assert recorder.values(RETRIEVAL_MS, {"stage": stage}) == [getattr(found.timings, f"{stage}_ms")]
    assert found.timings.embed_ms > 0


async def test_an_exact_question_scores_one_at_most(retriever: Retriever) -> None:
    exact = f"{HARBOUR.title} {HARBOUR.text}"
    found = await retriever.retrieve(exact, stores=["town"], top_k=1, ranking=Ranking(mode="dense"))
    assert 0.999 < found.hits[0].score <= 1.0
    # Words add less than they could: no passage is only its query's words, each as often as can be.
    found = await retriever.retrieve(exact, stores=["town"], top_k=1)
    assert 0.5 < found.hits[0].score <= 1.0


async def test_more_than_there_is_gives_what_there_is(retriever: Retriever) -> None:
    found = await retriever.retrieve("Alden", stores=["town"], top_k=50)
    assert len(found.hits) == 3


async def test_filters_and_threshold_cut(retriever: Retriever) -> None:
    newer = ComparisonFilter(type="gt", key="year", value=1940.0)
    found = await retriever.retrieve("lighthouse", stores=["town"], top_k=5, filters=newer)
    assert [hit.passage.document_id for hit in found.hits] == ["harbour"]
    nobody = ComparisonFilter(type="eq", key="year", value=1.0)
    assert (await retriever.retrieve("lighthouse", stores=["town"], top_k=5, filters=nobody)).hits == ()
    cut = await retriever.retrieve("lighthouse copper lamps", stores=["town"], top_k=5, score_threshold=0.3)
    assert [hit.passage.document_id for hit in cut.hits] == ["lighthouse"]


async def test_of_several_queries_the_best_score_counts(retriever: Retriever) -> None:
    one = await retriever.retrieve("whale oil", stores=["town"], top_k=3)
    two = await retriever.retrieve("rye bread", stores=["town"], top_k=3)
    both = await retriever.retrieve(["whale oil", "rye bread"], stores=["town"], top_k=3)
    expected: dict[str, float] = {}
    for hit in (*one.hits, *two.hits):
        expected[hit.passage.document_id] = max(hit.score, expected.get(hit.passage.document_id, 0.0))
    assert {hit.passage.document_id: hit.score for hit in both.hits} == pytest.approx(expected)
    assert [hit.score for hit in both.hits] == sorted(expected.values(), reverse=True)


async def test_equal_texts_are_given_once_and_places_are_filled(
    tmp_path: Path, embedder: GatedEmbedder, recorder: WatchedRecorder
) -> None:
    copies = [
        Document(document_id=f"copy-{n}", text=LIGHTHOUSE.text, title=LIGHTHOUSE.title, uri="") for n in range(20)
    ]
    index = build_index(tmp_path / "copies", [*copies, *TOWN], embedder=embedder, name="copies")
    retriever = Retriever(embedder, shelf_of({"copies": index}), threads=1, queue=0, recorder=recorder)
    found = await retriever.retrieve("lighthouse of Alden", stores=["copies"], top_k=3)
    assert found.hits[0].passage.document_id == "copy-0"
    assert {hit.passage.text for hit in found.hits} == {document.text for document in TOWN}
    retriever.close()


async def test_an_unknown_store_is_told_which_there_are(retriever: Retriever) -> None:
    with pytest.raises(NotFoundError, match=r"'village' does not exist; there are \['town'\]"):
        await retriever.retrieve("x", stores=["village"], top_k=1)


async def test_a_store_that_is_not_open_yet_is_no_empty_one(embedder: GatedEmbedder, recorder: WatchedRecorder) -> None:
    shelf = shelf_of({})
    shelf.add("papers")
    retriever = Retriever(embedder, shelf, threads=1, queue=1, recorder=recorder)
    try:
        with pytest.raises(UnavailableError, match="being opened"):
            await retriever.retrieve("anything", stores=["papers"], top_k=1)
        shelf.flip(shelf.prepare_empty("papers"))
        assert (await retriever.retrieve("anything", stores=["papers"], top_k=1)).hits == ()
    finally:
        await asyncio.to_thread(retriever.close)


async def test_a_wrong_filter_takes_no_place(retriever: Retriever, recorder: WatchedRecorder) -> None:
    with pytest.raises(InvalidRequestError):
        await retriever.retrieve(
            "x", stores=["town"], top_k=1, filters=ComparisonFilter(type="gt", key="k", value=True)
        )
    assert recorder.values(RETRIEVAL_QUEUE) == [0]


async def test_a_full_queue_refuses_and_recovers(
    retriever: Retriever, embedder: GatedEmbedder, recorder: WatchedRecorder
) -> None:
    embedder.gate.clear()
    running = asyncio.create_task(retriever.retrieve("one", stores=["town"], top_k=1))
    await _arrived(embedder)
    waiting = asyncio.create_task(retriever.retrieve("two", stores=["town"], top_k=1))
    await recorder.queue_is(2)
    with pytest.raises(OverloadedError) as caught:
        await retriever.retrieve("three", stores=["town"], top_k=1)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 1)
    embedder.gate.set()
    assert (await running).hits
    assert (await waiting).hits
    await recorder.queue_is(0)
    assert (await retriever.retrieve("three", stores=["town"], top_k=1)).hits


async def test_a_caller_that_goes_away_frees_its_place(
    retriever: Retriever, embedder: GatedEmbedder, recorder: WatchedRecorder
) -> None:
    embedder.gate.clear()
    running = asyncio.create_task(retriever.retrieve("one", stores=["town"], top_k=1))
    await _arrived(embedder)
    for _ in range(3):
        waiting = asyncio.create_task(retriever.retrieve("gone", stores=["town"], top_k=1))
        await recorder.queue_is(2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await recorder.queue_is(1)
    embedder.gate.set()
    await running
    assert embedder.arrived.acquire(blocking=False) is False, "nobody searched for those who had gone"


async def test_the_event_loop_goes_on_while_a_search_runs(retriever: Retriever, embedder: GatedEmbedder) -> None:
    embedder.gate.clear()
    running = asyncio.create_task(retriever.retrieve("one", stores=["town"], top_k=1))
    await _arrived(embedder)
    assert not running.done()
    embedder.gate.set()
    assert (await running).hits


async def test_after_close_it_says_so(embedder: GatedEmbedder, index: IndexVersion, recorder: WatchedRecorder) -> None:
    retriever = Retriever(embedder, shelf_of({"town": index}), threads=1, queue=1, recorder=recorder)
    retriever.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        await retriever.retrieve("one", stores=["town"], top_k=1)
    assert recorder.values(RETRIEVAL_QUEUE)[-1] == 0
