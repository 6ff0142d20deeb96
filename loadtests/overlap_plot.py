"""The picture of `loadtests.overlap`: times to the first token by cell, and the share of the possible overlap."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from loadtests.overlap_figures import ARMS, WITH, Cell
from loadtests.report import Report

_COLOURS = {"without": "#8c8c8c", "with": "#4c8fbd"}


def draw(cells: Sequence[Cell], result: Report) -> Figure:
    """Left: medians of both arms. Right: what was saved of what could be, with its 95 % interval."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for at, arm in enumerate(ARMS):
        values = [_number(result, f"{cell.name} {arm}", "ttft_s") for cell in cells]
        places = [place + 0.4 * at - 0.2 for place in range(len(cells))]
        left.bar(places, values, 0.38, color=_COLOURS[arm], label=f"{arm} prefill ahead")
    left.set_ylabel("seconds to the first token, median")
    left.legend(frameon=False)
    for place, cell in enumerate(cells):
        arm = result.arms[f"{cell.name} {WITH}"]
        if (share := arm.get("share")) is None:
            continue
        low, high = arm["share_95"]  # type: ignore[misc]
        right.errorbar(place, share, [[max(0, share - low)], [max(0, high - share)]], fmt="o", color=_COLOURS[WITH])  # type: ignore[operator]
    right.axhline(0.8, color="black", linestyle=":", label="goal, where it counts")
    right.axhline(0.0, color="#cccccc")
    right.set_ylabel("share of the possible overlap")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xticks(range(len(cells)), [cell.name for cell in cells], rotation=30, ha="right")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _number(result: Report, arm: str, key: str) -> float:
    value = result.arms[arm].get(key)
    return float(value) if isinstance(value, int | float) else 0.0
