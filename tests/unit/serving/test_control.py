"""What the control applications tell of the stores, and what a pinned release remembers of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.generation.kv_settings import KvCapacity
from rag_stack.index.gpu_memory import GpuMemory
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.retrieval.rollout import FollowedStore, Lag, StoreView, Target
from rag_stack.serving.control import AdminServer, SearchServer, _swap_row
from rag_stack.serving.environment import go_offline, offline_environment
from rag_stack.serving.following.index_watch import IndexWatch
from rag_stack.serving.opening import following
from rag_stack.serving.readiness import StoreTold, cache_part, gpu_part, store_parts
from rag_stack.serving.rollout.searched_release import SearchedRelease
from tests.embedder import WordEmbedder
from tests.host_device import HostDevice
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


async def test_a_search_server_that_is_ended_during_its_start_ends_quietly() -> None:
    server = SearchServer.__new__(SearchServer)
    await server.__del__()
    server._searched = SearchedRelease.__new__(SearchedRelease)  # not opened yet
    await server.__del__()


async def test_an_admin_server_that_tells_nothing_any_more_is_replaced(
    tmp_path: Path, tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gauges would stay at what they were, and its coordinator looks at pointers still."""

    def look(self: IndexWatch, served: object) -> None:
        raise ValueError("a gauge that nobody expected")

    monkeypatch.setattr(IndexWatch, "look", look)
    server = AdminServer.__new__(AdminServer)
    await server.__init__(pin(release(tmp_path), tiers))  # type: ignore[misc]  # as Serve makes it
    with pytest.raises(ValueError, match="nobody expected"):
        await server._running
    with pytest.raises(RuntimeError, match="nobody expected"):
        await server.check_health()


def test_what_a_search_imports_finds_no_model_hub() -> None:
    """Whatever a serve.yaml says of its actor: see SearchServer."""
    environ = {"HF_HUB_OFFLINE": "0"}
    go_offline(environ)
    assert environ == offline_environment()
    program = (
        "import sys, rag_stack.serving.control_apps;"
        "assert not {'huggingface_hub', 'transformers', 'vllm'} & set(sys.modules), 'too late to go offline'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_ready_tells_how_many_tokens_fit() -> None:
    assert cache_part(KvCapacity(5120, 40, 128)) == {"kv cache": "5120 tokens (40 blocks of 128)"}
    assert cache_part(None) == {}, "a scripted engine has no cache"


def test_ready_tells_of_indexes_on_a_device() -> None:
    assert gpu_part(None) == {}
    gpu = GpuMemory(HostDevice(), budget_bytes=2_000_000_000, stores=1, recorder=MemoryRecorder())
    assert gpu_part(gpu) == {"gpu index": "0 on the device, 0.000 of 2.000 GB"}
