"""The coordinator of a rollout at work: one writer of the plan, who gathers evidence and says who is to be what.

No Ray here: `Replicas` is how Serve's controller is asked. All state but the plan is told again after a restart, by the
replicas and by Serve; until it is, nobody gets orders and everything stays as it is.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Protocol

from rag_stack.config import Canary
from rag_stack.errors import ArtifactError, RagStackError
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.plan import FIRST_STEP, RolloutPlan, RolloutStore
from rag_stack.releases.progress import MAX_FAILED_STARTS, CanaryResult, Evidence, Seen
from rag_stack.releases.rollout import Rollout
from rag_stack.serving.rollout.assignment import Live, Stage, release_for, split, surge, to_retire
from rag_stack.serving.rollout.choice import Split
from rag_stack.serving.rollout.served import Served, not_failed
from rag_stack.serving.rollout.tally import Report, Tally

_TICK_S: Final = 0.5
# How often Serve is asked while nothing moves.
_CALM_S: Final = 5.0
# When so long nothing has moved, the replicas that there are are those that are wanted.
_SETTLED_S: Final = 10.0
# A replica that runs and has not been heard of since this coordinator started is not waited for any longer.
_SILENT_S: Final = 30.0
# Reports that come in each second, at most: a hundred replicas report every second, few of them twice.
_REPORTS_PER_S: Final = 100.0
_LOG: Final = logging.getLogger("ray.serve")


class Replicas(Protocol):
    """Asks Serve for the engine's replicas; None when it does not answer."""

    def __call__(self) -> Awaitable[Served | None]: ...


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a replica is to be, and the questions that it has to answer before it takes any: see `Orders`."""

    pinned: PinnedRelease
    canaries: tuple[Canary, ...] = ()
    canaries_of_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Orders:
    """What a replica tells routers and autoscaler, whether it is to go, and when to ask again.

    `canaries` are to be answered beside its work, by one replica of the version. They are those of the rollout that
    began at `canaries_of_s`, in Unix seconds: a version may be applied twice, with other questions, and with other
    indexes behind it.
    """

    split: Split
    surge: int
    retire: bool
    again_s: float
    canaries: tuple[Canary, ...] = ()
    canaries_of_s: float = 0.0


@dataclass(slots=True)
class _Member:
    report: Report
    heard_s: float


class ReleaseRollout:
    """Moves the plan, and brings the replicas to it. All methods belong to one event loop; `run` has to run in it."""

    def __init__(
        self,
        deployed: PinnedRelease,
        rollout: Rollout,
        plans: RolloutStore,
        *,
        load: Callable[[str], PinnedRelease],
        replicas: Replicas,
        releases: Callable[[Sequence[PinnedRelease]], None] = lambda _: None,
        poll_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`deployed` is what serves without a plan; `load` reads a published version, and may block.

        `releases` is told which releases are served, whenever that changes.
        """
        self._deployed = deployed
        self._rollout = rollout
        self._plans = plans
        self._load = load
        self._ask_serve = replicas
        self._tell_releases = releases
        self._told: tuple[str, ...] = ()
        self._poll_s = poll_s
        self._clock = clock
        self._plan: RolloutPlan | None = None
        self._loaded: dict[str, PinnedRelease] = {}
        self._members: dict[str, _Member] = {}
        self._serve = Served()
        self._not_failed: set[str] = set()
        self._retiring: set[str] = set()
        self._failed_starts: set[str] = set()
        self._canaries: tuple[CanaryResult, ...] = ()
        self._asked: str | None = None
        self._tally = Tally()
        self._base = self._surge = 0
        self._split = Split()
        self._waits_for = ""
        self._informed = False
        self._began_s = self._moved_s = clock()
        self._read_s = self._asked_s = 0.0
        self._count = -1
        self._lock = asyncio.Lock()
        self._mended = True
        self._planless = False

    @property
    def plan(self) -> RolloutPlan | None:
        """As it was read last; None before that."""
        return self._plan

    @property
    def waits_for(self) -> str:
        """What the rollout waits for, for people."""
        return self._waits_for

    async def run(self) -> None:
        """Go on until cancelled. What cannot be read or written now is tried again; that is said once."""
        while True:
            try:
                await self.tick()
                self._mended = True
            except RagStackError as exc:
                if self._mended:
                    _LOG.warning("the rollout stays where it is: %s", exc)
                self._mended = False
            await asyncio.sleep(_TICK_S)

    async def tick(self) -> None:
        """Read, look, decide, order: once."""
        async with self._lock:
            await self._read()
            await self._look()
            if self._plan is None:
                return
            if self._informed:
                await self._advance(self._plan)
                self._order(self._plan)
            # Last: a version that cannot be read must not keep its rollout from going back.
            await self._tell(self._plan)

    async def assign(self, name: str) -> Assignment:
        """What a replica that starts takes. Raises RagStackError when that cannot be read."""
        async with self._lock:
            if self._plan is None:
                await self._read_for_start()
            plan = self._plan
            version = self._version_for(plan) if plan else self._deployed.version
            pinned = await self._release(version)
            if not self._is_stopped(name):
                self._hear(name, Report(release=version, state="starting"))
            self._moved_s = self._clock()
        proves = plan is not None and plan.state == "canary" and version == plan.new
        if plan is None or not proves:
            return Assignment(pinned)
        return Assignment(pinned, plan.rollout.canaries, plan.began_s)

    def sync(self, name: str, report: Report) -> Orders | None:
        """Take a report; None until it is known what there is, and then nothing is to be changed."""
        self._hear(name, report)
        if not self._informed or self._plan is None:
            return None
        again_s = max(_TICK_S, len(self._members) / _REPORTS_PER_S)
        if not self._plan.running and not self._retiring:
            again_s *= 2
        orders = Orders(self._split, self._surge, name in self._retiring, again_s)
        if self._one_to_ask(self._plan) != name:
            return orders
        return replace(orders, canaries=self._plan.rollout.canaries, canaries_of_s=self._plan.began_s)

    def now(self) -> dict[str, Any]:
        """What is seen, for people: what is waited for, the shares as they are, the replicas of each version."""
        if self._plan is None:
            return {}
        live = self._live()
        versions = dict.fromkeys((*self._plan.shares(), *(each.release for each in live)))
        seen = {version: asdict(self._seen(version, live)) for version in versions}
        stages = {each.name: {"version": each.release, "stage": each.stage} for each in live}
        return {"waits_for": self._waits_for, "share": self._split.share, "seen": seen, "replicas": stages}

    def _version_for(self, plan: RolloutPlan) -> str:
        """What the next replica takes.

        Serve gives a deployment up of which nothing has ever started and three starts have failed. So where nothing
        serves, the last try but for which the new version goes back is made beside a replica of the old one.
        """
        live = self._live()
        serves = any(each.stage in ("ready", "retiring") for each in live)
        if plan.state == "canary" and not serves and len(self._failed_starts) >= MAX_FAILED_STARTS - 1:
            return plan.old
        return release_for(plan, live, base=self._base)

    async def _release(self, version: str) -> PinnedRelease:
        if version == self._deployed.version:
            return self._deployed
        if version not in self._loaded:
            self._loaded[version] = await asyncio.to_thread(self._load, version)
        return self._loaded[version]

    async def _read(self) -> None:
        if self._clock() - self._read_s < self._poll_s:
            return
        plan = await asyncio.to_thread(self._settled)
        self._read_s = self._clock()
        self._take(plan)

    async def _read_for_start(self) -> None:
        """A start does not wait for a plan where there is none, and none can be written: it takes what was deployed."""
        try:
            await self._read()
        except ArtifactError:
            if not self._planless:
                raise

    def _settled(self) -> RolloutPlan:
        """The plan, with the promoted pointer where it belongs; the first one is for what was deployed."""
        self._planless = False
        self._planless = self._rollout.plan() is None
        if self._planless:
            self._rollout.apply(self._deployed, reason="deployed")
        return self._rollout.settle()

    def _take(self, plan: RolloutPlan) -> None:
        """Another plan, ours or somebody else's."""
        before, self._plan = self._plan, plan
        if plan == before:
            return
        if before is None or (before.began_s, before.new) != (plan.began_s, plan.new):
            self._failed_starts.clear()
            self._canaries = ()
        self._tally.start_over()
        self._moved_s = self._clock()
        _LOG.info("rollout %s: %s from %s to %s, share %s", plan.revision, plan.state, plan.old, plan.new, plan.share)

    async def _tell(self, plan: RolloutPlan) -> None:
        served = tuple(plan.shares())
        if served != self._told:
            self._tell_releases([await self._release(version) for version in served])
            self._told = served

    async def _look(self) -> None:
        """Ask Serve, often while anything moves."""
        calm = self._plan is not None and not self._plan.running and not self._retiring and self._informed
        if calm and self._clock() - self._asked_s < _CALM_S:
            return
        found = await self._ask_serve()
        if found is None:
            return
        self._asked_s = self._clock()
        gone = self._serve.replicas.keys() - found.replicas.keys()
        self._not_failed |= not_failed(self._serve, found, heard_of=self._members)
        self._serve = found
        for name in gone:
            self._forget(name)
        self._not_failed.intersection_update(found.replicas)
        # What was told by one that Serve has let go meanwhile.
        self._retiring.intersection_update(found.replicas)
        known = all(name in self._members for name, state in found.replicas.items() if state == "running")
        self._informed = self._informed or known or self._clock() - self._began_s > _SILENT_S
        self._measure()

    def _forget(self, name: str) -> None:
        """One that is gone. Its start has failed where it was neither through nor stopped, by whoever."""
        member = self._members.pop(name, None)
        self._retiring.discard(name)
        self._tally.forget(name)
        if member is None or member.report.state in ("ready", "stopped") or self._plan is None:
            return
        if name not in self._not_failed and member.report.release == self._plan.new:
            self._failed_starts.add(name)

    def _measure(self) -> None:
        """How many serve without a rollout: those that there are when nothing has moved for a while, less the surge."""
        count = sum(state != "stopping" for state in self._serve.replicas.values())
        if count != self._count:
            self._count, self._moved_s = count, self._clock()
        resting = all(state == "running" for state in self._serve.replicas.values()) and not self._retiring
        undisturbed = not self._surge and not self._retiring
        if undisturbed or (resting and self._clock() - self._moved_s >= _SETTLED_S):
            self._base = count - self._surge

    def _hear(self, name: str, report: Report) -> None:
        self._members[name] = _Member(report, self._clock())
        self._tally.take(name, report)
        if report.retiring:
            self._retiring.add(name)
        if self._plan is not None and report.release == self._plan.new:
            # A wrong answer stays, whoever tells of right ones after it.
            wrong = any(not each.passed for each in self._canaries)
            if report.canaries_of_s == self._plan.began_s and not wrong:
                self._canaries = report.canaries or self._canaries
            if report.state == "failed":
                self._failed_starts.add(name)

    def _is_stopped(self, name: str) -> bool:
        """Whether it was told to stop before it had its assignment."""
        member = self._members.get(name)
        return member is not None and member.report.state == "stopped"

    def _one_to_ask(self, plan: RolloutPlan) -> str | None:
        """The replica, ready before this rollout, that is asked beside its work what starting ones are before theirs.

        One for all, since what it is asked comes on top of what its engine was let have: who was asked last, or else
        who was heard of first.
        """
        if plan.state != "canary" or plan.step != FIRST_STEP or self._canaries:
            return None
        able = [name for name, member in self._members.items() if self._can_be_asked(plan, name, member)]
        self._asked = self._asked if self._asked in able else next(iter(able), None)
        return self._asked

    def _can_be_asked(self, plan: RolloutPlan, name: str, member: _Member) -> bool:
        ready = member.report.release == plan.new and member.report.state == "ready" and name not in self._retiring
        heard = self._clock() - member.heard_s <= _SILENT_S
        return ready and heard and self._serve.replicas.get(name) != "stopping"

    async def _advance(self, plan: RolloutPlan) -> None:
        """Move the plan by what was seen. Without any replica the next start has to show what the release is like.

        `plan` may be older than what is stored: then that one is taken, and judged by what is seen from then on.
        """
        live = self._live()
        now_s = self._clock()
        wrong = self._failed_starts or not all(each.passed for each in self._canaries)
        if plan.state == "canary" and not (live or wrong):
            self._waits_for = "a replica to start, for there is none"
            if now_s - plan.began_s > plan.rollout.limit_s / 2:
                later = replace(plan, began_s=now_s, step_began_s=now_s)
                self._take(await asyncio.to_thread(self._plans.move, plan, later))
            return
        old = self._seen(plan.old, live)
        new = self._seen(plan.new or "", live)
        new = replace(new, failed_starts=len(self._failed_starts), canaries=self._canaries)
        evidence = Evidence(now_s=now_s, old=old, new=new)
        decision = await asyncio.to_thread(self._rollout.advance, evidence, expected=plan)
        self._waits_for = decision.waits_for
        self._take(decision.plan)

    def _order(self, plan: RolloutPlan) -> None:
        """What everybody is told from now on."""
        plan = self._plan or plan
        live = self._live()
        leaves = to_retire(plan, live, base=self._base)
        if leaves is not None:
            self._retiring.add(leaves)
            live = self._live()
        wanted = surge(plan, live)
        if wanted != self._surge:
            self._surge, self._moved_s = wanted, self._clock()
        divided = split(plan, live, base=self._base, number=self._split.number)
        if divided != self._split:
            # Also higher than what another coordinator, before this one, has numbered.
            number = max(self._split.number + 1, int(self._clock() * 1000))
            self._split = replace(divided, number=number)

    def _seen(self, release: str, live: list[Live]) -> Seen:
        of_it = [each for each in live if each.release == release]
        samples, median_s = self._tally.ttft(release)
        return Seen(
            replicas=len(of_it),
            ready=sum(each.stage == "ready" for each in of_it),
            answered=self._tally.answered(release),
            failed=self._tally.failed(release),
            ttft_samples=samples,
            ttft_median_s=median_s,
        )

    def _live(self) -> list[Live]:
        """Those that Serve names and that have been heard of, and those that have just begun to start."""
        live = []
        for name, member in self._members.items():
            stage = self._stage(name, member)
            # One that was stopped before it had taken a release is of none.
            if stage is not None and member.report.release:
                live.append(Live(name, member.report.release, stage))
        return live

    def _stage(self, name: str, member: _Member) -> Stage | None:
        state = self._serve.replicas.get(name)
        if state == "stopping":
            return "stopping"
        if member.report.state in ("failed", "stopped") or (
            state is None and self._clock() - member.heard_s > _SILENT_S
        ):
            return None
        if name in self._retiring and state == "running":
            return "retiring"
        return "ready" if state == "running" and member.report.state == "ready" else "starting"
