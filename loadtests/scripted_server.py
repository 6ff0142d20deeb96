"""The engine's deployment with the scripted engine in the place of vLLM; all else is as it is served.

A replica of it starts in seconds, and needs no vLLM.
"""

# ruff: noqa: I001 - `imports` goes first: what comes after it is a stage of the start
from rag_stack.serving import imports

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from loadtests.scripted_engine import FAILS_TO_START, SCRIPT, Json, Script, ScriptedEngine
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.prefixes import ENGINE_APP
from rag_stack.serving.deployment import engine_options, with_router
from rag_stack.serving.environment import offline_environment
from rag_stack.serving.node_agent import cluster_peers
from rag_stack.serving.opening import fetch_model
from rag_stack.serving.ray_recorder import RayRecorder
from rag_stack.serving.rollout.member import member_of_this_replica, telling_failure
from rag_stack.serving.replica import Replica
from rag_stack.serving.replica_start import ReplicaStart

# A node that has it in its environment takes nothing from its neighbours: what benchmarks compare with.
NO_PEERS = "RAG_STACK_LOADTEST_NO_PEERS"
_IMPORTED_S = time.time()


class ScriptedServer:
    """What RagServer is, around the scripted engine."""

    async def __init__(self, pinned: Json, script: Json) -> None:  # type: ignore[misc]  # Serve awaits it
        recorder = RayRecorder()
        self._start = ReplicaStart(recorder, imports_s=(imports.BEGAN_S, _IMPORTED_S))
        deployed = PinnedRelease.model_validate(pinned)
        artifacts = deployed.release.artifacts
        peers = None if os.environ.get(NO_PEERS) else cluster_peers(artifacts)
        tiers = open_tiers(artifacts, recorder, peers=peers)
        self._member = member_of_this_replica()
        release = await self._member.take(deployed, tiers)
        async with telling_failure(self._member):
            self._engine = ScriptedEngine(_script(script, release.release.engine), model=release.release.model.name)
            self._replica = Replica(
                release,
                member=self._member,
                recorder=recorder,
                start=self._start,
                check_engine=self._check_engine,
                slots=self._engine.script.slots,
            )
            self._start.lap("set up replica")
            local = await asyncio.to_thread(fetch_model, tiers, release.release.model, timeline=self._start.timeline)
            self._directory = local.path
            await asyncio.gather(self._replica.open(tiers), self._start_engine(release.release.engine))
        self._start.lap("start engine")

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The scripted engine's app inside our layer."""
        async with telling_failure(self._member):
            return await self._replica.around(self._engine.app(), model_directory=self._directory)

    async def start_report(self) -> dict[str, Any]:
        """How this replica's start went."""
        return self._start.report().to_wire()

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        await self._replica.check_health()

    async def record_routing_stats(self) -> dict[str, Any]:
        """What the request router learns of this replica."""
        return self._replica.routing_stats()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy learns of this replica."""
        return self._replica.autoscaling_stats()

    async def __del__(self) -> None:
        """Serve awaits it when the replica has drained."""
        if (replica := getattr(self, "_replica", None)) is not None:
            await replica.close()

    async def turn(self, switch: str) -> int:
        """A fault: `die` as a killed engine core, `stick` and `unstick` as one that hangs. Returns the pid."""
        match switch:
            case "die":
                self._engine.dead = True
                self._engine.unstuck.set()
            case "stick":
                self._engine.unstuck.clear()
            case "unstick":
                self._engine.unstuck.set()
            case other:
                raise ValueError(f"no switch {other!r}")
        return os.getpid()

    async def _start_engine(self, settings: Json) -> None:
        await asyncio.sleep(self._engine.script.start_s)
        if settings.get(FAILS_TO_START):
            raise RuntimeError("the engine does not start with these settings")

    async def _check_engine(self) -> None:
        if self._engine.dead:
            raise RuntimeError("the engine is dead")


def _script(script: Json, settings: Json) -> Script:
    """What the deployment is scripted to do, but for what the release's engine settings say otherwise."""
    return Script.from_json({**script, **settings.get(SCRIPT, {})})


def scripted_target(
    pinned: PinnedRelease,
    script: Script,
    *,
    num_cpus: float = 0.5,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> serve.RunTarget:
    """The engine application, ready for `serve.run_many`; `options` of Serve's go before those of the release."""
    deployment = serve.deployment(
        serve.ingress()(ScriptedServer),
        name="ScriptedServer",
        ray_actor_options={"num_cpus": num_cpus, "runtime_env": {"env_vars": offline_environment()}},
        **{**engine_options(pinned.release), **options},
    )
    application = deployment.bind(pinned.model_dump(mode="json"), asdict(script))
    return serve.RunTarget(with_router(application), name=ENGINE_APP, route_prefix="/")
