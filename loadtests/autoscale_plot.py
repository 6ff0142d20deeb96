"""Replicas and what the load needs over time, a panel for each trace, a line for each policy."""

from collections.abc import Sequence
from typing import Protocol

from matplotlib.figure import Figure

from loadtests.autoscale_simulator import Outcome
from loadtests.autoscale_trace import Trace

_COLOURS = {"ours": "#2166ac", "ray documented": "#bdbdbd", "ray tuned": "#d6604d"}


class Drawn(Protocol):
    """A run of one arm with one trace."""

    @property
    def where(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def trace(self) -> Trace: ...
    @property
    def outcome(self) -> Outcome: ...


def draw(runs: Sequence[Drawn]) -> Figure:
    """Live and large runs have panels of their own; what the simulation says of a live run is dashed in its panel."""
    panels = sorted({("large" if run.where == "large" else "live", run.trace.name) for run in runs}, reverse=True)
    figure = Figure(figsize=(6.4 * len(panels), 4.6), layout="constrained")
    for axes, (where, trace) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shown = [run for run in runs if run.trace.name == trace and (run.where == "large") == (where == "large")]
        for run in shown:
            seconds = [point.at_s for point in run.outcome.points]
            style = "--" if run.where == "simulated" else "-"
            label = f"{run.arm}{', simulated' if run.where == 'simulated' else ''}: {run.outcome.good} in time"
            counts = [point.target for point in run.outcome.points]
            axes.step(seconds, counts, style, where="post", color=_COLOURS[run.arm], lw=1.2, label=label)
        load = shown[0].trace
        at_s = [load.duration_s * n / 400 for n in range(401)]
        axes.twinx().fill_between(at_s, [load.rate(at) for at in at_s], color="#fee08b", alpha=0.45, lw=0)
        axes.set_title(f"{trace}, {'simulated' if where == 'large' else 'real replicas'}", fontsize=10)
        axes.set_xlabel("seconds")
        axes.set_ylabel("replicas that run or load (requests a second shaded, right)")
        axes.legend(fontsize=7, loc="upper right")
        axes.set_ylim(bottom=0)
    figure.suptitle("Replicas over time")
    return figure
