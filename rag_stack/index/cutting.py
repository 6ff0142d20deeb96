"""A document -> its passages, and what is embedded for each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tokenizers import Tokenizer

from rag_stack.index.chunking import Chunk, chunk, token_count
from rag_stack.index.documents import Document
from rag_stack.index.format import Chunking, Skipped
from rag_stack.types import Passage

# [CLS] and [SEP] of the embedder.
SPECIAL_TOKENS: Final = 2


@dataclass(frozen=True, slots=True)
class CutDocument:
    """A document, its passages in reading order, and the input of the embedder for each."""

    document: Document
    passages: tuple[Passage, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Documents cut into passages, document by document, and what gave no passage."""

    documents: tuple[Document, ...]
    passages: tuple[Passage, ...]
    inputs: tuple[str, ...]
    skipped: tuple[Skipped, ...]


def cut_document(
    document: Document, *, tokenizer: Tokenizer, max_tokens: int, chunking: Chunking | None
) -> CutDocument | Skipped:
    """Passages of a document, and what is embedded for each: its title and text, within the embedder's `max_tokens`.

    A chunking of the document's own comes before `chunking`. Without either the document is one passage, and the
    embedder cuts what is too long.
    """
    chunking = document.chunking or chunking
    chunks = _chunks(document, tokenizer, chunking)
    if not chunks:
        name = str(document.attributes.get("path", document.document_id))
        return Skipped(document=name, reason="has no words")
    passages = tuple(_passage(document, number, each) for number, each in enumerate(chunks))
    budget = max_tokens - SPECIAL_TOKENS
    return CutDocument(document, passages, tuple(_input(each, tokenizer, budget, chunking) for each in passages))


def cut_documents(
    documents: Iterable[Document], *, tokenizer: Tokenizer, max_tokens: int, chunking: Chunking | None
) -> Cut:
    """`cut_document` of each, for what fits into memory."""
    cut = [cut_document(each, tokenizer=tokenizer, max_tokens=max_tokens, chunking=chunking) for each in documents]
    kept = [each for each in cut if isinstance(each, CutDocument)]
    return Cut(
        documents=tuple(each.document for each in kept),
        passages=tuple(passage for each in kept for passage in each.passages),
        inputs=tuple(text for each in kept for text in each.inputs),
        skipped=tuple(each for each in cut if isinstance(each, Skipped)),
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
