"""What comes next in a rollout: the plan, its settings and what was seen make the following plan. Nothing else does.

A step of a `canary` ends well when all of these hold; if one fails for good, the rollout goes back, with the reason:

    started    the new version has a ready replica, and has not failed to start three times; a start that Serve ends to
               scale down, or whose node drains or dies, has not failed
    canaries   every canary question was answered as expected in this rollout, before the new version gets any share: by
               the replica that starts, or by one of the new version that serves already, which is asked until it
               answers. One wrong answer, at any step, is enough to go back
    errors     of the new version's answers in this step at most `max_error_rate` failed. It goes back as soon as so
               many have failed that `step_requests` answers could not make up for it
    ttft       the new version's median time to the first token in this step is at most `max_ttft_ratio` times the old
               one's in the same step, or 50 ms more than it; not judged with less than 20 samples of each, so not at
               full share, where nobody asks the old one any more
    requests   the new version has answered `step_requests`; a step without a single request, of the old version
               either, needs none; nor does one that has lasted its part of `limit_s`: it ends on what there is
    time       it has lasted `step_s`

So an idle server rolls out in `step_s` a step, and one with little traffic in time. After `limit_s` what is not through
goes back. Whoever calls this counts from `step_began_s` on; after a restart, from then on.
"""

from dataclasses import dataclass, replace
from typing import Final

from rag_stack.artifacts.promotion import MAX_REASON_CHARS
from rag_stack.config import RolloutConfig
from rag_stack.releases.plan import FIRST_STEP, MAX_ENDED, Ended, Outcome, RolloutPlan, steady

MAX_FAILED_STARTS: Final = 3
MIN_TTFT_SAMPLES: Final = 20
# Below this difference of two medians a ratio is noise: a scripted engine's first token takes 5 ms.
TTFT_NOISE_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """What came of one canary question. One that was not `answered`, for want of room or time, has not `passed`."""

    question: str
    passed: bool
    answered: bool = True
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One version in the current step.

    `replicas` counts all that are not gone: starting, ready or draining. `answered` includes the `failed`: answers of
    status 500 and over, and streams that ended with an error. `failed_starts` counts since the rollout began.
    `canaries` are results, one a question, or none before they were all asked; wrong ones stay.
    """

    replicas: int = 0
    ready: int = 0
    failed_starts: int = 0
    answered: int = 0
    failed: int = 0
    ttft_samples: int = 0
    ttft_median_s: float = 0.0
    canaries: tuple[CanaryResult, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Both versions of a rollout, seen at the same time (Unix seconds)."""

    now_s: float
    old: Seen = Seen()
    new: Seen = Seen()


@dataclass(frozen=True, slots=True)
class Decision:
    """The plan that follows, or the same one; then `waits_for` says for what, for people."""

    plan: RolloutPlan
    waits_for: str = ""


def decide(plan: RolloutPlan, evidence: Evidence) -> Decision:
    """What follows from what was seen. Pure; the caller moves the plan, if it is another one."""
    match plan.state:
        case "steady":
            return Decision(plan)
        case "promoting":
            return _leave(plan, evidence.old.replicas, "promoted", evidence.now_s)
        case "rolling_back":
            return _leave(plan, evidence.new.replicas, "rolled_back", evidence.now_s)
        case "canary":
            return _judge(plan, evidence)


def begin(
    base: RolloutPlan, new: str, *, rollout: RolloutConfig, now_s: float, reason: str = "", by: str = ""
) -> RolloutPlan:
    """A rollout to a new version from the goal of what goes on now, which it replaces if it is a rollout."""
    return RolloutPlan(
        old=base.goal,
        new=new,
        state="canary",
        began_s=now_s,
        step_began_s=now_s,
        reason=reason,
        by=by,
        rollout=rollout,
        ended=_with_replaced(base, now_s),
    )


def promote_now(base: RolloutPlan, new: str, *, now_s: float, reason: str = "", by: str = "") -> RolloutPlan:
    """The plan that puts a version in the place of the goal without steps and gates."""
    plan = begin(base, new, rollout=base.rollout, now_s=now_s, reason=reason, by=by)
    return replace(plan, state="promoting", share=1.0)


def go_back(plan: RolloutPlan, *, now_s: float, reason: str, by: str = "", to: str | None = None) -> RolloutPlan:
    """The plan that takes the running rollout back; with a version to go `to`, whatever goes on gives way to that.

    A rollout that goes back already stays as it is. Raises ValueError for a steady plan without a version.
    """
    if to is None and not plan.running:
        raise ValueError("nothing is being rolled out, so there is no version to go back to in the plan")
    if to is None or (plan.running and to == plan.old):
        if plan.state == "rolling_back":
            return plan
        left = plan
    else:
        left = replace(plan, old=to, new=plan.goal, step=FIRST_STEP, began_s=now_s, ended=_with_replaced(plan, now_s))
    # A canary's question may be long, and the promoted pointer keeps no more.
    reason = reason[:MAX_REASON_CHARS]
    return replace(left, state="rolling_back", share=0.0, step_began_s=now_s, reason=reason, by=by or plan.by)


