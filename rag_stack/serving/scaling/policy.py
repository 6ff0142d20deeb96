"""How many replicas there should be: a function of what they report and of what was decided before.

Work is what counts: requests that arrive, times how long one holds the engine, in replicas. That is what the load
comes to whether or not a queue has formed, so that a queue which grows while replicas load does not ask for ever more.
The queue itself, memory for keys and values, and answers later than the target add to it. What is wanted is for the
moment at which a replica asked for now would serve.

Serve's controller runs this: it imports nothing that takes long, and nothing of Ray's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from rag_stack.serving.scaling.arrival_rate import rates

STATE: Final = "rag_stack"

_TICK_S: Final = 0.5
_TREND_LOADS: Final = 3.0  # a trend is looked for in so many load times
_TREND_S: Final = (40.0, 600.0)
_GAP_S: Final = 5.0  # without a look for so long, what happened meanwhile is not known
_SERVICE_S: Final = 120.0
_FINE_S: Final = (12.0, 10.0)  # all samples of so long are kept, and one each so long before that
_TOLERANCE: Final = 0.1  # of a replica
_KV_FULL: Final = 0.9
_GOOD_SHARE: Final = 0.9
_STRAIN_S: Final = 30.0
_RELIEF: Final = (1.25, 2.0)  # a step, and the most
_LOADS_KEPT: Final = 20
_LATE_LOADS: Final = 10.0  # load times of idling that having come too late once is worth
_LATE_SHARE: Final = 0.75  # who runs no more than this share of what is needed, and two too few, comes too late

_Counts: TypeAlias = tuple[tuple[float, int], ...]


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
    held_s: float  # running requests times seconds
    loading: bool


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered from one decision to the next. All of it may be lost: it is learned again."""

    samples: tuple[Sample, ...] = ()
    seen: Mapping[str, Load] = field(default_factory=dict)
    asked_s: tuple[float, ...] = ()  # of each replica that loads, when it was asked for
    loads_s: tuple[float, ...] = ()
    wanted: _Counts = ()  # when, how many; only what may still be a maximum
    missed: _Counts = ()  # the same of what arrivals needed and did not have
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
    arrivals, demand = _demand(rules, seen, state, load_s=load_s)
    surge = min(rules.max_surge, max((math.ceil(load.surge) for load in seen.loads.values()), default=0))
    wanted, steady = _bounded(rules, demand), _bounded(rules, arrivals)
    # One that has not had time to load has not had time to show that it is too many.
    kept = _since(state.wanted, seen.now_s - max(rules.down_after_s, load_s))
    if not state.wanted:  # what is there was wanted by whoever decided before
        kept = ((seen.now_s, seen.target - surge),)
    # A burst that was met too late is waited for: its replicas stay for what it costs to be late again.
    missed = _since(state.missed, seen.now_s - _LATE_LOADS * load_s)
    late = seen.running <= min(_LATE_SHARE * steady, steady - 2)
    again = bool(missed) and steady >= _LATE_SHARE * _top(missed)
    state = replace(
        state,
        wanted=_pushed(kept, seen.now_s, wanted),
        missed=_pushed(missed, seen.now_s, steady) if late or again else missed,
    )
    # What runs has its place, however few come after it.
    needed = math.ceil(state.samples[-1].running / rules.requests_per_replica - _TOLERANCE)
    base = max(_top(state.wanted), _top(state.missed), min(needed, seen.target - surge, rules.max_replicas))
    if _idle(rules, seen, state):
        base = 0
    return Decision(base + surge if base else 0, demand, load_s, state)


