"""What is put together without validation is what the protocol's models say."""

import pytest

from rag_stack.api.encoding import rag_block
from rag_stack.protocol import RagBlock, ReplayRecord
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
