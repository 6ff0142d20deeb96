"""Which release a replica takes at its start, which one goes, and what share the others may have. Pure.

A rollout needs one replica more than is served with, and no second cluster: the one more starts with the new release;
whenever it is the new release's turn to have more, one of the old is retired and its replacement takes the new one.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rag_stack.releases.plan import RolloutPlan
from rag_stack.serving.rollout.choice import Split

Stage: TypeAlias = Literal["starting", "ready", "retiring", "stopping"]


@dataclass(frozen=True, slots=True)
class Live:
    """A replica that is not gone. A `retiring` one was told to go, and Serve counts it as running until it has."""

    name: str
    release: str
    stage: Stage


def release_for(plan: RolloutPlan, live: Sequence[Live], *, base: int) -> str:
    """What the next replica takes."""
    if plan.state != "canary" or plan.new is None:
        return plan.goal
    return plan.new if _staying(live)[plan.new] < wanted_new(plan, base=base) else plan.old


def wanted_new(plan: RolloutPlan, *, base: int) -> int:
    """How many of `base` replicas the new release needs for its share; one for its canary questions."""
    return max(1, math.ceil(plan.share * base))


def surge(plan: RolloutPlan, live: Sequence[Live]) -> int:
    """Replicas beside the `base`: while one runs that is to go or may have to.

    Serve starts a replacement for the last one that went. Without the surge that one is too many, and Serve stops
    replicas that still start before all others.
    """
    running = [each.release for each in live if each.stage in ("ready", "retiring")]
    stays = plan.new if plan.state == "canary" else plan.goal
    return plan.rollout.surge if any(release != stays for release in running) else 0


def to_retire(plan: RolloutPlan, live: Sequence[Live], *, base: int) -> str | None:
    """Who goes next: one at a time, and while as many are ready without it as serve without a rollout.

    A place that is not filled is not waited for where the release that stays has enough replicas already.
    """
    if any(each.stage == "retiring" for each in live):
        return None
    ready = [each for each in live if each.stage == "ready"]
    leaving = [each for each in ready if _leaves(plan, each.release, live, base=base)]
    enough = len(ready) >= max(base, 1) + plan.rollout.surge
    if plan.state != "canary":
        enough = enough or sum(each.release == plan.goal for each in ready) >= max(base, 1)
    return leaving[0].name if leaving and enough else None


def split(plan: RolloutPlan, live: Sequence[Live], *, base: int, number: int) -> Split:
    """How the routers divide new conversations: as planned, but never more than the new release's part of the replicas.

    So its first replica is not asked to do alone what all did.
    """
    if plan.new is None:
        return Split(number)
    ready = sum(each.stage == "ready" and each.release == plan.new for each in live)
    share = min(plan.share, ready / max(base, 1))
    return Split(number, plan.new, share)


def _leaves(plan: RolloutPlan, release: str, live: Sequence[Live], *, base: int) -> bool:
    if plan.state != "canary" or plan.new is None:
        return release != plan.goal
    if release == plan.old:
        return _staying(live)[plan.new] < wanted_new(plan, base=base)
    return release != plan.new


def _staying(live: Sequence[Live]) -> Counter[str]:
    return Counter(each.release for each in live if each.stage in ("starting", "ready"))
