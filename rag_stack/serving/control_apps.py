"""The control applications of a release: search and administration, without an engine. A route prefix each."""

from collections.abc import Mapping

from ray import serve

from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving import bounds
from rag_stack.serving.control import (
    AdminServer,
    FilesServer,
    HealthServer,
    ModelsServer,
    SearchServer,
)
from rag_stack.serving.prefixes import (
    ADMIN_APP,
    FILES_APP,
    HEALTH_APP,
    MODELS_APP,
    PREFIXES,
    READY_APP,
    SEARCH_APP,
)
from rag_stack.serving.size import worker_size

_CONTROL: Mapping[str, type] = {
    ADMIN_APP: AdminServer,
    SEARCH_APP: SearchServer,
    FILES_APP: FilesServer,
    MODELS_APP: ModelsServer,
    HEALTH_APP: HealthServer,
    READY_APP: HealthServer,
}
# Every process that searches keeps a question to the coordinator open. Removals and updates of files are answered when
# every process serves without them, up to half a minute later: searches must not wait behind those, and are bounded by
# the retriever's own queue, which answers 429.
_MAX_ONGOING: Mapping[type, int] = {AdminServer: 1000, SearchServer: 1000}


def control_targets(pinned: PinnedRelease) -> list[serve.RunTarget]:
    """The control applications alone: search and administration without an engine."""
    return [
        serve.RunTarget(control_application(name, pinned), name=name, route_prefix=PREFIXES[name]) for name in _CONTROL
    ]


def control_application(name: str, pinned: PinnedRelease) -> serve.Application:
    """One of them, by its name."""
    server = _CONTROL[name]
    deployment = serve.deployment(
        serve.ingress()(server),
        name=server.__name__,
        max_ongoing_requests=_MAX_ONGOING.get(server, bounds.CONTROL_ONGOING),
        **bounds.queued(),
        # Those of a serve.yaml take the place of these as a whole, so nothing that a process needs is among them.
        ray_actor_options={"num_cpus": 0},
    )
    # This one starts processes for workers, whose size is that which the builder knows, as the engine's is.
    return deployment.bind(pinned, worker_size()) if server is AdminServer else deployment.bind(pinned)
