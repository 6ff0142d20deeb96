"""Suspends the RayService when nobody has asked anything for long enough."""

import asyncio
import logging
from typing import Final

from rag_stack.activator.kube_api import CONFLICT, KubeApi
from rag_stack.activator.measure import LEADS, OVERRULED, PHASE, SUSPENSIONS, UNDER_WAY
from rag_stack.activator.presence import Presence
from rag_stack.activator.ray_service import Phase, suspend_patch, unmark_patch
from rag_stack.activator.use import Use
from rag_stack.activator.wake import Target
from rag_stack.activator.watch import Watch
from rag_stack.errors import KubernetesError
from rag_stack.metrics import Recorder

_LOG: Final = logging.getLogger(__name__)


class Sleep:
    """One activator's part in it. `idle_s` 0: it never suspends, and only wakes."""

    def __init__(
        self,
        api: KubeApi,
        watch: Watch,
        presence: Presence,
        use: Use,
        target: Target,
        *,
        identity: str,
        idle_s: float,
        recorder: Recorder,
    ) -> None:
        self._api, self._watch, self._presence, self._use = api, watch, presence, use
        self._target, self._identity, self._idle_s, self._recorder = target, identity, idle_s, recorder
        self._awake_until_asked = -1

    async def run(self, *, every_s: float) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except KubernetesError as exc:
                _LOG.warning("%s", exc.message)
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """Once: say how it is here, and suspend if that is due. Raises KubernetesError."""
        await self._presence.beat(self._is_idle)
        if self._presence.leads:
            await self._notice_others()
        if self._presence.leads and self._presence.quiet and self._is_due():
            await self._suspend()

    def _is_idle(self) -> bool:
        return self._idle_s > 0 and self._use.idle_s() >= self._idle_s

    def _is_due(self) -> bool:
        """Not while it starts, nor before anybody has asked it if somebody else than an activator woke it."""
        if not self._presence.others_quiet:
            self._awake_until_asked = -1
        serving_s = self._watch.serving_s()
        return serving_s >= self._idle_s and self._use.arrived != self._awake_until_asked

    async def _suspend(self) -> None:
        async with self._presence.suspension() as may:
            if not may:
                return
            await self._watch.refresh()
            view = self._watch.view
            # Whoever came in since waits for the end of this, and would wake what was never suspended.
            if view is None or self._watch.phase is not Phase.SERVING or self._use.under_way:
                return
            patch = suspend_patch(view.version, identity=self._identity)
            try:
                self._watch.take(await self._api.patch(self._target.kind, self._target.name, patch))
            except KubernetesError as exc:
                if exc.answer != CONFLICT:
                    raise
                _LOG.info("the RayService changed meanwhile: not suspended")
                return
            _LOG.info("suspended the RayService %s after %g s without a request", self._target, self._idle_s)
            self._recorder.record(SUSPENSIONS, 1)

    async def _notice_others(self) -> None:
        """Somebody else woke what an activator suspended: a person, or what keeps the cluster as Git has it."""
        view = self._watch.view
        if view is None or view.suspend or not view.suspended_by:
            return
        _LOG.warning(
            "spec.suspend of the RayService %s was set to false by somebody else: it stays awake until it has been "
            "asked something. Where a GitOps tool did it, have it ignore spec.suspend",
            self._target,
        )
        self._recorder.record(OVERRULED, 1)
        self._awake_until_asked = self._use.arrived
        self._watch.take(await self._api.patch(self._target.kind, self._target.name, unmark_patch()))

    def tell(self) -> None:
        """Record how it is now."""
        self._recorder.record(LEADS, float(self._presence.leads))
        self._recorder.record(UNDER_WAY, self._use.under_way)
        for phase in Phase:
            self._recorder.record(PHASE, float(phase is self._watch.phase), {"phase": phase.value})
