"""What a cluster is built from: the file the first time, and from then on what is rolled out."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.errors import ArtifactNotFoundError, IncompatibleReleaseError, PromotionConflictError
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.releases.rollout import Rollout
from rag_stack.serving.seed import deployed_release
from tests.pinnable import publish_docs, publish_model


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    """A model, an embedder and an index; a node that has no cache and may not make one."""
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=Path("/proc/none")), MemoryRecorder())
    publish_model(tiers.catalog, tmp_path, "generator", "weights")
    embedder = publish_model(tiers.catalog, tmp_path, "words", "embedder")
    tiers.catalog.promote(publish_docs(tiers.catalog, tmp_path, "one", embedder=embedder).ref)
    return tiers


def release(tmp_path: Path, **changes: Any) -> Release:
    fields = {
        "name": "test",
        "artifacts": {"root": f"file://{tmp_path}/store", "cache": "/proc/none"},
        "model": {"name": "generator"},
        "embedder": {"name": "words"},
        "stores": [{"name": "docs", "index": "docs"}],
    }
    return Release.model_validate(fields | changes)


def test_the_file_seeds_the_first_start(tmp_path: Path, tiers: Tiers) -> None:
    deployed = deployed_release(release(tmp_path), tiers, seeds=True)
    assert deployed.version == pin(release(tmp_path), tiers).version
    plan = Rollout(tiers.catalog, "test").plan()
    assert plan is not None
    assert (plan.state, plan.goal, plan.revision) == ("steady", deployed.version, 1)
    assert deployed_release(release(tmp_path), tiers, seeds=False).version == deployed.version


def test_one_that_does_not_seed_writes_nothing(tmp_path: Path, tiers: Tiers) -> None:
    deployed = deployed_release(release(tmp_path), tiers, seeds=False)
    assert deployed.release.model.version
    assert Rollout(tiers.catalog, "test").plan() is None


def test_of_many_that_seed_one_wins_and_all_agree(tmp_path: Path, tiers: Tiers) -> None:
    """Two builders of one deployment, and those of a second cluster with another file."""
    files = [release(tmp_path, prompt={"system": f"Number {number % 2}."}) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda file: deployed_release(file, tiers, seeds=True), files))
    plan = Rollout(tiers.catalog, "test").plan()
    assert plan is not None
    assert {each.version for each in found} == {plan.goal}
    assert len({each.release.prompt.system for each in found}) == 1
    assert plan.revision == 1


def test_who_comes_just_after_another_begins_no_rollout(tmp_path: Path, tiers: Tiers) -> None:
    rollout = Rollout(tiers.catalog, "test")
    first = rollout.seed(pin(release(tmp_path), tiers))
    with pytest.raises(PromotionConflictError):
        rollout.seed(pin(release(tmp_path, prompt={"system": "Another."}), tiers))
    assert rollout.plan() == first


def test_what_is_rolled_out_rules_and_the_file_rules_the_deployment(
    tmp_path: Path, tiers: Tiers, caplog: pytest.LogCaptureFixture
) -> None:
    first = deployed_release(release(tmp_path), tiers, seeds=True)
    rollout = Rollout(tiers.catalog, "test")
    rollout.apply(pin(release(tmp_path, prompt={"system": "Be brief."}), tiers), at_once=True)
    caplog.set_level(logging.WARNING, "ray.serve")
    again = release(tmp_path, scaling={"max_replicas": 3}, server={"api_key_sha256": ["b" * 64]})
    deployed = deployed_release(again, tiers, seeds=True)
    assert deployed.release.prompt.system == "Be brief."
    assert deployed.release.scaling.max_replicas == 3
    assert deployed.release.server.api_key_sha256 == ("b" * 64,)
    assert "its file differs" in caplog.text
    rollout.rollback()
    caplog.clear()
    assert deployed_release(again, tiers, seeds=True).version == first.version, "a restart undoes no rollback"
    assert not caplog.text


def test_a_store_that_follows_makes_no_other_file(
    tmp_path: Path, tiers: Tiers, caplog: pytest.LogCaptureFixture
) -> None:
    deployed_release(release(tmp_path), tiers, seeds=True)
    embedder = tiers.catalog.resolve("models", "words")
    tiers.catalog.promote(publish_docs(tiers.catalog, tmp_path, "two", embedder=embedder).ref)
    deployed_release(release(tmp_path), tiers, seeds=True)
    assert not caplog.text


def test_what_cannot_be_served_is_said_before_anything_is_written(tmp_path: Path, tiers: Tiers) -> None:
    with pytest.raises(ArtifactNotFoundError, match="absent"):
        deployed_release(release(tmp_path, model={"name": "absent"}), tiers, seeds=True)
    with pytest.raises(IncompatibleReleaseError, match="embedder"):
        deployed_release(release(tmp_path, embedder={"name": "generator"}), tiers, seeds=True)
    assert Rollout(tiers.catalog, "test").plan() is None
