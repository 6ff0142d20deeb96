"""A replica's side of a rollout: which release it takes, what it tells coordinator and routers, and when it goes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final, Protocol

from ray import serve
from starlette.types import ASGIApp

from rag_stack.api.traffic import Traffic
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import Release
from rag_stack.errors import ReleaseRefusedError
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.progress import CanaryResult
from rag_stack.serving.asking import AskAdmin
from rag_stack.serving.rollout.canary import ask_canaries
from rag_stack.serving.rollout.choice import Split, Standing
from rag_stack.serving.rollout.coordinator import Assignment, Orders
from rag_stack.serving.rollout.goal import release_goal
from rag_stack.serving.rollout.tally import Report, State

# A start is not held up for long by a coordinator that is absent: what is promoted is in the object store too.
_ASSIGN_LIMIT_S: Final = 60.0
_TELL_LIMIT_S: Final = 10.0
_AGAIN_S: Final = 1.0
_LOG: Final = logging.getLogger("ray.serve")


class Coordinator(Protocol):
    """Asks the coordinator (see ReleaseRollout); None when it does not answer, or has nothing to say."""

    def assign(self, name: str) -> Awaitable[Assignment | None]: ...

    def sync(self, name: str, report: Report) -> Awaitable[Orders | None]: ...


class ReleaseMember:
    """One a replica. `take`, then `prove`, then `follow`."""

    def __init__(self, name: str, coordinator: Coordinator) -> None:
        self.name = name
        self._coordinator = coordinator
        self._release = ""
        self._assignment: Assignment | None = None
        self._results: tuple[CanaryResult, ...] = ()
        self._results_of_s = 0.0
        self._proves: tuple[ASGIApp, Release] | None = None
        self._proving_of_s = 0.0
        self._proving: asyncio.Task[None] | None = None
        self._state: State = "starting"
        self._orders: Orders | None = None
        self._retiring = False
        self._told_ttft_s = 0.0
        self._traffic: Traffic | None = None
        self._starting: asyncio.Task[None] | None = None

    async def take(self, deployed: PinnedRelease, tiers: Tiers) -> PinnedRelease:
        """What this replica shall be: as the coordinator says, or as the plan is, or as it was deployed."""
        assignment = await self._assigned()
        if assignment is None:
            assignment = Assignment(await asyncio.to_thread(release_goal, deployed, tiers))
        self._release, self._assignment = assignment.pinned.version, assignment
        # That this replica starts the coordinator has from Serve, but not, where it has been started anew, of which
        # release. It is not told while Ray blocks this event loop, which is until the engine's core is up.
        self._starting = asyncio.create_task(self._keep_telling())
        return assignment.pinned

    async def prove(self, app: ASGIApp, pinned: PinnedRelease) -> None:
        """Answer the canary questions, by an app that asks for no key. Raises ReleaseRefusedError when one fails.

        The app answers those of later rollouts to this release, too, beside the work and not in its queue; what fails
        then is told and ends nothing.
        """
        self._proves = (app, pinned.release)
        if self._assignment is not None:
            self._results = await ask_canaries(app, pinned.release, self._assignment.canaries)
            self._results_of_s = self._assignment.canaries_of_s
        wrong = next((each for each in self._results if not each.passed), None)
        if wrong is not None:
            raise ReleaseRefusedError(f"{pinned.version}: canary question {wrong.question!r}: {wrong.detail}")

    async def fail(self, reason: str) -> None:
        """Tell the coordinator that this replica does not start: the results of its canaries, too, if it has any.

        What breaks because the replica was told to stop is no failure.
        """
        if self._state == "stopped":
            return
        self._state = "failed"
        self._end_starting()
        await self._sync(reason)

    async def stop(self) -> None:
        """Serve ends this replica. Where it is still on its start, the coordinator hears that nothing has failed.

        While Ray blocks the event loop nobody gets to call this, and Serve may kill the process first: for then see
        `not_failed`.
        """
        if self._state != "starting":
            return
        self._state = "stopped"
        self._end_starting()
        await self._sync()

    async def follow(self, traffic: Traffic) -> None:
        """Tell how it goes and take orders, until cancelled. The replica takes requests from now on."""
        if self._state == "stopped":
            return
        self._end_starting()
        self._traffic, self._state = traffic, "ready"
        try:
            await self._keep_telling()
        finally:
            if self._proving is not None:
                self._proving.cancel()

    async def check_health(self) -> None:
        """Raise when this replica has been retired: Serve then drains it, and starts another in its place."""
        if self._retiring:
            raise ReleaseRefusedError(f"{self._release} goes: this replica is replaced")

    def standing(self) -> Standing:
        """What the routers have to know."""
        split = self._orders.split if self._orders else Split()
        return Standing(self._release, takes=self._state == "ready" and not self._retiring, split=split)

    @property
    def surge(self) -> int:
        """How many replicas the rollout needs beside those that the traffic needs."""
        return self._orders.surge if self._orders else 0

    async def _assigned(self) -> Assignment | None:
        try:
            async with asyncio.timeout(_ASSIGN_LIMIT_S):
                while True:
                    assignment = await self._coordinator.assign(self.name)
                    if assignment is not None:
                        return assignment
                    await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            return None

    async def _keep_telling(self) -> None:
        while True:
            await self._sync()
            await asyncio.sleep(self._orders.again_s if self._orders else _AGAIN_S)

    async def _sync(self, reason: str = "") -> None:
        report = self._report(reason)
        try:
            async with asyncio.timeout(_TELL_LIMIT_S):
                orders = await self._coordinator.sync(self.name, report)
        except TimeoutError:
            return
        if report.ttft_s:
            self._told_ttft_s = report.ttft_s[-1]
        if orders is not None:
            self._orders = orders
            # Once told to go it goes, whatever is said later: Serve may have seen it fail already.
            self._retiring |= orders.retire
            self._prove_again(orders)

    def _prove_again(self, orders: Orders) -> None:
        """Begin to answer what is asked beside the work, once a rollout; again if that came to nothing."""
        asks = bool(orders.canaries) and orders.canaries_of_s != self._results_of_s
        under_way = self._proving is not None and not self._proving.done()
        if not asks or (under_way and orders.canaries_of_s == self._proving_of_s):
            return
        if self._proving is not None:
            self._proving.cancel()
        self._proving_of_s = orders.canaries_of_s
        self._proving = asyncio.create_task(self._answer_beside(orders))

    async def _answer_beside(self, orders: Orders) -> None:
        """Answer, unless that comes to nothing: an engine with too much to do says nothing of its release."""
        if self._proves is None:
            return
        results = await ask_canaries(*self._proves, orders.canaries)
        judged = tuple(each for each in results if each.answered)
        if len(judged) < len(results) and all(each.passed for each in judged):
            left = next(each for each in results if not each.answered)
            _LOG.warning("canary question %r came to nothing, and is asked again: %s", left.question, left.detail)
            return
        self._results, self._results_of_s = judged, orders.canaries_of_s

    def _report(self, reason: str) -> Report:
        seen = self._traffic.snapshot() if self._traffic else None
        return Report(
            release=self._release,
            state=self._state,
            retiring=self._retiring,
            answered=seen.answered + seen.failed if seen else 0,
            failed=seen.failed if seen else 0,
            ttft_s=_after(self._told_ttft_s, seen.ttft_s) if seen else (),
            canaries=self._results,
            canaries_of_s=self._results_of_s,
            reason=reason,
        )

    def _end_starting(self) -> None:
        if self._starting is not None:
            self._starting.cancel()


class AdminCoordinator:
    """The coordinator in the admin application (`Coordinator`)."""

    def __init__(self) -> None:
        self._ask = AskAdmin(silence="the rollout's coordinator does not answer")

    async def assign(self, name: str) -> Assignment | None:
        """See ReleaseRollout.assign."""
        assignment: Assignment | None = await self._ask("assign_release", name)
        return assignment

    async def sync(self, name: str, report: Report) -> Orders | None:
        """See ReleaseRollout.sync."""
        orders: Orders | None = await self._ask("sync_release", name, report)
        return orders


def member_of_this_replica() -> ReleaseMember:
    """The member for the Serve replica in whose process this runs."""
    return ReleaseMember(serve.get_replica_context().replica_id.unique_id, AdminCoordinator())


@asynccontextmanager
async def telling_failure(member: ReleaseMember) -> AsyncIterator[None]:
    """A start that fails in this block: the coordinator hears of it before Serve does, with the reason."""
    try:
        yield
    except Exception as exc:
        await member.fail(f"{type(exc).__name__}: {exc}")
        raise


def _after(last_s: float, ttft_s: tuple[float, ...]) -> tuple[float, ...]:
    """Those after one that was told already; two of the same length to the last bit are not to be expected."""
    return ttft_s[ttft_s.index(last_s) + 1 :] if last_s in ttft_s else ttft_s
