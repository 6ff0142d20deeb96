"""Hybrid search over real indexes: several stores, filters, words that vectors miss, reranking, the cache, swaps."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rag_stack.artifacts.manifest import Manifest, describe_files
from rag_stack.errors import NotFoundError, UnavailableError
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import Document
from rag_stack.index.format import EmbedderRef, Lexical
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import QUERY_CACHE, RETRIEVAL_MS, MemoryRecorder
from rag_stack.protocol import ComparisonFilter
from rag_stack.retrieval.candidates import best_passages, candidates
from rag_stack.retrieval.fusion import Ranking
from rag_stack.retrieval.query_cache import QueryCache
from rag_stack.retrieval.retriever import Retriever
from rag_stack.retrieval.shelf import Shelf
from rag_stack.types import Passage
from tests.embedder import WordEmbedder
from tests.layer import BAKERY, HARBOUR, LIGHTHOUSE, TOWN, shelf_of

WORDS = Lexical()


class CountingEmbedder(WordEmbedder):
    """Tells what it was asked to embed."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> npt.NDArray[np.float32]:
        self.texts += texts
        return super().encode(texts, batch_size=batch_size)


class ShortestFirst:
    """A reranker to whom short passages answer better, whatever was asked."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.pairs = 0

    def scores(
        self, query: str, passages: Sequence[Passage], *, stopped: Callable[[], bool]
    ) -> npt.NDArray[np.float32]:
        self.threads.append(threading.current_thread().name)
        self.pairs += len(passages)
        return np.array([1 / (1 + len(passage.text)) for passage in passages], np.float32)


class NeverDone:
    """A reranker that goes on until nobody waits for it; tells that it has begun."""

    def __init__(self) -> None:
        self.began, self.ended = threading.Event(), threading.Event()

    def scores(
        self, query: str, passages: Sequence[Passage], *, stopped: Callable[[], bool]
    ) -> npt.NDArray[np.float32]:
        self.began.set()
        for _ in range(3000):
            if stopped():
                self.ended.set()
                break
            threading.Event().wait(0.01)
        return np.ones(len(passages), np.float32)


def _index(
    directory: Path,
    documents: Sequence[Document],
    *,
    name: str = "town",
    version: str = "v1",
    lexical: Lexical | None = WORDS,
    format_version: int | None = None,
) -> IndexVersion:
    embedder = WordEmbedder()
    directory.mkdir(parents=True)
    cut = cut_documents(documents, tokenizer=embedder.tokenizer, max_tokens=256, chunking=None)
    ref = EmbedderRef(name=embedder.name, digest=embedder.digest)
    metadata = write_index(directory, cut, embedder.encode(cut.inputs), embedder=ref, lexical=lexical).to_json()
    if format_version is not None:
        del metadata["lexical"]
        metadata["format_version"] = format_version
    manifest = Manifest(kind="indexes", name=name, version=version, files=describe_files(directory), metadata=metadata)
    return IndexVersion.open(directory, manifest, embedder_digest=embedder.digest)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return shelf_of({"town": _index(tmp_path / "town", TOWN)})


@pytest.fixture
def open_retriever() -> Iterator[type[Retriever]]:
    opened: list[Retriever] = []

    class Opened(Retriever):
        def __init__(self, shelf: Shelf, embedder: WordEmbedder | None = None, **options: object) -> None:
            recorder = MemoryRecorder()
            super().__init__(embedder or WordEmbedder(), shelf, threads=1, queue=8, recorder=recorder, **options)  # type: ignore[arg-type]
            opened.append(self)

    yield Opened
    for each in opened:
        each.close()


def _ids(found: object) -> list[str]:
    return [hit.passage.document_id for hit in found.hits]  # type: ignore[attr-defined]


async def test_every_mode_finds_it_and_scores_are_sorted(shelf: Shelf, open_retriever: type) -> None:
    retriever = open_retriever(shelf)
    for mode in ("hybrid", "dense", "lexical"):
        found = await retriever.retrieve("copper lamps", stores=["town"], top_k=3, ranking=Ranking(mode=mode))
        assert _ids(found)[0] == "lighthouse"
        scores = [hit.score for hit in found.hits]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert {hit.store for hit in found.hits} == {"town"}
    words = await retriever.retrieve("copper lamps", stores=["town"], top_k=3, ranking=Ranking(mode="lexical"))
    assert _ids(words) == ["lighthouse"], "what has none of the words is not found by words"


async def test_words_find_what_no_vector_list_holds(tmp_path: Path, open_retriever: type) -> None:
    """The passage's cosine is compared although the search by vectors did not give it."""
    noise = [Document(f"n{n}", f"filler sentence {n} about filler things", "", "") for n in range(60)]
    rare = Document("rare", "An unusual zeppelin " + "beside many other quite different words here " * 6, "", "")
    index = _index(tmp_path / "town", [*noise, rare])
    query = "filler zeppelin sentence about things"
    vectors = WordEmbedder().encode([query])
    few = candidates(index, [query], vectors, k=5, ranking=Ranking(text_weight=0.9))
    assert few.ranked[0][0] == 60
    _, rows = index.search(vectors, 5)
    assert 60 not in rows
    exact = float(vectors[0] @ WordEmbedder().encode([rare.text])[0])
    share = index.lexical.scores(query).shares(np.array([60]))[0] if index.lexical else 0
    assert few.ranked[0][1] == pytest.approx(0.1 * exact + 0.9 * share, abs=1e-6)


