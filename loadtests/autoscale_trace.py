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
    """`base` requests a second, and `peak` in bursts; a burst takes `ramp_s` to build up and to go."""

    def rate(at_s: float) -> float:
        since_s = (at_s - gap_s) % (burst_s + gap_s)
        if at_s < gap_s or since_s > burst_s:
            return base
        edge = min(since_s, burst_s - since_s) / ramp_s if ramp_s else 1.0
        return base + (peak - base) * min(1.0, edge)

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
