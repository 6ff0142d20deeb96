"""Replicas, requests and time, without any of them: what a policy would have done with a trace.

A replica has the scripted engine's slots and times. Requests take turns around the replicas and wait in order; one
that is given up goes on with what it has and gets nothing new. A start takes as long as measured starts of as many
replicas at once did.
"""

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadtests.autoscale_trace import Trace
from rag_stack.serving.scaling.policy import Load


class Scaler(Protocol):
    """Asked at each tick; `loads` are the replicas that serve, as they are at this instant."""

    def decide(self, now_s: float, *, target: int, loads: Mapping[str, Load]) -> int: ...


@dataclass(frozen=True, slots=True)
class Stages:
    """What things take. `starts` are measured ones: how many loaded at once, and the seconds."""

    slots: int
    first_token_s: float
    service_s: float
    starts: tuple[tuple[int, float], ...]
    ttft_target_s: float
    at_once: float
    queue: int | None = None  # requests that may wait in a replica; one more is refused

    def start_s(self, loading: int, draw: random.Random) -> float:
        """One of those measured with as many loading, or with the number next to it."""
        nearest = min(abs(at_once - loading) for at_once, _ in self.starts)
        return draw.choice([took for at_once, took in self.starts if abs(at_once - loading) == nearest])


@dataclass(frozen=True, slots=True)
class Point:
    """The fleet at one instant."""

    at_s: float
    target: int
    running: int
    under_way: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of a trace. Replica-seconds are those of all that run or load while the trace lasts."""

    requests: int
    good: int
    replica_seconds: float
    changes: int
    points: tuple[Point, ...]
    ttft_s: tuple[float, ...] = ()
    refused: int = 0


@dataclass
class _Replica:
    name: str
    ready_s: float
    free_s: list[float]
    arrived: int = 0
    under_way: int = 0
    served: int = 0
    good: int = 0

    def take(self, at_s: float, stages: Stages) -> tuple[float, float]:
        """The first token's time and the last one's."""
        begin_s = max(at_s, heapq.heappop(self.free_s))
        heapq.heappush(self.free_s, begin_s + stages.service_s)
        self.arrived += 1
        self.under_way += 1
        return begin_s + stages.first_token_s, begin_s + stages.service_s

    def load(self, stages: Stages) -> Load:
        running = min(self.under_way, int(stages.at_once))
        return Load(
            running=running,
            waiting=self.under_way - running,
            arrived=self.arrived,
            served=self.served,
            good=self.good,
        )


@dataclass
class _Fleet:
    stages: Stages
    draw: random.Random
    replicas: list[_Replica] = field(default_factory=list)
    ends: list[tuple[float, int, _Replica, bool]] = field(default_factory=list)
    turn: int = 0
    asked: int = 0
    under_way: int = 0
    refused: int = 0
    ttft_s: list[float] = field(default_factory=list)

    def running(self, now_s: float) -> list[_Replica]:
        return [replica for replica in self.replicas if replica.ready_s <= now_s]

    def resize(self, now_s: float, target: int) -> None:
        """Those that load go first, then the newest."""
        self.replicas.sort(key=lambda replica: replica.ready_s)
        del self.replicas[target:]
        loading = sum(replica.ready_s > now_s for replica in self.replicas) + max(0, target - len(self.replicas))
        while len(self.replicas) < target:
            self.asked += 1
            ready_s = now_s + self.stages.start_s(loading, self.draw)
            self.replicas.append(_Replica(str(self.asked), ready_s, [0.0] * self.stages.slots))

    def take(self, at_s: float, running: Sequence[_Replica]) -> None:
        self.turn += 1
        replica = running[self.turn % len(running)]
        queue = self.stages.queue
        if queue is not None and replica.under_way >= self.stages.slots + queue:
            replica.arrived += 1
            self.refused += 1
            return
        first_s, end_s = replica.take(at_s, self.stages)
        self.ttft_s.append(first_s - at_s)
        self.under_way += 1
        heapq.heappush(self.ends, (end_s, self.turn, replica, first_s - at_s <= self.stages.ttft_target_s))

    def end(self, now_s: float) -> None:
        while self.ends and self.ends[0][0] <= now_s:
            _, _, replica, good = heapq.heappop(self.ends)
            replica.under_way -= 1
            replica.served += 1
            replica.good += good
            self.under_way -= 1


def simulate(
    trace: Trace, scaler: Scaler, stages: Stages, *, replicas: int, tick_s: float = 0.5, seed: int = 0
) -> Outcome:
    """Run the trace against the policy, beginning with so many replicas that serve; at least one must, always."""
    fleet = _Fleet(stages, random.Random(seed))
    fleet.replicas = [_Replica(f"first {n}", 0.0, [0.0] * stages.slots) for n in range(replicas)]
    points: list[Point] = []
    target, seconds, changes, next_arrival = replicas, 0.0, 0, 0
    for tick in range(int(trace.duration_s / tick_s)):
        now_s = tick * tick_s
        fleet.end(now_s)
        running = fleet.running(now_s)
        wanted = scaler.decide(now_s, target=target, loads={r.name: r.load(stages) for r in running})
        if wanted != target:
            changes += 1
            target = wanted
            fleet.resize(now_s, target)
            running = fleet.running(now_s)
        points.append(Point(now_s, target, len(running), fleet.under_way))
        seconds += len(fleet.replicas) * tick_s
        while next_arrival < len(trace.arrivals_s) and trace.arrivals_s[next_arrival] < now_s + tick_s:
            fleet.end(trace.arrivals_s[next_arrival])
            fleet.take(trace.arrivals_s[next_arrival], running)
            next_arrival += 1
    good = sum(ttft <= stages.ttft_target_s for ttft in fleet.ttft_s)
    return Outcome(len(trace.arrivals_s), good, seconds, changes, tuple(points), tuple(fleet.ttft_s), fleet.refused)
