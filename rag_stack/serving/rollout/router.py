"""The request router of the engine's deployment: weighs by release, keeps a conversation and documents where they are.

A replica reports its standing with its routing statistics, which Serve's controller brings to every router; there is
no other channel. Runs in the routers that HAProxy asks, and in the head's proxy.
"""

from typing import Any

from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve._private.request_router.request_router import RequestRouter

from rag_stack.metrics import ROUTED
from rag_stack.serving.ray_recorder import RayRecorder
from rag_stack.serving.rollout.choice import ReleaseChoice, Standing
from rag_stack.serving.routing.ingress import Body
from rag_stack.serving.routing.subject import subject_of


class ReleaseRouter(RequestRouter):  # type: ignore[misc]  # Ray is untyped here
    """See ReleaseChoice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._choice = ReleaseChoice()
        self._recorder = RayRecorder()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve calls this whenever replicas or what they report have changed."""
        self._choice.learn({r.replica_id.unique_id: Standing.from_stats(r.routing_stats) for r in replicas})
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """One rank a replica, the best first."""
        session, body = None, b""
        if pending_request is not None:
            # Or a deployment whose replicas are all full would be asked in a tight loop.
            pending_request.routing_context.should_backoff = True
            session = pending_request.metadata.session_id or None
            body = next((each.data for each in pending_request.args if isinstance(each, Body)), b"")
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        ranked, reason = self._choice.choose(list(replicas), session, lambda: subject_of(body))
        self._recorder.record(ROUTED, 1, {"reason": reason})
        return [[replicas[name]] for name in ranked]
