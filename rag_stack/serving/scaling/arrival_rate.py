"""How many requests arrive a second, told from how many have arrived: what is news, and what is only noise."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

_NEWEST_S: Final = 3.0
_SHORTEST_S: Final = 20.0  # nothing shorter shows a trend
_SIGMAS: Final = 3.0  # what differs by less is noise of arrivals that come by themselves
_COARSE_S: Final = 5.0
_OFF: Final = 2.0  # variances from the line, where noise alone has one
_TREND_LIMIT: Final = 1.5  # a trend adds half of the rate at the most


def rates(arrived: Sequence[tuple[float, float]], when_s: float) -> tuple[float, float, float]:
    """Arrivals a second: as they have been of late, as they were at least, and at `when_s` where they rise, else 0.

    `arrived` are times and what had arrived by then.

    Arrivals are counted, so their noise is known: the variance of a count is the count. What differs by less than
    three deviations is noise.
    """
    now_s = arrived[-1][0]
    steps = [_Step(b - a, (a + b) / 2, after - before) for (a, before), (b, after) in pairwise(arrived)]
    came, span_s = _newest(steps, now_s)
    newest = came / span_s
    return (
        newest,
        (came - math.sqrt(came)) / span_s,
        min(_rising_rate(_coarse(steps), now_s, when_s), _TREND_LIMIT * newest),
    )


class _Step(NamedTuple):
    """From one sample to the next: how long, when, and how many came."""

    span_s: float
    at_s: float
    came: float


def _newest(steps: Sequence[_Step], now_s: float) -> tuple[float, float]:
    """What came in the longest stretch up to now in which the rate has not changed, six seconds at least.

    Of two halves of these six that differ the lower counts: many requests at once are a queue, and no rate.
    """
    count, span_s = _sum(steps, now_s - _NEWEST_S, now_s)
    older, older_s = _sum(steps, now_s - 2 * _NEWEST_S, now_s - _NEWEST_S)
    if not older_s or _differ(count, span_s, older, older_s):
        lower = min((count / max(span_s, _NEWEST_S), older / max(older_s, _NEWEST_S)))
        return lower * _NEWEST_S, _NEWEST_S
    count, span_s, reach_s = count + older, span_s + older_s, 2 * _NEWEST_S
    while True:
        older, older_s = _sum(steps, now_s - 2 * reach_s, now_s - reach_s)
        if not older_s or _differ(count, span_s, older, older_s):
            return count, span_s
        count, span_s, reach_s = count + older, span_s + older_s, 2 * reach_s


def _rising_rate(steps: Sequence[_Step], now_s: float, when_s: float) -> float:
    """The line through all of them, where they lie on one that rises, at most half as much again as now; else 0.

    A step, too, makes a line rise, and goes no further: what is no further from the line than noise is a trend.
    """
    whole_s = sum(step.span_s for step in steps)
    came = sum(step.came for step in steps)
    if whole_s < _SHORTEST_S or not came:
        return 0.0
    mean = came / whole_s
    middle_s = sum(step.span_s * step.at_s for step in steps) / whole_s
    spread = sum(step.span_s * (step.at_s - middle_s) ** 2 for step in steps)
    slope = sum((step.came - mean * step.span_s) * (step.at_s - middle_s) for step in steps) / spread
    if slope <= _SIGMAS * math.sqrt(mean / spread):
        return 0.0
    off = 0.0
    for step in steps:
        expected = max(0.5, (mean + slope * (step.at_s - middle_s)) * step.span_s)
        off += (step.came - expected) ** 2 / expected
    if off > _OFF * len(steps):
        return 0.0
    level = mean + slope * (now_s - middle_s)
    return min(level + slope * (when_s - now_s), _TREND_LIMIT * level)


def _coarse(steps: Sequence[_Step]) -> list[_Step]:
    """Steps of five seconds or more: in shorter ones it shows when replicas report."""
    coarse: list[_Step] = []
    begin_s = span_s = came = 0.0
    for step in steps:
        begin_s = begin_s if span_s else step.at_s - step.span_s / 2
        span_s, came = span_s + step.span_s, came + step.came
        if span_s >= _COARSE_S:
            coarse.append(_Step(span_s, begin_s + span_s / 2, came))
            span_s = came = 0.0
    return coarse


def _sum(steps: Sequence[_Step], after_s: float, until_s: float) -> tuple[float, float]:
    count = span_s = 0.0
    for step in steps:
        if after_s < step.at_s <= until_s:
            count, span_s = count + step.came, span_s + step.span_s
    return count, span_s


def _differ(count: float, span_s: float, other: float, other_s: float) -> bool:
    """Whether two counts are of different rates, by more than three deviations of what equal rates would give."""
    both, whole_s = count + other, span_s + other_s
    deviation = math.sqrt(both * span_s * other_s) / whole_s
    return abs(count - both * span_s / whole_s) > _SIGMAS * deviation + 1
