"""The control applications: always on, CPU only, one route prefix each. Shells; torch only where a search is done."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from rag_stack.api.admin import Admin
from rag_stack.api.auth import AdminKeyRing, KeyRing
from rag_stack.api.gate import Gate
from rag_stack.api.health import OPEN_PATHS, Health, Readiness
from rag_stack.api.models import Models, Starter, Starts
from rag_stack.api.releases import ReleaseAdmin
from rag_stack.artifacts.retention import Retention
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.errors import UnavailableError
from rag_stack.generation.kv_settings import KvCapacity
from rag_stack.metrics import Recorder
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.plan import RolloutStore
from rag_stack.releases.published import load
from rag_stack.releases.rollout import Rollout
from rag_stack.releases.start_history import LoadTime
from rag_stack.retrieval.rollout import Coordinator, FollowedStore, Orders, Report, StoreView
from rag_stack.serving.environment import go_offline
from rag_stack.serving.following.coordinator import Rollouts, Settled
from rag_stack.serving.following.index_watch import IndexWatch
from rag_stack.serving.holding import Holding
from rag_stack.serving.operator_report import keep_telling
from rag_stack.serving.prefixes import ADMIN_APP, ENGINE_APP, MODELS_APP, SEARCH_APP
from rag_stack.serving.ray_recorder import RayRecorder
from rag_stack.serving.readiness import StoreTold, cache_part, store_parts
from rag_stack.serving.request_id import NamedByServe
from rag_stack.serving.rollout.coordinator import Assignment, ReleaseRollout
from rag_stack.serving.rollout.coordinator import Orders as ReleaseOrders
from rag_stack.serving.rollout.goal import release_goal
from rag_stack.serving.rollout.serve_replicas import engine_replicas
from rag_stack.serving.rollout.tally import Report as ReleaseReport
from rag_stack.serving.size import UNSIZED, WorkerSize
from rag_stack.serving.wake.watch import WakeWatch, ask_serve, told_of
from rag_stack.tracing.tracer import open_tracer

# What a look at a pointer costs: nothing on a disk, a request elsewhere.
_POLL_S: Final = {"file": 1.0}
_POLL_OTHERS_S: Final = 2.0
# /ready says what it knows; it does not wait for who does not answer.
_ASK_S: Final = 1.0


class SearchServer:
    """/v1/vector_stores: search answers while the generator sleeps."""

    async def __init__(self, pinned: PinnedRelease) -> None:  # type: ignore[misc]  # Serve awaits it
        go_offline()
        # Imported here: the other control processes share this module and do no search, and nothing else knows a hub.
        from rag_stack.serving.rollout.searched_release import SearchedRelease

        recorder = RayRecorder()
        self._tracer = open_tracer(recorder, os.environ)
        self._searched = SearchedRelease(pinned, recorder, self._tracer)
        await self._searched.open()
        self._running = asyncio.create_task(self._searched.run())

    async def __del__(self) -> None:
        """Serve awaits it when running searches have ended."""
        # Serve ends a start, too, wherever that has come to.
        if (running := getattr(self, "_running", None)) is not None:
            running.cancel()
        if (searched := getattr(self, "_searched", None)) is not None:
            await searched.close()
        if (tracer := getattr(self, "_tracer", None)) is not None:
            await asyncio.to_thread(tracer.close)

    async def remove_file(self, file_id: str) -> bool:
        """Take a file out of all stores; whether no search finds it any more. See StoreKeeper.remove_everywhere."""
        return await self._searched.stores.keeper.remove_everywhere(file_id)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The stores' routes behind the gate."""
        return self._searched

    async def check_health(self) -> None:
        """Serve starts this again when it does not follow what is promoted any more."""
        if self._running.done():
            raise RuntimeError(f"the search server has stopped following: {self._running.exception()!r}")


