"""Our scaling policy against Ray Serve's default, on a trace that comes in bursts and on one that follows the day.

    python -m loadtests.autoscale [--quick] [--simulate-only] [--data DIRECTORY]

Ray's default in two arms: as it is documented, and with `target_ongoing_requests` set to what a replica is for, which
is the one that the goals compare with. The traces of the live run are three times as fast as they would be, and so are
Ray's delays and averages; how long a replica takes to start is not ours to shorten. A replica is the scripted engine.
The simulation is given what the live run took, and must say what it did; then it goes on to hundreds of replicas, with
nothing shortened and starts of a minute.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from loadtests import report
from loadtests.autoscale_plot import draw
from loadtests.autoscale_simulator import Outcome, Stages, simulate
from loadtests.autoscale_trace import Trace, bursty, diurnal
from loadtests.report import Goal, Report, Value
from loadtests.scripted_engine import Script
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving.environment import free_port, prepare

OURS, DOCUMENTED, TUNED = "ours", "ray documented", "ray tuned"
ARMS: Final = (OURS, DOCUMENTED, TUNED)
_FASTER: Final = 3.0
_TTFT_TARGET_S: Final = 2.0
_AT_ONCE: Final = 3.0
# What Serve takes for a proxy that does not start is, on a machine that also starts replicas, one that is slow.
_PATIENT: Final = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
_SCRIPT: Final = Script(start_s=5.0, slots=4, prefill_s=0.1, token_s=0.39, max_tokens=10)
# Of hundreds of replicas: eight slots, answers of four seconds, and starts as vLLM on a GPU takes them.
_LARGE: Final = Stages(
    slots=8,
    first_token_s=0.2,
    service_s=4.0,
    starts=((1, 55.0), (1, 60.0), (1, 75.0)),
    ttft_target_s=_TTFT_TARGET_S,
    at_once=6.0,
    queue=64,
)


@dataclass(frozen=True, slots=True)
class Run:
    """One arm with one trace, live or simulated (`where`)."""

    where: str
    arm: str
    trace: Trace
    outcome: Outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run it, write the report and the picture, and say which goals are met."""
    options = _options(argv)
    live, stages = ([], None) if options.simulate_only else _live(options)
    runs = [*live, *_again(live, stages), *_large(quick=options.quick)]
    result = _report(runs, stages, rounds=1)
    path = report.write(result, draw(runs))
    for run in runs:
        outcome = run.outcome
        print(
            f"{run.where:10} {run.trace.name:8} {run.arm:15} in time {outcome.good}/{outcome.requests}"
            f"  replica-seconds {outcome.replica_seconds:.0f}  changes {outcome.changes}"
        )
    print("\n".join(report.goal_lines(result)))
    print(path)
    return report.exit_code(result)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one live trace of two minutes, a small simulation")
    parser.add_argument("--simulate-only", action="store_true", help="no Ray is started")
    parser.add_argument("--data", type=Path, help="where published models are, or go; else a temporary directory")
    return parser.parse_args(argv)


def settings(arm: str, *, max_replicas: int, at_once: float, load_s: float, faster: float) -> dict[str, Any]:
    """Serve's autoscaling of an arm; Ray's delays and averages are its defaults, as many times shorter."""
    if arm == OURS:
        scaling = {"max_replicas": max_replicas, "requests_per_replica": at_once, "down_after_s": 60.0 / faster}
        release = _release({"scaling": scaling, "rollout": {"surge": 0}})
        from rag_stack.serving.deployment import engine_options

        return dict(engine_options(release, load_s=load_s)["autoscaling_config"])
    return {
        "min_replicas": 1,
        "max_replicas": max_replicas,
        "target_ongoing_requests": at_once if arm == TUNED else 2.0,
        "upscale_delay_s": 30.0 / faster,
        "downscale_delay_s": 600.0 / faster,
        "look_back_period_s": 30.0 / faster,
        "metrics_interval_s": 10.0 / faster,
    }


