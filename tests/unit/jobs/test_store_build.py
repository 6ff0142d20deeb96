"""When a store made over HTTP is built again by a new release, and when it stays as it is."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.index.format import Chunking
from rag_stack.jobs.store_build import StoreBuild
from rag_stack.metrics import MemoryRecorder
from rag_stack.stores.files import Files
from rag_stack.stores.store import Store
from tests.embedder import WordEmbedder

EMBEDDER = WordEmbedder()
METADATA = {
    "embedder": {"name": EMBEDDER.name, "digest": EMBEDDER.digest},
    "dimension": 4,
    "recipe": "Flat",
    "passages": 1,
    "documents": 1,
    "recall": 1.0,
    "recall_at": 1,
    "recall_queries": 1,
}
OTHER_WORDS = {"lower_case": True, "stop_words": None, "stemmer": None, "k1": 1.5, "b": 0.75}


@pytest.mark.parametrize(
    ("change", "current"),
    [
        ({"format_version": 2}, True),
        ({"format_version": 2, "embedder": {"name": "other", "digest": "sha256:1"}}, False),
        ({"format_version": 3, "lexical": {}}, True),
        ({"format_version": 3}, False),
        ({"format_version": 3, "lexical": OTHER_WORDS}, False),
        ({"format_version": 1}, False),
        ({"format_version": 99}, False),
    ],
)
def test_an_older_format_that_opens_is_current_until_the_store_changes(
    tmp_path: Path, change: Mapping[str, object], current: bool
) -> None:
    object_store = open_store((tmp_path / "root").as_uri())
    tiers = Tiers(Catalog(object_store), NodeCache(tmp_path / "cache"), MemoryRecorder())
    build = StoreBuild(Files(object_store), tiers, EMBEDDER, chunking=Chunking())
    store = Store(store_id="vs_1", name="docs", created_at=1, last_active_at=1)
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "index.faiss").write_bytes(b"vectors")
    assert not build.is_current(store), "nothing is promoted"
    manifest = tiers.catalog.publish(
        tmp_path / "version", kind="indexes", name=store.store_id, metadata={**METADATA, **change}
    )
    tiers.catalog.promote(manifest.ref, expected_version=None)
    assert build.is_current(store) is current
