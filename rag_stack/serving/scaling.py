"""How many replicas there should be: a function of what they report and of what was decided before.

Work is what counts: requests that arrive, times how long one holds the engine, in replicas. That is what the load
comes to whether or not a queue has formed, so that a queue which grows while replicas load does not ask for ever more.
The queue itself, memory for keys and values, and answers later than the target add to it. What is wanted is for the
moment at which a replica asked for now would serve.

Serve's controller gets this module by value, so it imports nothing of ours and nothing of Ray's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

STATE: Final = "rag_stack"

_TICK_S: Final = 0.5
_WINDOW_S: Final = (20.0, 300.0)
_NEWEST_S: Final = 3.0
_GAP_S: Final = 5.0  # without a look for so long, what happened meanwhile is not known
_SERVICE_WINDOW_S: Final = 120.0
_SIGMAS: Final = 3.0  # what differs by less is noise of arrivals that come by themselves
_TREND_LIMIT: Final = 2.0  # a trend may double the rate, no more
_TOLERANCE: Final = 0.1  # of a replica
_KV_FULL: Final = 0.9
_GOOD_SHARE: Final = 0.9
_STRAIN_S: Final = 30.0
_RELIEF: Final = (1.25, 2.0)  # a step, and the most
_LOADS_KEPT: Final = 20


@dataclass(frozen=True, slots=True)
class Rules:
    """The release's own. `load_s` is what a start is taken to last until one has been seen."""

    min_replicas: int
    max_replicas: int
    requests_per_replica: float
    waiting_tokens_per_replica: float
    idle_s: float
    down_after_s: float
    load_s: float
    max_surge: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What one replica reports, or several in sum. The second group counts since its start."""

    running: float = 0.0
    waiting: float = 0.0
    waiting_tokens: float = 0.0
    kv_usage: float = 0.0
    surge: float = 0.0
    load_s: float = 0.0

    arrived: float = 0.0
    served: float = 0.0
    good: float = 0.0


@dataclass(frozen=True, slots=True)
class Observation:
    """One look. `held` are requests that no replica has yet; `target` includes the replicas that load."""

    now_s: float
    target: int
    running: int
    loads: Mapping[str, Load]
    held: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One tick: the sums over all replicas, and the counters as if no replica had ever gone."""

    at_s: float
    running: float
    waiting: float
    arrived: float
    served: float
    good: float
    loading: bool


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered from one decision to the next. All of it may be lost: it is learned again."""

    samples: tuple[Sample, ...] = ()
    seen: Mapping[str, Load] = field(default_factory=dict)
    asked_s: tuple[float, ...] = ()  # of each replica that loads, when it was asked for
    loads_s: tuple[float, ...] = ()
    wanted: tuple[tuple[float, int], ...] = ()  # when, how many; only what may still be a maximum
    target: int = 0
    running: int = 0
    busy_s: float | None = None  # when there was anything to do, last
    relief: float = 1.0
    relieved_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """How many, and why: `demand` is in replicas, for when a replica asked for now would serve."""

    replicas: int
    demand: float
    load_s: float
    state: State


def decide(rules: Rules, seen: Observation, state: State) -> Decision:
    """The number of replicas that there should be."""
    state = _learn(seen, state)
    load_s = _load_time(rules, seen, state)
    state = _relieve(rules, seen, state, load_s=load_s)
    demand = _demand(rules, seen, state, load_s=load_s)
    surge = min(rules.max_surge, max((math.ceil(load.surge) for load in seen.loads.values()), default=0))
    wanted = min(rules.max_replicas, max(rules.min_replicas, 1, math.ceil(demand - _TOLERANCE)))
    # One that has not had time to load has not had time to show that it is too many.
    state = _keep(state, seen, wanted, surge=surge, for_s=max(rules.down_after_s, load_s))
    # What runs has its place, however few come after it.
    needed = math.ceil(state.samples[-1].running / rules.requests_per_replica - _TOLERANCE)
    base = max(*(count for _, count in state.wanted), min(needed, seen.target - surge))
    if _idle(rules, seen, state):
        base = 0
    return Decision(base + surge if base else 0, demand, load_s, state)


class ScalingPolicy:
    """`decide` as Serve calls it. Serve makes one a deployment, and again when its controller starts anew."""

    def __init__(self, **rules: float) -> None:
        self._rules = Rules(**rules)  # type: ignore[arg-type]  # Ray hands numbers on by name

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:  # noqa: ANN401 - Ray's AutoscalingContext
        """Ray calls this ten times a second, but not while no replica runs and a request waits."""
        state, decided_s = ctx.policy_state.get(STATE, (State(), -math.inf))
        if ctx.current_time - decided_s < _TICK_S:
            return ctx.target_num_replicas, {STATE: (state, decided_s)}
        decision = decide(self._rules, observe(ctx), state)
        return decision.replicas, {STATE: (decision.state, ctx.current_time)}


def observe(ctx: Any) -> Observation:  # noqa: ANN401 - Ray's AutoscalingContext
    """Of each replica its newest report."""
    newest: dict[str, dict[str, float]] = {}
    for name, by_replica in (ctx.raw_metrics or {}).items():
        if name in Load.__slots__:
            for replica, series in by_replica.items():
                if series:
                    newest.setdefault(str(replica), {})[name] = float(series[-1].value)
    return Observation(
        now_s=ctx.current_time,
        target=ctx.target_num_replicas,
        running=ctx.current_num_replicas,
        loads={replica: Load(**values) for replica, values in newest.items()},
        held=float(ctx.total_queued_requests or 0.0),
    )


def _learn(seen: Observation, state: State) -> State:
    last = state.samples[-1] if state.samples else None
    if last is None or seen.now_s - last.at_s > _GAP_S:
        state = replace(state, samples=(), asked_s=(), target=seen.target, running=seen.running, busy_s=seen.now_s)
    # One that was not there before may have counted since long ago: its first report is where counting begins.
    before = [(load, state.seen.get(replica, load)) for replica, load in seen.loads.items()]
    sample = Sample(
        at_s=seen.now_s,
        running=sum(load.running for load in seen.loads.values()),
        waiting=sum(load.waiting for load in seen.loads.values()) + seen.held,
        arrived=(last.arrived if last else 0.0) + sum(max(0.0, new.arrived - old.arrived) for new, old in before),
        served=(last.served if last else 0.0) + sum(max(0.0, new.served - old.served) for new, old in before),
        good=(last.good if last else 0.0) + sum(max(0.0, new.good - old.good) for new, old in before),
        loading=seen.running < seen.target,
    )
    kept = tuple(s for s in state.samples if s.at_s >= seen.now_s - max(_SERVICE_WINDOW_S, _WINDOW_S[1]))
    busy = sample.running + sample.waiting > 0 or (last is not None and sample.arrived > last.arrived)
    woken = seen.target > state.target
    asked_s, loads_s = _starts(seen, state)
    return replace(
        state,
        samples=(*kept, sample),
        seen=seen.loads,
        asked_s=asked_s,
        loads_s=loads_s,
        target=seen.target,
        running=seen.running,
        busy_s=seen.now_s if busy or woken else state.busy_s,
    )


def _starts(seen: Observation, state: State) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Each replica more in the target is a start that began; each one more that runs is the oldest of them, done."""
    asked_s = (*state.asked_s, *[seen.now_s] * max(0, seen.target - state.target))
    done = min(len(asked_s), max(0, seen.running - state.running))
    took_s = tuple(seen.now_s - asked for asked in asked_s[:done])
    asked_s = asked_s[done:][: max(0, seen.target - seen.running)]
    return asked_s, (*state.loads_s, *took_s)[-_LOADS_KEPT:]


