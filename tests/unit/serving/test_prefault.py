"""Indexes that are prefaulted beside the start: what is reported of it."""

import shutil
from pathlib import Path

import pytest

from rag_stack.index.format import LEXICAL_MAPPED_FILES
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, ARTIFACT_LOAD_SECONDS, MemoryRecorder
from rag_stack.serving.opening import prefault
from rag_stack.timeline import Timeline
from tests.embedder import WordEmbedder
from tests.layer import TOWN, build_index, shelf_of


def test_what_is_in_memory_already_comes_from_the_cache(tmp_path: Path) -> None:
    index = build_index(tmp_path / "town", TOWN, embedder=WordEmbedder(), name="town")
    index.prefault()
    timeline, recorder = Timeline(), MemoryRecorder()
    prefault(shelf_of({"town": index}), timeline=timeline, recorder=recorder)
    (span,) = timeline.spans()
    files = ("index.faiss", "passages.arrow", *LEXICAL_MAPPED_FILES)
    size = sum((tmp_path / "town" / name).stat().st_size for name in files)
    assert (span.name, span.kind, span.source, span.size_bytes) == ("prefault town", "indexes", "cache", size)
    labels = {"kind": "indexes", "stage": "prefault", "source": "cache"}
    assert recorder.values(ARTIFACT_LOAD_BYTES, labels) == [size]
    assert recorder.values(ARTIFACT_LOAD_SECONDS, labels) == [span.seconds]


def test_one_index_that_cannot_be_read_does_not_keep_the_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    indexes = {name: build_index(tmp_path / name, TOWN, embedder=WordEmbedder(), name=name) for name in ("a", "b")}
    shutil.rmtree(tmp_path / "a")
    timeline = Timeline()
    prefault(shelf_of(indexes), timeline=timeline, recorder=MemoryRecorder())
    assert [span.name for span in timeline.spans()] == ["prefault b"]
    assert "the store a is searched without a prefault" in caplog.text
