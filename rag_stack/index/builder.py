"""Documents -> the files of an index version. The same input gives the same bytes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from rag_stack.errors import IndexVersionError
from rag_stack.index.chunking import Chunk, chunk, token_count
from rag_stack.index.documents import Document
from rag_stack.index.format import (
    DOCUMENTS_FILE,
    DOCUMENTS_SCHEMA,
    INDEX_FILE,
    PASSAGES_FILE,
    PASSAGES_SCHEMA,
    Chunking,
    EmbedderRef,
    IndexMetadata,
    Skipped,
    attribute_column,
    attribute_field,
    type_name,
)
from rag_stack.index.selector import selecting
from rag_stack.types import Passage

Vectors = npt.NDArray[np.float32]
Embed = Callable[[list[str]], Vectors]

_ROWS_PER_BATCH: Final = 65_536
# [CLS] and [SEP] of the embedder.
_SPECIAL_TOKENS: Final = 2


@dataclass(frozen=True, slots=True)
class Cut:
    """Documents cut into passages, document by document, and what gave no passage."""

    documents: tuple[Document, ...]
    passages: tuple[Passage, ...]
    inputs: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def cut_documents(
    documents: Sequence[Document], *, tokenizer: Tokenizer, max_tokens: int, chunking: Chunking | None
) -> Cut:
    """Passages of documents, and what is embedded for each: its title and text, within the embedder's `max_tokens`.

    Without `chunking` a document is one passage, and the embedder cuts what is too long.
    """
    kept: list[Document] = []
    passages: list[Passage] = []
    inputs: list[str] = []
    skipped: list[Skipped] = []
    for document in documents:
        chunks = _chunks(document, tokenizer, chunking)
        if not chunks:
            name = str(document.attributes.get("path", document.document_id))
            skipped.append(Skipped(document=name, reason="has no words"))
            continue
        kept.append(document)
        for number, each in enumerate(chunks):
            passage = _passage(document, number, each)
            passages.append(passage)
            inputs.append(_input(passage, tokenizer, max_tokens - _SPECIAL_TOKENS, chunking))
    return Cut(tuple(kept), tuple(passages), tuple(inputs), tuple(skipped))


def write_index(
    directory: Path,
    cut: Cut,
    vectors: Vectors,
    *,
    embedder: EmbedderRef,
    recipe: str = "Flat",
    search_parameters: str = "",
    chunking: Chunking | None = None,
    skipped: Sequence[Skipped] = (),
) -> IndexMetadata:
    """Write the three files into an existing directory. `vectors` is float32 [passages, d] of unit length. Blocking.

    Raises IndexVersionError when there is nothing to index, FAISS refuses the recipe, or the disk is full.
    """
    if not cut.passages:
        raise IndexVersionError("there are no passages to index: every document is empty or could not be read")
    if vectors.shape[0] != len(cut.passages):
        raise ValueError(f"{len(cut.passages)} passages need as many vectors, got {list(vectors.shape)}")
    index = _train(np.ascontiguousarray(vectors, np.float32), recipe, search_parameters)
    try:
        faiss.write_index(index, str(directory / INDEX_FILE))
        _write_table(directory / PASSAGES_FILE, _passages_table(cut.passages))
        _write_table(directory / DOCUMENTS_FILE, _documents_table(cut))
    except (OSError, RuntimeError) as exc:
        raise IndexVersionError(f"cannot write the index to {str(directory)!r}: {exc}; is the disk full?") from exc
    return IndexMetadata(
        embedder=embedder,
        dimension=vectors.shape[1],
        recipe=recipe,
        search_parameters=search_parameters,
        passages=len(cut.passages),
        documents=len(cut.documents),
        chunking=chunking,
        skipped=(*skipped, *cut.skipped),
    )


def _chunks(document: Document, tokenizer: Tokenizer, chunking: Chunking | None) -> list[Chunk]:
    if chunking is None:
        return [Chunk(0, len(document.text), "")] if token_count(tokenizer, document.text) else []
    return chunk(
        document.text,
        tokenizer=tokenizer,
        max_tokens=chunking.max_tokens,
        overlap_tokens=chunking.overlap_tokens,
        text_format=document.text_format,
    )


def _passage(document: Document, number: int, each: Chunk) -> Passage:
    return Passage(
        passage_id=f"{document.document_id}-{number}",
        document_id=document.document_id,
        text=document.text[each.start : each.end],
        title=_title(document.title, each.title),
        uri=document.uri,
        start=each.start,
        end=each.end,
        attributes=document.attributes,
    )


def _title(document_title: str, path: str) -> str:
    """The document's title, then its headings; a first heading that repeats the title is told once."""
    if not path or not document_title or path == document_title or path.startswith(f"{document_title} > "):
        return path or document_title
    return f"{document_title} > {path}"


def _input(passage: Passage, tokenizer: Tokenizer, budget: int, chunking: Chunking | None) -> str:
    """Title and text; where both do not fit, the title loses its end, so that the text is embedded whole."""
    title = passage.title
    if chunking is not None and title:
        room = max(0, budget - token_count(tokenizer, passage.text))
        offsets = tokenizer.encode(title, add_special_tokens=False).offsets
        if len(offsets) > room:
            title = title[: offsets[room - 1][1]] if room else ""
    return f"{title} {passage.text}" if title else passage.text


def _train(vectors: Vectors, recipe: str, search_parameters: str) -> faiss.Index:
    try:
        index = faiss.index_factory(vectors.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        if search_parameters:
            # Stored in the file, so that every reader searches as the recipe was tuned.
            faiss.ParameterSpace().set_index_parameters(index, search_parameters)
        # Not every kind of index can be searched with a filter, and every store can be asked for one.
        index.search(vectors[:1], 1, params=selecting(index, np.ones(len(vectors), np.bool_)))
    except RuntimeError as exc:
        reason = str(exc).split("Error: ")[-1]
        raise IndexVersionError(
            f"FAISS cannot build and filter {recipe!r} (search parameters {search_parameters!r}) from {len(vectors)} "
            f"vectors of {vectors.shape[1]} dimensions: {reason}; choose another recipe in the spec"
        ) from exc
    return index


def _passages_table(passages: Sequence[Passage]) -> pa.Table:
    columns = {name: [getattr(passage, name) for passage in passages] for name in PASSAGES_SCHEMA.names}
    found = {(key, type_name(value)) for passage in passages for key, value in passage.attributes.items()}
    schema = PASSAGES_SCHEMA
    for key, type_ in sorted(found):
        schema = schema.append(attribute_field(key, type_))
        values = (passage.attributes.get(key) for passage in passages)
        columns[attribute_column(key, type_)] = [
            value if value is not None and type_name(value) == type_ else None for value in values
        ]
    return pa.table(columns, schema=schema)


def _documents_table(cut: Cut) -> pa.Table:
    return pa.Table.from_pylist(list(_document_rows(cut)), schema=DOCUMENTS_SCHEMA)


def _document_rows(cut: Cut) -> Iterator[dict[str, str | int]]:
    groups = groupby(enumerate(cut.passages), key=lambda pair: pair[1].document_id)
    for document, (_, group) in zip(cut.documents, groups, strict=True):
        rows = [row for row, _ in group]
        yield {
            "document_id": document.document_id,
            "filename": str(document.attributes.get("filename", "")),
            "title": document.title,
            "uri": document.uri,
            "digest": document.digest,
            "characters": len(document.text),
            "first_row": rows[0],
            "passages": len(rows),
        }


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=_ROWS_PER_BATCH)
