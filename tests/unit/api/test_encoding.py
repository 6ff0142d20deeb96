"""What is put together without validation is what the protocol's models say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_stack.api.encoding import filename, rag_block
from rag_stack.api.http import dumps
from rag_stack.protocol import RagBlock, RagCitation, RagSource, ReplayRecord
from rag_stack.rag.pipeline import Grounding
from rag_stack.types import Citation, Hit, Passage, Source, Timings

_HIT = Hit(Passage("a-0", "a", "Text.", "A title", "", 0, 5), 0.12345678, store="documents")
_SOURCES = (Source(1, _HIT), Source(2, Hit(_HIT.passage, 1.0)))
_CITATION = Citation(method="marker", source=1, answer_start=0, answer_end=4, quote="Text", quote_start=0, quote_end=4)
_REPLAY = ReplayRecord(release="r", path="/v1/chat/completions", passages=[], request={"seed": None})


@pytest.mark.parametrize("versions", [{}, {"documents": "v1"}, {"documents": "v1", "notes": ""}])
@pytest.mark.parametrize(
    "told", [{}, {"with_text": True, "with_messages": True, "replay": _REPLAY, "cached_tokens": 0}]
)
@pytest.mark.parametrize("rerank_ms", [0.0, 2.5])
def test_a_block_is_what_its_model_writes(versions: dict[str, str], told: dict[str, object], rerank_ms: float) -> None:
    timings = Timings(queue_ms=1, embed_ms=0.0004, search_ms=3.14159, rerank_ms=rerank_ms)
    grounding = Grounding(({"role": "user", "content": None},), _SOURCES, versions, timings)
    block = rag_block(grounding, release="r", release_version="v", citations=(_CITATION,), **told)  # type: ignore[arg-type]
    written = RagBlock(**block).model_dump(exclude_none=True)
    assert block == written
    assert list(block) == list(written)
    assert [list(each) for each in block["sources"]] == [list(each) for each in written["sources"]]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_PLACE = st.integers(0, 1 << 40)
_PASSAGES = st.builds(Passage, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _PLACE, _PLACE)
_SOURCE = st.builds(Source, st.integers(1, 50), st.builds(Hit, _PASSAGES, st.floats(0, 1), _TEXT))
_CITED = st.builds(
    Citation, st.sampled_from(["marker", "overlap"]), st.integers(1, 50), _PLACE, _PLACE, _TEXT, _PLACE, _PLACE
)


def _source(source: Source, *, with_text: bool) -> RagSource:
    hit, passage = source.hit, source.hit.passage
    return RagSource(
        number=source.number,
        store=hit.store or None,
        file_id=passage.document_id,
        filename=filename(hit),
        passage_id=passage.passage_id,
        title=passage.title,
        url=passage.uri,
        score=round(hit.score, 6),
        start=passage.start,
        end=passage.end,
        text=passage.text if with_text else None,
    )


def _citation(each: Citation) -> RagCitation:
    return RagCitation(
        method=each.method,
        source=each.source,
        start_index=each.answer_start,
        end_index=each.answer_end,
        quote=each.quote,
        quote_start=each.quote_start,
        quote_end=each.quote_end,
    )


@given(
    sources=st.lists(_SOURCE, max_size=3),
    citations=st.lists(_CITED, max_size=3),
    versions=st.dictionaries(_TEXT, _TEXT, max_size=3),
    version=_TEXT,
    with_text=st.booleans(),
    with_messages=st.booleans(),
    cached_tokens=st.none() | _PLACE,
    times=st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)),
)
def test_a_block_is_on_the_wire_what_its_models_are(
    sources: list[Source],
    citations: list[Citation],
    versions: dict[str, str],
    version: str,
    with_text: bool,
    with_messages: bool,
    cached_tokens: int | None,
    times: tuple[float, float],
) -> None:
    timings = Timings(embed_ms=times[0], rerank_ms=times[1])
    messages = ({"role": "user", "content": version}, {"role": "assistant", "tool_calls": []})
    grounding = Grounding(messages, tuple(sources), versions, timings)
    block = rag_block(
        grounding,
        release="r",
        release_version=version,
        citations=citations,
        with_text=with_text,
        with_messages=with_messages,
        cached_tokens=cached_tokens,
    )
    rounded = {"queue": 0.0, "embed": round(times[0], 3), "search": 0.0, "prompt": 0.0}
    store, index_version = next(iter(versions.items())) if len(versions) == 1 else (None, None)
    model = RagBlock(
        release="r",
        release_version=version or None,
        store=store,
        index_version=index_version,
        index_versions=versions if len(versions) > 1 else None,
        timings_ms={**rounded, "rerank": round(times[1], 3)} if times[1] else rounded,
        sources=[_source(each, with_text=with_text) for each in sources],
        citations=[_citation(each) for each in citations],
        cached_tokens=cached_tokens,
        messages=list(messages) if with_messages else None,
    )
    assert json.loads(dumps(block)) == json.loads(model.model_dump_json(exclude_none=True))
