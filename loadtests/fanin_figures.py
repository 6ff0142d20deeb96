"""What a round of `loadtests.fanin` measured, and the figures made of all rounds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtests.report import Goal, Report, Value, column, machine

NODES: Final = (1, 2, 4)
ACTORS: Final = (1, 4)


@dataclass(frozen=True, slots=True)
class Arm:
    """So many actors on each of so many nodes; without peers, every node reads the origin for itself."""

    nodes: int
    actors: int
    with_peers: bool = True

    @property
    def name(self) -> str:
        """As in the table: nodes x actors."""
        return f"{self.nodes} x {self.actors}{'' if self.with_peers else ', no peers'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One arm, once. `sent_bytes` is all that the server wrote meanwhile; `answers` are the actors'."""

    number: int
    arm: Arm
    seconds: float
    cpu_s: float
    sent_bytes: int
    artifact_bytes: int
    answers: Sequence[Mapping[str, Any]]
    verified: bool

    @property
    def right(self) -> bool:
        """Whether every node has the artifact, and as many bytes came to each as it has."""
        moved = sum(sum(answer["moved"].values()) for answer in self.answers)
        # One actor on each node moves bytes, the others find the artifact there.
        movers = sum(bool(answer["moved"]) for answer in self.answers)
        return self.verified and moved == self.arm.nodes * self.artifact_bytes and movers == self.arm.nodes

    def sample(self) -> dict[str, Value]:
        """As it goes into the report."""
        by_source = {
            source: sum(answer["moved"].get(source, 0) for answer in self.answers)
            for source in ("object_store", "peer")
        }
        return {
            "round": self.number,
            "arm": self.arm.name,
            "seconds": self.seconds,
            "slowest_actor_s": max(answer["seconds"] for answer in self.answers),
            "cpu_s": self.cpu_s,
            "origin_bytes": self.sent_bytes,
            "origin_ratio": self.sent_bytes / self.artifact_bytes,
            "object_bytes": by_source["object_store"],
            "peer_bytes": by_source["peer"],
            "gb_per_s": self.arm.nodes * self.artifact_bytes / self.seconds / 1e9,
            "right": self.right,
        }


def arms(nodes: int) -> list[Arm]:
    """The arms that a cluster of so many nodes is measured with."""
    return [*(Arm(nodes, actors) for actors in ACTORS), Arm(nodes, 1, with_peers=False)]


def build_report(rounds: Sequence[Round], *, facts: Mapping[str, Value]) -> Report:
    """Medians of each arm, and the two goals: the origin's worst round, and four actors' time in pairs of rounds."""
    samples = [each.sample() for each in rounds]
    measured = list(dict.fromkeys(each.arm for each in rounds))
    shared = [float(sample["origin_ratio"] or 0) for sample, each in zip(samples, rounds, strict=True)
              if each.arm.with_peers]  # fmt: skip
    complete = {(count, actors) for count in NODES for actors in ACTORS} <= {
        (arm.nodes, arm.actors) for arm in measured
    }
    one, four = (column(samples, arm=Arm(1, actors).name, key="seconds") for actors in ACTORS)
    ratios = [many / alone for alone, many in zip(one, four, strict=False)]
    goals = {
        "fanin.origin_bytes_ratio": Goal(max(shared) if complete else None, "<= 1.01"),
        "fanin.four_actors_time_ratio": Goal(statistics.median(ratios) if ratios else None, "<= 1.2"),
    }
    return Report(
        name="fanin",
        machine={**machine(), **facts},
        rounds=len({each.number for each in rounds}),
        samples=samples,
        arms={arm.name: _summary(samples, arm) for arm in measured},
        goals=goals,
    )


def _summary(samples: Sequence[Mapping[str, Value]], arm: Arm) -> dict[str, Value | Sequence[float]]:
    keys = ("seconds", "slowest_actor_s", "cpu_s", "origin_bytes", "object_bytes", "peer_bytes", "gb_per_s")
    medians: dict[str, Value | Sequence[float]] = {
        key: statistics.median(column(samples, arm=arm.name, key=key)) for key in keys
    }
    return {**medians, "worst_origin_ratio": max(column(samples, arm=arm.name, key="origin_ratio"))}
