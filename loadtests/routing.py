"""Where questions go, of several replicas: cached share, time to first token and balance, and what the choice costs.

`python -m loadtests.routing` asks questions about the demo's documents, drawn with Zipf popularity and none twice, of
simulated replicas (a prefix cache with an LRU and a queue each) under each policy; then it measures what forwarding
bodies to the router costs, with the real HAProxy; then it asks two replicas with a scripted engine on a real Ray, in
turns, by words as shipped, and with Ray's own prefix-aware router.

In the simulator policies hear of load as late as the router does; the first quarter of each trace only warms caches.
`documents` and `first document` would need a search before the request is routed: it is not in their figures, and what
it takes at least stands beside them. The oracle knows what each replica holds and has waiting; it is greedy, so others
may cache more.

Exit code 0: goals met; 1: one is missed; 3: not measured.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from loadtests import report
from loadtests.report import Goal, Report, Value
from loadtests.routing_figures import summary
from loadtests.routing_haproxy import ARMS as FORWARDING
from loadtests.routing_haproxy import SIZES, behind_haproxy, measure
from loadtests.routing_live import ARMS as LIVE
from loadtests.routing_plot import draw
from loadtests.routing_policies import policies
from loadtests.routing_simulator import Fleet, simulate
from loadtests.routing_trace import Trace, search_ms, zipf_trace
from loadtests.scripted_prefill import Device
from rag_stack.config import Release, load_release
from rag_stack.errors import RagStackError
from rag_stack.serving.environment import free_port
from rag_stack.serving.overrides import with_overrides

_LIVE_LIMIT_S: Final = 330
# What reads prompts in the live part: a thousand characters take 30 ms, and 200,000 are kept.
_DEVICE: Final = Device(tokens_per_s=8333, cache_blocks=3125)
# Questions a second.
_LIVE_RATE: Final = 4.0

Sample = dict[str, Value]


def simulated(trace: Trace, *, replicas: Sequence[int], rounds: int, rate: float) -> list[Sample]:
    """Each policy on each fleet, `rate` questions a second and replica; rounds differ in when questions come."""
    samples: list[Sample] = []
    for count in replicas:
        fleet = Fleet(replicas=count)
        for number in range(rounds):
            for name, policy in policies().items():
                found = simulate(trace, policy, fleet, rate=rate * count, seed=number)
                samples.append(
                    {
                        "round": number,
                        "arm": f"{name}, {count} replicas",
                        "cached_share": found.cached_share,
                        "ttft_ms": 1e3 * found.ttft_s,
                        "ttft_p95_ms": 1e3 * found.ttft_p95_s,
                        "balance": found.balance,
                        "choice_us": found.choice_us,
                    }
                )
    return samples


def forwarded(*, rounds: int, requests: int) -> list[Sample]:
    """What a request costs by the size of its body, with forwarding off, as shipped, and with Ray's own buffer."""
    samples: list[Sample] = []
    for number in range(rounds):
        for arm in FORWARDING:
            with behind_haproxy(arm) as behind:
                for size in SIZES:
                    found = measure(behind, size=size, requests=requests)
                    samples.append({"round": number, "arm": f"forward {arm}, {size >> 10} KiB", **found})
    return samples


def live(release: Release, trace: Trace, *, questions: int, arms: Sequence[str]) -> list[Sample]:
    """Each arm on a Ray of its own, the same questions at the same times. Raises RuntimeError."""
    samples: list[Sample] = []
    script = {"token_s": 0.01, "device": asdict(_DEVICE)}
    asked = {"questions": [each.text for each in trace.asked[:questions]], "rate": _LIVE_RATE, "script": script}
    for arm in arms:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / "release.json", Path(folder) / "asked.json"]
            files[0].write_text(_two_replicas(release, Path(folder)).model_dump_json(), encoding="utf-8")
            files[1].write_text(json.dumps(asked), encoding="utf-8")
            command = [sys.executable, "-m", "loadtests.routing_live", arm, *map(str, files)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIVE_LIMIT_S, check=False)
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode != 0 or len(answers) != questions:
            raise RuntimeError(f"the arm {arm!r} gave {len(answers)} answers of {questions}:\n{done.stderr[-2000:]}")
        samples.append({"round": 0, "arm": f"live {arm}", **_of_answers(answers)})
    return samples


