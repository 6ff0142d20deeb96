"""What a release can pin, published: models of one file and small real indexes."""

from pathlib import Path

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.index.documents import Document
from tests.embedder import WordEmbedder
from tests.layer import publish_index


def publish_model(catalog: Catalog, directory: Path, name: str, text: str) -> Manifest:
    """A model of one file, promoted."""
    source = directory / f"model-{name}-{text}"
    source.mkdir(exist_ok=True)
    (source / "model.safetensors").write_text(text)
    manifest = catalog.publish(source, kind="models", name=name, metadata={})
    catalog.promote(manifest.ref)
    return manifest


def publish_docs(catalog: Catalog, directory: Path, version: str, *, embedder: Manifest) -> Manifest:
    """A version of the index `docs`, built with an embedder; it is not promoted."""
    documents = [Document(document_id="a", text=f"rye bread {version}", title="a", uri="", attributes={})]
    return publish_index(
        catalog,
        directory / f"docs-{version}",
        documents,
        embedder=WordEmbedder(),
        name="docs",
        digest=embedder.digest,
        version=version,
    )
