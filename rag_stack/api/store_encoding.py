"""Stores made over HTTP between the wire and their state."""

from collections.abc import Sequence
from dataclasses import dataclass

from rag_stack.api import encoding
from rag_stack.errors import InvalidRequestError
from rag_stack.index.cutting import SPECIAL_TOKENS
from rag_stack.index.format import Chunking
from rag_stack.protocol import (
    ChunkingStrategy,
    FileCounts,
    LastError,
    SearchResult,
    StaticChunking,
    VectorStore,
    VectorStoreFile,
    VectorStoreFileBatch,
)
from rag_stack.stores.store import Store, StoreFile, counts
from rag_stack.types import Hit


@dataclass(frozen=True, slots=True)
class ChunkingLimits:
    """How files are cut unless asked otherwise, and what the embedder can take in tokens."""

    auto: Chunking
    max_tokens: int

    def read(self, asked: ChunkingStrategy | None) -> Chunking | None:
        """The chunking that is asked for, None for `auto`. Raises InvalidRequestError."""
        if asked is None or asked.type == "auto":
            return None
        if asked.static is None:
            raise InvalidRequestError(
                "`chunking_strategy` of type static needs `static: {max_chunk_size_tokens, chunk_overlap_tokens}`",
                param="chunking_strategy",
            )
        size, overlap, most = asked.static.max_chunk_size_tokens, asked.static.chunk_overlap_tokens, self._most
        if not 16 <= size <= most:
            raise InvalidRequestError(
                f"`max_chunk_size_tokens` must be 16 to {most}, which is what this server's embedder takes, got {size}",
                param="chunking_strategy",
            )
        if overlap > size // 2:
            raise InvalidRequestError(
                f"`chunk_overlap_tokens` must be at most half of `max_chunk_size_tokens`, got {overlap} of {size}",
                param="chunking_strategy",
            )
        return Chunking(max_tokens=size, overlap_tokens=overlap)

    def to_wire(self, chunking: Chunking | None) -> ChunkingStrategy:
        """With the numbers that are in use."""
        used = chunking or self.auto
        static = StaticChunking(max_chunk_size_tokens=used.max_tokens, chunk_overlap_tokens=used.overlap_tokens)
        return ChunkingStrategy(type="static", static=static)

    @property
    def _most(self) -> int:
        return self.max_tokens - SPECIAL_TOKENS


def search_result(store: Store, hit: Hit) -> SearchResult | None:
    """A hit in a store, with the attributes that were given to its file; None where no search may show the file."""
    file_id = hit.passage.document_id
    if not store.searchable(file_id):
        return None
    file = store.files[file_id]
    update = {"filename": file.filename, "attributes": dict(file.attributes)}
    return encoding.search_result(hit).model_copy(update=update)


def vector_store(store: Store) -> VectorStore:
    """A store."""
    shown = store.shown
    numbers = counts(shown)
    return VectorStore(
        id=store.store_id,
        name=store.name,
        description=store.description,
        created_at=store.created_at,
        last_active_at=store.last_active_at,
        metadata=dict(store.metadata),
        usage_bytes=sum(file.usage_bytes for file in shown),
        file_counts=FileCounts(**numbers),
        status="in_progress" if numbers["in_progress"] else "completed",
        index_version=store.index_version,
    )


def store_file(store: Store, file: StoreFile, *, chunking: ChunkingLimits) -> VectorStoreFile:
    """A file of a store."""
    error = file.last_error
    return VectorStoreFile(
        id=file.file_id,
        created_at=file.created_at,
        vector_store_id=store.store_id,
        status=file.status,
        last_error=LastError(code=error.code, message=error.message) if error else None,
        usage_bytes=file.usage_bytes,
        attributes=dict(file.attributes),
        chunking_strategy=chunking.to_wire(file.chunking),
    )


def file_batch(store: Store, batch_id: str) -> VectorStoreFileBatch:
    """A batch of a store. Raises NotFoundError."""
    batch = store.batch(batch_id)
    return VectorStoreFileBatch(
        id=batch_id,
        created_at=batch.created_at,
        vector_store_id=store.store_id,
        status=_batch_status(store.of_batch(batch_id), cancelled=batch.cancelled),
        file_counts=FileCounts(**counts(store.of_batch(batch_id))),
    )


def _batch_status(files: Sequence[StoreFile], *, cancelled: bool) -> str:
    statuses = {file.status for file in files}
    if "in_progress" in statuses:
        return "in_progress"
    if cancelled:
        return "cancelled"
    return "failed" if statuses == {"failed"} else "completed"
