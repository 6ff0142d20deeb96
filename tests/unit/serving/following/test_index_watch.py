"""What operators are told of followed indexes."""

import os
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import open_store
from rag_stack.metrics import INDEX_AGE_SECONDS, INDEX_FAILED_GATES, INDEX_UNPROMOTED, MemoryRecorder, Metric
from rag_stack.serving.following.index_watch import IndexWatch

STORE = {"store": "handbook"}
PASSED, FAILED = {"name": "documents", "passed": True}, {"name": "recall", "passed": False}


class Indexed:
    """A catalog with one index, on a file system whose clock the test sets."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.catalog = Catalog(open_store(f"file://{self.root}"))
        self.recorder = MemoryRecorder()
        self.now_s = 1000.0
        self.watch = IndexWatch(self.catalog, self.recorder, clock=lambda: self.now_s)
        self._folder = folder

    def publish(self, version: str, *, at_s: float, gates: tuple[Any, ...] = (PASSED,)) -> ArtifactRef:
        source = self._folder / f"built-{version}"
        source.mkdir()
        (source / "index.faiss").write_text(version)
        metadata = {"gates": list(gates)}
        ref = self.catalog.publish(source, kind="indexes", name="docs", metadata=metadata, version=version).ref
        os.utime(self.root / "indexes" / "docs" / version / "manifest.json", (at_s, at_s))
        return ref

    def told(self, metric: Metric, *, served: str = "v1") -> list[float]:
        before = len(self.recorder.values(metric, STORE))
        self.watch.look([("handbook", "docs", served)])
        self.watch.tell()
        return self.recorder.values(metric, STORE)[before:]


@pytest.fixture
def indexed(tmp_path: Path) -> Indexed:
    return Indexed(tmp_path)


def test_the_age_is_that_of_the_version_that_is_served_and_grows(indexed: Indexed) -> None:
    indexed.publish("v1", at_s=400.0)
    indexed.publish("v2", at_s=900.0)
    assert indexed.told(INDEX_AGE_SECONDS) == [600.0]
    indexed.now_s = 1060.0
    assert indexed.told(INDEX_AGE_SECONDS) == [660.0]
    assert indexed.told(INDEX_AGE_SECONDS, served="v2") == [160.0]


def test_a_newer_version_that_gates_refused_is_told_until_one_is_promoted(indexed: Indexed) -> None:
    indexed.catalog.promote(indexed.publish("v1", at_s=100.0))
    assert (indexed.told(INDEX_UNPROMOTED), indexed.told(INDEX_FAILED_GATES)) == ([0.0], [0])
    indexed.publish("v2", at_s=200.0, gates=(PASSED, FAILED, FAILED))
    assert (indexed.told(INDEX_UNPROMOTED), indexed.told(INDEX_FAILED_GATES)) == ([1.0], [2])
    indexed.catalog.promote(indexed.publish("v3", at_s=300.0))
    assert (indexed.told(INDEX_UNPROMOTED), indexed.told(INDEX_FAILED_GATES)) == ([0.0], [0])


def test_a_version_that_a_comparison_refused_is_unpromoted_though_its_own_gates_passed(indexed: Indexed) -> None:
    indexed.catalog.promote(indexed.publish("v1", at_s=100.0))
    indexed.publish("v2", at_s=200.0)
    assert (indexed.told(INDEX_UNPROMOTED), indexed.told(INDEX_FAILED_GATES)) == ([1.0], [0])


def test_a_version_that_was_rolled_back_was_promoted_once(indexed: Indexed) -> None:
    indexed.catalog.promote(indexed.publish("v1", at_s=100.0))
    indexed.catalog.promote(indexed.publish("v2", at_s=200.0))
    indexed.catalog.rollback("indexes", "docs")
    assert indexed.told(INDEX_UNPROMOTED) == [0.0]


def test_what_cannot_be_read_stays_as_it_was_seen_and_grows_older(indexed: Indexed) -> None:
    indexed.catalog.promote(indexed.publish("v1", at_s=100.0))
    assert indexed.told(INDEX_AGE_SECONDS) == [900.0]
    (indexed.root / "indexes" / "docs" / "PROMOTED").write_text("no pointer")
    indexed.now_s = 1100.0
    assert indexed.told(INDEX_AGE_SECONDS) == [1000.0]


def test_a_store_of_which_nothing_is_served_has_no_age_and_one_that_is_gone_is_told_no_more(indexed: Indexed) -> None:
    assert indexed.told(INDEX_AGE_SECONDS, served="") == []
    assert indexed.told(INDEX_UNPROMOTED, served="") == [0.0]
    indexed.watch.look([])
    indexed.watch.tell()
    assert indexed.recorder.values(INDEX_UNPROMOTED, STORE) == [0.0, 0.0]