@pytest.mark.parametrize("lexical", [WORDS, None])
async def test_a_version_that_nobody_serves_gives_what_a_release_would(
    tmp_path: Path, open_retriever: type, lexical: Lexical | None
) -> None:
    twin = Document("twin", LIGHTHOUSE.text, "", "")
    index = _index(tmp_path / "town", [*TOWN, twin], lexical=lexical)
    retriever = open_retriever(shelf_of({"town": index}))
    for question in ("copper lamps", "rye bread for the harbour", "zeppelin", ""):
        served = await retriever.retrieve(question, stores=["town"], top_k=2)
        found = best_passages(index, question, WordEmbedder().encode([question]), 2)
        assert found == [hit.passage for hit in served.hits]
        assert len(found) == 2


async def test_a_filter_holds_for_words_too(shelf: Shelf, open_retriever: type) -> None:
    newer = ComparisonFilter(type="gt", key="year", value=1940.0)
    for mode in ("hybrid", "lexical"):
        found = await open_retriever(shelf).retrieve(
            "lighthouse of Alden", stores=["town"], top_k=5, filters=newer, ranking=Ranking(mode=mode)
        )
        assert _ids(found) == ["harbour"]


async def test_a_question_about_something_else_has_no_sources(shelf: Shelf, open_retriever: type) -> None:
    retriever = open_retriever(shelf)
    about = await retriever.retrieve("whale oil in copper lamps", stores=["town"], top_k=3, score_threshold=0.3)
    assert _ids(about) == ["lighthouse"]
    other = await retriever.retrieve(
        "Which quarterback threw five touchdown passes?", stores=["town"], top_k=3, score_threshold=0.3
    )
    assert other.hits == ()


@pytest.mark.parametrize("made", [{"lexical": None}, {"format_version": 2, "lexical": None}])
async def test_an_index_without_words_is_searched_by_vectors(
    tmp_path: Path, open_retriever: type, made: Mapping[str, object]
) -> None:
    index = _index(tmp_path / "old", TOWN, **made)  # type: ignore[arg-type]
    retriever = open_retriever(shelf_of({"town": index}))
    dense = await retriever.retrieve("copper lamps", stores=["town"], top_k=3, ranking=Ranking(mode="dense"))
    for mode in ("hybrid", "lexical"):
        found = await retriever.retrieve("copper lamps", stores=["town"], top_k=3, ranking=Ranking(mode=mode))
        assert found.hits == dense.hits


