"""Small real index versions, published."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.index.documents import Document
from tests.embedder import WordEmbedder
from tests.layer import build_index


def publish_index(
    catalog: Catalog,
    directory: Path,
    texts: Mapping[str, str],
    *,
    version: str,
    name: str = "docs",
    gates: Sequence[Mapping[str, Any]] = (),
) -> Manifest:
    """Build an index of documents (name -> text) below a directory and publish it."""
    documents = [
        Document(document_id=f"id-{each}", text=text, title=each, uri="", attributes={"filename": f"{each}.txt"})
        for each, text in texts.items()
    ]
    source = directory / f"built-{name}-{version}"
    metadata = build_index(source, documents, embedder=WordEmbedder(), name=name).metadata.to_json()
    told = {"gates": [dict(gate) for gate in gates]} if gates else {}
    return catalog.publish(source, kind="indexes", name=name, metadata={**metadata, **told}, version=version)
