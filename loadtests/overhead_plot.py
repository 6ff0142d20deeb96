"""The picture of `loadtests.overhead`: requests a second and time to first token, an arm a colour, a cell a group."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.arms import ARMS, ArmName
from loadtests.overhead_figures import median_of, over_rounds
from loadtests.overhead_log import Cell, Log, Visit

LABELS: dict[ArmName, str] = {"bare": "bare vLLM", "ray": "Ray Serve LLM, direct streaming", "ours": "rag_stack"}
_COLOURS: dict[ArmName, str] = {"bare": "#8c8c8c", "ray": "#4c8fbd", "ours": "#d1603d"}
_WIDTH = 0.26


def draw(log: Log) -> Figure:
    """Two panels; bars are means over the rounds, with 95 % intervals where there are two rounds or more."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, log, log.settings.cells, of=lambda visit: visit.rps, digits=2)
    left.set_ylabel("requests / s")
    left.set_title("Throughput")
    alone = [cell for cell in log.settings.cells if cell.concurrency == 1] or list(log.settings.cells)
    _bars(right, log, alone, of=lambda visit: median_of(visit, "ttft_ms"), digits=0)
    right.set_ylabel("ms, median of the questions")
    right.set_title("Time to first token, one request at a time")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    rounds = f"{log.rounds} rounds" if log.rounds != 1 else "1 round, so no intervals"
    figure.suptitle(f"The same {len(log.settings.questions)} prompts in three servers ({rounds})")
    return figure


def _bars(axes: Axes, log: Log, cells: Sequence[Cell], *, of: Callable[[Visit], float], digits: int) -> None:
    top = 0.0
    for offset, arm in zip((-_WIDTH, 0.0, _WIDTH), reversed(ARMS), strict=True):
        for place, cell in enumerate(cells):
            value, (low, high) = over_rounds(log.visits, cell, arm=arm, of=of)
            if value is None:
                continue
            span = None if math.isnan(low) else [[value - low], [high - value]]
            axes.bar(
                place + offset,
                value,
                width=_WIDTH * 0.94,
                yerr=span,
                capsize=3,
                color=_COLOURS[arm],
                label=LABELS[arm] if place == 0 else None,
            )
            reach = value if math.isnan(high) else high
            axes.annotate(
                f"{value:.{digits}f}", (place + offset, reach), (0, 2), textcoords="offset points", ha="center", size=8
            )
            top = max(top, reach)
    axes.set_ylim(0, top * 1.12)
    axes.set_xticks(range(len(cells)), [f"max_tokens {c.max_tokens}\nconcurrency {c.concurrency}" for c in cells])
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
