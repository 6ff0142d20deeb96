"""What the control applications tell of the stores, and what a pinned release remembers of them."""

from pathlib import Path

import pytest

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.retrieval.rollout import FollowedStore, Lag, StoreView, Target
from rag_stack.serving.control import _swap_row
from rag_stack.serving.opening import following
from rag_stack.serving.readiness import StoreTold, store_parts
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


def test_ready_shows_a_stores_version_and_that_some_lag() -> None:
    stores = [
        StoreTold("town", "v2", 0, of_release=True),
        StoreTold("new", "", 0, of_release=True),
        StoreTold("one", "v2", 1, of_release=True),
        StoreTold("two", "v2", 2, of_release=True),
    ]
    assert store_parts(stores) == {
        "store town": "v2",
        "store new": "no version yet",
        "store one": "v2, 1 process lags",
        "store two": "v2, 2 processes lag",
    }


def test_ready_counts_the_stores_that_were_made_over_http() -> None:
    stores = [StoreTold(f"vs_{number}", "v1", number, of_release=False) for number in range(3)]
    assert store_parts(stores) == {"stores made over HTTP": "3 open, 2 of them not everywhere"}
    assert store_parts(stores[:1]) == {"stores made over HTTP": "1 open"}


def test_an_operator_sees_who_lags_and_why() -> None:
    assert _swap_row(StoreView(STORE, "v2", "v3", (Lag("engine/ab12", "v1", "no room"),))) == {
        "store": "town",
        "index": "town",
        "of_release": True,
        "version": "v2",
        "next_version": "v3",
        "lagging": [{"participant": "engine/ab12", "serving": "v1", "reason": "no room"}],
    }