def _scaler(arm: str, autoscaling: Mapping[str, Any]) -> Any:  # noqa: ANN401
    from ray.serve.config import AutoscalingConfig

    from loadtests.autoscale_policy import Ours, RaysDefault
    from rag_stack.serving.scaling.policy import Rules

    if arm == OURS:
        return Ours(Rules(**autoscaling["policy"].policy_kwargs))
    return RaysDefault(AutoscalingConfig(**autoscaling))


def _release(more: Mapping[str, Any]) -> Release:
    return Release.model_validate(
        {"name": "scaled", "model": {"name": "smollm2-135m-instruct"}, "embedder": {"name": "all-minilm-l6-v2"}, **more}
    )


def _live_traces(*, quick: bool) -> tuple[Trace, ...]:
    """Up to three of four replicas' worth."""
    if quick:
        return (bursty(duration_s=120, base=0.4, peak=2.0, burst_s=120, gap_s=20, ramp_s=5, seed=5),)
    burst = bursty(duration_s=240, base=0.4, peak=2.0, burst_s=90, gap_s=40, ramp_s=10, seed=5)
    return burst, diurnal(duration_s=240, low=0.3, high=2.0, days=1, seed=2)


def _live(options: argparse.Namespace) -> tuple[list[Run], Stages]:
    prepare()
    with tempfile.TemporaryDirectory() as temporary:
        data = options.data or Path(temporary)
        artifacts = {"root": f"file://{data}/store", "cache": str(data / "cache")}
        engine = {"max_model_len": 2048}
        scaling = {"min_replicas": 1, "max_replicas": 4, "requests_per_replica": _AT_ONCE}
        release = _release(
            {"artifacts": artifacts, "server": {"port": free_port()}, "engine": engine, "scaling": scaling}
        )
        if not options.data:
            from loadtests.swap_data import publish_models

            publish_models(open_tiers(release.artifacts, MemoryRecorder()).catalog, generator=True, tell=print)
        return _measure(release, data, quick=options.quick)


def _measure(release: Release, data: Path, *, quick: bool) -> tuple[list[Run], Stages]:
    from loadtests.local_cluster import started

    runs, starts, first_s = [], [], []
    with started(release, data, script=_SCRIPT, num_cpus=4, variables=_PATIENT) as cluster:
        from loadtests.autoscale_live import redeploy, replay, until_settled
        from loadtests.scripted_server import scripted_target

        for n, trace in enumerate(_live_traces(quick=quick)):
            for arm in (OURS, TUNED) if n % 2 == 0 else (TUNED, OURS):
                load_s = median(took for _, took in starts) if starts else 30.0
                autoscaling = settings(arm, max_replicas=4, at_once=_AT_ONCE, load_s=load_s, faster=_FASTER)
                options = {"autoscaling_config": {**autoscaling, "initial_replicas": 1}}
                redeploy(scripted_target(cluster.pinned, _SCRIPT, options=options))
                until_settled(1)
                live = replay(
                    cluster.url,
                    trace,
                    model=release.model.name,
                    max_tokens=_SCRIPT.max_tokens,
                    ttft_target_s=_TTFT_TARGET_S,
                )
                starts += live.starts
                first_s += [ttft for ttft in live.outcome.ttft_s if ttft <= 1.0]
                runs.append(Run("live", arm, trace, live.outcome))
                took = [(at_once, round(seconds, 1)) for at_once, seconds in live.starts]
                told = f"{live.outcome.good} of {live.outcome.requests} in time, {live.failed} failed"
                print(f"live {trace.name} {arm}: {told}, starts {took}", flush=True)
    stages = Stages(
        slots=_SCRIPT.slots,
        first_token_s=median(first_s),
        service_s=_SCRIPT.prefill_s + _SCRIPT.token_s * _SCRIPT.max_tokens,
        starts=tuple(starts),
        ttft_target_s=_TTFT_TARGET_S,
        at_once=_AT_ONCE,
    )
    return runs, stages


