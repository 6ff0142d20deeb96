"""The figures of `loadtests.ordering`, from what was asked, simulated and timed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from loadtests import report
from loadtests.ordering_engine import Asked
from loadtests.report import Goal, Report, Value, bootstrap_interval, wilson_interval

ARMS = ("score", "reading", "contextpilot", "ours", "oracle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that a run has found. `warm` questions at the beginning of each visit fill the cache and are not counted.

    `unshared` are pairs of one question each, ours after score. `microseconds` are by number of documents.
    """

    rounds: int
    warm: int
    asked: Sequence[Asked]
    unshared: Sequence[Asked]
    microseconds: Mapping[int, Mapping[str, float]]
    peer_us: float
    sweep: Sequence[Mapping[str, float | int | str]]
    supported: Mapping[str, Sequence[bool]]


def build_report(measured: Measured) -> Report:
    """Figures and goals."""
    counted = [each for each in measured.asked if each.question >= measured.warm]
    arms = {arm: arm_figures([each for each in counted if each.arm == arm]) for arm in ARMS}
    arms["all"] = {
        "simulator_error": simulator_error(measured.asked),
        "our_prediction_error": prediction_error([each for each in measured.asked if each.arm == "ours"]),
        "contextpilot_us": measured.peer_us,
        **{f"{key}_{n}": value for n, each in measured.microseconds.items() for key, value in each.items()},
        **{f"supported_{arm}": _share(found) for arm, found in measured.supported.items()},
    }
    ttft = {arm: statistics.median(each.answer.ttft_ms for each in counted if each.arm == arm) for arm in ARMS}
    goals = {
        "ordering.ttft_gain": Goal(ttft["score"] / ttft["ours"], ">= 1.5"),
        "ordering.oracle_share": Goal(ttft["oracle"] / ttft["ours"], ">= 0.95"),
        "ordering.vs_contextpilot": Goal(ttft["contextpilot"] / ttft["ours"], ">= 1.0"),
        "ordering.no_share_cost": Goal(no_share_cost(measured.unshared), "<= 1.02"),
        "ordering.us_per_request": Goal(max(each["choice_us"] for each in measured.microseconds.values()), "<= 50"),
    }
    if measured.supported:
        # One answer of twenty: fewer than the interval is wide, so that only a clear loss misses it.
        worse = _share(measured.supported["unranked"]) - _share(measured.supported["rank"])
        goals["ordering.answers_delta"] = Goal(worse, ">= -0.05")
    return Report(
        name="ordering",
        machine=report.machine(),
        rounds=measured.rounds,
        samples=[each.sample() for each in (*measured.asked, *measured.unshared)],
        arms=arms,
        goals=goals,
    )


def arm_figures(asked: Sequence[Asked]) -> dict[str, Value | Sequence[float]]:
    """One arm's: its median time to first token with a 95 % interval, and the share of prompts that was cached."""
    times = [each.answer.ttft_ms for each in asked]
    tokens = sum(each.answer.prompt_tokens for each in asked)
    return {
        "ttft_ms": statistics.median(times),
        "ttft_ms_95": bootstrap_interval(times),
        "mean_ttft_ms": statistics.fmean(times),
        "cached_share": sum(each.answer.cached_tokens for each in asked) / tokens,
    }


def simulator_error(asked: Sequence[Asked]) -> float:
    """Tokens by which the simulated cache and the engine's differ, as a share of all tokens of prompts."""
    wrong = sum(abs(each.simulated_tokens - each.answer.cached_tokens) for each in asked)
    return wrong / sum(each.answer.prompt_tokens for each in asked)


def prediction_error(asked: Sequence[Asked]) -> float:
    """The same of what our own order expected to be there."""
    wrong = sum(abs(each.predicted_tokens - each.answer.cached_tokens) for each in asked)
    return wrong / sum(each.answer.prompt_tokens for each in asked)


def no_share_cost(unshared: Sequence[Asked]) -> float | None:
    """The median over questions of our time to first token over that of score order."""
    times: dict[tuple[int, int], dict[str, float]] = {}
    for each in unshared:
        times.setdefault((each.round, each.question), {})[each.arm] = each.answer.ttft_ms
    ratios = [pair["unshared ours"] / pair["unshared score"] for pair in times.values() if len(pair) == 2]
    return statistics.median(ratios) if ratios else None


def lines(measured: Measured, result: Report) -> list[str]:
    """What is printed: arms, simulation, and what else there is to know."""
    told = [f"{'arm':14} TTFT ms (median, 95 %)      mean  cached"]
    for arm in ARMS:
        figures = result.arms[arm]
        low, high = bootstrap_interval([e.answer.ttft_ms for e in measured.asked if _counts(e, measured, arm)])
        times = f"{figures['ttft_ms']:7.1f} ({low:.1f} to {high:.1f}) {figures['mean_ttft_ms']:9.1f}"
        told.append(f"{arm:14} {times} {figures['cached_share']:6.1%}")
    every = result.arms["all"]
    told.append(
        f"simulator off by {every['simulator_error']:.2%} of prompt tokens, our prediction by "
        f"{every['our_prediction_error']:.2%}; ContextPilot takes {measured.peer_us:.0f} us a question"
    )
    for n, each in measured.microseconds.items():
        us = f"{each['choice_us']:.1f} us to choose, {each['observe_us']:.1f} to learn"
        told.append(f"{n} documents, {each['nodes']:.0f} nodes: {us}")
    told.append("simulated share of prompt tokens that was cached, and what no order can go beyond:")
    for row in measured.sweep:
        shares = "  ".join(f"{k} {v:.1%}" for k, v in row.items() if k not in ("exponent", "block_tokens"))
        told.append(f"  exponent {row['exponent']}, blocks of {row['block_tokens']}: {shares}")
    for arm, found in measured.supported.items():
        low, high = wilson_interval(sum(found), len(found))
        told.append(
            f"answers that cite a relevant abstract, {arm}: {sum(found)} of {len(found)} ({low:.0%} to {high:.0%})"
        )
    if not measured.supported:
        told.append("SciFact is not there: answers were not compared")
    return told


def draw(measured: Measured) -> Figure:
    """Times to first token by arm, and the simulated shares by exponent."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    counted = [each for each in measured.asked if each.question >= measured.warm]
    left.boxplot([[e.answer.ttft_ms for e in counted if e.arm == arm] for arm in ARMS], showfliers=False)
    left.set_xticks(range(1, len(ARMS) + 1), ARMS)
    left.set_ylabel("time to first token, ms")
    smallest = min((int(row["block_tokens"]) for row in measured.sweep), default=0)
    rows = [row for row in measured.sweep if row["block_tokens"] == smallest]
    for arm in (*ARMS, "bound"):
        right.plot([float(row["exponent"]) for row in rows], [float(row[arm]) for row in rows], label=arm)
    right.set_xlabel("Zipf exponent")
    right.set_ylabel(f"share of prompt tokens cached (simulated, blocks of {smallest})")
    right.legend()
    return figure


def _counts(each: Asked, measured: Measured, arm: str) -> bool:
    return each.arm == arm and each.question >= measured.warm


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)
