"""Wakes the RayService, once for any number of requests, and says how long that will take."""

import asyncio
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rag_stack.activator.kube_api import FORBIDDEN, NOT_FOUND, Kind, KubeApi
from rag_stack.activator.measure import WAKE_SECONDS, WAKES
from rag_stack.activator.ray_service import Phase, measured_patch, wake_patch
from rag_stack.activator.watch import Watch
from rag_stack.api.outlook import EngineState, Outlook, Rules
from rag_stack.errors import KubernetesError
from rag_stack.metrics import Recorder

# Before anything has been measured.
_FIRST_GUESS_S: Final = 120.0
# A wake that takes longer than those before it.
_OVERDUE_S: Final = 5.0
_PAUSES_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ASLEEP: Final = (Phase.SUSPENDED, Phase.SUSPENDING)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """The RayService that is woken."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.namespace}/{self.name}"


class Wake:
    """Used from one event loop. `rules` are read anew for each request: keys change."""

    def __init__(
        self,
        api: KubeApi,
        watch: Watch,
        target: Target,
        *,
        rules: Callable[[], Rules],
        limit_s: float,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._watch, self._target = api, watch, target
        self._rules, self._limit_s, self._recorder, self._clock = rules, limit_s, recorder, clock
        self._task: asyncio.Task[None] | None = None
        self._refused = ""

    def ask(self) -> None:
        """Have it woken, if it sleeps and nobody has had that done yet. Returns at once."""
        asleep = self._watch.phase in _ASLEEP and not self._kept_asleep()
        if asleep and (self._task is None or self._task.done()):
            self._refused = ""
            self._task = asyncio.create_task(self._wake())

    async def close(self) -> None:
        """End what it has begun; the service goes on waking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> Outlook:
        """What who waits may expect."""
        why = self._hopeless()
        state: EngineState = "failed" if why else _STATES[self._watch.phase]
        return Outlook(self._rules(), state, self.estimate_s(), why)

    def estimate_s(self) -> float:
        """Seconds until it serves, if it is asked to now."""
        phase, view = self._watch.phase, self._watch.view
        if phase is Phase.SERVING:
            return 0.0
        whole_s = statistics.median(view.wakes_s) if view and view.wakes_s else _FIRST_GUESS_S
        if phase is not Phase.WAKING:
            return whole_s
        left_s = whole_s - (self._clock() - self._watch.phase_since_s)
        return left_s if left_s > 0 else _OVERDUE_S

    def _hopeless(self) -> str:
        """Why waiting cannot help; empty while it can."""
        watch, view = self._watch, self._watch.view
        if watch.phase is Phase.UNKNOWN and watch.forbidden:
            return watch.trouble
        if watch.phase is Phase.MISSING:
            return f"there is no RayService {self._target}: create it, or name another with --service"
        if self._kept_asleep():
            return (
                f"the RayService {self._target} was suspended by somebody else, and requests do not wake it: set "
                "spec.suspend to false"
            )
        if self._refused:
            return self._refused
        hopeless = view.hopeless() if view else ""
        if hopeless:
            return f"the RayService {self._target} does not start: {hopeless}"
        if watch.phase is Phase.WAKING and self._clock() - watch.phase_since_s >= self._limit_s:
            return f"the RayService {self._target} was not Ready within {self._limit_s:g} s"
        return ""

    def _kept_asleep(self) -> bool:
        view = self._watch.view
        return view is not None and view.suspend and not view.suspended_by

    async def _wake(self) -> None:
        began_s = self._clock()
        if not await self._patch():
            return
        _LOG.info("woke the RayService %s", self._target)
        waiting = self._watch.until(Phase.SERVING, Phase.MISSING, *_ASLEEP)
        try:
            phase = await asyncio.wait_for(waiting, self._limit_s)
        except TimeoutError:
            phase = Phase.WAKING
        if phase is not Phase.SERVING:
            _LOG.error("the RayService %s is %s and does not serve", self._target, phase)
            self._recorder.record(WAKES, 1, {"outcome": "failed"})
            return
        await self._measured(self._clock() - began_s)

    async def _patch(self) -> bool:
        """Whether it is being woken now. Tries again while the API server cannot be reached or fails."""
        tries = 0
        while self._watch.phase in _ASLEEP and not self._kept_asleep():
            try:
                self._watch.take(await self._api.patch(self._target.kind, self._target.name, wake_patch()))
            except KubernetesError as exc:
                _LOG.warning("cannot wake the RayService: %s", exc.message)
                if exc.answer == NOT_FOUND:
                    return False
                if exc.answer == FORBIDDEN:
                    self._refused = exc.message
                    self._recorder.record(WAKES, 1, {"outcome": "failed"})
                    return False
                await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
                tries += 1
            else:
                return True
        return False

    async def _measured(self, seconds: float) -> None:
        self._recorder.record(WAKES, 1, {"outcome": "served"})
        self._recorder.record(WAKE_SECONDS, seconds)
        view = self._watch.view
        patch = measured_patch(view.wakes_s if view else (), seconds)
        try:
            self._watch.take(await self._api.patch(self._target.kind, self._target.name, patch))
        except KubernetesError as exc:
            _LOG.warning("how long the wake took (%.1f s) cannot be kept: %s", seconds, exc.message)


_STATES: Final[dict[Phase, EngineState]] = {
    Phase.UNKNOWN: "asleep",
    Phase.MISSING: "failed",
    Phase.SUSPENDED: "asleep",
    Phase.SUSPENDING: "asleep",
    Phase.WAKING: "starting",
    Phase.SERVING: "ready",
}