class FilesServer:
    """/v1/files: takes uploads to the object store. The search server, which owns the stores, knows where each is."""

    def __init__(self, pinned: PinnedRelease) -> None:
        self._pinned = pinned
        self._recorder = RayRecorder()
        self._search: Any = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The files' routes behind the gate."""
        from rag_stack.api.files import FilesEndpoint
        from rag_stack.artifacts.object_store import open_store
        from rag_stack.stores.files import Files

        release = self._pinned.release
        files = Files(open_store(release.artifacts.root))
        endpoint = FilesEndpoint(files, self._detach, release.server.max_file_bytes)
        return _served(endpoint.routes(), self._pinned, recorder=self._recorder)

    async def _detach(self, file_id: str) -> bool:
        try:
            self._search = self._search or await asyncio.to_thread(serve.get_app_handle, SEARCH_APP)
            gone: bool = await self._search.remove_file.remote(file_id)
        except (RayServeException, RayError) as exc:
            raise UnavailableError(f"the stores' owner does not answer: {exc}", retry_after_s=5) from exc
        return gone


class AdminServer:
    """/admin: what is published and promoted, and its way into service.

    It holds the coordinator of all processes that search; they and others call its methods by handle. Its standbys are
    for workers of a `size`.
    """

    async def __init__(self, pinned: PinnedRelease, size: WorkerSize = UNSIZED) -> None:  # type: ignore[misc]  # Serve awaits it
        release = pinned.release
        self._pinned = pinned
        self._recorder = RayRecorder()
        catalog = open_tiers(release.artifacts, self._recorder).catalog
        retention = Retention(catalog)
        stores = [
            FollowedStore(store.name, store.index, of_release=True)
            for store in release.stores
            if store.name in pinned.followed
        ]
        # Who searches has those open, too, that the release fixes.
        max_stores = release.swap.max_stores - len(release.stores) + len(stores)
        coordinator = Coordinator(stores, now_s=time.monotonic(), limit_s=release.swap.limit_s, max_stores=max_stores)
        poll_s = _POLL_S.get(catalog.store.url.partition("://")[0], _POLL_OTHERS_S)
        self._rollouts = Rollouts(coordinator, catalog, poll_s=poll_s, hold=Holding(retention, pinned).hold)
        server = release.server
        keys = AdminKeyRing(server.admin_key_sha256, api_digests=server.api_key_sha256)
        self._admin = Admin(
            catalog,
            retention,
            keys,
            max_body_bytes=server.max_body_bytes,
            promoted=self._rollouts.promoted,
            swaps=lambda: [_swap_row(view) for view in self._rollouts.views()],
        )
        self._releases = ReleaseRollout(
            pinned,
            Rollout(catalog, release.name),
            RolloutStore(catalog.store, release.name),
            load=partial(load, catalog, release.name, deployment=release),
            replicas=partial(engine_replicas, ENGINE_APP),
            releases=self._follow_stores,
            poll_s=poll_s,
        )
        self._release_admin = ReleaseAdmin(
            catalog,
            keys,
            max_body_bytes=server.max_body_bytes,
            now=lambda name: self._releases.now() if name == release.name else {},
        )
        telling = keep_telling(
            IndexWatch(catalog, self._recorder), self._served_versions, lambda: self._releases.plan, self._recorder
        )
        # What is not told any more would look as if nothing happened.
        self._running = asyncio.gather(self._rollouts.run(), self._releases.run(), telling)
        if release.wake.standby:
            # Imported here: the other control processes share this module and keep none.
            from rag_stack.serving.wake.standby import StandbyKeeper

            self._standing_by = asyncio.create_task(StandbyKeeper(pinned, size).run())

    def _follow_stores(self, releases: Sequence[PinnedRelease]) -> None:
        """The followed stores of all releases that are served now, and no more of those that were."""
        wanted = {
            FollowedStore(store.name, store.index, of_release=True)
            for pinned in releases
            for store in pinned.release.stores
            if store.name in pinned.followed
        }
        now = {view.store for view in self._rollouts.views() if view.store.of_release}
        for store in now - wanted:
            self._rollouts.remove_store(store.name)
        for store in wanted - now:
            self._rollouts.add_store(store)

    def _served_versions(self) -> list[tuple[str, str, str]]:
        """Of the followed stores of releases; those made over HTTP have their own way of saying what is indexed."""
        views = [view for view in self._rollouts.views() if view.store.of_release]
        return [(view.store.name, view.store.index, view.version) for view in views]

    async def assign_release(self, replica: str) -> Assignment:
        """See ReleaseRollout.assign."""
        return await self._releases.assign(replica)

    async def sync_release(self, replica: str, report: ReleaseReport) -> ReleaseOrders | None:
        """See ReleaseRollout.sync."""
        return self._releases.sync(replica, report)

    async def sync(self, participant: str, report: Report, known: Orders | None) -> Orders:
        """See Rollouts.sync."""
        return await self._rollouts.sync(participant, report, known)

    async def leave(self, participant: str) -> None:
        """See Rollouts.leave."""
        self._rollouts.leave(participant)

    async def settle(self, store: str, version: str, timeout_s: float) -> Settled:
        """See Rollouts.settle."""
        return await self._rollouts.settle(store, version, timeout_s=timeout_s)

    async def add_store(self, store: FollowedStore) -> None:
        """See Rollouts.add_store."""
        self._rollouts.add_store(store)

    async def remove_store(self, name: str) -> None:
        """See Rollouts.remove_store."""
        self._rollouts.remove_store(name)

    async def stores(self) -> Sequence[StoreView]:
        """The followed stores: what is served, what is being rolled out, who lags."""
        return self._rollouts.views()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The routes of /admin, which check keys of their own, behind a gate that lets every key pass."""
        routes = [*self._admin.routes(), *self._release_admin.routes()]
        gate = Gate(routes, keys=KeyRing(()), open_paths=OPEN_PATHS, recorder=self._recorder)
        return NamedByServe(gate)

    async def check_health(self) -> None:
        """Serve starts this again when one of the loops that look at pointers and plan, or tell of them, has ended."""
        if self._running.done():
            raise RuntimeError(f"the coordinator has stopped: {self._running.exception()!r}")


class ModelsServer:
    """/v1/models: known models stay listed at zero replicas, with how the engine is and how its last start went."""

    async def __init__(self, pinned: PinnedRelease) -> None:  # type: ignore[misc]  # Serve awaits it
        self._pinned = pinned
        self._starts = Starts()
        recorder = RayRecorder()
        tiers = open_tiers(pinned.release.artifacts, recorder)
        self._watch = WakeWatch(
            pinned,
            ask=partial(ask_serve, ENGINE_APP),
            goal=lambda serving: release_goal(pinned, tiers, serving=serving),
            recorder=recorder,
        )
        self._watching = asyncio.create_task(self._watch.run())

    async def keep_load(self, starter: Starter, card: dict[str, Any], label: str = "") -> None:
        """Take over what a replica, or the command that started this server, reports of its start.

        A replica tells the label of the release that it took (`label_of`).
        """
        self._starts.keep(starter, card)
        if label:
            await self._watch.keep(card, label)

    async def outlook(self) -> dict[str, Any]:
        """What the waiting room has to know: the release, how the engine is, and in how many seconds it may serve."""
        estimate_s = self._watch.estimate_s(now_s=time.monotonic())
        release = self._pinned.release.model_dump(mode="json")
        return {"release": release, "state": self._watch.state, "estimate_s": estimate_s}

    async def kv_cache(self) -> dict[str, int] | None:
        """What the cache of the engine holds that has told last of its start."""
        told: dict[str, int] | None = (self._starts.load() or {}).get("kv_cache")
        return told

    async def load_time(self) -> LoadTime | None:
        """How long starts take of the version that is, or is to be, promoted."""
        return self._watch.load_time()

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The models' routes behind the gate."""
        release = self._pinned.release
        names = tuple(store.name for store in release.stores)
        models = Models(
            release.model.name,
            lambda: names,
            self._pinned.created_at,
            load=self._starts.load,
            engine=self._watch.card,
        )
        return _served(models.routes(), self._pinned, recorder=RayRecorder())

    async def check_health(self) -> None:
        """Serve starts this again when the loop that looks at the engine has ended."""
        if self._watching.done():
            raise RuntimeError(f"the watch has stopped: {self._watching.exception()!r}")


