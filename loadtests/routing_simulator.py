"""Replicas with a prefix cache and a queue each, asked by one router that hears of their load as late as ours does.

A replica prefills one prompt after another at a fixed rate, and decodes beside that. Its cache is an LRU of what vLLM
caches: prefixes, of which only whole blocks count, and of which the end goes before the beginning.
"""

import heapq
import random
import statistics
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from loadtests.routing_trace import Asked, Trace

Order = Literal["cached", "rank", "reading"]
_SYSTEM, _QUESTION = (-1,), -2


@dataclass(frozen=True, slots=True)
class Fleet:
    """So many replicas, and what each can. `report_s`: how old what the router knows of their load may be."""

    replicas: int = 2
    cache_tokens: int = 40_000
    block_tokens: int = 16
    system_tokens: int = 64
    question_tokens: int = 32
    answer_tokens: int = 160
    prefill_tokens_s: float = 8000.0
    token_s: float = 0.02
    report_s: float = 1.2
    order: Order = "cached"


class Policy(Protocol):
    """Chooses a replica. `loads` is what the router knows; `replicas` themselves are for an oracle alone."""

    def choose(self, asked: Asked, loads: Sequence[int], replicas: "Sequence[Replica]", now_s: float) -> int: ...


@dataclass(slots=True)
class Replica:
    """One replica of the fleet."""

    fleet: Fleet
    tokens: Sequence[int]
    free_s: float = 0.0
    answered: int = 0
    _cached: "OrderedDict[tuple[int, ...], int]" = field(default_factory=OrderedDict)
    _held: int = 0

    def hit_tokens(self, found: Sequence[int]) -> int:
        """What of the prompt for these passages is in the cache."""
        fleet = self.fleet
        tokens, path = 0, _SYSTEM
        if path not in self._cached:
            return 0
        tokens += self._cached[path]
        for row in self._ordered(found):
            path = (*path, row)
            if path not in self._cached:
                break
            tokens += self._cached[path]
        return tokens // fleet.block_tokens * fleet.block_tokens

    def answer(self, found: Sequence[int], number: int, now_s: float) -> tuple[int, float, float]:
        """Cached tokens, time to first token and time of the end of an answer that begins to wait now."""
        ordered = self._ordered(found)
        hit = self.hit_tokens(found)
        self._insert(ordered, number)
        self.free_s = max(self.free_s, now_s) + (self.prompt_tokens(found) - hit) / self.fleet.prefill_tokens_s
        self.answered += 1
        return hit, self.free_s - now_s, self.free_s + self.fleet.answer_tokens * self.fleet.token_s

    def prompt_tokens(self, found: Sequence[int]) -> int:
        """Of the whole prompt."""
        return self.fleet.system_tokens + sum(self.tokens[row] for row in found) + self.fleet.question_tokens

    def _ordered(self, found: Sequence[int]) -> list[int]:
        if self.fleet.order == "rank":
            return list(found)
        left = sorted(found)
        if self.fleet.order == "reading":
            return left
        ordered: list[int] = []
        path = _SYSTEM
        while (row := self._longest(path, left)) is not None:
            ordered.append(row)
            left.remove(row)
            path = (*path, row)
        return [*ordered, *(row for row in found if row in left)]

    def _longest(self, path: tuple[int, ...], left: Sequence[int]) -> int | None:
        """The next document by which most is found in the cache."""
        depths = {row: self._depth((*path, row), [r for r in left if r != row]) for row in left}
        best = max(depths, key=lambda row: depths[row], default=None)
        return best if best is not None and depths[best] > 0 else None

    def _depth(self, path: tuple[int, ...], left: Sequence[int]) -> int:
        if path not in self._cached:
            return 0
        return self._cached[path] + max(
            (self._depth((*path, row), [r for r in left if r != row]) for row in left), default=0
        )

    def _insert(self, ordered: Sequence[int], number: int) -> None:
        fleet = self.fleet
        path: tuple[int, ...] = _SYSTEM
        chain = [(path, fleet.system_tokens)]
        for row in ordered:
            path = (*path, row)
            chain.append((path, self.tokens[row]))
        # Nobody asks this again, but it is cached like all else.
        chain.append(((*path, _QUESTION, number), fleet.question_tokens + fleet.answer_tokens))
        for node, size in reversed(chain):
            if node not in self._cached:
                self._cached[node] = size
                self._held += size
            self._cached.move_to_end(node)
        while self._held > fleet.cache_tokens:
            self._held -= self._cached.popitem(last=False)[1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trace came to under a policy."""

    cached_share: float
    ttft_s: float
    ttft_p95_s: float
    balance: float
    choice_us: float
    by_replica: tuple[int, ...]


def simulate(trace: Trace, policy: Policy, fleet: Fleet, *, rate: float, seed: int, skip: float = 0.25) -> Outcome:
    """Ask all, at Poisson times of `rate` a second; the first part, while the caches fill, is not counted."""
    draw = random.Random(seed)
    replicas = [Replica(fleet, trace.tokens) for _ in range(fleet.replicas)]
    known = _Known(fleet)
    now_s, spent_s, first = 0.0, 0.0, int(len(trace.asked) * skip)
    counts = [0] * fleet.replicas
    hits, prompts, ttft_s = 0, 0, list[float]()
    for number, asked in enumerate(trace.asked):
        now_s += draw.expovariate(rate)
        loads = known.at(now_s)
        began_s = time.perf_counter()
        chosen = policy.choose(asked, loads, replicas, now_s)
        spent_s += time.perf_counter() - began_s
        hit, waited_s, ends_s = replicas[chosen].answer(asked.found, number, now_s)
        known.sent(chosen, ends_s)
        if number >= first:
            hits += hit
            prompts += replicas[chosen].prompt_tokens(asked.found)
            ttft_s.append(waited_s)
            counts[chosen] += 1
    return Outcome(
        cached_share=hits / prompts,
        ttft_s=statistics.median(ttft_s),
        ttft_p95_s=statistics.quantiles(ttft_s, n=20)[-1],
        balance=max(counts) / statistics.fmean(counts),
        choice_us=1e6 * spent_s / len(trace.asked),
        by_replica=tuple(counts),
    )


class _Known:
    """Requests under way as the router knows them: those of the last report, and those sent since."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._ends: list[list[float]] = [[] for _ in range(fleet.replicas)]
        self._reported = [0] * fleet.replicas
        self._since = [0] * fleet.replicas
        self._next_s = 0.0

    def at(self, now_s: float) -> list[int]:
        if now_s >= self._next_s:
            for ends in self._ends:
                while ends and ends[0] <= now_s:
                    heapq.heappop(ends)
            self._reported = [len(ends) for ends in self._ends]
            self._since = [0] * self._fleet.replicas
            self._next_s = now_s + self._fleet.report_s
        return [reported + since for reported, since in zip(self._reported, self._since, strict=True)]

    def sent(self, chosen: int, ends_s: float) -> None:
        self._since[chosen] += 1
        heapq.heappush(self._ends[chosen], ends_s)
