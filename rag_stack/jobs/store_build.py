"""Builds stores made over HTTP: uploaded bytes -> documents -> passages -> vectors -> version -> promoted."""

import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np

from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import NotFoundError
from rag_stack.index.builder import Cut, Vectors, cut_documents, write_index
from rag_stack.index.documents import Document
from rag_stack.index.format import Chunking, EmbedderRef
from rag_stack.retrieval.embedder import Embedder
from rag_stack.stores.files import Files
from rag_stack.stores.ingest import Built
from rag_stack.stores.parsing import UnreadableFileError, parse_upload
from rag_stack.stores.store import FileError, Outcome, Store

_KEPT_VECTORS: Final = 100_000


class StoreBuild:
    """Builds stores with one embedder, one after another."""

    def __init__(self, files: Files, tiers: Tiers, embedder: Embedder, *, chunking: Chunking) -> None:
        self._files = files
        self._tiers = tiers
        self._embedder = embedder
        self._chunking = chunking
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()

    def build(self, store: Store) -> Built:
        """See rag_stack.stores.ingest.Build."""
        outcomes: dict[str, Outcome] = {}
        cuts: list[Cut] = []
        for file in store.shown:
            if file.status not in ("completed", "in_progress"):
                continue
            try:
                documents = parse_upload(self._files.content(file.file_id), file)
                cuts.append(self._cut(documents))
                usage = sum(len(passage.text.encode()) for passage in cuts[-1].passages)
                outcomes[file.file_id] = Outcome(usage_bytes=usage)
            except NotFoundError:
                error = FileError(code="invalid_file", message="was deleted before it was indexed")
                outcomes[file.file_id] = Outcome(error=error)
            except UnreadableFileError as exc:
                outcomes[file.file_id] = Outcome(error=exc.error)
        if not cuts:
            self.discard(store.store_id)
            return Built(None, outcomes)
        return Built(self._publish(store.store_id, cuts), outcomes)

    def discard(self, store_id: str) -> None:
        """See rag_stack.stores.ingest.Build."""
        self._tiers.catalog.store.delete(f"indexes/{store_id}/PROMOTED")

    def _cut(self, documents: Sequence[Document]) -> Cut:
        embedder = self._embedder
        cut = cut_documents(
            documents,
            tokenizer=embedder.tokenizer,
            max_tokens=embedder.max_tokens,
            chunking=documents[0].chunking or self._chunking,
        )
        if not cut.passages:
            raise UnreadableFileError(FileError(code="invalid_file", message="has no words"))
        return cut

    def _publish(self, store_id: str, cuts: Sequence[Cut]) -> str:
        catalog = self._tiers.catalog
        current = catalog.promoted("indexes", store_id)
        parent = current.version if current else None
        cut = Cut(
            documents=tuple(each for cut in cuts for each in cut.documents),
            passages=tuple(each for cut in cuts for each in cut.passages),
            inputs=tuple(each for cut in cuts for each in cut.inputs),
            skipped=(),
        )
        with tempfile.TemporaryDirectory(prefix="rag-stack-store-") as folder:
            metadata = write_index(
                Path(folder),
                cut,
                self._embedded(cut.inputs),
                embedder=EmbedderRef(name=self._embedder.name, digest=self._embedder.digest),
                chunking=self._chunking,
            )
            manifest = catalog.publish(
                Path(folder), kind="indexes", name=store_id, metadata=metadata.to_json(), parent=parent
            )
        catalog.promote(manifest.ref, expected_version=parent)
        return manifest.version

    def _embedded(self, inputs: Sequence[str]) -> Vectors:
        keys = [blake2b(text.encode(), digest_size=16).digest() for text in inputs]
        new = {key: text for key, text in zip(keys, inputs, strict=True) if key not in self._vectors}
        if new:
            for key, vector in zip(new, self._embedder.encode(list(new.values())), strict=True):
                self._vectors[key] = vector
        found = np.stack([self._vectors[key] for key in keys])
        while len(self._vectors) > _KEPT_VECTORS:
            self._vectors.popitem(last=False)
        return found
