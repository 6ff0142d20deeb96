"""The picture of `loadtests.quality`: nDCG@10 of each arm on each corpus, and of what was tried on the train split."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtests.quality_figures import DEFAULT
from loadtests.report import Report

_OURS, _OTHER = "#d1603d", "#8c8c8c"
_TRAIN = "train: "


def draw(result: Report) -> Figure:
    """A panel for the arms, and one for the train split."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    tested, tried = figure.subplots(1, 2)
    values = {arm: float(str(figures["ndcg_10"])) for arm, figures in result.arms.items() if "ndcg_10" in figures}
    _bars(tested, {arm: value for arm, value in values.items() if ": " in arm and not arm.startswith(_TRAIN)})
    tested.set_title("nDCG@10: SciFact's test claims, and known items")
    _bars(tried, {arm.removeprefix(_TRAIN): value for arm, value in values.items() if arm.startswith(_TRAIN)})
    tried.set_title("nDCG@10: SciFact's train claims, by setting")
    return figure


def _bars(axes: Axes, values: dict[str, float]) -> None:
    for place, (arm, value) in enumerate(values.items()):
        axes.barh(place, value, color=_OURS if arm.endswith(DEFAULT) else _OTHER)
        axes.annotate(f"{value:.3f}", (value, place), (2, 0), textcoords="offset points", va="center", size=7)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