def _load_time(rules: Rules, seen: Observation, state: State) -> float:
    """P90 of the starts that were seen; before there are any, of those that the replicas report of themselves."""
    measured = state.loads_s or tuple(load.load_s for load in seen.loads.values() if load.load_s > 0)
    return _p90(measured) if measured else rules.load_s


def _demand(rules: Rules, seen: Observation, state: State, *, load_s: float) -> float:
    """In replicas: the most of what arrivals, the queue, keys and values, and running requests come to."""
    now = state.samples[-1]
    kv = sum(load.kv_usage for load in seen.loads.values()) / _KV_FULL
    per_request_s = _service_time(state.samples)
    queue = now.waiting / rules.requests_per_replica
    if rules.waiting_tokens_per_replica:
        tokens = sum(load.waiting_tokens for load in seen.loads.values())
        queue = max(queue, tokens / rules.waiting_tokens_per_replica)
    running = now.running / rules.requests_per_replica
    if per_request_s is None:
        return max(kv, (running + queue) * state.relief)
    rate = _rate_at(state.samples, now.at_s + load_s, window_s=min(max(_WINDOW_S[0], load_s), _WINDOW_S[1]))
    arrivals = rate * per_request_s / rules.requests_per_replica
    # The queue is gone half a load time after the replicas for it have come.
    queue *= min(1.0, per_request_s / max(load_s / 2, per_request_s))
    return max(kv, (arrivals + queue) * state.relief)


def _service_time(samples: Sequence[Sample]) -> float | None:
    """Seconds for which a request holds the engine, by Little's law; None while too few have ended to tell."""
    recent = [s for s in samples if s.at_s >= samples[-1].at_s - _SERVICE_WINDOW_S]
    served = recent[-1].served - recent[0].served
    held_s = sum((a.running + b.running) / 2 * (b.at_s - a.at_s) for a, b in pairwise(recent))
    return held_s / served if served >= 10 and held_s > 0 else None