async def test_several_stores_are_searched_with_one_embedding(tmp_path: Path, open_retriever: type) -> None:
    shelf = shelf_of(
        {
            "sea": _index(tmp_path / "sea", [LIGHTHOUSE, HARBOUR], name="sea"),
            "shops": _index(tmp_path / "shops", [BAKERY, LIGHTHOUSE], name="shops", version="v7"),
        }
    )
    shelf.add("empty")
    shelf.flip(shelf.prepare_empty("empty"))
    embedder = CountingEmbedder()
    retriever = open_retriever(shelf, embedder)
    found = await retriever.retrieve("rye bread for the harbour", stores=["sea", "shops", "empty", "sea"], top_k=4)
    assert embedder.texts == ["rye bread for the harbour"]
    assert found.index_versions == {"sea": "v1", "shops": "v7", "empty": ""}
    assert {(hit.store, hit.passage.document_id) for hit in found.hits} == {
        ("sea", "harbour"),
        ("sea", "lighthouse"),
        ("shops", "bakery"),
    }, "a text that is in two stores is given once"
    with pytest.raises(NotFoundError, match="'cellar' does not exist"):
        await retriever.retrieve("x", stores=["sea", "cellar"], top_k=1)


async def test_a_reranker_has_the_last_word_and_what_was_found_before_is_told(
    shelf: Shelf, open_retriever: type
) -> None:
    reranker, told = ShortestFirst(), []
    retriever = open_retriever(shelf, reranker=reranker)
    query = "lighthouse of Alden"
    plain = await retriever.retrieve(
        query, stores=["town"], top_k=2, ranking=Ranking(rerank=False), on_provisional=told.append
    )
    assert (told, reranker.threads, plain.timings.rerank_ms) == ([], [], 0.0)
    found = await retriever.retrieve(query, stores=["town"], top_k=2, on_provisional=told.append)
    assert told == [plain.hits]
    assert _ids(found) == ["bakery", "lighthouse"]
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    assert reranker.threads[0].startswith("retrieval")
    assert found.timings.rerank_ms > 0


async def test_near_duplicates_leave_their_places_to_others(tmp_path: Path, open_retriever: type) -> None:
    again = Document("again", LIGHTHOUSE.text + " Indeed.", LIGHTHOUSE.title, "")
    retriever = open_retriever(shelf_of({"town": _index(tmp_path / "town", [*TOWN, again])}))
    both = await retriever.retrieve("lighthouse of Alden", stores=["town"], top_k=2)
    assert set(_ids(both)) == {"lighthouse", "again"}
    one = await retriever.retrieve("lighthouse of Alden", stores=["town"], top_k=2, ranking=Ranking(duplicates=0.8))
    assert _ids(one)[1] == "harbour"


async def test_what_was_asked_before_is_neither_embedded_nor_searched_again(shelf: Shelf, open_retriever: type) -> None:
    recorder, embedder = MemoryRecorder(), CountingEmbedder()
    retriever = open_retriever(shelf, embedder, cache=QueryCache(recorder, entries=8))
    first = await retriever.retrieve("whale oil", stores=["town"], top_k=2)
    again = await retriever.retrieve("whale oil", stores=["town"], top_k=2)
    assert (again.hits, again.index_versions) == (first.hits, first.index_versions)
    assert embedder.texts == ["whale oil"]
    cut = await retriever.retrieve("whale oil", stores=["town"], top_k=2, score_threshold=first.hits[0].score)
    assert cut.hits == first.hits[:1]
    more = await retriever.retrieve(["whale oil", "rye bread"], stores=["town"], top_k=3)
    assert len(more.hits) == 3
    assert embedder.texts == ["whale oil", "rye bread"], "the vector was remembered"
    assert recorder.values(QUERY_CACHE, {"cache": "result", "outcome": "hit"}) == [1, 1]


async def test_a_swap_is_never_answered_from_the_version_before(tmp_path: Path, open_retriever: type) -> None:
    """Versions take turns under a stream of one question: whatever a search says it searched, it found there."""
    texts = {f"v{n}": f"The lamp of version {n} burns whale oil." for n in range(4)}
    shelf = Shelf()
    shelf.add("town", _index(tmp_path / "first", [Document("d", texts["v0"], "", "")], version="v0"))
    retriever = open_retriever(shelf, cache=QueryCache(MemoryRecorder(), entries=8))
    for number, version in enumerate(("v1", "v0", "v2", "v1", "v3")):
        running = [asyncio.create_task(retriever.retrieve("whale oil", stores=["town"], top_k=1)) for _ in range(6)]
        await running[0]
        documents = [Document("d", texts[version], "", "")]
        index = _index(tmp_path / str(number), documents, version=version)
        shelf.drop("town")
        shelf.add("town", index)
        after = await retriever.retrieve("whale oil", stores=["town"], top_k=1)
        for found in (*await asyncio.gather(*running), after):
            assert found.hits[0].passage.text == texts[found.index_versions["town"]]
        assert after.index_versions == {"town": version}