class ScalingPolicy:
    """`decide` as Serve calls it. Serve makes one a deployment, and again when its controller starts anew."""

    def __init__(self, **rules: float) -> None:
        self._rules = Rules(**rules)  # type: ignore[arg-type]  # Ray hands numbers on by name

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:  # noqa: ANN401 - Ray's AutoscalingContext
        """Ray calls this each turn of its control loop, but not while no replica runs and a request waits."""
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
        held_s=last.held_s + last.running * (seen.now_s - last.at_s) if last else 0.0,
        loading=seen.running < seen.target,
    )
    busy = sample.running + sample.waiting > 0 or (last is not None and sample.arrived > last.arrived)
    woken = seen.target > state.target
    asked_s, loads_s = _starts(seen, state)
    return replace(
        state,
        samples=_thinned((*state.samples, sample)),
        seen=seen.loads,
        asked_s=asked_s,
        loads_s=loads_s,
        target=seen.target,
        running=seen.running,
        busy_s=seen.now_s if busy or woken else state.busy_s,
    )


def _thinned(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """What is not new any more at a coarser step, until it is too old. The counters lose nothing by it."""
    now_s = samples[-1].at_s
    fine_s, step_s = _FINE_S
    kept: list[Sample] = []
    for sample in samples:
        new = sample.at_s >= now_s - fine_s
        if new or (
            sample.at_s >= now_s - _TREND_S[1] and not (kept and kept[-1].at_s // step_s == sample.at_s // step_s)
        ):
            kept.append(sample)
    return tuple(kept)


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


def _demand(rules: Rules, seen: Observation, state: State, *, load_s: float) -> tuple[float, float]:
    """In replicas: what arrivals come to at least; and what they will, with the queue, or keys and values if more."""
    now = state.samples[-1]
    kv = sum(load.kv_usage for load in seen.loads.values()) / _KV_FULL
    per_request_s = _service_time(state.samples)
    queue = now.waiting / rules.requests_per_replica
    if rules.waiting_tokens_per_replica:
        tokens = sum(load.waiting_tokens for load in seen.loads.values())
        queue = max(queue, tokens / rules.waiting_tokens_per_replica)
    running = now.running / rules.requests_per_replica
    if per_request_s is None:
        return running * state.relief, max(kv, (running + queue) * state.relief)
    window_s = _within(_TREND_LOADS * load_s, _TREND_S)
    arrived = [(s.at_s, s.arrived) for s in state.samples if s.at_s >= now.at_s - window_s]
    newest, least, ahead = rates(arrived, now.at_s + load_s)
    arrivals = least * per_request_s / rules.requests_per_replica
    coming = max(newest, ahead) * per_request_s / rules.requests_per_replica
    # The queue is gone half a load time after the replicas for it have come; more than a quarter as many again do not
    # help, since what waits in a replica stays there.
    queue = min(queue * min(1.0, per_request_s / max(load_s / 2, per_request_s)), coming / 4 + 1)
    return arrivals * state.relief, max(kv, (coming + queue) * state.relief)


def _service_time(samples: Sequence[Sample]) -> float | None:
    """Seconds for which a request holds the engine, by Little's law; None while too few have ended to tell.

    Those that have not ended are in the one sum and not in the other: the time looked at must be some answers long.
    """
    recent = [s for s in samples if s.at_s >= samples[-1].at_s - _SERVICE_S]
    served, held_s = recent[-1].served - recent[0].served, recent[-1].held_s - recent[0].held_s
    span_s = recent[-1].at_s - recent[0].at_s
    if served < 10 or held_s <= 0 or span_s < max(20.0, min(_SERVICE_S * 0.9, 4 * held_s / served)):
        return None
    return held_s / served


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


def _bounded(rules: Rules, demand: float) -> int:
    return min(rules.max_replicas, max(rules.min_replicas, 1, math.ceil(demand - _TOLERANCE)))


def _since(counts: _Counts, since_s: float) -> _Counts:
    return tuple((at, count) for at, count in counts if at > since_s)


def _pushed(counts: _Counts, now_s: float, count: int) -> _Counts:
    """What was followed by as much or more cannot be the maximum any more."""
    return (*((at, before) for at, before in counts if before > count), (now_s, count))


def _top(counts: _Counts) -> int:
    return counts[0][1] if counts else 0


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _idle(rules: Rules, seen: Observation, state: State) -> bool:
    if rules.min_replicas or state.busy_s is None:
        return False
    return seen.target == 0 or seen.now_s - state.busy_s >= rules.idle_s


def _p90(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(0.9 * len(ordered)) - 1)]
