"""From the visits of `loadtests.overhead` to its figures. Arms are compared within a round, question by question."""

import math
import statistics
from collections.abc import Callable, Sequence

from loadtests import report
from loadtests.arms import ARMS, ArmName
from loadtests.closed_loop import Answer
from loadtests.overhead_log import Cell, Log, Visit
from loadtests.report import Goal, Interval, Report, Value

RATE_CELL = Cell(max_tokens=32, concurrency=8)
LATENCY_CELL = Cell(max_tokens=1, concurrency=1)
STAGES = ("queue", "embed", "search", "prompt")


def build_report(log: Log) -> Report:
    """Summaries, comparisons and goals of all complete rounds."""
    return Report(
        name="overhead",
        machine=report.machine(),
        rounds=log.rounds,
        samples=[_sample(visit, log.visits) for visit in log.visits],
        arms={arm: _arm(arm, log) for arm in ARMS},
        goals={
            "overhead.rps_vs_bare": Goal(rps_vs_bare(log.visits, RATE_CELL)[0], ">= 0.97"),
            "overhead.tpot_vs_bare": Goal(tpot_vs_bare(log.visits, RATE_CELL)[0], "<= 1.03"),
            "overhead.unexplained_ttft_ms": Goal(unexplained_ttft_ms(log.visits, LATENCY_CELL)[0], "<= 2"),
        },
    )


def arms_agree(visits: Sequence[Visit]) -> bool:
    """Whether all arms did the same work: equal prompt and output lengths, and equal outputs one request at a time.

    More requests at a time are batched as they come, and bfloat16 rounds differently in another batch.
    """
    for visit in visits:
        bare = _other(visit, "bare", visits)
        for own, other in _pairs(visit, bare):
            if (own.prompt_tokens, own.output_tokens) != (other.prompt_tokens, other.output_tokens):
                return False
            if visit.cell.concurrency == 1 and own.output_sha256 != other.output_sha256:
                return False
    return True


def rps_vs_bare(visits: Sequence[Visit], cell: Cell, *, arm: ArmName = "ours") -> tuple[float | None, Interval]:
    """The arm's requests/s over bare vLLM's: mean over the rounds, and its 95 % interval."""
    ratios = [visit.rps / _other(visit, "bare", visits).rps for visit in _of(visits, arm, cell)]
    return (statistics.fmean(ratios) if ratios else None), report.mean_interval(ratios)


def tpot_vs_bare(visits: Sequence[Visit], cell: Cell, *, arm: ArmName = "ours") -> tuple[float | None, Interval]:
    """The arm's median time of an output token after the first over bare vLLM's: mean over the rounds, 95 % interval.

    What ours sends after the last token, citations, is in it.
    """
    ratios = [tpot_ms(visit) / tpot_ms(_other(visit, "bare", visits)) for visit in _of(visits, arm, cell)]
    return (statistics.fmean(ratios) if ratios else None), report.mean_interval(ratios)


def tpot_ms(visit: Visit) -> float:
    """The median over a visit's answers of the time from the first output token to the end, by token; nan if of one."""
    times = [
        (answer.total_ms - answer.ttft_ms) / (answer.output_tokens - 1)
        for answer in visit.answers
        if answer.output_tokens > 1
    ]
    return statistics.median(times) if times else math.nan


def ttft_difference_ms(
    visits: Sequence[Visit], cell: Cell, *, arm: ArmName, base: ArmName
) -> tuple[float | None, Interval]:
    """Median over questions and rounds of the paired differences; the interval is of the rounds' own medians."""
    rounds = [_differences(visit, _other(visit, base, visits)) for visit in _of(visits, arm, cell)]
    return _median([d for each in rounds for d in each]), report.mean_interval([statistics.median(r) for r in rounds])


def unexplained_ttft_ms(visits: Sequence[Visit], cell: Cell) -> tuple[float | None, Interval]:
    """What our layer adds to Ray's time to first token beyond embedding and search: medians as in the goal's wording.

    Building the prompt, our ASGI layer and the larger first chunk are all in it.
    """
    own = _of(visits, "ours", cell)
    rounds = [_unexplained(_differences(visit, _other(visit, "ray", visits)), visit.answers) for visit in own]
    if not own:
        return None, report.mean_interval([])
    differences = [d for visit in own for d in _differences(visit, _other(visit, "ray", visits))]
    answers = [answer for visit in own for answer in visit.answers]
    return _unexplained(differences, answers), report.mean_interval(rounds)


def equal_outputs(visits: Sequence[Visit], cell: Cell, *, arm: ArmName) -> float | None:
    """The share of answers that are bare vLLM's, to the letter."""
    pairs = [pair for visit in _of(visits, arm, cell) for pair in _pairs(visit, _other(visit, "bare", visits))]
    return statistics.fmean(own.output_sha256 == other.output_sha256 for own, other in pairs) if pairs else None


def over_rounds(
    visits: Sequence[Visit], cell: Cell, *, arm: ArmName, of: Callable[[Visit], float]
) -> tuple[float | None, Interval]:
    """A figure of a visit: its mean over the rounds and the 95 % interval of that."""
    values = [of(visit) for visit in _of(visits, arm, cell)]
    return (statistics.fmean(values) if values else None), report.mean_interval(values)


