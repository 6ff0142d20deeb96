"""The picture of `loadtests.workload`: when first tokens came, and how the times are spread."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.workload_figures import Run, Slo

_GOOD, _LATE, _FAILED = "#3f8f5f", "#d99a2b", "#c0392b"


def draw(run: Run, slo: Slo) -> Figure:
    """On the left every request over the run; on the right the shares that are faster than a time."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _requests(left, run, slo)
    whole = [each.came for each in run.asked if not each.came.problem]
    _shares(right, [came.ttft_ms for came in whole if came.ttft_ms is not None], "time to first token")
    _shares(right, [came.tpot_ms for came in whole if came.tpot_ms is not None], "time of a token after it")
    _shares(right, [gap for came in whole for gap in came.gaps_ms], "gap between two chunks")
    right.axvline(slo.ttft_ms, color="#999999", linewidth=0.8, linestyle="--")
    right.set_xscale("symlog", linthresh=0.1)
    right.set_xlabel("milliseconds")
    right.set_ylabel("share that is faster")
    right.legend(frameon=False)
    figure.suptitle("A workload's requests")
    return figure


def _requests(axes: Axes, run: Run, slo: Slo) -> None:
    kinds = (
        ("within the SLO", _GOOD, [each for each in run.asked if slo.keeps(each)]),
        ("late", _LATE, [each for each in run.asked if not each.came.problem and not slo.keeps(each)]),
        ("failed", _FAILED, [each for each in run.asked if each.came.problem]),
    )
    for label, colour, asked in kinds:
        if asked:
            ms = [each.came.ttft_ms or each.came.total_ms for each in asked]
            axes.scatter([each.at_s for each in asked], ms, s=8, color=colour, label=label)
    axes.axhline(slo.ttft_ms, color="#999999", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set_xlabel("seconds since the beginning")
    axes.set_ylabel("ms to the first token")
    if run.asked:
        axes.legend(frameon=False)


def _shares(axes: Axes, values: Sequence[float], label: str) -> None:
    if values:
        shares = [(n + 1) / len(values) for n in range(len(values))]
        axes.step(sorted(values), shares, where="post", label=label)
