"""What may not happen while things are killed: the invariants, checked on what clients saw and what processes hold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.chaos_client import Asked
from loadtests.chaos_processes import Footprint
from loadtests.chaos_schedule import BREAKS_STREAMS

# A killed process's connections end at once, and who reads them may hear of it a little later.
_HEARD_S: Final = 2.0
# What a process may have gained at the end: caches of the allocator, pools that have grown to their bounds.
_MEMORY_RATIO: Final = 1.25
_MEMORY_BYTES: Final = 64 << 20
_DESCRIPTORS_RATIO: Final = 1.25
_DESCRIPTORS: Final = 16


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was carried out: seconds of the monotonic clock, and until when it lasted."""

    number: int
    name: str
    began_s: float
    ended_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that was broken, when, and what was seen."""

    rule: str
    at_s: float
    detail: str


@dataclass(frozen=True, slots=True)
class Promoted:
    """From when on a version was the promoted one."""

    version: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Held:
    """What the cluster holds at one time: by role, and the names in shared memory and the pins by artifact."""

    footprints: Mapping[str, Footprint]
    shared_memory: frozenset[str]
    pinned: frozenset[str]
    corrupt: tuple[str, ...] = ()


def of_answers(
    asked: Iterable[Asked], struck: Sequence[Struck], promoted: Sequence[Promoted], *, swap_s: float
) -> list[Violation]:
    """What no client may see. A stream may break only when a fault took the process away that carried it."""
    found: list[Violation] = []
    for each in asked:
        match each.ending:
            case "gave up":
                found.append(Violation("dropped", each.ended_s, f"{each.kind}: {' | '.join(each.failures)}"))
            case "silent" | "wrong":
                found.append(Violation(each.ending, each.ended_s, f"{each.kind}: {each.detail}"))
            case "broken" | "error frame" if excuse(each, struck) is None:
                found.append(Violation(each.ending, each.ended_s, f"{each.kind}: {each.detail}"))
            case "ok" if each.version and each.version not in may_answer(each, promoted, swap_s=swap_s):
                found.append(Violation("version", each.ended_s, f"{each.kind}: answered from {each.version}"))
    return found


def excuse(each: Asked, struck: Sequence[Struck]) -> str | None:
    """The fault that took a stream's process away, if one did."""
    for fault in struck:
        if fault.name in BREAKS_STREAMS and each.during(fault.began_s, fault.ended_s + _HEARD_S):
            return fault.name
    return None


def may_answer(each: Asked, promoted: Sequence[Promoted], *, swap_s: float) -> set[str]:
    """The versions that an answer may be from: each that was promoted while it was under way, or `swap_s` before."""
    ends = [*(later.at_s for later in promoted[1:]), float("inf")]
    return {
        version.version
        for version, until_s in zip(promoted, ends, strict=True)
        if version.at_s <= each.ended_s and until_s + swap_s >= each.began_s
    }


def of_what_is_held(before: Held, after: Held, *, at_s: float) -> list[Violation]:
    """What is left behind at the end, by kind of process: of memory and descriptors as much a process as before."""
    found = [Violation("unverified", at_s, name) for name in after.corrupt]
    for role, now in after.footprints.items():
        then = before.footprints.get(role)
        if then is None or not then.processes or not now.processes:
            continue
        memory = now.memory_bytes / now.processes, then.memory_bytes / then.processes
        if memory[0] > memory[1] * _MEMORY_RATIO + _MEMORY_BYTES:
            told = f"{role}: {memory[0] / 1e6:.0f} MB a process, {memory[1] / 1e6:.0f} before"
            found.append(Violation("memory", at_s, told))
        files = now.descriptors / now.processes, then.descriptors / then.processes
        if files[0] > files[1] * _DESCRIPTORS_RATIO + _DESCRIPTORS:
            found.append(Violation("descriptors", at_s, f"{role}: {files[0]:.0f} a process, {files[1]:.0f} before"))
    found += [Violation("processes", at_s, each) for each in _multiplied(before.footprints, after.footprints)]
    if left := sorted(after.shared_memory - before.shared_memory):
        found.append(Violation("shared memory", at_s, ", ".join(left[:10])))
    if left := sorted(after.pinned - before.pinned):
        found.append(Violation("pins", at_s, ", ".join(left[:10])))
    return found


# Each of these there is a fixed number of; more of them is one that was replaced and did not end.
_COUNTED: Final = ("haproxy", "manager", "proxy", "controller", "ledger", "router", "search", "models", "admin")


def _multiplied(before: Mapping[str, Footprint], after: Mapping[str, Footprint]) -> list[str]:
    told = []
    for role in _COUNTED:
        then, now = (each[role].processes if role in each else 0 for each in (before, after))
        if now != then:
            told.append(f"{role}: {now} processes, {then} before")
    return told
