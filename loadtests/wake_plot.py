"""The picture of `loadtests.wake`: what a wake takes beside a bare start, and when each of a crowd was answered."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.wake_figures import ARMS, Crowd, FirstAnswer

_COLOURS = {"bare": "#b9b9b9", "stack": "#4c8fbd", "standby": "#3f8f5f"}
_LABELS = {"bare": "bare vLLM", "stack": "wake", "standby": "wake with a standby"}


def draw(starts: Sequence[FirstAnswer], crowds: Sequence[Crowd]) -> Figure:
    """Bars are medians, points the rounds; on the right, clients by the time of their first token."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _starts(left, starts)
    _answers(right, crowds)
    figure.suptitle("From zero replicas to the first token")
    return figure


def _starts(axes: Axes, starts: Sequence[FirstAnswer]) -> None:
    measured = [arm for arm in ARMS if any(start.arm == arm for start in starts)]
    for place, arm in enumerate(measured):
        values = [start.seconds for start in starts if start.arm == arm]
        middle = statistics.median(values)
        axes.bar(place, middle, width=0.6, color=_COLOURS[arm])
        axes.scatter([place] * len(values), values, s=9, color="#222222", zorder=3)
        axes.annotate(f"{middle:.1f}", (place, max(values)), (0, 4), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(measured)), [_LABELS[arm] for arm in measured])
    axes.set_ylabel("seconds to the first token")
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _answers(axes: Axes, crowds: Sequence[Crowd]) -> None:
    for crowd in crowds:
        firsts = sorted(asked.first_s for asked in crowd.burst.asked if not asked.problem)
        axes.step([0.0, *firsts], range(len(firsts) + 1), where="post", label=f"round {crowd.round + 1}")
    axes.set_xlabel("seconds since the requests were sent")
    axes.set_ylabel("clients with a first token")
    if crowds:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
