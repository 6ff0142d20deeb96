"""The two policies as a simulation asks them: ours, and Ray Serve's own code with its delays and its averages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.serve._private.common import TimeStampedValue
from ray.serve._private.metrics_utils import aggregate_timeseries, merge_instantaneous_total
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    _core_replica_queue_length_policy,
    _get_cold_start_scale_up_replicas,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from rag_stack.serving.scaling.policy import Load, Observation, Rules, State, decide


@dataclass
class Ours:
    """Our policy, which hears of its replicas each `report_s`."""

    rules: Rules
    report_s: float = 1.0
    load_s: float = 0.0
    demand: float = 0.0
    _state: State = field(default_factory=State)
    _heard: Mapping[str, Load] = field(default_factory=dict)
    _heard_s: float = -1e9

    def decide(self, now_s: float, *, target: int, loads: Mapping[str, Load]) -> int:
        if now_s - self._heard_s >= self.report_s - 1e-9:
            self._heard, self._heard_s = dict(loads), now_s
        heard = {replica: load for replica, load in self._heard.items() if replica in loads}
        decision = decide(self.rules, Observation(now_s, target, len(loads), heard), self._state)
        self._state, self.load_s, self.demand = decision.state, decision.load_s, decision.demand
        return decision.replicas


@dataclass
class RaysDefault:
    """`replica_queue_length_autoscaling_policy`, its factors, delays and bounds, and the average that it is given.

    What Serve does around the policy reads the clock of the machine, so its steps are taken here one by one, each by
    Serve's own function.
    """

    config: AutoscalingConfig
    _series: dict[str, list[TimeStampedValue]] = field(default_factory=dict)
    _merged: list[TimeStampedValue] = field(default_factory=list)
    _first_s: float = 0.0
    _recorded_s: float = -1e9
    _pushed_s: float = -1e9
    _state: dict[str, Any] = field(default_factory=dict)

    def decide(self, now_s: float, *, target: int, loads: Mapping[str, Load]) -> int:
        self._hear(now_s, loads)
        context = self._context(now_s, target=target, running=len(loads))
        cold = _get_cold_start_scale_up_replicas(context)
        if cold is not None:
            return self._bounded(cold)
        desired, _ = _core_replica_queue_length_policy(context)
        desired = _apply_scaling_factors(desired, context.current_num_replicas, self.config)
        if context.current_num_replicas == 0 and desired > 0:
            return self._bounded(desired)
        decided, self._state = _apply_delay_logic(max(0, desired), target, self.config, self._state, _now=now_s)
        return self._bounded(decided)

    def _hear(self, now_s: float, loads: Mapping[str, Load]) -> None:
        every_s = min(0.2 * self.config.look_back_period_s, self.config.metrics_interval_s)
        if now_s - self._recorded_s >= every_s - 1e-9:
            self._recorded_s = now_s
            for replica, load in loads.items():
                self._series.setdefault(replica, []).append(TimeStampedValue(now_s, load.running + load.waiting))
        if now_s - self._pushed_s >= self.config.metrics_interval_s - 1e-9:
            self._pushed_s = now_s
            oldest_s = now_s - self.config.look_back_period_s
            self._series = {
                replica: [point for point in points if point.timestamp >= oldest_s]
                for replica, points in self._series.items()
                if replica in loads
            }
            series = [points for points in self._series.values() if points]
            self._merged = merge_instantaneous_total(series)
            self._first_s = max((points[0].timestamp for points in series), default=0.0) if len(series) > 1 else 0.0

    def _context(self, now_s: float, *, target: int, running: int) -> AutoscalingContext:
        total = 0.0
        if self._merged:
            start = max(self._first_s, self._merged[0].timestamp) if self._first_s else None
            last_s = max(1e-3, now_s - self._merged[-1].timestamp)
            function = self.config.aggregation_function
            total = aggregate_timeseries(self._merged, function, last_window_s=last_s, window_start=start) or 0.0
        return AutoscalingContext(
            deployment_id=None,
            deployment_name="",
            app_name="",
            current_num_replicas=running,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=total,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now_s,
            config=self.config,
        )

    def _bounded(self, replicas: int) -> int:
        return max(self.config.min_replicas, min(self.config.max_replicas, replicas))
