"""The engine's router, which also tells a test what it has heard: one file a process, in the folder TOLD_ROUTER."""

import json
import os
from pathlib import Path
from typing import Any, Final

from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica

from rag_stack.serving.rollout.choice import Standing
from rag_stack.serving.rollout.router import ReleaseRouter

FOLDER: Final = "TOLD_ROUTER"


class ToldRouter(ReleaseRouter):
    """Writes how many requests each replica has reported, after it has learned it itself, once it has been asked.

    Every process with a handle has a router; those that nobody asks hear of replicas late or never.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._arrived: list[int] = []
        self._asked = False
        super().__init__(*args, **kwargs)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve calls this."""
        super().update_replicas(replicas)
        told = [Standing.from_stats(replica.routing_stats) for replica in replicas]
        self._arrived = [each.work.arrived for each in told if each is not None and each.work is not None]
        if self._asked:
            self._tell()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Serve calls this."""
        if not self._asked:
            self._asked = True
            self._tell()
        return await super().choose_replicas(candidate_replicas, pending_request)

    def _tell(self) -> None:
        file = Path(os.environ[FOLDER], str(os.getpid()))
        file.with_suffix(".new").write_text(json.dumps(self._arrived), encoding="ascii")
        file.with_suffix(".new").replace(file)


def heard(folder: Path) -> list[int]:
    """The requests of all replicas, as each process with a router that chooses last heard."""
    return [sum(json.loads(file.read_text("ascii"))) for file in folder.iterdir() if not file.suffix]
