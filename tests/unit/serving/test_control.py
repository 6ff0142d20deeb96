"""What the control applications tell of the stores, and what a pinned release remembers of them."""

from pathlib import Path

import pytest

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.rollout import FollowedStore, Lag, StoreView, Target
from rag_stack.serving.control import _told
from rag_stack.serving.opening import following
from rag_stack.serving.pinning import pin
from tests.embedder import WordEmbedder
from tests.layer import TOWN, publish_index

STORE = FollowedStore("town", "town", of_release=True)


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    tiers.catalog.promote(tiers.catalog.publish(folder, kind="models", name="m", metadata={}).ref)
    index = publish_index(tiers.catalog, tmp_path / "town", TOWN, embedder=WordEmbedder(), name="town")
    tiers.catalog.promote(index.ref)
    return tiers


def release(tmp_path: Path, *stores: dict[str, str]) -> Release:
    fields = {
        "name": "test",
        "artifacts": {"root": f"file://{tmp_path}/store", "cache": tmp_path / "cache"},
        "model": {"name": "m"},
        "embedder": {"name": "m"},
        "stores": stores,
    }
    return Release.model_validate(fields)


def test_a_store_without_a_version_is_followed_and_the_others_are_fixed(tmp_path: Path, tiers: Tiers) -> None:
    manifest = tiers.catalog.resolve("indexes", "town")
    pinned = pin(
        release(
            tmp_path,
            {"name": "open", "index": "town"},
            {"name": "by-version", "index": "town", "version": manifest.version},
            {"name": "by-digest", "index": "town", "digest": manifest.digest},
        ),
        tiers,
    )
    assert pinned.followed == ("open",)
    assert {store.version for store in pinned.release.stores} == {manifest.version}
    begun = Target(version=manifest.version, digest=manifest.digest)
    assert following(pinned) == {FollowedStore("open", "town", of_release=True): begun}


def test_ready_shows_a_stores_version_and_who_lags() -> None:
    assert _told(StoreView(STORE, "v2", None, ())) == "v2"
    assert _told(StoreView(STORE, "", None, ())) == "no version yet"
    lagging = StoreView(STORE, "v2", None, (Lag("engine/ab12", "v1", "no room"),))
    assert _told(lagging) == "v2; engine/ab12 stays at v1: no room"
