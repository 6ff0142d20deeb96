"""The control applications: always on, CPU only, one route prefix each. Shells; torch only where a search is done."""

import asyncio
from collections.abc import Sequence
from typing import Any

from ray import serve
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from rag_stack.api.auth import KeyRing
from rag_stack.api.gate import Gate
from rag_stack.api.health import OPEN_PATHS, Health, Readiness
from rag_stack.api.models import Models, Starter, Starts
from rag_stack.metrics import Recorder
from rag_stack.serving.pinning import PinnedRelease
from rag_stack.serving.ray_recorder import RayRecorder
from rag_stack.serving.request_id import NamedByServe
from rag_stack.timeline import Timeline

ENGINE_APP = "engine"
SEARCH_APP = "vector_stores"
MODELS_APP = "models"


class SearchServer:
    """/v1/vector_stores: search answers while the generator sleeps."""

    async def __init__(self, pinned: PinnedRelease) -> None:  # type: ignore[misc]  # Serve awaits it
        # Imported here: the other control processes share this module and do no search.
        from rag_stack.artifacts.tiers import open_tiers
        from rag_stack.serving.node_agent import cluster_peers
        from rag_stack.serving.opening import open_retrieval

        self._pinned = pinned
        self._recorder = RayRecorder()
        artifacts = pinned.release.artifacts
        tiers = open_tiers(artifacts, self._recorder, peers=cluster_peers(artifacts))
        self._retrieval = await asyncio.to_thread(
            open_retrieval, pinned, tiers, timeline=Timeline(), recorder=self._recorder
        )

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The stores' routes behind the gate."""
        from rag_stack.serving.opening import vector_stores

        routes = vector_stores(self._pinned, self._retrieval).routes()
        return _served(routes, self._pinned, recorder=self._recorder)


class ModelsServer:
    """/v1/models: known models stay listed at zero replicas, with how their last start went."""

    def __init__(self, pinned: PinnedRelease) -> None:
        self._pinned = pinned
        self._starts = Starts()

    def keep_load(self, starter: Starter, card: dict[str, Any]) -> None:
        """Take over what a replica, or the command that started this server, reports of its start."""
        self._starts.keep(starter, card)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The models' routes behind the gate."""
        release = self._pinned.release
        names = tuple(store.name for store in release.stores)
        models = Models(release.model.name, lambda: names, self._pinned.created_at, load=self._starts.load)
        return _served(models.routes(), self._pinned, recorder=RayRecorder())


class HealthServer:
    """/health or /ready, whichever prefix it is mounted at."""

    def __init__(self, pinned: PinnedRelease) -> None:
        self._pinned = pinned

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Both routes; neither asks for a key."""
        routes = Health(_cluster_readiness).routes()
        return _served(routes, self._pinned, recorder=RayRecorder())


def _served(routes: Sequence[BaseRoute], pinned: PinnedRelease, *, recorder: Recorder) -> ASGIApp:
    gate = Gate(routes, keys=KeyRing(pinned.release.server.api_key_sha256), open_paths=OPEN_PATHS, recorder=recorder)
    return NamedByServe(gate)


async def _cluster_readiness() -> Readiness:
    """What Serve's controller says of the applications; asking it wakes nobody up, as a request would."""
    applications = (await asyncio.to_thread(serve.status)).applications
    parts = {name: str(applications[name].status.value) for name in (ENGINE_APP, SEARCH_APP) if name in applications}
    ready = len(parts) == 2 and set(parts.values()) == {"RUNNING"}
    return Readiness(ready=ready, parts={name: state.lower() for name, state in parts.items()})