def _rate_at(samples: Sequence[Sample], when_s: float, *, window_s: float) -> float:
    """Arrivals a second at a time to come: as they have been of late, or more where they rise.

    Arrivals are counted, so their noise is known: the variance of a count is the count. What differs by less than
    three deviations is noise.
    """
    now_s = samples[-1].at_s
    steps = [
        _Step(b.at_s - a.at_s, (a.at_s + b.at_s) / 2, b.arrived - a.arrived)
        for a, b in pairwise(s for s in samples if s.at_s >= now_s - window_s)
    ]
    return max(_newest_rate(steps, now_s), _rising_rate(steps, now_s, when_s))


@dataclass(frozen=True, slots=True)
class _Step:
    """From one sample to the next: how long, when, and how many came."""

    span_s: float
    at_s: float
    count: float


def _newest_rate(steps: Sequence[_Step], now_s: float) -> float:
    """The mean over the longest stretch up to now in which it has not changed, six seconds at least.

    Of two halves of these six that differ the lower counts: many requests at once are a queue, and no rate.
    """
    count, span_s = _sum(steps, now_s - _NEWEST_S, now_s)
    older, older_s = _sum(steps, now_s - 2 * _NEWEST_S, now_s - _NEWEST_S)
    if not older_s or _differ(count, span_s, older, older_s):
        return min(count / max(span_s, _NEWEST_S), older / max(older_s, _NEWEST_S))
    count, span_s, reach_s = count + older, span_s + older_s, 2 * _NEWEST_S
    while True:
        older, older_s = _sum(steps, now_s - 2 * reach_s, now_s - reach_s)
        if not older_s or _differ(count, span_s, older, older_s):
            return count / span_s
        count, span_s, reach_s = count + older, span_s + older_s, 2 * reach_s


def _rising_rate(steps: Sequence[_Step], now_s: float, when_s: float) -> float:
    """The line through all of them, where it rises for certain, at most twice what it is now; else 0."""
    whole_s = sum(step.span_s for step in steps)
    if whole_s < _WINDOW_S[0] / 2:
        return 0.0
    mean = sum(step.count for step in steps) / whole_s
    middle_s = sum(step.span_s * step.at_s for step in steps) / whole_s
    spread = sum(step.span_s * (step.at_s - middle_s) ** 2 for step in steps)
    slope = sum((step.count - mean * step.span_s) * (step.at_s - middle_s) for step in steps) / spread
    if slope <= _SIGMAS * math.sqrt(mean / spread):
        return 0.0
    level = mean + slope * (now_s - middle_s)
    return min(level + slope * (when_s - now_s), _TREND_LIMIT * level)


def _sum(steps: Sequence[_Step], after_s: float, until_s: float) -> tuple[float, float]:
    within = [step for step in steps if after_s < step.at_s <= until_s]
    return sum(step.count for step in within), sum(step.span_s for step in within)


def _differ(count: float, span_s: float, other: float, other_s: float) -> bool:
    """Whether two counts are of different rates, by more than three deviations of what equal rates would give."""
    both, whole_s = count + other, span_s + other_s
    deviation = math.sqrt(both * span_s * other_s) / whole_s
    return abs(count - both * span_s / whole_s) > _SIGMAS * deviation + 1


def _relieve(rules: Rules, seen: Observation, state: State, *, load_s: float) -> State:
    """Where answers are late though none queues and none loads, a replica is for fewer requests than was thought.

    Learned once a load time at the most, and kept until the deployment has nothing to do: to forget it under the same
    load would only be to learn it again.
    """
    now = state.samples[-1]
    if state.busy_s is not None and seen.now_s - state.busy_s > rules.down_after_s:
        return replace(state, relief=1.0)
    recent = [s for s in state.samples if s.at_s >= seen.now_s - _STRAIN_S]
    served, good = now.served - recent[0].served, now.good - recent[0].good
    calm = not any(s.loading or s.waiting > 0.25 * rules.requests_per_replica * max(1, seen.running) for s in recent)
    whole = now.at_s - recent[0].at_s >= 0.9 * _STRAIN_S
    if not (calm and whole and served >= 10 and good < _GOOD_SHARE * served):
        return state
    if seen.now_s - state.relieved_s < load_s + _STRAIN_S:
        return state
    return replace(state, relief=min(_RELIEF[1], state.relief * _RELIEF[0]), relieved_s=seen.now_s)


def _keep(state: State, seen: Observation, wanted: int, *, surge: int, for_s: float) -> State:
    """The last `for_s` seconds' wishes; one that was followed by a greater one cannot be their maximum any more."""
    kept = [(at, count) for at, count in state.wanted if at > seen.now_s - for_s and count > wanted]
    if not state.wanted and seen.target - surge > wanted:  # what is there was wanted by whoever decided before
        kept = [(seen.now_s, seen.target - surge)]
    return replace(state, wanted=(*kept, (seen.now_s, wanted)))


def _idle(rules: Rules, seen: Observation, state: State) -> bool:
    if rules.min_replicas or state.busy_s is None:
        return False
    return seen.target == 0 or seen.now_s - state.busy_s >= rules.idle_s


def _p90(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(0.9 * len(ordered)) - 1)]