def _of_answers(answers: Sequence[dict[str, Any]]) -> Sample:
    counted = [each["replica"] for each in answers]
    return {
        "cached_share": sum(each["cached"] for each in answers) / max(1, sum(each["prompt"] for each in answers)),
        "ttft_ms": 1e3 * statistics.median(each["ttft_s"] for each in answers),
        "balance": 2 * max(counted.count(name) for name in set(counted)) / len(counted),
    }


def _two_replicas(release: Release, folder: Path) -> Release:
    scaling = release.scaling.model_copy(update={"min_replicas": 2, "max_replicas": 2})
    server = release.server.model_copy(update={"port": free_port()})
    artifacts = release.artifacts.model_copy(update={"cache": folder / "cache"})
    return release.model_copy(update={"scaling": scaling, "server": server, "artifacts": artifacts})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, default=Path("releases/demo.yaml"))
    parser.add_argument("--questions", type=int, default=3000, help="of the simulated trace; each is embedded once")
    parser.add_argument("--exponent", type=float, default=1.0, help="of the documents' popularity")
    parser.add_argument("--rate", type=float, default=9.0, help="questions a second and simulated replica")
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--live", choices=LIVE, nargs="*", default=list(LIVE), help="arms on a real Ray; none: no such")
    parser.add_argument("--live-questions", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="1,000 questions, one round, no real Ray")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.questions, options.rounds, options.live = 1000, 1, []
    return options


def main() -> int:
    """Measure, write, tell."""
    options = _arguments()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Ray, once imported, has it tell of each request
    try:
        release = with_overrides(load_release(options.release), environ=os.environ)
        trace = zipf_trace(
            release, questions=options.questions, exponent=options.exponent, seed=1, cache=Path("var/routing")
        )
        samples: list[Sample] = [{"round": 0, "arm": "a search before routing", "ms": search_ms(release, trace)}]
        samples += simulated(trace, replicas=options.replicas, rounds=options.rounds, rate=options.rate)
        samples += forwarded(rounds=options.rounds, requests=200)
        samples += live(release, trace, questions=options.live_questions, arms=options.live)
    except (RagStackError, RuntimeError, subprocess.SubprocessError) as exc:
        print(f"not measured: {exc}", file=sys.stderr)
        return 3
    most = max(options.replicas)
    arms = summary(samples)
    outcome = Report(
        name="routing",
        machine=report.machine(),
        rounds=options.rounds,
        samples=samples,
        arms=arms,
        goals=_goals(arms, most),
    )
    report.write(outcome, draw(arms, replicas=options.replicas), directory=options.results)
    for name, figures in arms.items():
        print(f"{name:36s}", "  ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    print("\n".join(report.goal_lines(outcome)))
    return report.exit_code(outcome)


def _goals(arms: dict[str, dict[str, float]], most: int) -> dict[str, Goal]:
    def ratio(figure: str, arm: str, over: str) -> float | None:
        found = [arms.get(f"{name}", {}).get(figure) for name in (arm, over)]
        return found[0] / found[1] if found[0] is not None and found[1] else None

    words, turns = f"words, {most} replicas", f"round robin, {most} replicas"
    goals = {
        "routing.cached_gain": Goal(ratio("cached_share", words, turns), ">= 1.2"),
        "routing.ttft_cost": Goal(ratio("ttft_ms", words, turns), "<= 1.02"),
        "routing.balance": Goal(arms[words]["balance"], "<= 1.15"),
        "routing.vs_ray_prefix": Goal(ratio("cached_share", words, f"ray prefix, {most} replicas"), ">= 1.0"),
        "routing.forward_cpu_ms": Goal(_forward_cpu_ms(arms), "<= 1"),
    }
    if "live words" in arms and "live turns" in arms:
        goals["routing.live_cached_gain"] = Goal(ratio("cached_share", "live words", "live turns"), ">= 1.0")
    return goals


def _forward_cpu_ms(arms: dict[str, dict[str, float]]) -> float:
    """What forwarding adds to a request of 16 KiB, HAProxy's part and the router's."""
    on, off = (arms[f"forward {arm}, 16 KiB"] for arm in ("on", "off"))
    return sum(on[part] - off[part] for part in ("haproxy_cpu_ms", "router_cpu_ms"))


if __name__ == "__main__":
    sys.exit(main())
