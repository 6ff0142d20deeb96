"""SIGKILL at random moments, round after round: what was acknowledged is there, what is visible is whole, all goes on.

`python -m loadtests.kill` has processes publish, promote, roll back, pin and collect in one catalog at the same time,
kills each at a random moment, and then looks at everything: is each acknowledged promotion in the history, which must
begin as it ended a round before; does the promoted version, and every other that is listed, hold each of its bytes; is
what a release pins still there; and does the next run, with nobody killed, finish and leave nothing behind. The same is
asked of the process that owns the stores made over HTTP, and of rival builds of one index. The store is a temporary
directory unless `--root` names another one, such as s3://bucket/prefix.

Exit code 0: goals met; 1: one is missed; 2: something acknowledged was lost, or the catalog was inconsistent.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from matplotlib.figure import Figure
from rich.console import Console

from loadtests import report
from loadtests.kill_builds import BuildsVictim
from loadtests.kill_catalog import CatalogVictim
from loadtests.kill_damage import Damage
from loadtests.kill_uploads import UploadsVictim
from loadtests.report import Goal, Report, Value

_ROUNDS = 120
_JOIN_S = 60.0


class Victim(Protocol):
    """Something that runs in processes of its own and must outlive them.

    `start` begins a round and returns its processes, which have begun their work; they need not end by themselves.
    `check` is called when all of them are dead: it lets the next run finish, and says what is lost or inconsistent.
    `longest_s` is how long a process lives at most.
    """

    name: str
    longest_s: float

    def start(self, number: int) -> Sequence[BaseProcess]: ...

    def check(self, number: int) -> Damage: ...


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one victim: how many of its processes were killed, and what became of it."""

    number: int
    victim: str
    killed: int
    seconds: float
    damage: Damage = field(default_factory=Damage)

    def sample(self) -> dict[str, Value]:
        """As it is written."""
        return {
            "round": self.number,
            "arm": self.victim,
            "killed": self.killed,
            "seconds": round(self.seconds, 3),
            "lost": len(self.damage.lost),
            "inconsistent": len(self.damage.inconsistent),
            **self.damage.figures,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, look, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="rag-stack-kill-", ignore_cleanup_errors=True) as name:
        root = options.root or (Path(name) / "store").as_uri()
        victims: list[Victim] = [
            CatalogVictim(root, Path(name), seed=options.seed),
            UploadsVictim(root, Path(name), seed=options.seed),
            BuildsVictim(root, Path(name), seed=options.seed),
        ]
        rounds = kill(victims, count=options.rounds, seed=options.seed, tell=console)
    result = build_report(rounds, facts={"store": root.partition("://")[0], "seed": options.seed})
    for line in report.goal_lines(result):
        Console().print(line, highlight=False)
    report.write(result, draw(rounds), directory=options.results)
    return report.exit_code(result, arms_agree=not any(each.damage.lost or each.damage.inconsistent for each in rounds))


def kill(victims: Sequence[Victim], *, count: int, seed: int, tell: Console | None = None) -> list[Round]:
    """So many rounds of each victim."""
    moments, rounds = random.Random(seed), []
    for number in range(count):
        for victim in victims:
            began = time.perf_counter()
            killed = _kill(victim.start(number), moments, victim.longest_s)
            done = Round(number, victim.name, killed, time.perf_counter() - began, victim.check(number))
            rounds.append(done)
            if tell is None:
                continue
            for problem in (*done.damage.lost, *done.damage.inconsistent):
                tell.print(f"round {number}, {victim.name}: {problem}", style="red", markup=False)
            if number % 10 == 9:
                tell.log(f"{victim.name}: {number + 1} of {count} rounds")
    return rounds


def build_report(rounds: Sequence[Round], *, facts: Mapping[str, Value]) -> Report:
    """The figures over all rounds, and whether they are as they must be."""
    arms: dict[str, dict[str, Value | Sequence[float]]] = {}
    for name in dict.fromkeys(each.victim for each in rounds):
        own = [each for each in rounds if each.victim == name]
        keys = dict.fromkeys(key for each in own for key in each.damage.figures)
        sums = {key: sum(int(each.damage.figures.get(key) or 0) for each in own) for key in keys}
        arms[name] = {
            "rounds": len(own),
            "killed": sum(each.killed for each in own),
            "lost": sum(len(each.damage.lost) for each in own),
            "inconsistent": sum(len(each.damage.inconsistent) for each in own),
            **sums,
        }
    # A round in which nothing was killed shows nothing.
    counted = min((sum(each.killed > 0 for each in rounds if each.victim == name) for name in arms), default=0)
    return Report(
        name="kill",
        machine={**report.machine(), **facts},
        rounds=max((each.number + 1 for each in rounds), default=0),
        samples=[each.sample() for each in rounds],
        arms=arms,
        goals={
            "kill.rounds": Goal(counted, ">= 100"),
            "kill.lost": Goal(sum(len(each.damage.lost) for each in rounds), "<= 0"),
            "kill.inconsistent": Goal(sum(len(each.damage.inconsistent) for each in rounds), "<= 0"),
        },
    )


def draw(rounds: Sequence[Round]) -> Figure:
    """What was acknowledged before the kills, and what was lost of it: the line that stays at 0."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(each.victim for each in rounds):
        own = [each for each in rounds if each.victim == name]
        numbers, acknowledged, bad = [each.number + 1 for each in own], [0.0], [0.0]
        for each in own:
            acknowledged.append(acknowledged[-1] + float(each.damage.figures.get("acknowledged") or 0))
            bad.append(bad[-1] + len(each.damage.lost) + len(each.damage.inconsistent))
        axes.plot(numbers, acknowledged[1:], label=f"{name}: acknowledged")
        axes.plot(numbers, bad[1:], label=f"{name}: lost or inconsistent", linestyle="--")
    axes.set_xlabel("rounds, each with processes killed at random moments")
    axes.set_ylabel("sum so far")
    axes.legend(frameon=False)
    return figure


def _kill(processes: Sequence[BaseProcess], moments: random.Random, longest_s: float) -> int:
    began = time.perf_counter()
    deaths = sorted((moments.random() * longest_s, place) for place in range(len(processes)))
    killed = 0
    for after_s, place in deaths:
        process = processes[place]
        process.join(max(0.0, after_s - (time.perf_counter() - began)))
        killed += process.exitcode is None
        process.kill()
        process.join(_JOIN_S)
    return killed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--root", help="URL of an empty object store (default: a temporary directory)")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
