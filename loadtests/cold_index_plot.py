"""The picture of `loadtests.cold_index`: time to the answers, memory of four processes, latency beyond memory."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.cold_index_figures import (
    LIMITED,
    LIMITED_FAISS,
    MEMORY_COPY,
    MEMORY_OURS,
    WARM,
    Sample,
    best_reader,
)
from loadtests.report import column

_OURS, _OTHER, _LIGHT = "#d1603d", "#8c8c8c", "#f0c4b4"


def draw(samples: Sequence[Sample]) -> Figure:
    """Three panels of medians; dots are single rounds."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    time, memory, latency = figure.subplots(1, 3, width_ratios=(1.25, 0.7, 1.15))
    best = best_reader(samples)
    readers = {best: f"best plain read\n({best.removeprefix('read:')})"} if best else {}
    arms = {**readers, "ours": "ours", "early": "ours, no\nsearch waits", "copy": "copy into\nmemory"}
    _bars(time, samples, arms, key="seconds", scale=1e3)
    _marks(time, samples, arms, key="first_answer_ms")
    time.set_ylabel("ms, all 200 answers and the prefault")
    time.set_title("From a closed, cold index to 200 answers")
    _bars(memory, samples, {MEMORY_OURS: "ours", MEMORY_COPY: "copies"}, key="memory_bytes", scale=1e-9)
    memory.set_ylabel("GB")
    memory.set_title("Memory of four processes")
    arms = {
        WARM: "ours, all in\nmemory",
        LIMITED: "ours, half of\nit allowed",
        LIMITED_FAISS: "FAISS alone,\nhalf allowed",
    }
    _bars(latency, samples, arms, key="hot_p99_ms", scale=1)
    latency.set_ylabel("ms, 99th percentile")
    latency.set_title("A search of hot lists")
    return figure


def _bars(axes: Axes, samples: Sequence[Sample], arms: dict[str, str], *, key: str, scale: float) -> None:
    shown = {arm: values for arm in arms if (values := [scale * v for v in column(samples, arm=arm, key=key)])}
    for place, (arm, values) in enumerate(shown.items()):
        colour = _OURS if "ours" in arms[arm] else _OTHER
        middle = statistics.median(values)
        axes.bar(place, middle, width=0.62, color=colour)
        axes.plot([place + 0.36] * len(values), values, ".", color="black", markersize=3, alpha=0.5)
        axes.annotate(f"{middle:.3g}", (place, middle), (0, 2), textcoords="offset points", ha="center", size=8)
    axes.set_xticks(range(len(shown)), [arms[arm] for arm in shown])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(0, 1.12 * max((max(values) for values in shown.values()), default=1.0))
    axes.spines[["top", "right"]].set_visible(False)


def _marks(axes: Axes, samples: Sequence[Sample], arms: dict[str, str], *, key: str) -> None:
    """A line across each bar where the first answer came."""
    label: str | None = "first answer"
    for place, arm in enumerate(arms):
        if values := column(samples, arm=arm, key=key):
            middle = statistics.median(values)
            axes.hlines(middle, place - 0.31, place + 0.31, color=_LIGHT, linewidth=2, label=label)
            label = None
    if label is None:
        axes.legend(frameon=False, fontsize=8, loc="upper left")
