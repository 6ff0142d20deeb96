"""From the nouns to the wire: sources, citations and annotations as clients read them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from rag_stack.protocol import (
    ReplayPassage,
    ReplayRecord,
    SearchResult,
    TextContent,
)
from rag_stack.rag.pipeline import Grounding
from rag_stack.types import Citation, Hit, Source, Timings


def filename(hit: Hit) -> str:
    """What a document is called: the file it came from, else its title."""
    return str(hit.passage.attributes.get("filename") or hit.passage.title or hit.passage.document_id)


def search_result(hit: Hit) -> SearchResult:
    """A hit as the search endpoint gives it."""
    passage = hit.passage
    return SearchResult(
        file_id=passage.document_id,
        filename=filename(hit),
        score=round(hit.score, 6),
        attributes=dict(passage.attributes),
        content=[TextContent(text=passage.text)],
        passage_id=passage.passage_id,
        title=passage.title,
        url=passage.uri,
        start=passage.start,
        end=passage.end,
    )


def rag_source(source: Source, *, with_text: bool) -> dict[str, Any]:
    """A source for the `rag` block, as `RagSource` has it; the text only on request."""
    hit, passage = source.hit, source.hit.passage
    return {
        "number": source.number,
        **({"store": hit.store} if hit.store else {}),
        "file_id": passage.document_id,
        "filename": filename(hit),
        "passage_id": passage.passage_id,
        "title": passage.title,
        "url": passage.uri,
        "score": round(hit.score, 6),
        "start": passage.start,
        "end": passage.end,
        **({"text": passage.text} if with_text else {}),
    }


def rag_citation(citation: Citation) -> dict[str, Any]:
    """A citation for the `rag` block, as `RagCitation` has it."""
    return {
        "method": citation.method,
        "source": citation.source,
        "start_index": citation.answer_start,
        "end_index": citation.answer_end,
        "quote": citation.quote,
        "quote_start": citation.quote_start,
        "quote_end": citation.quote_end,
    }


def annotations(citations: Sequence[Citation], sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Citations as annotations: a `url_citation` where the document has a URL, and a `file_citation` always."""
    by_number = {source.number: source.hit for source in sources}
    found: list[dict[str, Any]] = []
    for citation in citations:
        hit = by_number[citation.source]
        span = {"start_index": citation.answer_start, "end_index": citation.answer_end}
        if hit.passage.uri:
            url = {"url": hit.passage.uri, "title": hit.passage.title, **span}
            found.append({"type": "url_citation", "url_citation": url})
        file = {"file_id": hit.passage.document_id, "filename": filename(hit), "quote": citation.quote, **span}
        found.append({"type": "file_citation", "file_citation": file})
    return found


def search_results(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """The sources in the place where LiteLLM's users look for them."""
    return [
        {
            "object": "vector_store.search_results.page",
            "search_query": "",
            "data": [search_result(source.hit).model_dump() for source in sources],
        }
    ]


def rag_block(
    grounding: Grounding,
    *,
    release: str,
    release_version: str = "",
    citations: Sequence[Citation] = (),
    with_text: bool = False,
    with_messages: bool = False,
    replay: ReplayRecord | None = None,
    cached_tokens: int | None = None,
) -> dict[str, Any]:
    """The `rag` object of an answer: what `RagBlock` says of it, put together here, since no input is to be checked."""
    block = {
        "release": release,
        "release_version": release_version or None,
        **_searched(grounding.index_versions),
        "timings_ms": timings_ms(grounding.timings),
        "sources": [rag_source(source, with_text=with_text) for source in grounding.sources],
        "citations": [rag_citation(citation) for citation in citations],
        "cached_tokens": cached_tokens,
        "messages": [dict(message) for message in grounding.messages] if with_messages else None,
        "replay": None if replay is None else replay.model_dump(exclude_none=True),
    }
    return {name: value for name, value in block.items() if value is not None}


def replay_record(
    grounding: Grounding, *, release: str, release_version: str, path: str, request: Mapping[str, Any]
) -> ReplayRecord:
    """What a request was made of; `request` is the engine's body. How an answer is sent is no part of it."""
    return ReplayRecord(
        release=release,
        release_version=release_version or None,
        path=path,
        **_searched(grounding.index_versions),
        passages=[
            ReplayPassage(
                number=source.number,
                passage_id=source.hit.passage.passage_id,
                file_id=source.hit.passage.document_id,
                sha256=hashlib.sha256(source.hit.passage.text.encode()).hexdigest(),
            )
            for source in grounding.sources
        ],
        request={key: value for key, value in request.items() if key not in ("stream", "stream_options")},
    )


def _searched(index_versions: Mapping[str, str]) -> dict[str, Any]:
    """One store by itself, as clients have always read it; several by name."""
    match list(index_versions.items()):
        case []:
            return {}
        case [(store, version)]:
            return {"store": store, "index_version": version}
        case several:
            return {"index_versions": dict(several)}


def timings_ms(timings: Timings) -> dict[str, float]:
    """`{"embed": 8.1, ...}`, milliseconds; `rerank` only where that was done."""
    return {
        "queue": round(timings.queue_ms, 3),
        "embed": round(timings.embed_ms, 3),
        "search": round(timings.search_ms, 3),
        **({"rerank": round(timings.rerank_ms, 3)} if timings.rerank_ms else {}),
        "prompt": round(timings.prompt_ms, 3),
    }