def median_of(visit: Visit, key: str) -> float:
    """The median over a visit's answers: `ttft_ms`, `total_ms` or one of STAGES."""
    if key in STAGES:
        return statistics.median(answer.timings_ms.get(key, 0.0) for answer in visit.answers)
    return statistics.median(getattr(answer, key) for answer in visit.answers)


def _arm(arm: ArmName, log: Log) -> dict[str, Value | Sequence[float]]:
    summary: dict[str, Value | Sequence[float]] = {}
    for cell in log.settings.cells:
        figures = {
            "rps": over_rounds(log.visits, cell, arm=arm, of=lambda v: v.rps),
            "tokens_per_s": over_rounds(log.visits, cell, arm=arm, of=lambda v: v.tokens_per_s),
            "cpu_s": over_rounds(log.visits, cell, arm=arm, of=lambda v: v.cpu_s),
            "ttft_ms": over_rounds(log.visits, cell, arm=arm, of=lambda v: median_of(v, "ttft_ms")),
            "total_ms": over_rounds(log.visits, cell, arm=arm, of=lambda v: median_of(v, "total_ms")),
            **({"tpot_ms": over_rounds(log.visits, cell, arm=arm, of=tpot_ms)} if cell.max_tokens > 1 else {}),
            **_comparisons(arm, cell, log.visits),
        }
        for name, (value, interval) in figures.items():
            summary[f"{cell}.{name}"] = value
            summary[f"{cell}.{name}_95"] = interval
        summary[f"{cell}.equal_outputs"] = equal_outputs(log.visits, cell, arm=arm)
    return summary


def _comparisons(arm: ArmName, cell: Cell, visits: Sequence[Visit]) -> dict[str, tuple[float | None, Interval]]:
    match arm:
        case "bare":
            return {}
        case "ray":
            return {
                "rps_vs_bare": rps_vs_bare(visits, cell, arm="ray"),
                **_tpot_vs_bare(visits, cell, arm="ray"),
                "router_hop_ms": ttft_difference_ms(visits, cell, arm="ray", base="bare"),
            }
        case "ours":
            stages = {
                f"{stage}_ms": over_rounds(visits, cell, arm="ours", of=lambda v, stage=stage: median_of(v, stage))
                for stage in STAGES
            }
            return {
                "rps_vs_bare": rps_vs_bare(visits, cell),
                **_tpot_vs_bare(visits, cell, arm="ours"),
                "added_to_ray_ms": ttft_difference_ms(visits, cell, arm="ours", base="ray"),
                "unexplained_ttft_ms": unexplained_ttft_ms(visits, cell),
                **stages,
            }


def _tpot_vs_bare(visits: Sequence[Visit], cell: Cell, *, arm: ArmName) -> dict[str, tuple[float | None, Interval]]:
    return {"tpot_vs_bare": tpot_vs_bare(visits, cell, arm=arm)} if cell.max_tokens > 1 else {}


def _sample(visit: Visit, visits: Sequence[Visit]) -> dict[str, Value]:
    """One visit as a row of the report: what was measured, medians over its questions."""
    answers = visit.answers
    row: dict[str, Value] = {
        "round": visit.round,
        "arm": visit.arm,
        "max_tokens": visit.cell.max_tokens,
        "concurrency": visit.cell.concurrency,
        "requests": len(answers),
        "wall_s": visit.wall_s,
        "cpu_s": visit.cpu_s,
        "client_cpu_s": visit.client_cpu_s,
        "start_s": visit.start_s,
        "rps": visit.rps,
        "tokens_per_s": visit.tokens_per_s,
        "ttft_ms": median_of(visit, "ttft_ms"),
        "total_ms": median_of(visit, "total_ms"),
        "tpot_ms": tpot_ms(visit),
        "prompt_tokens": sum(a.prompt_tokens for a in answers),
        "cached_tokens": sum(a.cached_tokens for a in answers),
        "output_tokens": sum(a.output_tokens for a in answers),
        "equal_outputs": equal_outputs([v for v in visits if v.round == visit.round], visit.cell, arm=visit.arm),
    }
    if visit.arm == "ray":
        row["ttft_minus_bare_ms"] = statistics.median(_differences(visit, _other(visit, "bare", visits)))
    if visit.arm == "ours":
        row["ttft_minus_ray_ms"] = statistics.median(_differences(visit, _other(visit, "ray", visits)))
        row |= {f"{stage}_ms": median_of(visit, stage) for stage in STAGES}
    return row


def _of(visits: Sequence[Visit], arm: ArmName, cell: Cell) -> list[Visit]:
    return [visit for visit in visits if visit.arm == arm and visit.cell == cell]


def _other(visit: Visit, arm: ArmName, visits: Sequence[Visit]) -> Visit:
    return next(v for v in visits if (v.round, v.cell, v.arm) == (visit.round, visit.cell, arm))


def _pairs(visit: Visit, other: Visit) -> list[tuple[Answer, Answer]]:
    """The two visits' answers to each question, which both hold in the questions' order."""
    return list(zip(visit.answers, other.answers, strict=True))


def _differences(visit: Visit, other: Visit) -> list[float]:
    return [own.ttft_ms - base.ttft_ms for own, base in _pairs(visit, other)]


def _unexplained(differences: Sequence[float], answers: Sequence[Answer]) -> float:
    explained = sum(statistics.median(a.timings_ms[stage] for a in answers) for stage in ("embed", "search"))
    return statistics.median(differences) - explained


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
