import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from ray.serve.config import AutoscalingConfig

from loadtests.autoscale_policy import Ours, RaysDefault
from loadtests.autoscale_simulator import Stages, simulate
from loadtests.autoscale_trace import Trace, bursty, diurnal
from rag_stack.serving.scaling.policy import Load, Rules

STAGES = Stages(slots=2, first_token_s=0.5, service_s=2.0, starts=((1, 10.0),), ttft_target_s=1.0, at_once=2)


@dataclass
class Fixed:
    """Always as many, from a time on."""

    replicas: int
    from_s: float = 0.0

    def decide(self, now_s: float, *, target: int, loads: Mapping[str, Load]) -> int:
        return self.replicas if now_s >= self.from_s else target


def test_requests_wait_in_order_for_a_slot() -> None:
    trace = Trace("", 20.0, (0.0, 0.1, 0.2, 5.0), lambda _: 0.2)
    outcome = simulate(trace, Fixed(1), STAGES, replicas=1)
    assert outcome.ttft_s == pytest.approx((0.5, 0.5, 2.3, 0.5))  # the third when the first has ended, after 2 s
    assert outcome.good == 3
    assert outcome.replica_seconds == pytest.approx(20.0)


def test_one_that_loads_costs_and_does_not_serve() -> None:
    trace = Trace("", 30.0, tuple(n / 2 for n in range(60)), lambda _: 2.0)
    outcome = simulate(trace, Fixed(3, from_s=5.0), STAGES, replicas=1)
    assert outcome.replica_seconds == pytest.approx(5 + 3 * 25)
    assert {point.running for point in outcome.points if point.at_s < 15} == {1}
    assert {point.running for point in outcome.points if point.at_s >= 15} == {3}
    assert outcome.changes == 1


def test_a_queue_that_is_full_refuses() -> None:
    trace = Trace("", 10.0, tuple(n / 100 for n in range(10)), lambda _: 1.0)
    bounded = Stages(**{**{name: getattr(STAGES, name) for name in STAGES.__slots__}, "queue": 3})
    outcome = simulate(trace, Fixed(1), bounded, replicas=1)
    assert (outcome.refused, len(outcome.ttft_s)) == (5, 5)


def test_traces_are_the_same_each_time_and_of_the_rates_that_they_say() -> None:
    day = diurnal(duration_s=4000, low=1, high=5, days=2, seed=3)
    assert day.arrivals_s == diurnal(duration_s=4000, low=1, high=5, days=2, seed=3).arrivals_s
    assert abs(len(day.arrivals_s) - 3 * 4000) < 4 * math.sqrt(12000)
    burst = bursty(duration_s=2000, base=1, peak=9, burst_s=100, gap_s=200, ramp_s=10, seed=1)
    rates = {round(burst.rate(at), 3) for at in range(2000)}
    assert {1.0, 9.0} <= rates
    assert max(rates) == 9.0


def test_ray_s_default_waits_for_its_delay_and_then_asks_for_what_the_average_says() -> None:
    config = AutoscalingConfig(min_replicas=1, max_replicas=9, target_ongoing_requests=2)
    scaler = RaysDefault(config)
    loads = {"a": Load(running=8)}
    decided = {tick / 2: scaler.decide(tick / 2, target=1, loads=loads) for tick in range(100)}
    assert decided[29.5] == 1
    assert decided[30.0] == 4
    assert config.upscale_delay_s == 30


def test_both_settle_where_the_load_is_and_ours_is_there_first() -> None:
    trace = bursty(duration_s=400, base=1, peak=6, burst_s=600, gap_s=60, ramp_s=5, seed=4)
    rules = Rules(
        min_replicas=1,
        max_replicas=12,
        requests_per_replica=2,
        waiting_tokens_per_replica=0,
        idle_s=300,
        down_after_s=60,
        load_s=10,
    )
    ours = simulate(trace, Ours(rules), STAGES, replicas=1)
    ray = simulate(
        trace,
        RaysDefault(AutoscalingConfig(min_replicas=1, max_replicas=12, target_ongoing_requests=2)),
        STAGES,
        replicas=1,
    )
    assert ours.points[-1].target >= 6
    assert ray.points[-1].target >= 6
    assert ours.good > 1.2 * ray.good
