import itertools
import math
import random
from dataclasses import replace

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from rag_stack.config import Release
from rag_stack.serving.deployment import engine_options
from rag_stack.serving.scaling.policy import STATE, Load, Observation, Rules, ScalingPolicy, State, decide

RULES = Rules(
    min_replicas=1,
    max_replicas=20,
    requests_per_replica=4,
    waiting_tokens_per_replica=1000,
    idle_s=30,
    down_after_s=20,
    load_s=30,
)
TICK_S = 0.5


class Fleet:
    """Replicas that answer all that comes at once, in `service_s`, and load in `load_s`."""

    def __init__(self, rules: Rules, *, replicas: int, load_s: float = 30.0, service_s: float = 2.0) -> None:
        self.rules, self.state = rules, State()
        self.now_s, self.target, self.running = 0.0, replicas, replicas
        self.load_s, self.service_s = load_s, service_s
        self.starting: list[float] = []
        self.arrived = self.served = self.good = 0.0
        self.extra = Load()
        self.history: list[int] = []

    def step(self, rate: float) -> int:
        self.now_s += TICK_S
        self.starting, ready = [s for s in self.starting if s > self.now_s], self.starting
        self.running += len(ready) - len(self.starting)
        self.arrived += rate * TICK_S
        self.served += rate * TICK_S
        self.good += rate * TICK_S
        each = max(1, self.running)
        load = Load(
            running=(rate * self.service_s + self.extra.running) / each,
            waiting=self.extra.waiting / each,
            waiting_tokens=self.extra.waiting_tokens / each,
            kv_usage=self.extra.kv_usage,
            surge=self.extra.surge,
        )
        # Counted in one place, so that replicas may come and go.
        counts = replace(load, arrived=self.arrived, served=self.served, good=self.good)
        loads = {str(n): load if n else counts for n in range(each)}
        seen = Observation(self.now_s, self.target, self.running, loads if self.running else {})
        decision = decide(self.rules, seen, self.state)
        self.state = decision.state
        if decision.replicas > self.target:
            self.starting += [self.now_s + self.load_s] * (decision.replicas - self.target)
        elif decision.replicas < self.target:
            drop = self.target - decision.replicas
            cancelled = min(drop, len(self.starting))
            self.starting = self.starting[cancelled:]
            self.running -= drop - cancelled
        self.target = decision.replicas
        self.history.append(self.target)
        return self.target

    def run(self, seconds: float, rate: float) -> list[int]:
        return [self.step(rate) for _ in range(int(seconds / TICK_S))]


@settings(max_examples=10, deadline=None)
@given(rate=st.floats(0, 35), replicas=st.integers(1, 20), service_s=st.floats(0.5, 4))
def test_constant_load_never_changes_what_has_settled(rate: float, replicas: int, service_s: float) -> None:
    fleet = Fleet(RULES, replicas=replicas, service_s=service_s)
    fleet.run(150, rate)
    settled = fleet.target
    assert set(fleet.run(150, rate)) == {settled}
    assert settled == min(20, max(1, math.ceil(rate * service_s / 4 - 0.1)))


@pytest.mark.parametrize("seed", range(2))
def test_noise_of_independent_arrivals_moves_it_by_one_or_two_and_seldom(seed: int) -> None:
    draw = random.Random(seed)
    fleet = Fleet(RULES, replicas=8)
    fleet.run(60, 14.0)
    counts = []
    for _ in range(600):
        arrivals, at_s = 0, draw.expovariate(14.0)
        while at_s < TICK_S:
            arrivals, at_s = arrivals + 1, at_s + draw.expovariate(14.0)
        counts.append(fleet.step(arrivals / TICK_S))
    changes = sum(a != b for a, b in itertools.pairwise(counts))
    assert 7 <= min(counts) <= max(counts) <= 10
    assert changes <= 8  # in five minutes, ten load times


@settings(max_examples=8, deadline=None)
@given(rates=st.lists(st.floats(0, 35), min_size=4, max_size=10))
def test_it_turns_back_at_most_once_a_load_time(rates: list[float]) -> None:
    fleet = Fleet(RULES, replicas=2)
    for rate in rates:
        fleet.run(25, rate)
    moves = [
        (n * TICK_S, b - a) for n, (a, b) in enumerate(zip(fleet.history, fleet.history[1:], strict=False)) if a != b
    ]
    last_up_s = -math.inf
    for at_s, by in moves:
        if by > 0:
            last_up_s = at_s
        else:
            assert at_s - last_up_s >= 30 - TICK_S
    assert all(1 <= count <= 20 for count in fleet.history)


def test_a_burst_is_met_within_seconds_and_without_waiting_for_a_queue() -> None:
    fleet = Fleet(RULES, replicas=2)
    fleet.run(120, 4.0)
    assert fleet.target == 2
    counts = fleet.run(8, 16.0)
    assert counts[-1] == 8


def test_many_requests_at_once_are_no_rate() -> None:
    fleet = Fleet(RULES, replicas=2)
    fleet.run(120, 4.0)
    fleet.step(80.0)  # forty requests in half a second
    assert max(fleet.run(30, 4.0)) <= 4


def test_it_looks_ahead_by_the_time_that_a_start_takes() -> None:
    rising = Fleet(RULES, replicas=2)
    rising.run(60, 4.0)
    for n in range(240):
        rising.step(4.0 + n / 240 * 10)
    now = 14.0 * 2 / 4
    assert rising.target > now
    assert rising.target <= math.ceil(now * 1.5)