@pytest.mark.parametrize(("queries", "pairs"), [(1, 20), (3, 18), (16, 16), (21, 0)])
async def test_no_more_pairs_are_reranked_than_is_said(
    tmp_path: Path, open_retriever: type, queries: int, pairs: int
) -> None:
    many = [Document(f"n{n}", f"filler sentence {n} about things {n * 7}", "", "") for n in range(60)]
    reranker, told = ShortestFirst(), []
    retriever = open_retriever(shelf_of({"town": _index(tmp_path / "town", many)}), reranker=reranker)
    asked = [f"filler sentence {n}" for n in range(queries)]
    found = await retriever.retrieve(asked, stores=["town"], top_k=50, on_provisional=told.append)
    assert reranker.pairs == pairs
    assert len(found.hits) == 50
    scores = [hit.score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)
    assert bool(told) == bool(found.timings.rerank_ms) == bool(pairs)
    if pairs:
        looked_at = pairs // queries
        assert set(_ids(found)[:looked_at]) == {hit.passage.document_id for hit in told[0][:looked_at]}
        assert found.hits[looked_at:] == told[0][looked_at:] or scores[looked_at] <= scores[looked_at - 1]


async def test_a_rerank_that_nobody_waits_for_ends_and_is_not_remembered(shelf: Shelf, open_retriever: type) -> None:
    reranker, recorder = NeverDone(), MemoryRecorder()
    retriever = open_retriever(shelf, reranker=reranker, cache=QueryCache(recorder, entries=8))
    running = asyncio.create_task(retriever.retrieve("whale oil", stores=["town"], top_k=2))
    assert await asyncio.to_thread(reranker.began.wait, 30)
    running.cancel()
    await asyncio.wait({running})
    plain = await retriever.retrieve("rye bread", stores=["town"], top_k=2, ranking=Ranking(rerank=False))
    assert reranker.ended.is_set()
    assert _ids(plain)[0] == "bakery"
    await retriever.retrieve("rye bread", stores=["town"], top_k=2, ranking=Ranking(rerank=False))
    assert recorder.values(QUERY_CACHE, {"cache": "result", "outcome": "hit"}) == [1]


async def test_what_did_not_run_took_no_time_and_is_not_recorded(shelf: Shelf) -> None:
    recorder = MemoryRecorder()
    cache = QueryCache(recorder, entries=8)
    retriever = Retriever(WordEmbedder(), shelf, threads=1, queue=8, recorder=recorder, cache=cache)
    await retriever.retrieve("whale oil", stores=["town"], top_k=2)
    hit = (await retriever.retrieve("whale oil", stores=["town"], top_k=2)).timings
    assert (hit.embed_ms, hit.search_ms, hit.rerank_ms) == (0, 0, 0)
    searched = (await retriever.retrieve("whale oil", stores=["town"], top_k=3)).timings
    assert searched.embed_ms == 0, "the vector was remembered"
    assert searched.search_ms > 0
    retriever.close()
    assert [len(recorder.values(RETRIEVAL_MS, {"stage": stage})) for stage in ("queue", "embed", "search")] == [3, 1, 2]


async def test_a_store_that_is_not_open_yet_is_not_taken_for_the_empty_one_before(open_retriever: type) -> None:
    shelf = Shelf()
    shelf.add("town")
    shelf.flip(shelf.prepare_empty("town"))
    retriever = open_retriever(shelf, cache=QueryCache(MemoryRecorder(), entries=8))
    assert (await retriever.retrieve("whale oil", stores=["town"], top_k=2)).hits == ()
    shelf.drop("town")
    shelf.add("town")
    with pytest.raises(UnavailableError, match="is being opened"):
        await retriever.retrieve("whale oil", stores=["town"], top_k=2)
