"""The picture of `loadtests.peers`: CPU time and latency that each system adds to an answer."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.peers_figures import ENGINE, OURS, Visit, beyond_engine, orchestration

_COLOURS = {OURS: "#3f8f5f"}
_OTHER = "#b9b9b9"


def draw(visits: Sequence[Visit]) -> Figure:
    """Bars are medians, one group a concurrency; points on the left are the visits."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, visits, orchestration, points=True)
    left.set_ylabel("CPU ms an answer, without the embedding")
    _bars(right, visits, beyond_engine, points=False)
    right.set_ylabel("ms an answer beyond the engine's own")
    figure.suptitle("What stands around the engine: the same engine, documents and questions")
    return figure


def _bars(
    axes: Axes,
    visits: Sequence[Visit],
    figure_of: Callable[[Sequence[Visit], str, int], float | None],
    *,
    points: bool,
) -> None:
    arms = [arm for arm in dict.fromkeys(each.arm for each in visits) if arm != ENGINE]
    labels = []
    for concurrency in sorted({each.concurrency for each in visits}):
        for arm in arms:
            value = figure_of(visits, arm, concurrency)
            if value is None:
                continue
            place = len(labels)
            labels.append(f"{arm}\n{concurrency} at once")
            axes.bar(place, value, width=0.7, color=_COLOURS.get(arm, _OTHER))
            own = [v.orchestration_ms for v in visits if v.arm == arm and v.concurrency == concurrency]
            if points:
                axes.scatter([place] * len(own), own, s=9, color="#222222", zorder=3)
            axes.annotate(f"{value:.1f}", (place, value), (0, 4), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(labels)), labels, rotation=60, fontsize=7)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
