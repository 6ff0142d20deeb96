"""What of the engine's deployment can be seen without an engine."""

from pathlib import Path

import pytest
from ray import cloudpickle
from ray.serve.llm import LLMConfig

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.serving.rag_server import RELEASE_KEY, LocalWeights, RagServer
from rag_stack.serving.replica_start import ReplicaStart
from rag_stack.serving.rollout.coordinator import Assignment, Orders
from rag_stack.serving.rollout.member import ReleaseMember
from rag_stack.serving.rollout.tally import Report


@pytest.fixture
def tiers(tmp_path: Path) -> Tiers:
    """Published: one directory, which serves as model and as embedder."""
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    tiers.catalog.promote(tiers.catalog.publish(folder, kind="models", name="m", metadata={}).ref)
    return tiers


@pytest.fixture
def weights(tmp_path: Path, tiers: Tiers) -> LocalWeights:
    """As Ray makes it, in a replica that has begun to start."""
    release = Release.model_validate(
        {
            "name": "test",
            "artifacts": {"root": f"file://{tmp_path}/store", "cache": tmp_path / "cache"},
            "model": {"name": "m"},
            "embedder": {"name": "m"},
        }
    )
    pinned = pin(release, tiers).model_dump(mode="json")
    config = LLMConfig(model_loading_config={"model_id": "m"}, experimental_configs={RELEASE_KEY: pinned})
    weights = LocalWeights(llm_config=config)
    weights.prepare(ReplicaStart(MemoryRecorder(), imports_s=(1.0, 2.0)), tiers)
    return weights


async def test_the_weights_are_local_before_the_engine_looks(weights: LocalWeights) -> None:
    await weights.on_before_node_init()
    assert (weights.directory / "model.safetensors").read_bytes() == b"weights"
    assert not weights.ctx.run_init_node, "Ray would look for the files in a process of its own"


async def test_a_started_replicas_weights_still_travel(weights: LocalWeights) -> None:
    """Serve pickles a replica's arguments once more, and this with them; a thread of the process is in it by then."""
    await weights.on_before_node_init()
    copy = cloudpickle.loads(cloudpickle.dumps(weights))
    assert copy.directory == weights.directory
    await weights.loaded(MemoryRecorder())


class Told:
    """A coordinator that keeps what it is told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    async def assign(self, name: str) -> Assignment | None:
        return None

    async def sync(self, name: str, report: Report) -> Orders | None:
        self.reports.append(report)
        return None


async def test_one_that_is_ended_before_it_has_taken_a_release_tells_that_it_was_stopped() -> None:
    told = Told()
    # As Serve has it while its start waits for the coordinator, and before even that.
    server = RagServer.__new__(RagServer)
    await server.__del__()
    server._member = ReleaseMember("a", told)
    await server.__del__()
    assert [each.state for each in told.reports] == ["stopped"]
