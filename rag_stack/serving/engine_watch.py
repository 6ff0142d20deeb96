"""Tells an engine that works from one that is dead or hangs, and ends what waits for it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from rag_stack.api.admission import Admission
from rag_stack.api.traffic import Traffic
from rag_stack.errors import EngineLostError, RagStackError

_LOG: Final = logging.getLogger("ray.serve")
# A replacement is there after this long at the earliest.
_RETRY_AFTER_S: Final = 10
_LOOK_S: Final = 1.0

# Tokens that the engine has made so far, for each of its requests.
Tokens = Callable[[], Mapping[str, int]]


class EngineWatch:
    """Asked by each health check, by itself while it runs, and when an answer fails.

    An engine hangs when it has had work for `stuck_s` and nothing came of it: no piece of any answer, and, where
    `tokens` tells, no token of those answers that go out as a whole. What waits for a slot, for its body or for its
    client to read is no work of the engine. A first token that takes longer than `stuck_s`, of a very long prompt on
    a slow machine, is taken for a hang: `drain.stuck_s` has to be above that.
    """

    def __init__(
        self,
        traffic: Traffic,
        admission: Admission,
        *,
        stuck_s: float,
        check_engine: Callable[[], Awaitable[None]],
        tokens: Tokens | None = None,
    ) -> None:
        self._traffic = traffic
        self._admission = admission
        self._stuck_s = stuck_s
        self._check_engine = check_engine
        self._tokens = tokens
        self._seen: Mapping[str, int] = {}
        self._lost: RagStackError | None = None
        self._doubting: asyncio.Task[None] | None = None
        traffic.on_failure = self.doubt

    def doubt(self) -> None:
        """An answer failed: look now. Until the next health check, requests would go to an engine that is dead."""
        if self._lost is None and (self._doubting is None or self._doubting.done()):
            self._doubting = asyncio.get_running_loop().create_task(self._check_quietly())

    async def run(self) -> None:
        """Look again and again, until cancelled: of a replica that is to go, and still answers, Serve asks nothing."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self._check_quietly()

    async def _check_quietly(self) -> None:
        try:
            await self.check()
        except RagStackError:
            return  # told where it was found; the next health check raises it
        except Exception:
            _LOG.exception("cannot look at the engine")  # and goes on: the next look may succeed

    async def check(self) -> None:
        """Raise EngineLostError if the engine is lost, now or once before; all its requests are then ended with it."""
        if self._lost is None:
            try:
                await self._check_engine()
            except Exception as exc:
                self._lose(f"the engine died: {exc or type(exc).__name__}")
        self._look()
        silent_s = self._traffic.silent_s()
        if self._lost is None and silent_s > self._stuck_s:
            self._lose(f"the engine has had work for {silent_s:.0f} s and gives no tokens")
        if self._lost is not None:
            raise self._lost

    def _look(self) -> None:
        if self._tokens is None or self._lost is not None:
            return
        tokens = self._tokens()
        # Nothing in the engine: what is under way is before it or behind it.
        if not tokens or any(made > self._seen.get(name, made) for name, made in tokens.items()):
            self._traffic.progressed()
        self._seen = tokens

    def _lose(self, why: str) -> None:
        _LOG.error("%s; its replica is to be replaced", why)
        self._lost = EngineLostError(f"{why}; try again", retry_after_s=_RETRY_AFTER_S)
        self._admission.give_up(self._lost)