def test_what_loads_is_not_asked_for_again() -> None:
    fleet = Fleet(RULES, replicas=1, load_s=60)
    fleet.run(60, 2.0)
    fleet.extra = Load(waiting=5)
    counts = fleet.run(60, 8.0)
    assert max(counts) <= 4 + 3
    fleet.extra = Load(waiting=500)  # a queue that nobody can serve before the replicas have come
    assert max(fleet.run(50, 8.0)) <= 10  # half as many again for a trend, and for the queue


def test_a_queue_keys_and_values_and_tokens_that_wait_are_work() -> None:
    for extra in (Load(waiting=40), Load(kv_usage=1.0), Load(waiting_tokens=9000)):
        fleet = Fleet(RULES, replicas=2)
        fleet.run(60, 3.9)
        before = fleet.target
        fleet.extra = extra
        fleet.run(3, 3.9)
        assert fleet.target > before, extra


def test_it_goes_down_after_as_long_as_it_says_and_never_below_what_runs() -> None:
    fleet = Fleet(RULES, replicas=6)
    fleet.run(100, 12.0)
    assert fleet.target == 6
    fleet.extra = Load(running=12.0)  # long answers, and nobody new
    counts = fleet.run(200, 0.0)
    assert counts[int(15 / TICK_S)] == 6
    assert counts[-1] == 3
    fleet.extra = Load()
    assert fleet.run(100, 0.0)[-1] == 1


def test_the_last_one_goes_after_idling_and_not_while_it_wakes() -> None:
    fleet = Fleet(replace(RULES, min_replicas=0), replicas=1)
    fleet.run(10, 1.0)
    counts = fleet.run(60, 0.0)
    assert counts[int(28 / TICK_S)] == 1
    assert counts[-1] == 0
    fleet.target, fleet.starting = 1, [fleet.now_s + 25]  # Serve itself starts the first
    assert set(fleet.run(29, 0.0)) == {1}
    assert fleet.run(30, 0.0)[-1] == 0


def test_a_rollout_gets_one_more_than_the_load_needs_also_at_the_most() -> None:
    fleet = Fleet(replace(RULES, max_replicas=3, max_surge=1), replicas=3)
    fleet.run(60, 20.0)
    assert fleet.target == 3
    fleet.extra = Load(surge=1)
    assert fleet.run(5, 20.0)[-1] == 4
    fleet.extra = Load()
    assert fleet.run(60, 20.0)[-1] == 3


def test_starts_are_measured_from_its_own_transitions() -> None:
    fleet = Fleet(RULES, replicas=1, load_s=47)
    fleet.run(60, 2.0)
    fleet.run(120, 12.0)
    assert fleet.state.loads_s
    assert all(abs(took - 47) <= 2 * TICK_S for took in fleet.state.loads_s)


def test_late_answers_of_replicas_that_are_not_full_lower_what_a_replica_is_for_once_and_for_all() -> None:
    fleet = Fleet(RULES, replicas=2)
    fleet.run(60, 4.0)
    normal_good = fleet.good
    for _ in range(400):
        fleet.step(4.0)
        fleet.good = normal_good  # none of them in time
    raised = fleet.target
    assert raised > 2
    assert raised <= 4  # no more than twice what requests alone come to
    fleet.run(200, 4.0)
    assert fleet.target == raised


def test_a_controller_that_starts_anew_takes_nothing_away_and_counts_nothing_twice() -> None:
    fleet = Fleet(RULES, replicas=6)
    fleet.run(100, 12.0)
    fleet.state = State()
    assert set(fleet.run(60, 12.0)) == {6}


def _context(
    policy_state: dict, *, now_s: float, target: int, running: int, requests: float = 0.0
) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=None,
        deployment_name="",
        app_name="",
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=requests,
        total_queued_requests=0.0,
        aggregated_metrics={},
        raw_metrics={},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=20,
        policy_state=policy_state,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now_s,
        config=AutoscalingConfig(**_serve_settings(min_replicas=0)),
    )


def _serve_settings(**scaling: float) -> dict:
    release = Release.model_validate(
        {"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}, "scaling": {"max_replicas": 20, **scaling}}
    )
    return engine_options(release, load_s=12.0)["autoscaling_config"]


def test_serve_gets_the_policy_by_value_with_the_release_s_rules_and_none_of_its_own_delays() -> None:
    config = AutoscalingConfig(**_serve_settings(min_replicas=0, idle_s=7))
    policy = config.policy
    assert isinstance(policy, AutoscalingPolicy)
    made = cloudpickle.loads(policy.get_serialized_policy_def())(**policy.policy_kwargs)
    assert made._rules.idle_s == 7
    assert made._rules.load_s == 12
    assert config.max_replicas == 21  # and one that only a rollout asks for
    assert (config.upscale_delay_s, config.downscale_delay_s, config.downscale_to_zero_delay_s) == (0, 0, 0)


def test_what_serve_puts_around_it_changes_nothing_but_the_first_replica() -> None:
    wrapped = _apply_autoscaling_config(ScalingPolicy(**{**_serve_settings(min_replicas=0)["policy"].policy_kwargs}))
    assert wrapped(_context({}, now_s=100.0, target=0, running=0, requests=5.0))[0] == 1  # Serve's own way
    replicas, state = wrapped(_context({}, now_s=100.0, target=3, running=3))
    assert replicas == 3
    assert STATE in state
    for n in range(1, 200):
        replicas, state = wrapped(_context(state, now_s=100.0 + n * TICK_S, target=replicas, running=replicas))
    assert replicas == 1  # after down_after_s, in one step
