"""The picture of `loadtests.coldstart`: a waterfall per arm, one row a stage, one colour a process."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from loadtests.coldstart_figures import ARMS, Start, middle
from rag_stack.timeline import Stage

_TITLES = {"empty": "Empty node cache", "cached": "Filled node cache"}
_COLOURS = {
    "command": "#8c8c8c",
    "replica": "#d1603d",
    "fork server": "#c9a227",
    "engine core": "#4c8fbd",
    "worker": "#3f8f5f",
    "client": "#b58cc2",
}
_SHORTEST_SHARE = 0.002


def draw(starts: Sequence[Start]) -> Figure:
    """The median start of each arm that was measured. Stages of under 0.2 % of the whole are left out."""
    shown = [start for arm in ARMS if (start := middle(starts, arm)) is not None]
    rows = max((len(_drawn(start)) for start in shown), default=1)
    figure = Figure(figsize=(6.8 * max(1, len(shown)), 1.6 + 0.27 * rows), layout="constrained")
    panels = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
    end_s = max((start.whole().seconds for start in shown), default=1.0)
    for axes, start in zip(panels, shown, strict=False):
        _waterfall(axes, start, end_s=end_s)
    handles = [Patch(color=colour, label=process) for process, colour in _COLOURS.items()]
    if any(stage.span.beside for start in shown for stage in _drawn(start)):
        handles.append(Patch(facecolor="white", edgecolor="#555555", hatch="////", label="beside the others"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle("From `rag-stack serve` to a client's first token: the median start of each arm")
    return figure


def _drawn(start: Start) -> list[Stage]:
    whole = start.whole()
    return [stage for stage in whole.stages if stage.span.seconds >= _SHORTEST_SHARE * whole.seconds]


def _waterfall(axes: Axes, start: Start, *, end_s: float) -> None:
    whole = start.whole()
    stages = _drawn(start)
    for row, stage in enumerate(stages):
        span, left = stage.span, stage.span.start_s - whole.start_s
        colour = _COLOURS.get(span.process, "#555555")
        style = {"facecolor": "white", "edgecolor": colour, "hatch": "////"} if span.beside else {"color": colour}
        axes.barh(row, span.seconds, left=left, height=0.72, **style)  # type: ignore[arg-type]
        axes.annotate(
            f"{span.seconds:.1f}", (left + span.seconds, row), (3, 0), textcoords="offset points", va="center", size=7
        )
    axes.set_yticks(range(len(stages)), [stage.span.name for stage in stages], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, end_s * 1.06)
    axes.set_xlabel("seconds")
    unnamed = f"unnamed {whole.unnamed_share:.1%}"
    axes.set_title(f"{_TITLES[start.arm]}: {whole.seconds:.1f} s, {unnamed}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