def _judge(plan: RolloutPlan, evidence: Evidence) -> Decision:
    reason = _too_late(plan, evidence) or _broken(plan, evidence.new)
    if reason:
        return Decision(go_back(plan, now_s=evidence.now_s, reason=reason))
    waits_for = _start_waits_for(plan, evidence.new) if plan.step == FIRST_STEP else _step_waits_for(plan, evidence)
    if waits_for:
        return Decision(plan, waits_for)
    if plan.step > FIRST_STEP and (reason := _failed_gate(plan, evidence)):
        return Decision(go_back(plan, now_s=evidence.now_s, reason=reason))
    return Decision(_next_step(plan, evidence.now_s))


def _too_late(plan: RolloutPlan, evidence: Evidence) -> str:
    limit_s = plan.rollout.limit_s
    return f"not through after {limit_s:g} s" if evidence.now_s - plan.began_s > limit_s else ""


def _broken(plan: RolloutPlan, new: Seen) -> str:
    """What cannot become good any more, or an empty text."""
    if new.failed_starts >= MAX_FAILED_STARTS:
        return f"a replica of the new version failed to start {new.failed_starts} times"
    if wrong := next((each for each in new.canaries if not each.passed), None):
        return f"canary question {wrong.question!r}: {wrong.detail or 'not answered as expected'}"
    of = max(new.answered, plan.rollout.step_requests)
    if plan.step > FIRST_STEP and new.failed > plan.rollout.max_error_rate * of:
        return _errors_told(plan, new)
    return ""


def _start_waits_for(plan: RolloutPlan, new: Seen) -> str:
    if not new.ready:
        return "a replica of the new version to start"
    missing = len(plan.rollout.canaries) - len(new.canaries)
    return f"{missing} canary questions" if missing > 0 else ""


def _step_waits_for(plan: RolloutPlan, evidence: Evidence) -> str:
    """What the step still needs before it is judged, or an empty text."""
    config = plan.rollout
    lasted_s = evidence.now_s - plan.step_began_s
    if not evidence.new.ready:
        return "a replica of the new version to be ready again"
    if lasted_s < config.step_s:
        return f"{config.step_s - lasted_s:.0f} s to pass"
    missing = config.step_requests - evidence.new.answered
    idle = evidence.new.answered == 0 and evidence.old.answered == 0
    if missing <= 0 or idle or lasted_s >= step_limit_s(config):
        return ""
    return f"{missing} more answers of the new version"


def step_limit_s(config: RolloutConfig) -> float:
    """How long a step waits for requests: its part of the time that all steps and the start have together."""
    return config.limit_s / (len(config.steps) + 1)


def _failed_gate(plan: RolloutPlan, evidence: Evidence) -> str:
    old, new, config = evidence.old, evidence.new, plan.rollout
    if new.failed > config.max_error_rate * new.answered:
        return _errors_told(plan, new)
    most_s = max(config.max_ttft_ratio * old.ttft_median_s, old.ttft_median_s + TTFT_NOISE_S)
    if min(old.ttft_samples, new.ttft_samples) >= MIN_TTFT_SAMPLES and new.ttft_median_s > most_s:
        return (
            f"the first token takes {new.ttft_median_s:.3f} s (median of {new.ttft_samples}), with the old version "
            f"{old.ttft_median_s:.3f} s: at most {config.max_ttft_ratio:g} times that is allowed"
        )
    return ""


def _errors_told(plan: RolloutPlan, new: Seen) -> str:
    rate = plan.rollout.max_error_rate
    return f"{new.failed} of {new.answered} answers of the new version failed in step {plan.step}, over {rate:.1%}"


def _next_step(plan: RolloutPlan, now_s: float) -> RolloutPlan:
    step = plan.step + 1
    if step == len(plan.rollout.steps):
        return replace(plan, state="promoting", share=1.0, step_began_s=now_s)
    return replace(plan, step=step, share=plan.rollout.steps[step], step_began_s=now_s)


def _leave(plan: RolloutPlan, left: int, outcome: Outcome, now_s: float) -> Decision:
    if left:
        return Decision(plan, f"{left} replicas of {plan.leaving} to end")
    done = steady(plan.goal, now_s=now_s, reason=plan.reason, by=plan.by)
    return Decision(replace(done, rollout=plan.rollout, ended=_with(plan, outcome, plan.reason, now_s)))


def _with_replaced(plan: RolloutPlan, now_s: float) -> tuple[Ended, ...]:
    return _with(plan, "replaced", "another version was applied", now_s) if plan.running else plan.ended


def _with(plan: RolloutPlan, outcome: Outcome, reason: str, now_s: float) -> tuple[Ended, ...]:
    ended = Ended(
        old=plan.old,
        new=plan.new or "",
        outcome=outcome,
        reason=reason,
        by=plan.by,
        step=plan.step,
        began_s=plan.began_s,
        ended_s=now_s,
    )
    return (*plan.ended, ended)[-MAX_ENDED:]
