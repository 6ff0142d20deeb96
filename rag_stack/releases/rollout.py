"""The rollouts of one release: a version is applied, advances on what is seen of it, and is promoted or taken back.

The plan is moved first and the promoted pointer after it, by whoever moved the plan, or else by whoever looks next
(`settle`). So whatever is killed in between, the next call ends what it began; and of a coordinator and an operator
who move at once, one is refused, and reads the plan of the other.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

from rag_stack.artifacts.catalog import Catalog, promoter
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.promotion import Pointer, Promotion, check_told
from rag_stack.artifacts.retention import Retention
from rag_stack.errors import (
    ArtifactOutdatedError,
    ConflictError,
    NotFoundError,
    PromotionConflictError,
    RollbackError,
)
from rag_stack.releases.compatibility import check_change, check_release
from rag_stack.releases.difference import Change, changes, only_followed
from rag_stack.releases.pinned import PinnedRelease
from rag_stack.releases.plan import RolloutPlan, RolloutStore, steady
from rag_stack.releases.progress import Decision, Evidence, begin, decide, go_back, promote_now
from rag_stack.releases.published import load, publish

# Others may move the plan or the pointer while this one settles them: not for ever.
_ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class Applied:
    """What `apply` did: began a rollout, promoted at once, or found it `unchanged`; `changes` are against the goal."""

    outcome: Literal["rollout", "promoted", "unchanged"]
    version: str
    plan: RolloutPlan
    changes: tuple[Change, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        told = {"outcome": self.outcome, "version": self.version, "changes": [each.to_json() for each in self.changes]}
        return {**told, "plan": self.plan.to_json()}


class Rollout:
    """The rollouts of the release `name`. Every call blocks on the object store."""

    def __init__(self, catalog: Catalog, name: str, *, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self.catalog = catalog
        self._store = RolloutStore(catalog.store, name)
        self._clock = clock

    def plan(self) -> RolloutPlan | None:
        """The plan; that of a release which was promoted without one is steady. None when nothing is promoted."""
        plan = self._store.read()
        if plan is not None:
            return plan
        pointer = self.pointer()
        # The same one at each look, so that nobody takes it for another one.
        return None if pointer is None else steady(pointer.version, now_s=_seconds(pointer.promotion.promoted_at))

    def pointer(self) -> Pointer | None:
        """What is promoted."""
        return self.catalog.promoted("releases", self.name)

    def promotions(self, *, last: int | None = None) -> list[Promotion]:
        """All promotions, oldest first."""
        return self.catalog.history("releases", self.name, last=last)

    def apply(
        self,
        pinned: PinnedRelease,
        *,
        at_once: bool = False,
        replacing: bool = False,
        restart: bool = False,
        reason: str = "",
        by: str | None = None,
    ) -> Applied:
        """Publish a release version and begin its rollout, or promote it `at_once`, as the first one always is.

        With `restart` it is promoted at once, and may be what a running deployment cannot go to. Raises
        IncompatibleReleaseError, ConflictError while another rollout runs unless that is `replacing`, and as `publish`.
        """
        by = promoter() if by is None else by
        check_told(by=by, reason=reason)
        check_release(pinned, self.catalog)
        base = self.plan()
        if base is None:
            return Applied("promoted", pinned.version, self._first(pinned, reason=reason, by=by))
        old, at_once = self._goal(base), at_once or restart
        found = changes(old, pinned) if old else ()
        if base.state == "canary" and base.new == pinned.version and not (at_once or replacing):
            return Applied("rollout", pinned.version, base, found)
        if base.state != "canary" and (base.goal == pinned.version or (old and only_followed(old, pinned))):
            return Applied("unchanged", base.goal, base, found)
        if old and not restart:
            check_change(old, pinned)
        if base.running and not replacing:
            raise _another_runs(self.name, base)
        publish(self.catalog, pinned)
        plan = self._begin(base, pinned, at_once=at_once, reason=reason, by=by)
        return Applied("promoted" if plan.goal == pinned.version else "rollout", pinned.version, plan, found)

    def seed(self, pinned: PinnedRelease, *, reason: str = "", by: str | None = None) -> RolloutPlan:
        """Publish and promote the first version of the name, at once.

        Raises PromotionConflictError where there is a version already, also one that has come just now, and as `apply`.
        """
        by = promoter() if by is None else by
        check_told(by=by, reason=reason)
        check_release(pinned, self.catalog)
        return self._first(pinned, reason=reason, by=by)

    def same(self, pinned: PinnedRelease, version: str) -> bool:
        """Whether a version is this release, but for what is promoted of the stores that follow."""
        if version == pinned.version:
            return True
        try:
            return only_followed(load(self.catalog, self.name, version), pinned)
        except ArtifactOutdatedError:
            return False

    def advance(self, evidence: Evidence, *, expected: RolloutPlan | None = None) -> Decision:
        """Move the plan to what follows from what was seen, if anything does, and settle the pointer.

        `expected` is the plan of which that was seen: it says nothing of another one, which stays as it is. For one
        coordinator; a second one does no harm. Raises NotFoundError when nothing was ever applied.
        """
        plan = self.settle()
        if expected is not None and plan != expected:
            return Decision(plan)
        decision = decide(plan, evidence)
        if decision.plan == plan:
            return decision
        try:
            return Decision(self._move(plan, decision.plan), decision.waits_for)
        except PromotionConflictError as exc:
            return Decision(self.settle(), exc.message)

    def rollback(
        self,
        *,
        to: str | None = None,
        reason: str = "",
        by: str | None = None,
        expected: str | None = None,
    ) -> RolloutPlan:
        """Take the running rollout back; else promote what was promoted before, or a version further back.

        The replicas follow when there are any. `expected` is the version to go back from, if only that will do. Raises
        RollbackError when there is no way back, NotFoundError when nothing was ever applied, PromotionConflictError
        when another version is there, and IncompatibleReleaseError for a version that cannot serve.
        """
        by = promoter() if by is None else by
        check_told(by=by, reason=reason)
        plan = self.settle()
        if to is None and not plan.running:
            to = self._before(plan)
        leaves = plan.new or plan.goal
        if expected is not None and expected != leaves:
            raise PromotionConflictError(f"the release {self.name!r} goes back from {leaves!r}, expected {expected!r}")
        target = to or plan.old
        if target == plan.goal and plan.state in ("steady", "promoting"):
            raise RollbackError(f"{target!r} is promoted as releases/{self.name}, so there is no going back to it")
        self._check_way(plan, target)
        following = go_back(plan, now_s=self._clock(), reason=reason or "asked for", by=by, to=to)
        return plan if following == plan else self._move(plan, following)

    def settle(self) -> RolloutPlan:
        """Have the promoted pointer name the plan's goal, and return the plan. Raises NotFoundError without one."""
        for _ in range(_ATTEMPTS):
            plan = self.plan()
            if plan is None:
                where = f"no release {self.name!r} in {self.catalog.store.url}"
                raise NotFoundError(f"{where}; publish one with `rag-stack release apply`", param="name")
            pointer = self.pointer()
            if pointer is not None and pointer.version == plan.goal:
                return plan
            self._point(plan, pointer)
        raise PromotionConflictError(f"others move the release {self.name!r} again and again; try again")

    def _first(self, pinned: PinnedRelease, *, reason: str, by: str) -> RolloutPlan:
        publish(self.catalog, pinned)
        first = steady(pinned.version, now_s=self._clock(), reason=reason, by=by)
        # Nothing is rolled out: kept for its canary questions, which a backup asks.
        return self._move(None, replace(first, rollout=pinned.release.rollout))

    def _goal(self, plan: RolloutPlan) -> PinnedRelease | None:
        """The release that the new one is compared with; None when only another rag_stack can read it."""
        try:
            return load(self.catalog, self.name, plan.goal)
        except ArtifactOutdatedError:
            return None

    def _begin(self, base: RolloutPlan, pinned: PinnedRelease, *, at_once: bool, reason: str, by: str) -> RolloutPlan:
        now_s = self._clock()
        if pinned.version == base.goal:
            # The version that a canary was to replace.
            plan = go_back(base, now_s=now_s, reason=reason or "the version before was applied again", by=by)
        elif at_once:
            plan = promote_now(base, pinned.version, now_s=now_s, reason=reason, by=by)
            plan = replace(plan, rollout=pinned.release.rollout)
        else:
            plan = begin(base, pinned.version, rollout=pinned.release.rollout, now_s=now_s, reason=reason, by=by)
        plan = self._move(base, plan)
        try:
            # It may be an old version that is published already, and just now being deleted.
            Retention(self.catalog).require([ArtifactRef("releases", self.name, pinned.version)], holder="the plan")
        except PromotionConflictError:
            self._move(plan, go_back(plan, now_s=self._clock(), reason="its version is being deleted", by=by))
            raise
        return plan

    def _move(self, expected: RolloutPlan | None, following: RolloutPlan) -> RolloutPlan:
        # A plan that was made up from the pointer is not stored.
        stored = expected if expected is not None and expected.revision else None
        self._store.move(stored, following)
        return self.settle()

    def _point(self, plan: RolloutPlan, pointer: Pointer | None) -> None:
        """Promote the goal, as a rollback where it is one. A conflict means that somebody else is at it."""
        ref = ArtifactRef("releases", self.name, plan.goal)
        expected = pointer.version if pointer else None
        by, reason = plan.by, plan.reason
        try:
            if plan.state == "rolling_back":
                # Not where it was promoted by other ways than one after the other: then it is promoted again.
                with suppress(RollbackError):
                    self.catalog.rollback(
                        "releases", self.name, to=plan.goal, expected_version=expected, by=by, reason=reason
                    )
                    return
            self.catalog.promote(ref, expected_version=expected, by=by, reason=reason)
        except PromotionConflictError:
            now = self.pointer()
            if (now.version if now else None) == expected:
                raise

    def _before(self, plan: RolloutPlan) -> str:
        pointer = self.pointer()
        if pointer is None or pointer.previous is None:
            told = f"releases/{self.name} has {plan.goal!r} promoted, and nothing was promoted before it"
            raise RollbackError(f"{told}: apply another file")
        return pointer.previous

    def _check_way(self, plan: RolloutPlan, target: str) -> None:
        if target not in {plan.old, *(each.version for each in self.promotions())}:
            raise RollbackError(
                f"{target!r} was never promoted as releases/{self.name}: apply its file instead of going back to it"
            )
        if plan.running and target == plan.old:
            return  # it serves
        pinned = load(self.catalog, self.name, target)
        check_release(pinned, self.catalog)
        if target in self.catalog.state("releases", self.name)[0].condemned:
            # Before the plan names it: the pointer would refuse it, and the plan would be stuck.
            raise PromotionConflictError(
                f"{target!r} is being deleted by `rag-stack release gc`: go back to another version, or apply its file"
            )
        if goal := self._goal(plan):
            check_change(goal, pinned)


def _seconds(promoted_at: str) -> float:
    """Unix seconds of a promotion; 0 for the form that did not keep them."""
    return datetime.fromisoformat(promoted_at).timestamp() if promoted_at else 0.0


def _another_runs(name: str, plan: RolloutPlan) -> ConflictError:
    return ConflictError(
        f"a rollout of {name!r} from {plan.old} to {plan.new} is {plan.state}: wait until it is through, which takes a "
        "server that runs, take it back with `rag-stack release rollback`, or put this one in its place with --replace"
    )
