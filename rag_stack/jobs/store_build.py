"""Builds stores made over HTTP: uploaded files -> documents, and from there on as every index is built."""

import logging
import time
from collections.abc import Iterator
from itertools import chain
from typing import Final

from rag_stack.artifacts.retention import Retention
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import (
    ArtifactNotFoundError,
    ArtifactOutdatedError,
    IndexVersionError,
    NotFoundError,
    RagStackError,
)
from rag_stack.index.chunking import token_count
from rag_stack.index.documents import Document
from rag_stack.index.format import FORMAT_VERSION, Chunking, IndexMetadata
from rag_stack.index.spec import Gates
from rag_stack.jobs.build import BuildSettings, build_version
from rag_stack.jobs.embedding import Model
from rag_stack.jobs.local_embedding import LocalEmbedding
from rag_stack.stores.files import Files
from rag_stack.stores.ingest import Built
from rag_stack.stores.parsing import UnreadableFileError, parse_upload
from rag_stack.stores.store import FileError, Outcome, Store, StoreFile

_BY: Final = "/v1/vector_stores"
# Whoever removes nine of ten files means it, and nobody is there to force what a gate holds back.
_NO_GATES: Final = Gates(max_shrink=1.0, min_recall=0.0)
# Each change of a store is a version of its whole index. A rollback has these, and what is younger than an hour.
_VERSIONS_KEPT: Final = 2
_TIDY_EVERY_S: Final = 600.0
# Enough to find a word in.
_GLANCE_CHARS: Final = 4096


class StoreBuild:
    """Builds stores with one embedder (`rag_stack.stores.ingest.Build`). `workers` threads embed."""

    def __init__(self, files: Files, tiers: Tiers, model: Model, *, chunking: Chunking, workers: int = 1) -> None:
        self._files = files
        self._tiers = tiers
        self._embedding = LocalEmbedding(model, workers=workers)
        self._settings = BuildSettings(chunking=chunking, gates=_NO_GATES, by=_BY)
        self._retention = Retention(tiers.catalog)
        self._tidied_s: dict[str, float] = {}

    def build(self, store: Store) -> Built:
        """Index the files that are completed or wait; embeds only what no build of this store has embedded."""
        outcomes: dict[str, Outcome] = {}
        documents = self._documents(store, outcomes)
        first = next(documents, None)
        if first is None:
            self.discard(store.store_id)
            return Built(None, outcomes)
        report = build_version(
            chain([first], documents),
            name=store.store_id,
            embedding=self._embedding,
            settings=self._settings,
            tiers=self._tiers,
        )
        return Built(report.manifest.version, outcomes)

    def discard(self, store_id: str) -> None:
        """Nothing is promoted any more, so that `rag-stack index gc` takes the versions; stored vectors go at once."""
        objects = self._tiers.catalog.store
        self._tiers.catalog.withdraw("indexes", store_id)
        for fingerprint in objects.list_names(f"embeddings/{store_id}"):
            for segment in objects.list_names(f"embeddings/{store_id}/{fingerprint}"):
                objects.delete(f"embeddings/{store_id}/{fingerprint}/{segment}")

    def is_current(self, store: Store) -> bool:
        """Whether what is promoted can be served until the store changes: it is of this embedder. Raises ArtifactError.

        A format that is older and still opens will do: an upgrade builds nothing that the release before it cannot
        open, and the next change of the store brings it into this format.
        """
        try:
            manifest = self._tiers.catalog.resolve("indexes", store.store_id)
            metadata = IndexMetadata.of(manifest)
        except (ArtifactNotFoundError, ArtifactOutdatedError, IndexVersionError):
            return False
        older = metadata.format_version < FORMAT_VERSION
        made_so = older or metadata.lexical == self._settings.lexical
        return made_so and metadata.embedder.digest == self._embedding.model.digest

    def tidy(self, store_id: str) -> bool:
        """Delete versions that were replaced long enough ago, looking every ten minutes; whether others will follow."""
        now_s = time.monotonic()
        if now_s < self._tidied_s.get(store_id, now_s):
            return True
        self._tidied_s[store_id] = now_s + _TIDY_EVERY_S
        try:
            collected = self._retention.collect("indexes", store_id, keep=_VERSIONS_KEPT, older_than_s=0.0)
        except RagStackError as exc:
            logging.getLogger(__name__).warning("old versions of the store %s stay: %s", store_id, exc.message)
            return True
        # What is promoted, and what was before it.
        return len(collected.kept) > _VERSIONS_KEPT

    def _documents(self, store: Store, outcomes: dict[str, Outcome]) -> Iterator[Document]:
        """What can be indexed, one at a time; `outcomes` gets every file's."""
        for file in store.shown:
            if file.status not in ("completed", "in_progress"):
                continue
            try:
                document = self._document(file)
            except UnreadableFileError as exc:
                outcomes[file.file_id] = Outcome(error=exc.error)
                continue
            outcomes[file.file_id] = Outcome(usage_bytes=len(document.text.encode()))
            yield document

    def _document(self, file: StoreFile) -> Document:
        try:
            document = parse_upload(self._files.content(file.file_id), file)
        except NotFoundError as exc:
            raise _invalid("was deleted before it was indexed") from exc
        tokenizer = self._embedding.model.tokenizer
        if not token_count(tokenizer, document.text[:_GLANCE_CHARS]) and not token_count(tokenizer, document.text):
            raise _invalid("has no words")
        return document


def _invalid(message: str) -> UnreadableFileError:
    return UnreadableFileError(FileError(code="invalid_file", message=message))
