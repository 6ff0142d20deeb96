"""The faults of `loadtests.chaos`, each as it is done to a cluster on this machine."""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from loadtests.chaos_data import VERSIONS
from loadtests.chaos_load import Load
from loadtests.chaos_processes import Processes
from loadtests.chaos_schedule import HEAVY, Fault
from loadtests.chaos_verdict import Promoted, Struck
from loadtests.local_cluster import LocalCluster
from loadtests.relay import Relay
from loadtests.swap_data import INDEX
from rag_stack.artifacts.catalog import Catalog

_LEAVERS: Final = 6
_STORE_S: Final = 4.0
_SLOW_BYTES_PER_S: Final = 2_000_000.0
_STUCK_S: Final = 3.0
# What has just taken the place of another is left alone: the last one and its successor are never gone together.
_SETTLED_S: Final = 20.0
# A node or a controller that is about to be replaced answers nothing; then nobody knows how many replicas there are.
_ASK_S: Final = 10.0
# A fault that takes a replica waits so long for the one before it to be over.
_WAIT_S: Final = 15.0


class SkippedError(Exception):
    """A fault that was not carried out: what it needs around it is not there now."""


@dataclass
class Striker:
    """Carries out faults, one at a time. `promoted` is what it promoted, and when."""

    cluster: LocalCluster
    processes: Processes
    load: Load
    catalog: Catalog
    relay: Relay
    replicas: int
    promoted: list[Promoted] = field(default_factory=list)

    async def strike(self, fault: Fault) -> Struck:
        """Do it, and say when it began and ended. Raises SkippedError."""
        draw = random.Random(fault.seed)
        if fault.name in HEAVY or fault.name == "engine sticks":
            await self._all_serve()
        began_s = time.monotonic()
        detail = await self._done(fault, draw)
        return Struck(fault.number, fault.name, began_s, time.monotonic(), detail)

    async def _done(self, fault: Fault, draw: random.Random) -> str:
        match fault.name:
            case "leavers":
                await self.load.leave(_LEAVERS)
                return f"{_LEAVERS} clients"
            case "promote":
                return await asyncio.to_thread(self._promote)
            case "slow store" | "store down":
                rate = _SLOW_BYTES_PER_S if fault.name == "slow store" else 0.0
                self.relay.limit(rate)
                await asyncio.sleep(_STORE_S)
                self.relay.limit(None)
                return f"{rate:.0f} bytes/s for {_STORE_S:.0f} s"
            case "engine dies":
                return f"process {await self._turn('die')}"
            case "engine sticks":
                return await self._stick()
            case "node":
                return await self._node(draw)
            # Here belong changes of the release, once there are any to make.
            case role:
                return await asyncio.to_thread(self._kill, role, draw)

    def _kill(self, role: str, draw: random.Random) -> str:
        """One process of a role, which must have been there for a while: its replacement is not the next victim."""
        found = self.processes.members(role)
        if not found or time.time() - found[-1].born_s < _SETTLED_S:
            raise SkippedError(f"{len(found)} of {role} run now, or one of them has just begun to")
        victim = draw.choice(found)
        self.processes.kill(victim)
        return f"process {victim.pid}"

    def _promote(self) -> str:
        """The other version. Its object store may be away, which the loop that follows pointers has to bear."""
        now = self.promoted[-1].version
        following = VERSIONS[(VERSIONS.index(now) + 1) % len(VERSIONS)]
        # Before the call: a process may have it before the call is back.
        self.promoted.append(Promoted(following, time.monotonic()))
        self.catalog.promote(self.catalog.resolve("indexes", INDEX, following).ref, reason="chaos")
        return f"{now} -> {following}"

    async def _turn(self, switch: str) -> int:
        from ray import serve

        from rag_stack.serving.control import ENGINE_APP

        def turned() -> int:
            return int(serve.get_app_handle(ENGINE_APP).turn.remote(switch).result(timeout_s=_ASK_S))

        return await asyncio.to_thread(turned)

    async def _stick(self) -> str:
        stuck = await self._turn("stick")
        await asyncio.sleep(_STUCK_S)
        # Whichever replica a call reaches: until it was the one that is stuck, or that one is no more.
        for _ in range(8 * self.replicas):
            if await self._turn("unstick") == stuck:
                return f"process {stuck} for {_STUCK_S:.0f} s"
        return f"process {stuck}, and it was not found again"

    async def _node(self, draw: random.Random) -> str:
        """A worker node with all that runs on it; another takes its place."""
        workers = self.cluster.nodes[1:]
        if not workers:
            raise SkippedError("there is no worker node")
        node = draw.choice(workers)
        await asyncio.to_thread(self.cluster.kill, node)
        await asyncio.to_thread(self.cluster.grow, num_cpus=self.cluster.num_cpus)
        return f"a node, and another one in its place; {len(self.cluster.nodes)} nodes"

    async def _all_serve(self) -> None:
        """Wait until every replica of the engine serves: one may go, not two. Raises SkippedError."""
        until_s = time.monotonic() + _WAIT_S
        while not settled(states := await asyncio.to_thread(running), replicas=self.replicas):
            if time.monotonic() > until_s:
                raise SkippedError(f"replicas are {dict(states)}, {self.replicas} must serve")
            await asyncio.sleep(0.5)


def running() -> Mapping[str, int]:
    """How many replicas of the engine are in which state; none when nobody knows."""
    from ray import serve

    from rag_stack.serving.control import ENGINE_APP

    try:
        application = serve.status().applications[ENGINE_APP]
    except Exception as exc:
        return {f"unknown ({type(exc).__name__})": 1}
    counted: dict[str, int] = {}
    for name, deployment in application.deployments.items():
        if name == "LLMRouter":
            continue
        for state, count in deployment.replica_states.items():
            counted[str(getattr(state, "value", state))] = count
    return counted


def settled(states: Mapping[str, int], *, replicas: int) -> bool:
    """Whether so many replicas serve, and none is on its way in or out."""
    return {state: count for state, count in states.items() if count} == {"RUNNING": replicas}
