"""A replica's end, wherever its start has come to."""

from rag_stack.config import Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.replica import Replica
from rag_stack.serving.replica_start import ReplicaStart
from rag_stack.serving.rollout.coordinator import Assignment, Orders
from rag_stack.serving.rollout.member import ReleaseMember
from rag_stack.serving.rollout.tally import Report


class Told:
    """A coordinator that keeps what it is told."""

    def __init__(self) -> None:
        self.reports: list[Report] = []

    async def assign(self, name: str) -> Assignment | None:
        return None

    async def sync(self, name: str, report: Report) -> Orders | None:
        self.reports.append(report)
        return None


async def healthy() -> None: ...


async def test_one_that_is_closed_on_its_start_tells_that_it_was_stopped() -> None:
    release = Release.model_validate({"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}})
    recorder, told = MemoryRecorder(), Told()
    replica = Replica(
        PinnedRelease(release=release, created_at=0),
        member=ReleaseMember("a", told),
        recorder=recorder,
        start=ReplicaStart(recorder, imports_s=(0.0, 0.0)),
        check_engine=healthy,
    )
    await replica.close()
    assert [each.state for each in told.reports] == ["stopped"]
