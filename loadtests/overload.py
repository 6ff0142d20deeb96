"""Half of, all of and three times what one replica can answer: who gets in, how soon, and who is told to come again.

`python -m loadtests.overload` measures the capacity in a closed loop, then sends Poisson arrivals that do not wait for
answers. Three keys are polite: each asks for 0.15 of the capacity. At three times the capacity a fourth floods with
all the rest. Before that, one polite key is alone. The layer is real, the engine is scripted.

Exit code 0: goals met; 1: one is missed; 3: the server could not be measured.
"""

import argparse
import asyncio
import hashlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from subprocess import PIPE, Popen

from loadtests import open_loop, overload_plot, report
from loadtests.open_loop import Outcome
from loadtests.report import Goal, Report, Value
from loadtests.scripted_engine import Script
from loadtests.swap_data import publish_models
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release
from rag_stack.metrics import MemoryRecorder

# Only its tokenizer is read: the engine is scripted.
MODEL = "all-minilm-l6-v2"
TARGET_S = 5.0
# A mean answer holds one of eight slots for 3.2 s: two and a half answers a second, whose frames are no work to speak
# of, so that the engine is what there is too little of, and not the processor.
SCRIPT = Script(slots=8, prefill_s=0.1, token_s=0.2)
TOKENS = (8, 16, 24)
POLITE = ("polite-1", "polite-2", "polite-3")
FLOOD = "flood"
POLITE_SHARE = 0.15
ARMS = ("alone", "0.5x", "1x", "3x")

Sample = Mapping[str, Value]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    seconds, rounds = (10.0, 1) if options.quick else (options.seconds, options.rounds)
    with tempfile.TemporaryDirectory(prefix="overload-") as folder, served(Path(folder)) as url:
        capacity = asyncio.run(_capacity(url, seconds=seconds))
        print(f"capacity {capacity:.2f} answers/s", flush=True)
        samples: list[Sample] = []
        outcomes: dict[str, list[Outcome]] = {arm: [] for arm in ARMS}
        for number in range(rounds):
            for arm in ARMS:
                found = asyncio.run(visit(url, arm, capacity=capacity, seconds=seconds, seed=number))
                outcomes[arm] += found
                samples.append({"round": number, "arm": arm, **figures(found, seconds=seconds)})
                print(" ".join(f"{k}={_short(v)}" for k, v in samples[-1].items()), flush=True)
    result = build_report(samples, rounds=rounds, capacity=capacity)
    report.write(result, overload_plot.draw(outcomes, samples, target_s=TARGET_S), directory=options.results)
    print("\n".join(report.goal_lines(result)))
    return report.exit_code(result)


def rates(arm: str, *, capacity: float) -> dict[str, float]:
    """Requests a second of each key."""
    match arm:
        case "alone":
            return {POLITE[0]: POLITE_SHARE * capacity}
        case "3x":
            polite = dict.fromkeys(POLITE, POLITE_SHARE * capacity)
            return {**polite, FLOOD: 3 * capacity - sum(polite.values())}
        case _:
            keys = (*POLITE, FLOOD)
            return {key: float(arm.removesuffix("x")) * capacity / len(keys) for key in keys}


async def visit(url: str, arm: str, *, capacity: float, seconds: float, seed: int) -> list[Outcome]:
    """One arm's load, to its last answer. The polite key's own requests are the same alone and beside the flood."""
    seeds = {key: seed * 100 + n for n, key in enumerate((*POLITE, FLOOD))}
    arrivals = [
        arrival
        for key, rate in rates(arm, capacity=capacity).items()
        for arrival in open_loop.poisson({key: rate}, seconds=seconds, tokens=TOKENS, seed=seeds[key])
    ]
    return await open_loop.run(url, sorted(arrivals, key=lambda each: each.at_s), model=MODEL)


