"""Figures of `loadtests.routing`: each arm's medians over the rounds."""

import statistics
from collections.abc import Mapping, Sequence

from loadtests.report import Value

_NOT_FIGURES = frozenset({"round", "arm"})


def summary(samples: Sequence[Mapping[str, Value]]) -> dict[str, dict[str, float]]:
    """By arm, in the order in which arms first stand in the samples."""
    arms: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        figures = arms.setdefault(str(sample["arm"]), {})
        for key, value in sample.items():
            if key not in _NOT_FIGURES and isinstance(value, int | float):
                figures.setdefault(key, []).append(float(value))
    return {arm: {key: statistics.median(values) for key, values in found.items()} for arm, found in arms.items()}
