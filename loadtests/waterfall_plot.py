"""The picture of `loadtests.waterfall`: a waterfall per arm, one row a stage, one colour a process; and as a table."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from loadtests.waterfall_figures import ARMS, Wake, middle
from rag_stack.timeline import Stage

_TITLES = {
    "bare": "Bare vLLM",
    "spawn": "Each process a new Python",
    "fork": "Forked, imported beside",
    "standby": "Forked from a standby",
}
_COLOURS = {
    "Serve": "#8c8c8c",
    "replica": "#d1603d",
    "fork server": "#c9a227",
    "engine core": "#4c8fbd",
    "worker": "#3f8f5f",
    "bare": "#b58cc2",
}
_SHORTEST_SHARE = 0.002


def draw(wakes: Sequence[Wake]) -> Figure:
    """The median wake of each arm that was measured. Stages of under 0.2 % of the whole are left out."""
    shown = [wake for arm in ARMS if (wake := middle(wakes, arm)) is not None]
    rows = max((len(_drawn(wake)) for wake in shown), default=1)
    figure = Figure(figsize=(5.6 * max(1, len(shown)), 1.6 + 0.27 * rows), layout="constrained")
    panels = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
    end_s = max((wake.seconds for wake in shown), default=1.0)
    for axes, wake in zip(panels, shown, strict=False):
        _waterfall(axes, wake, end_s=end_s)
    handles = [Patch(color=colour, label=process) for process, colour in _COLOURS.items()]
    handles.append(Patch(facecolor="white", edgecolor="#555555", hatch="////", label="beside the others"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle("From a question at zero replicas to its first token: the median wake of each arm")
    return figure


def show(wakes: Sequence[Wake]) -> None:
    """Print each arm's median waterfall."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width to keep to
    for arm in ARMS:
        if (wake := middle(wakes, arm)) is not None:
            console.print(_table(wake))


def _table(wake: Wake) -> Table:
    whole = wake.breakdown()
    table = Table(title=f"{_TITLES[wake.arm]}: {wake.seconds:.1f} s, {wake.cpu_s:.1f} CPU s", title_justify="left")
    for heading in ("process", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seconds", "waited"):
        table.add_column(heading, justify="right")
    table.add_column("", width=40)
    for stage in whole.stages:
        span = stage.span
        bar = Bar(whole.seconds, max(0.0, span.start_s - whole.start_s), span.end_s - whole.start_s, width=40)
        cells = (span.process, span.name, f"{span.seconds:.2f}", f"{stage.critical_s:.2f}", bar)
        table.add_row(*cells, style="dim" if span.beside else "")
    table.add_row("", f"unnamed ({whole.unnamed_share:.1%})", "", f"{whole.unnamed_s:.2f}")
    return table


def _drawn(wake: Wake) -> list[Stage]:
    whole = wake.breakdown()
    return [stage for stage in whole.stages if stage.span.seconds >= _SHORTEST_SHARE * whole.seconds]


def _waterfall(axes: Axes, wake: Wake, *, end_s: float) -> None:
    whole = wake.breakdown()
    stages = _drawn(wake)
    for row, stage in enumerate(stages):
        span, left = stage.span, max(0.0, stage.span.start_s - whole.start_s)
        colour = _COLOURS.get(span.process, "#555555")
        style = {"facecolor": "white", "edgecolor": colour, "hatch": "////"} if span.beside else {"color": colour}
        axes.barh(row, span.end_s - whole.start_s - left, left=left, height=0.72, **style)  # type: ignore[arg-type]
        axes.annotate(
            f"{span.seconds:.1f}",
            (span.end_s - whole.start_s, row),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=7,
        )
    axes.set_yticks(range(len(stages)), [stage.span.name for stage in stages], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, end_s * 1.06)
    axes.set_xlabel("seconds")
    axes.set_title(f"{_TITLES[wake.arm]}: {wake.seconds:.1f} s", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