class HealthServer:
    """/health or /ready, whichever prefix it is mounted at."""

    def __init__(self, pinned: PinnedRelease) -> None:
        self._pinned = pinned
        self._admin: Any = None
        self._models: Any = None

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Both routes; neither asks for a key."""
        routes = Health(self._readiness).routes()
        return _served(routes, self._pinned, recorder=RayRecorder())

    async def _readiness(self) -> Readiness:
        stores, cache = await asyncio.gather(self._stores(), self._cache())
        return await _cluster_readiness(stores, cache)

    async def _stores(self) -> Sequence[StoreView]:
        """What the coordinator knows; nothing where it does not answer, which is no reason to be unready."""
        try:
            async with asyncio.timeout(_ASK_S):
                self._admin = self._admin or await asyncio.to_thread(serve.get_app_handle, ADMIN_APP)
                views: Sequence[StoreView] = await self._admin.stores.remote()
        except (RayServeException, RayError, TimeoutError):
            return ()
        return views

    async def _cache(self) -> KvCapacity | None:
        """What the engine's cache holds, as its replica has told; likewise."""
        try:
            async with asyncio.timeout(_ASK_S):
                self._models = self._models or await asyncio.to_thread(serve.get_app_handle, MODELS_APP)
                told = await self._models.kv_cache.remote()
        except (RayServeException, RayError, TimeoutError):
            return None
        return KvCapacity(**told) if told else None


