"""The picture of `loadtests.fanin`: what left the origin, and how long it took until all actors were ready."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.fanin_figures import Arm, Round

_COLOURS = {(1, True): "#4c8fbd", (4, True): "#2f5d80", (1, False): "#b9b9b9"}
_LABELS = {(1, True): "1 actor a node", (4, True): "4 actors a node", (1, False): "1 actor a node, no peers"}


def draw(rounds: Sequence[Round]) -> Figure:
    """Bars are medians, points the rounds."""
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, rounds, "origin_ratio")
    left.axhline(1.0, color="#d1603d", linewidth=1, linestyle="--")
    left.set_ylabel("bytes that the origin sent / artifact")
    _bars(right, rounds, "seconds")
    right.set_ylabel("seconds until all actors are ready")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    size_mb = rounds[0].artifact_bytes / 1e6 if rounds else 0.0
    figure.suptitle(f"One artifact of {size_mb:.0f} MB to many actors at once, from an S3 server on the same machine")
    return figure


def _bars(axes: Axes, rounds: Sequence[Round], key: str) -> None:
    counts = sorted({each.arm.nodes for each in rounds})
    for place, (actors, with_peers) in enumerate(_COLOURS):
        for group, nodes in enumerate(counts):
            arm = Arm(nodes, actors, with_peers=with_peers)
            values = [float(each.sample()[key] or 0) for each in rounds if each.arm == arm]
            if not values:
                continue
            x, middle = group + 0.27 * (place - 1), statistics.median(values)
            label = _LABELS[actors, with_peers] if group == 0 else None
            axes.bar(x, middle, width=0.25, color=_COLOURS[actors, with_peers], label=label)
            axes.scatter([x] * len(values), values, s=9, color="#222222", zorder=3)
            axes.annotate(f"{middle:.3g}", (x, max(values)), (0, 4), textcoords="offset points", ha="center", size=8)
    axes.set_xticks(range(len(counts)), [f"{count} node{'s' if count > 1 else ''}" for count in counts])
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
