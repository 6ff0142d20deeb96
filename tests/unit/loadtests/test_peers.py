"""What the figures of `loadtests.peers` are made of, and that the embedding is metered where it happens."""

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from loadtests import peers_plot
from loadtests.peers_data import documents_in, has_graph, openings_of, publish_index, read_scifact, release_of
from loadtests.peers_embedding import EmbeddingMeter
from loadtests.peers_figures import Sources, Visit, agree, build_report, cpu_ratio, ndcg, overlap
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.index.builder import Cut
from rag_stack.index.documents import Document
from rag_stack.index.format import Lexical
from rag_stack.retrieval.fusion import Ranking
from rag_stack.types import Passage


def visit(arm: str, *, cpu_s: float, concurrency: int = 1, whole: int = 10, latency_ms: float = 20.0) -> Visit:
    return Visit(0, arm, concurrency, 10, whole, cpu_s, 0.1, 2.0, (latency_ms,) * 10, (latency_ms / 2,) * 10)


def sources(arm: str, held: str, *, found: str | None = None) -> Sources:
    documents = frozenset(held)
    return Sources(arm, {"1": list(found or held)}, {"1": documents}, {"1": documents})


VISITS = [visit("engine", cpu_s=0.2, latency_ms=5.0), visit("ours", cpu_s=0.15), visit("haystack", cpu_s=0.6)]


def test_the_best_peer_counts_and_the_embedding_does_not() -> None:
    assert visit("ours", cpu_s=0.15).orchestration_ms == pytest.approx(5.0)
    with_engine = Visit(0, "ours", 1, 10, 10, 0.15, 0.1, 2.0, (1.0,), (1.0,), engine_cpu_s=0.01)
    assert with_engine.orchestration_ms == pytest.approx(4.0)
    worse = visit("llamaindex", cpu_s=1.1)
    assert cpu_ratio([*VISITS, worse]) == pytest.approx(10.0)
    assert cpu_ratio([*VISITS, worse, visit("ours", cpu_s=0.3, concurrency=4)]) == pytest.approx(10.0)


def test_the_worse_of_the_concurrencies_counts() -> None:
    four = [visit("ours", cpu_s=0.2, concurrency=4), visit("haystack", cpu_s=0.6, concurrency=4)]
    assert cpu_ratio([*VISITS, *four]) == pytest.approx(5.0)


def test_without_a_peer_there_is_no_ratio() -> None:
    assert cpu_ratio(VISITS[:2]) is None


def test_goals_and_latency_beyond_the_engine() -> None:
    both = [sources("ours", "abcd", found="da"), sources("haystack", "abcd", found="ad")]
    report = build_report(VISITS, both, {"1": {"d": 1}})
    assert report.goals["peers.cpu_ratio"].met
    assert report.goals["peers.ndcg_delta"].value == pytest.approx(1.0 - 0.6309, abs=1e-4)
    assert report.arms["ours"]["beyond_engine_ms_at_1"] == pytest.approx(15.0)
    assert report.arms["haystack"]["documents_shared_with_ours"] == 1.0
    assert not build_report(VISITS, both, {}).goals["peers.ndcg_delta"].met


def test_ndcg_is_that_of_beir() -> None:
    assert ndcg(["x", "a"], {"a": 1}) == pytest.approx(0.63093, abs=1e-5)
    assert ndcg(["a", "b"], {"a": 1, "b": 1}) == pytest.approx(1.0)
    assert ndcg(["x"] * 10 + ["a"], {"a": 1}) == 0.0
    assert ndcg([], {}) == 0.0


def test_arms_that_did_other_work_are_told() -> None:
    same = [sources("ours", "abcx"), sources("haystack", "abcd"), sources("llamaindex", "abcd")]
    assert agree(VISITS, same, top_k=4) == []
    assert overlap(same[0], same[1]) == pytest.approx(3 / 5)
    short = visit("ours", cpu_s=1.0, whole=9)
    (problem,) = agree([short], same, top_k=4)
    assert "1 of 10 answers" in problem
    (problem,) = agree(VISITS, [*same, sources("llamaindex-async", "abce")], top_k=4)
    assert "llamaindex-async" in problem
    lost = Sources("ours", {}, {"1": frozenset("ab")}, {"1": frozenset("abc")})
    (problem,) = agree(VISITS, [lost], top_k=4)
    assert "question 1" in problem


def test_the_picture_has_a_bar_for_each_arm() -> None:
    assert len(peers_plot.draw(VISITS).axes[0].patches) == 2


def test_the_meter_adds_up_the_cpu_time_of_the_threads_that_embed() -> None:
    meter = EmbeddingMeter()

    def burn(seconds: float) -> str:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass
        return "burnt"

    metered = meter.around(burn)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(metered, [0.02, 0.03])) == ["burnt", "burnt"]
    told = meter.told()
    assert told["calls"] == 2
    assert 0.05 <= told["cpu_s"] < 0.08


def test_a_document_is_known_by_its_opening_in_a_prompt() -> None:
    same = "This study looks at the same thing as the other one, word for word, and then"
    documents = [
        Document("1", "A keeper  climbs\nthe stairs.", "", ""),
        Document("2", same + " ends", "", ""),
        Document("3", same + " goes on", "", ""),
    ]
    openings = openings_of(documents)
    assert list(openings) == ["1"]
    assert documents_in(f"Context: A keeper climbs the  stairs. {same}", openings) == {"1"}


def test_scifact_is_read_with_the_questions_of_its_test_split(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt", encoding="utf-8") as corpus:
        corpus.write(json.dumps({"_id": "9", "title": "T", "text": "Words."}) + "\n")
    queries = [{"_id": "1", "text": "one"}, {"_id": "2", "text": "two"}]
    (tmp_path / "queries.jsonl").write_text("\n".join(json.dumps(each) for each in queries))
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n2\t9\t1\n")
    corpus_read = read_scifact(tmp_path)
    assert corpus_read.questions == {"2": "two"}
    assert corpus_read.relevant == {"2": {"9": 1}}
    assert corpus_read.documents[0].title == "T"


def test_ours_is_the_default_recipe_without_a_query_cache(tmp_path: Path) -> None:
    told = release_of(ArtifactsConfig(root=f"file://{tmp_path}", cache=tmp_path / "cache"), top_k=4, threads=1)
    retrieval = Release.model_validate(told).retrieval
    assert retrieval.query_cache == 0
    assert Ranking.of(retrieval) == Ranking()
    assert Ranking().mode == "hybrid"


def test_our_index_has_words_and_the_embedder_its_graph(tmp_path: Path) -> None:
    catalog = Catalog(open_store(f"file://{tmp_path / 'root'}"))
    (tmp_path / "model" / "onnx").mkdir(parents=True)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    assert not has_graph(catalog.publish(tmp_path / "model", kind="models", name="without", metadata={}))
    (tmp_path / "model" / "onnx" / "model.onnx").write_bytes(b"graph")
    embedder = catalog.publish(tmp_path / "model", kind="models", name="with", metadata={})
    assert has_graph(embedder)
    cut = Cut((Document("1", "A keeper.", "", ""),), (Passage("1-0", "1", "A keeper.", "", "", 0, 9),), ("",), ())
    vectors = np.eye(1, 8, dtype=np.float32)
    published = publish_index(catalog, tmp_path / "index", cut, vectors, embedder=embedder)
    assert Lexical(**published.metadata["lexical"]) == Lexical()
    assert any(file.path.startswith("lexical") for file in published.files)
    assert catalog.resolve("indexes", published.name) == published
