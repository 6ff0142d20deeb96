"""The node-loss drill without a cluster: an empty cache, and all from the object store."""

from pathlib import Path

import pytest

from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.tiers import Tiers
from rag_stack.errors import ArtifactCorruptError, EmbedderMismatchError
from rag_stack.metrics import MemoryRecorder
from rag_stack.recovery.node_loss_drill import NodeLossDrill, drill_node_loss
from tests.promoted import publish_town, release_of, words
from tests.s3 import damage


def drill(tiers: Tiers, tmp_path: Path) -> NodeLossDrill:
    empty = Tiers(tiers.catalog, NodeCache(tmp_path / "empty"), MemoryRecorder())
    found = drill_node_loss(release_of(tiers.catalog.store.url, tmp_path / "unused"), empty, load_with=words)
    empty.cache.wait_synced()
    return found


def test_all_comes_from_the_object_store_and_search_is_ready_first(tiers: Tiers, tmp_path: Path) -> None:
    found = drill(tiers, tmp_path)
    assert [each.ref.rpartition("/")[0] for each in found.fetched] == [
        "models/words",
        "indexes/docs",
        "models/generator",
    ]
    assert found.origin_bytes == sum(each.size_bytes for each in found.fetched) > 0
    assert (found.peer_bytes, found.peers) == (0, False)
    assert 0 < found.search_seconds < found.weights_seconds
    assert "from the object store alone" in found.figure()
    assert found.to_json()["origin_bytes"] == found.origin_bytes
    assert not (tmp_path / "unused").exists()


def test_what_is_damaged_ends_it_and_is_named(tiers: Tiers, tmp_path: Path) -> None:
    (file,) = (tmp_path / "store/models/generator").glob("*/model.safetensors")
    file.chmod(0o644)
    damage(file, offset=1000)
    with pytest.raises(ArtifactCorruptError, match=r"model\.safetensors"):
        drill(tiers, tmp_path)


def test_an_index_of_another_embedder_ends_it(tiers: Tiers, tmp_path: Path) -> None:
    publish_town(tiers.catalog, tmp_path / "other", "v3", embedder=tiers.resolve("models", "generator"))
    with pytest.raises(EmbedderMismatchError):
        drill(tiers, tmp_path)