def _served(routes: Sequence[BaseRoute], pinned: PinnedRelease, *, recorder: Recorder) -> ASGIApp:
    gate = Gate(routes, keys=KeyRing(pinned.release.server.api_key_sha256), open_paths=OPEN_PATHS, recorder=recorder)
    return NamedByServe(gate)


async def _cluster_readiness(stores: Sequence[StoreView], cache: KvCapacity | None = None) -> Readiness:
    """What Serve's controller says of the applications; asking it wakes nobody up, as a request would.

    An engine that sleeps is ready: a request is held until it serves.
    """
    applications = (await asyncio.to_thread(serve.status)).applications
    parts = {name: _state(applications[name]) for name in (ENGINE_APP, SEARCH_APP) if name in applications}
    ready = len(parts) == 2 and set(parts.values()) == {"RUNNING"}
    if parts.get(ENGINE_APP) == "RUNNING" and (state := told_of(applications[ENGINE_APP]).state) != "ready":
        parts[ENGINE_APP] = state
        cache = None
    told = store_parts(
        StoreTold(view.store.name, view.version, len(view.lagging), of_release=view.store.of_release) for view in stores
    )
    states = {name: state.lower() for name, state in parts.items()}
    return Readiness(ready=ready, parts=states | (cache_part(cache) if ready else {}) | told)


def _state(application: Any) -> str:  # noqa: ANN401 - Serve's ApplicationStatusOverview
    """Serve calls an application unhealthy from a replica's failure, or retirement, until its replacement runs."""
    status = str(application.status.value)
    if status == "UNHEALTHY" and all(each.replica_states.get("RUNNING") for each in application.deployments.values()):
        return "RUNNING"
    return status


def _swap_row(view: StoreView) -> dict[str, Any]:
    """A followed store for an operator."""
    return {
        "store": view.store.name,
        "index": view.store.index,
        "of_release": view.store.of_release,
        "version": view.version or None,
        "next_version": view.next_version,
        "lagging": [asdict(lag) for lag in view.lagging],
    }
