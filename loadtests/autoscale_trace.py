"""Arrivals over time: one that comes in bursts, and one that follows the day. The same seed gives the same requests."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trace:
    """When requests come, in seconds from the start, and how many a second were meant to."""

    name: str
    duration_s: float
    arrivals_s: tuple[float, ...]
    rate: Callable[[float], float]


def bursty(
    *, duration_s: float, base: float, peak: float, burst_s: float, gap_s: float, ramp_s: float, seed: int
) -> Trace:
    """`base` requests a second, and `peak` in bursts of half to one and a half times `burst_s`.

    Between them are half to one and a half times `gap_s`; a burst takes `ramp_s` to build up and to go.
    """
    draw = random.Random(f"bursts {seed}")
    bursts: list[tuple[float, float]] = []
    begin_s = gap_s * (0.5 + draw.random())
    while begin_s < duration_s:
        end_s = begin_s + burst_s * (0.5 + draw.random())
        bursts.append((begin_s, end_s))
        begin_s = end_s + gap_s * (0.5 + draw.random())

    def rate(at_s: float) -> float:
        edge_s = max((min(at_s - begin_s, end_s - at_s) for begin_s, end_s in bursts), default=0.0)
        return base + (peak - base) * min(1.0, max(0.0, edge_s / ramp_s))

    return Trace("bursty", duration_s, _arrivals(rate, duration_s, max(base, peak), seed), rate)


def diurnal(*, duration_s: float, low: float, high: float, days: float, seed: int) -> Trace:
    """From night to noon to night, so many times."""

    def rate(at_s: float) -> float:
        return low + (high - low) * (1 - math.cos(2 * math.pi * days * at_s / duration_s)) / 2

    return Trace("diurnal", duration_s, _arrivals(rate, duration_s, high, seed), rate)


def _arrivals(rate: Callable[[float], float], duration_s: float, most: float, seed: int) -> tuple[float, ...]:
    """A Poisson process of changing rate, by thinning one of the highest."""
    draw = random.Random(seed)
    arrivals, at_s = [], draw.expovariate(most)
    while at_s < duration_s:
        if draw.random() * most < rate(at_s):
            arrivals.append(at_s)
        at_s += draw.expovariate(most)
    return tuple(arrivals)
