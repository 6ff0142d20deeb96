"""The control applications of a release: search and administration, without an engine. A route prefix each."""

from collections.abc import Mapping

from ray import serve

from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving import bounds
from rag_stack.serving.control import (
    ADMIN_APP,
    FILES_APP,
    MODELS_APP,
    SEARCH_APP,
    AdminServer,
    FilesServer,
    HealthServer,
    ModelsServer,
    SearchServer,
)
from rag_stack.serving.environment import offline_environment

_CONTROL: tuple[tuple[str, str, type], ...] = (
    (ADMIN_APP, "/admin", AdminServer),
    (SEARCH_APP, "/v1/vector_stores", SearchServer),
    (FILES_APP, "/v1/files", FilesServer),
    (MODELS_APP, "/v1/models", ModelsServer),
    ("health", "/health", HealthServer),
    ("ready", "/ready", HealthServer),
)
# Every process that searches keeps a question to the coordinator open. Removals and updates of files are answered when
# every process serves without them, up to half a minute later: searches must not wait behind those, and are bounded by
# the retriever's own queue, which answers 429.
_MAX_ONGOING: Mapping[type, int] = {AdminServer: 1000, SearchServer: 1000}


def control_targets(pinned: PinnedRelease) -> list[serve.RunTarget]:
    """The control applications alone: search and administration without an engine."""
    targets = []
    for name, prefix, server in _CONTROL:
        deployment = serve.deployment(
            serve.ingress()(server),
            name=server.__name__,
            max_ongoing_requests=_MAX_ONGOING.get(server, bounds.CONTROL_ONGOING),
            **bounds.queued(),
            ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": offline_environment()}},
        )
        targets.append(serve.RunTarget(deployment.bind(pinned), name=name, route_prefix=prefix))
    return targets
