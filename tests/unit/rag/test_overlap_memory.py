"""What is remembered of passages that were read: a bounded part, however large callers' own documents are."""

import tracemalloc

import pytest

from rag_stack.rag import overlap
from rag_stack.retrieval.recent import Recent
from rag_stack.types import Passage


def _passage(number: int) -> Passage:
    sentences = (" ".join(f"w{(number + line * word) % 97}x" for word in range(12)).capitalize() for line in range(40))
    text = ". ".join(sentences)
    return Passage(str(number), str(number), text, "", "", 0, len(text))


def test_large_passages_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_READ", Recent(1024, 1 << 20, overlap._read_bytes))
    passages = [_passage(number) for number in range(20)]
    tracemalloc.start()
    try:
        for passage in passages:
            overlap.PassageOverlap([passage], threshold=0.8, min_words=4)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 3 << 19
