"""The picture of `loadtests.overload`: times to first token of who was let in, and what became of the requests."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from loadtests.open_loop import Outcome
from loadtests.report import Value, column

_COLOURS = {"alone": "#8c8c8c", "0.5x": "#7fb069", "1x": "#4c8fbd", "3x": "#d1603d"}


def draw(
    outcomes: Mapping[str, Sequence[Outcome]], samples: Sequence[Mapping[str, Value]], *, target_s: float
) -> Figure:
    """Left: the distribution of times to first token by arm. Right: good answers and refusals a second."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm, found in outcomes.items():
        ttft = sorted(each.ttft_s for each in found if each.status == 200 and each.ttft_s is not None)
        shares = [(n + 1) / len(ttft) for n in range(len(ttft))]
        left.step(ttft, shares, where="post", color=_COLOURS[arm], label=arm)
    left.axvline(target_s, color="black", linestyle=":", label="target")
    left.set_xlabel("seconds to first token of those let in")
    left.set_ylabel("share")
    left.legend(frameon=False)
    left.set_title("Who is let in keeps the target")
    for place, arm in enumerate(outcomes):
        values = column(samples, arm=arm, key="goodput_rps")
        mean = sum(values) / len(values)
        right.bar(place, mean, color=_COLOURS[arm])
        refused = sum(column(samples, arm=arm, key="refused_share")) / len(values)
        right.annotate(f"{refused:.0%} refused", (place, mean), (0, 3), textcoords="offset points", ha="center", size=8)
    right.set_xticks(range(len(outcomes)), list(outcomes))
    right.set_ylabel("answers / s begun within the target")
    right.set_title("Goodput")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
