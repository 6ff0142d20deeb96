"""A cross-encoder becomes a promoted artifact that a reranker loads, or is refused by name."""

from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import ArtifactError
from rag_stack.generation.model_import import import_model
from rag_stack.retrieval.reranker import CrossEncoder, check_reranker
from rag_stack.retrieval.reranker_import import make_reranker
from tests.cross_encoder import write_bert, write_config, write_cross_encoder


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(open_store(f"file://{tmp_path}/store"))


def bring(source: Path, catalog: Catalog) -> Manifest:
    return import_model(
        source, catalog=catalog, name="judge", progress=lambda message: None, make_reranker=make_reranker
    )


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_an_onnx_directory_is_published_as_a_reranker(tmp_path: Path, catalog: Catalog, place: str) -> None:
    manifest = bring(write_cross_encoder(tmp_path / "source", model=place), catalog)
    assert [entry.path for entry in manifest.files] == ["onnx/model.onnx", "tokenizer.json"]
    assert manifest.metadata == {"format": "onnx", "task": "rerank", "max_tokens": 16}
    assert catalog.resolve("models", "judge", None) == manifest
    check_reranker(manifest)
    stored = tmp_path / "store" / str(manifest.ref)
    loaded = CrossEncoder.load(stored, name="judge", digest=manifest.digest, threads=1)
    assert loaded.text_scores("which", ["oil"]).shape == (1,)


def test_what_says_that_it_classifies_sequences_is_one(tmp_path: Path, catalog: Catalog) -> None:
    source = write_cross_encoder(tmp_path / "source")
    write_config(source, architectures=["BertForSequenceClassification"])
    manifest = bring(source, catalog)
    assert manifest.metadata["task"] == "rerank"
    assert "config.json" in [entry.path for entry in manifest.files]


@pytest.mark.parametrize(
    ("labels", "broken", "message"),
    [
        (3, None, r"gives an array of \(1, 3\) for a pair, expected one number"),
        (1, "model.onnx", "is no reranker that runs"),
        (1, "tokenizer.json", "is no reranker that runs"),
    ],
)
def test_what_is_no_reranker_is_refused_and_nothing_is_published(
    tmp_path: Path, catalog: Catalog, labels: int, broken: str | None, message: str
) -> None:
    source = write_cross_encoder(tmp_path / "source", labels=labels, model="model.onnx")
    if broken:
        (source / broken).write_bytes(b"not that")
    with pytest.raises(ArtifactError, match=message):
        bring(source, catalog)
    assert catalog.promoted("models", "judge") is None


@pytest.mark.parametrize("labels", [1, 3])
def test_a_cross_encoder_in_safetensors_is_exported_and_scores_as_in_torch(
    tmp_path: Path, catalog: Catalog, labels: int
) -> None:
    source = write_bert(tmp_path / "source", labels=labels)
    if labels > 1:
        with pytest.raises(ArtifactError, match="has 3 labels, expected one"):
            bring(source, catalog)
        return
    manifest = bring(source, catalog)
    assert {"model.safetensors", "onnx/model.onnx"} <= {entry.path for entry in manifest.files}
    stored = tmp_path / "store" / str(manifest.ref)
    loaded = CrossEncoder.load(stored, name="judge", digest=manifest.digest, threads=1)
    # Compared with torch at its import; here, that the stored one finds its weights.
    assert 0 < loaded.text_scores("which", ["oil"])[0] < 1


def test_an_embedder_that_has_an_onnx_file_too_is_no_reranker(tmp_path: Path, catalog: Catalog) -> None:
    source = write_cross_encoder(tmp_path / "source")
    write_config(source, architectures=["BertModel"], hidden_size=8)
    with pytest.raises(ArtifactError, match="must hold safetensors weights"):
        bring(source, catalog)
