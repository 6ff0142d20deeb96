"""SIGKILL of whoever applies, advances and rolls back a release, at any step: the next call ends what it began."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.rollout import Rollout
from tests.killed import Child, Death, Place
from tests.pinnable import publish_docs, publish_model
from tests.rolled import carry_out


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PinnedRelease]]:
    """A store with one release promoted, and that release and the next."""
    folder = tmp_path_factory.mktemp("prepared")
    config = ArtifactsConfig(root=f"file://{folder}/store", cache=folder / "cache")
    tiers = open_tiers(config, MemoryRecorder())
    publish_model(tiers.catalog, folder, "generator", "weights")
    publish_docs(tiers.catalog, folder, "v1", embedder=publish_model(tiers.catalog, folder, "words", "embedder"))
    tiers.catalog.promote(ArtifactRef("indexes", "docs", "v1"))
    releases = []
    for top_k in (1, 2):
        fields = {
            "name": "demo",
            "artifacts": config,
            "model": {"name": "generator"},
            "embedder": {"name": "words"},
            "stores": [{"name": "docs", "index": "docs"}],
            "retrieval": {"top_k": top_k},
            "rollout": {"steps": [0.5, 1.0], "step_s": 0, "step_requests": 1},
        }
        releases.append(pin(Release.model_validate(fields), tiers))
    Rollout(tiers.catalog, "demo", clock=lambda: 0.0).apply(releases[0])
    return folder / "store", releases


def copied(prepared: Path, to: Path) -> Place:
    shutil.copytree(prepared, to / "store")
    return Place(f"file://{to}/store", store=to / "store", cache=to / "cache", watched=to / "store")


@pytest.mark.parametrize("points", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_the_next_call_ends_what_a_killed_one_began(
    prepared: tuple[Path, list[PinnedRelease]], tmp_path: Path, points: int
) -> None:
    store, (first, second) = prepared
    whole = copied(store, tmp_path / "whole")
    steps, _ = Child(partial(carry_out, whole, second), whole, Death()).measured()
    for number in range(points):
        place = copied(store, tmp_path / f"{number}")
        step = 1 + (number * 2 + 1) * steps // (2 * points)
        assert Child(partial(carry_out, place, second), place, Death(step=step)).died(), step
        rollout = Rollout(Catalog(open_store(place.store_url)), "demo", clock=lambda: 20.0)
        plan, pointer = rollout.settle(), rollout.pointer()
        assert pointer is not None
        assert pointer.version == plan.goal
        assert {plan.old, plan.new} <= {first.version, second.version, None}
        carry_out(place, second if plan.goal == first.version else first)
        assert rollout.settle().goal == plan.goal
