"""Which fault strikes when: a function of the seed and the length alone, so that a run can be made again."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

# What is killed, or done, and what each needs around it. `Heavy` ones take a replica away for as long as its start.
Light: TypeAlias = Literal[
    "leavers", "promote", "slow store", "store down", "router", "proxy", "controller", "haproxy", "manager",
    "search", "models", "admin", "files", "health", "ready", "agent", "ledger",
]  # fmt: skip
Heavy: TypeAlias = Literal["replica", "engine dies", "engine sticks", "node"]
Name: TypeAlias = Light | Heavy

HEAVY: Final[frozenset[str]] = frozenset({"replica", "engine dies", "node"})
# Faults that end the connections of streams that are under way: nobody can take those over.
BREAKS_STREAMS: Final[frozenset[str]] = frozenset({"replica", "engine dies", "node", "haproxy", "manager"})
# How often each is drawn. Cheap ones more often: a replica's start takes the machine's cores from the clients.
WEIGHTS: Final[Mapping[Name, int]] = {
    "leavers": 6,
    "promote": 5,
    "slow store": 3,
    "store down": 3,
    "router": 4,
    "proxy": 2,
    "controller": 2,
    "haproxy": 2,
    "manager": 2,
    "search": 2,
    "models": 3,
    "admin": 3,
    "files": 2,
    "health": 2,
    "ready": 2,
    "agent": 2,
    "ledger": 2,
    "replica": 2,
    "engine dies": 1,
    "engine sticks": 3,
    "node": 1,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a run: when it is due after the beginning, and the seed of whatever is drawn in it."""

    number: int
    at_s: float
    name: Name
    seed: int


def schedule(
    *,
    seed: int,
    length_s: float,
    every_s: float = 7.0,
    heavy_apart_s: float = 60.0,
    weights: Mapping[Name, int] | None = None,
) -> tuple[Fault, ...]:
    """Faults about `every_s` apart, none in the last fifth of a minute; heavy ones at least `heavy_apart_s` apart.

    Every kind comes once before any comes by its weight, as far as the length allows; so a short run sees many kinds.
    """
    draw = random.Random(seed)
    weighed = dict(weights or WEIGHTS)
    once = list(weighed)
    draw.shuffle(once)
    faults: list[Fault] = []
    at_s, heavy_s = every_s / 2, -heavy_apart_s
    while at_s < length_s - min(12.0, length_s / 5):
        may_be_heavy = at_s - heavy_s >= heavy_apart_s
        name = _drawn(draw, once, weighed, may_be_heavy=may_be_heavy)
        heavy_s = at_s if name in HEAVY else heavy_s
        faults.append(Fault(len(faults) + 1, round(at_s, 3), name, draw.randrange(2**32)))
        at_s += every_s * draw.uniform(0.75, 1.25)
    return tuple(faults)


def _drawn(draw: random.Random, once: list[Name], weights: Mapping[Name, int], *, may_be_heavy: bool) -> Name:
    for name in once:
        if may_be_heavy or name not in HEAVY:
            once.remove(name)
            return name
    names = [name for name in weights if may_be_heavy or name not in HEAVY]
    if not names:
        return next(iter(weights))
    return draw.choices(names, weights=[weights[name] for name in names])[0]
