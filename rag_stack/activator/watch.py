"""The newest RayService, and where it is. Kept through everything that an API server does to a watch.

A watch that ends, breaks, is silent or too old (410) is taken up again; meanwhile what was known last stays known.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from rag_stack.activator.kube_api import FORBIDDEN, GONE, Kind, KubeApi, Object
from rag_stack.activator.ray_service import Phase, RayServiceView, view_of
from rag_stack.errors import KubernetesError

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_LOG = logging.getLogger(__name__)


class Watch:
    """Used from one event loop.

    `trouble` says why nothing newer is known, empty while the API server answers;
    `forbidden` whether it is that the API server does not allow it.
    """

    def __init__(
        self,
        api: KubeApi,
        kind: Kind,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self._api = api
        self._kind = kind
        self._name = name
        self._clock = clock
        self._first_pause_s = pause_s
        self._changed = asyncio.Event()
        self._awake_since: int | None = None
        self._newest = 0
        self.view: RayServiceView | None = None
        self.phase = Phase.UNKNOWN
        self.phase_since_s = clock()
        self.trouble = ""
        self.forbidden = False

    async def run(self) -> None:
        """Until cancelled."""
        version, pause_s = "", self._first_pause_s
        while True:
            try:
                if not version:
                    self._newest = 0  # after a restore from a backup versions begin anew
                    version = await self._look()
                version = await self._follow(version)
                pause_s = self._first_pause_s
            except KubernetesError as exc:
                version = ""
                self._note(exc)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def refresh(self) -> None:
        """Look now. Raises KubernetesError."""
        await self._look()

    def take(self, told: Object) -> None:
        """What the API server has said of it, in a watch or as an answer. Either may overtake the other."""
        view = view_of(told)
        if not self._is_old(view.version):
            self._enter(view)

    async def until(self, *phases: Phase) -> Phase:
        """Waits until it is in one of them."""
        while self.phase not in phases:
            await self._changed.wait()
        return self.phase

    async def change_within(self, limit_s: float) -> None:
        """Waits until anything of it is told anew, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), limit_s)

    def serving_s(self) -> float:
        """For how long it has served without a break."""
        return self._clock() - self.phase_since_s if self.phase is Phase.SERVING else 0.0

    async def _look(self) -> str:
        found, version = await self._api.find(self._kind, self._name)
        self.trouble, self.forbidden = "", False
        if found is not None:
            self.take(found)
        elif not self._is_old(version):
            self._enter(None)
        return version

    def _note(self, exc: KubernetesError) -> None:
        if exc.answer == GONE:
            _LOG.info("the watch is too old: looking anew")
            return
        _LOG.warning("%s", exc.message)
        self.trouble, self.forbidden = exc.message, exc.answer == FORBIDDEN

    async def _follow(self, version: str) -> str:
        """One watch; the version from which the next goes on."""
        async for event, told in self._api.watch(self._kind, self._name, version):
            version = str(told["metadata"]["resourceVersion"])
            if event == "DELETED" and not self._is_old(version):
                self._enter(None)
            elif event not in ("BOOKMARK", "DELETED"):
                self.take(told)
        return version

    def _is_old(self, version: str) -> bool:
        """Whether something newer is known. Versions of one resource can be compared as numbers."""
        if not version.isdecimal():
            return False
        old = int(version) < self._newest
        self._newest = max(self._newest, int(version))
        return old

    def _enter(self, view: RayServiceView | None) -> None:
        if view is None or view.suspend or (self.view is not None and self.view.uid != view.uid):
            self._awake_since = None
        if view is not None and not view.suspend and self._awake_since is None:
            self._awake_since = view.generation
        self.view = view
        phase = Phase.MISSING if view is None else view.phase(awake_since=self._awake_since or 0)
        if phase is not self.phase:
            _LOG.info("the RayService is %s, was %s", phase, self.phase)
            self.phase, self.phase_since_s = phase, self._clock()
        before, self._changed = self._changed, asyncio.Event()
        before.set()
