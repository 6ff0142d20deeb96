"""What /v1/models knows of the engine: whether it serves, sleeps or starts, and how long a start will still take.

Serve's controller is asked, which wakes nobody up as a request would.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview

from rag_stack.api.outlook import EngineState
from rag_stack.artifacts.object_store import ObjectStore, open_store
from rag_stack.errors import ArtifactError
from rag_stack.releases.measured_start import measured_start
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.start_history import (
    LoadTime,
    Start,
    StartHistory,
    label_of,
    read_history,
    tier_of,
    write_history,
)

ROUTER: Final = "LLMRouter"
# Before anything has been measured.
_FIRST_GUESS_S: Final = 60.0
# A start that takes longer than all before it.
_OVERDUE_S: Final = 5.0
# Another version is promoted by hand, or after minutes.
_GOAL_PERIOD_S: Final = 5.0
# Serve tells all that it knows of all applications: a tenth of a core at this pace, so not while there is no need.
_PERIOD_S: Final = 1.0
_READY_PERIOD_S: Final = 5.0
_LOG = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class EngineTold:
    """What Serve says of the engine's application: replicas that run and that start, and whether it gave up."""

    running: int
    starting: int
    failed: bool

    @property
    def state(self) -> EngineState:
        """In one word."""
        if self.running:
            return "ready"
        if self.failed:
            return "failed"
        return "starting" if self.starting else "asleep"


class WakeWatch:
    """Looks every second while nothing serves, else less often. The history outlives it on the object store."""

    def __init__(
        self,
        pinned: PinnedRelease,
        *,
        ask: Callable[[], EngineTold],
        goal: Callable[[PinnedRelease], PinnedRelease],
    ) -> None:
        """`pinned` was deployed; `goal` finds what is, or is to be, promoted, given what was. Both functions block."""
        release = pinned.release
        self._name = release.name
        self._serving = pinned
        self._store: ObjectStore = open_store(release.artifacts.root)
        self._ask = ask
        self._goal = goal
        self._history = StartHistory()
        self._read = False
        self._told = EngineTold(0, 0, failed=False)
        self._starting_since_s: float | None = None

    async def run(self) -> None:
        """Read the history, and keep looking until cancelled."""
        await self.read()
        await asyncio.gather(self._keep_seeing(), self._keep_to_goal())

    async def look_at_goal(self) -> None:
        """What is told of starts is from now on of what is, or is to be, promoted."""
        self._serving = await asyncio.to_thread(self._goal, self._serving)

    async def read(self) -> None:
        """Take over what earlier processes kept."""
        try:
            kept = await asyncio.to_thread(read_history, self._store, self._name)
            for start in self._history.starts:  # what has been told meanwhile
                kept = kept.with_start(start)
            self._history, self._read = kept, True
        except ArtifactError as exc:
            _LOG.warning("the history of starts cannot be read: %s", exc)

    def see(self, told: EngineTold, *, now_s: float) -> None:
        """Take over what Serve says."""
        self._told = told
        if told.state != "starting":
            self._starting_since_s = None
        elif self._starting_since_s is None:
            self._starting_since_s = now_s

    async def keep(self, card: Mapping[str, Any], label: str) -> None:
        """Keep a replica's start, when it is new, under the label of the release that it took (`label_of`)."""
        start = Start(label, tier_of(card), float(card["ready_at"]), float(card["seconds"]), measured_start(card))
        history = self._history.with_start(start)
        if history is self._history:
            return
        self._history = history
        if not self._read:
            await self.read()
        if not self._read:  # what is kept would be lost
            return
        try:
            await asyncio.to_thread(write_history, self._store, self._name, self._history)
        except ArtifactError as exc:
            _LOG.warning("the history of starts cannot be kept: %s", exc)

    @property
    def state(self) -> EngineState:
        """Now."""
        return self._told.state

    def load_time(self) -> LoadTime | None:
        """How long starts took of the version that is, or is to be, promoted, from where the last had its weights."""
        return self._history.load_time(label_of(self._serving.release))

    def estimate_s(self, *, now_s: float) -> float:
        """Seconds until the engine serves, if it is asked to."""
        if self.state == "ready":
            return 0.0
        known = self.load_time()
        p50_s, p90_s = (known.p50_s, known.p90_s) if known else (_FIRST_GUESS_S, _FIRST_GUESS_S)
        if self._starting_since_s is None:
            return p50_s
        waited_s = now_s - self._starting_since_s
        return next((left for left in (p50_s - waited_s, p90_s - waited_s) if left > 0), _OVERDUE_S)

    def card(self) -> dict[str, Any]:
        """What GET /v1/models/{id} tells of it."""
        known = self.load_time()
        times = {} if known is None else {"p50": round(known.p50_s, 3), "p90": round(known.p90_s, 3)}
        estimate_s = round(self.estimate_s(now_s=time.monotonic()), 3)
        return {"state": self.state, "estimate_seconds": estimate_s, "start_seconds": times or None}

    async def _keep_seeing(self) -> None:
        while True:
            try:
                self.see(await asyncio.to_thread(self._ask), now_s=time.monotonic())
            except (RayServeException, RayError) as exc:
                _LOG.warning("Serve does not say how the engine is: %s", exc)
            await asyncio.sleep(_READY_PERIOD_S if self.state == "ready" else _PERIOD_S)

    async def _keep_to_goal(self) -> None:
        while True:
            await self.look_at_goal()
            await asyncio.sleep(_GOAL_PERIOD_S)


def ask_serve(app: str) -> EngineTold:
    """What Serve's controller says of an application. Blocking. Raises RayServeException or RayError."""
    found = serve.status().applications.get(app)
    return EngineTold(0, 0, failed=False) if found is None else told_of(found)


def told_of(app: ApplicationStatusOverview) -> EngineTold:
    """The same of what Serve has said already; its router is no replica of the engine."""
    counts: Counter[str] = Counter()
    for name, deployment in app.deployments.items():
        if name != ROUTER:
            counts.update({str(getattr(state, "value", state)): n for state, n in deployment.replica_states.items()})
    return EngineTold(counts["RUNNING"], counts["STARTING"], failed="FAILED" in str(app.status.value))