def figures(outcomes: Sequence[Outcome], *, seconds: float) -> dict[str, Value]:
    """What one visit shows."""
    admitted = [each for each in outcomes if each.status == 200]
    refused = [each for each in outcomes if each.status == 429]
    ttft = sorted(each.ttft_s for each in admitted if each.ttft_s is not None)
    good = [each for each in outcomes if each.good(target_s=TARGET_S)]
    polite = [each for each in good if each.arrival.key == POLITE[0]]
    return {
        "asked": len(outcomes),
        "admitted": len(admitted),
        "refused_share": len(refused) / max(1, len(outcomes)),
        "failed": len(outcomes) - len(admitted) - len(refused) + sum(not each.complete for each in admitted),
        "without_retry_after": sum(not _is_retry_after(each.retry_after) for each in refused),
        "ttft_p50_s": statistics.median(ttft) if ttft else None,
        "ttft_p95_s": ttft[math.ceil(0.95 * len(ttft)) - 1] if ttft else None,
        "slo_share": len(good) / max(1, len(admitted)),
        "goodput_rps": len(good) / seconds,
        "polite_goodput_rps": len(polite) / seconds,
    }


def build_report(samples: Sequence[Sample], *, rounds: int, capacity: float) -> Report:
    """Medians over the rounds, and the goals."""
    keys = [key for key in samples[0] if key not in ("round", "arm")]
    arms = {arm: {key: _median(samples, arm, key) for key in keys} for arm in ARMS}
    three, one, alone = arms["3x"], arms["1x"], arms["alone"]
    goals = {
        "overload.slo_share": Goal(three["slo_share"], ">= 0.95"),
        "overload.goodput_ratio": Goal(_ratio(three["goodput_rps"], one["goodput_rps"]), ">= 0.9"),
        "overload.fairness": Goal(_ratio(three["polite_goodput_rps"], alone["polite_goodput_rps"]), ">= 0.9"),
        "overload.without_retry_after": Goal(_sum(samples, "without_retry_after"), "<= 0"),
        "overload.failed": Goal(_sum(samples, "failed"), "<= 0"),
    }
    machine = {**report.machine(), "capacity_rps": round(capacity, 3), "ttft_target_s": TARGET_S}
    return Report(name="overload", machine=machine, rounds=rounds, samples=samples, arms=arms, goals=goals)


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The layer in a process of its own."""
    release = Release.model_validate(
        {
            "name": "overload",
            "artifacts": {"root": f"file://{directory}/store", "cache": str(directory / "cache")},
            "model": {"name": MODEL},
            "embedder": {"name": MODEL},
            "engine": {"max_model_len": 2048},
            "scaling": {"ttft_target_s": TARGET_S},
            "server": {"api_key_sha256": [hashlib.sha256(key.encode()).hexdigest() for key in (*POLITE, FLOOD)]},
        }
    )
    publish_models(open_tiers(release.artifacts, MemoryRecorder()).catalog, generator=False, tell=lambda _: None)
    files = {"release.json": release.model_dump_json(), "script.json": json.dumps(asdict(SCRIPT))}
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "loadtests.overload_server", *(str(directory / name) for name in files)]
    with Popen(command, stdout=PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise SystemExit(3)
            yield url
        finally:
            process.terminate()


async def _capacity(url: str, *, seconds: float) -> float:
    """After the time in which a new replica lets everything in."""
    key = POLITE[0]
    ask = {"model": MODEL, "key": key, "concurrency": SCRIPT.slots, "tokens": TOKENS}
    await open_loop.saturate(url, **ask, seconds=TARGET_S + 1)
    return await open_loop.saturate(url, **ask, seconds=seconds)


def _is_retry_after(value: str | None) -> bool:
    return value is not None and value.isdecimal() and 1 <= int(value) <= 60


def _median(samples: Sequence[Sample], arm: str, key: str) -> float | None:
    values = report.column(samples, arm=arm, key=key)
    return statistics.median(values) if values else None


def _sum(samples: Sequence[Sample], key: str) -> float:
    return sum(sum(report.column(samples, arm=arm, key=key)) for arm in ARMS)


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _short(value: Value) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.overload", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each arm in each round")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
