"""What `loadtests.plan_kv` makes of its runs: predicted against measured, the goal, the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from loadtests import report
from loadtests.report import Goal, Report, Value

GOAL = "<= 0.2"


@dataclass(frozen=True, slots=True)
class Run:
    """One capacity: hit rates and median seconds to a first token, as predicted before and as measured after."""

    blocks: int
    capacity_tokens: int
    predicted: float
    measured: float
    predicted_ttft_s: float
    measured_ttft_s: float
    wall_s: float
    cpu_s: float
    requests: int
    recorded: bool

    @property
    def error(self) -> float | None:
        """Of the hit rate, relative to what was measured; None where nothing was found."""
        return abs(self.predicted - self.measured) / self.measured if self.measured else None

    @property
    def ttft_error(self) -> float:
        """Of the first token's median time, relative to what was measured."""
        return abs(self.predicted_ttft_s - self.measured_ttft_s) / self.measured_ttft_s

    @property
    def arm(self) -> str:
        """Its name in the report."""
        return f"{self.capacity_tokens} tokens"


def build_report(runs: Sequence[Run], *, attainable: float) -> Report:
    """One sample and one arm a capacity; the goal is of the worst."""
    errors = [run.error for run in runs]
    worst = None if None in errors else max(error for error in errors if error is not None)
    ttft = max(run.ttft_error for run in runs)
    arms: dict[str, Mapping[str, Value | Sequence[float]]] = {run.arm: _row(run) for run in runs}
    arms["all"] = {"attainable_hit_rate": attainable, "ttft_error": ttft}
    samples = [{"round": 0, "arm": run.arm, **_row(run)} for run in runs]
    goals = {"plan_kv.error": Goal(worst, GOAL)}
    return Report(name="plan_kv", machine=report.machine(), rounds=1, samples=samples, arms=arms, goals=goals)


def draw(runs: Sequence[Run], curve: Mapping[int, float]) -> Figure:
    """The hit rate by capacity: the simulation's line, and what was measured; the first token's time beside it."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(list(curve), [rate * 100 for rate in curve.values()], color="#4c8fbd", label="predicted")
    left.scatter([r.capacity_tokens for r in runs], [r.measured * 100 for r in runs], color="#d1603d", label="measured")
    left.set_xlabel("tokens that the cache holds")
    left.set_ylabel("hit rate, % of prompt tokens")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    places = range(len(runs))
    right.bar([p - 0.2 for p in places], [r.predicted_ttft_s * 1e3 for r in runs], 0.36, color="#4c8fbd")
    right.bar([p + 0.2 for p in places], [r.measured_ttft_s * 1e3 for r in runs], 0.36, color="#d1603d")
    right.set_xticks(list(places), [run.arm for run in runs])
    right.set_ylabel("time to first token, ms, median")
    figure.suptitle(f"A trace of {runs[0].requests} requests, predicted and then measured on vLLM")
    return figure


def _row(run: Run) -> dict[str, Value]:
    return {
        "predicted_hit_rate": run.predicted,
        "measured_hit_rate": run.measured,
        "error": run.error,
        "predicted_ttft_ms": run.predicted_ttft_s * 1e3,
        "measured_ttft_ms": run.measured_ttft_s * 1e3,
        "ttft_error": run.ttft_error,
        "requests": run.requests,
        "recorded_here": run.recorded,
        "wall_s": run.wall_s,
        "cpu_s": run.cpu_s,
    }