def _again(live: Sequence[Run], stages: Stages | None) -> list[Run]:
    """What the simulation says of the live runs, and of the arm that did not run live."""
    if stages is None:
        return []
    load_s = median(took for _, took in stages.starts)
    runs = []
    for trace in {run.trace.name: run.trace for run in live}.values():
        for arm in ARMS:
            autoscaling = settings(arm, max_replicas=4, at_once=_AT_ONCE, load_s=load_s, faster=_FASTER)
            runs.append(Run("simulated", arm, trace, simulate(trace, _scaler(arm, autoscaling), stages, replicas=1)))
    return runs


def _large(*, quick: bool) -> list[Run]:
    """Hundreds of replicas, or tens; both begin with what the first second needs."""
    most, long_s = (40, 1800.0) if quick else (300, 3600.0)
    peak = 0.7 * most * _LARGE.at_once / _LARGE.service_s
    traces = (
        bursty(duration_s=long_s, base=peak / 4, peak=peak, burst_s=200, gap_s=300, ramp_s=30, seed=1),
        diurnal(duration_s=long_s, low=peak / 5, high=peak, days=1, seed=2),
    )
    runs = []
    for trace in traces:
        for arm in ARMS:
            autoscaling = settings(arm, max_replicas=most, at_once=_LARGE.at_once, load_s=75.0, faster=1.0)
            first = max(1, round(trace.rate(0) * _LARGE.service_s / _LARGE.at_once + 0.5))
            runs.append(Run("large", arm, trace, simulate(trace, _scaler(arm, autoscaling), _LARGE, replicas=first)))
    return runs


def _report(runs: Sequence[Run], stages: Stages | None, *, rounds: int) -> Report:
    live = any(run.where == "live" for run in runs)
    samples: list[Mapping[str, Value]] = [
        {
            "round": 0,
            "arm": f"{run.where} {run.trace.name} {run.arm}",
            "requests": run.outcome.requests,
            "in_time": run.outcome.good,
            "refused": run.outcome.refused,
            "replica_seconds": run.outcome.replica_seconds,
            "changes": run.outcome.changes,
            "most_replicas": max(point.target for point in run.outcome.points),
        }
        for run in runs
    ]
    goals = dict(_ratios(runs, "large", prefix="autoscale.large_"))
    if live:
        goals = {**_ratios(runs, "live", prefix="autoscale."), **goals}
        goals["autoscale.simulator_error"] = Goal(_error(runs), "<= 0.15")
    arms = {"stages": {name: str(value) for name, value in asdict(stages).items()}} if stages else {}
    return Report(name="autoscale", machine=report.machine(), rounds=rounds, samples=samples, arms=arms, goals=goals)


def _ratios(runs: Sequence[Run], where: str, *, prefix: str) -> dict[str, Goal]:
    """Ours over Ray's tuned arm: of both traces the worse."""
    found = {(run.trace.name, run.arm): run.outcome for run in runs if run.where == where}
    traces = sorted({trace for trace, _ in found})
    good = min(found[t, OURS].good / max(1, found[t, TUNED].good) for t in traces)
    seconds = max(found[t, OURS].replica_seconds / found[t, TUNED].replica_seconds for t in traces)
    better = max(good - 1.0, 1.0 - seconds)
    return {
        f"{prefix}goodput_ratio": Goal(good, ">= 1.0"),
        f"{prefix}replica_seconds_ratio": Goal(seconds, "<= 1.0"),
        f"{prefix}better_by": Goal(better, ">= 0.2"),
    }


def _error(runs: Sequence[Run]) -> float:
    """Simulated against live: the largest relative difference, of goodput and of replica-seconds."""
    simulated = {(run.trace.name, run.arm): run.outcome for run in runs if run.where == "simulated"}
    pairs = [(run.outcome, simulated[run.trace.name, run.arm]) for run in runs if run.where == "live"]
    return max(
        max(abs(told.good / real.good - 1), abs(told.replica_seconds / real.replica_seconds - 1))
        for real, told in pairs
    )


if __name__ == "__main__":
    sys.exit(main())
