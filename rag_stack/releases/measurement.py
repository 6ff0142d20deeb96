"""Where the figures of a storage plan come from: a running server, reports of load tests, or the kept starts."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rag_stack.errors import ConfigError
from rag_stack.releases.measured_start import MeasuredStart, Move, measured_start

_REPLICA: Final = "waited_s "
# What a report of `loadtests.coldstart` tells of the command and the client is no part of a replica's start.
_OTHERS: Final = ("command", "client")
_MOVING: Final = ("fetch ", "prefault ", "read weights ahead", "load weights")
_REPORTS: Final = "a card of GET /v1/models/{id}, or a report of loadtests.coldstart, fetch, fanin or weights"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Figures from one place. `fixed_s` is None where nothing told how long a start takes besides moving bytes."""

    where: str
    fixed_s: float | None
    moves: tuple[Move, ...] = ()

    def gb_per_s(self, tier: str) -> float | None:
        """The rate of a tier, over all that moved from it; None where nothing did."""
        size = sum(move.size_bytes for move in self.moves if move.tier == tier)
        seconds = sum(move.seconds for move in self.moves if move.tier == tier)
        return size / seconds / 1e9 if size and seconds > 0 else None


def of_starts(starts: Sequence[MeasuredStart], *, where: str) -> Measurement | None:
    """What starts of one label say together; None of none."""
    if not starts:
        return None
    fixed_s = statistics.median(start.fixed_s for start in starts)
    return Measurement(where, fixed_s, tuple(move for start in starts for move in start.moves))


def of_document(document: Mapping[str, Any], *, where: str) -> Measurement:
    """What a JSON document says. Raises ConfigError for one of another kind."""
    try:
        match document:
            case {"load": {"stages": _}}:
                return of_document(document["load"], where=where)
            case {"stages": _}:
                start = measured_start(document)
                return Measurement(where, start.fixed_s, start.moves)
            case {"name": "coldstart", "arms": arms}:
                return Measurement(where, _fixed_s(arms["cached"]))
            case {"name": "fetch", "arms": arms}:
                return Measurement(where, None, (_move("origin", arms["rag_stack"]),))
            case {"name": "fanin", "arms": arms}:
                return Measurement(f"{where}, all nodes on one machine", None, _fanin(arms))
            case {"name": "weights", "arms": arms}:
                moves = (_move("engine", arms["ours second"]), _move("disk", arms["sequential"]))
                return Measurement(where, None, moves)
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigError(f"{where} lacks {exc}; expected {_REPORTS}") from exc
    raise ConfigError(f"{where} says nothing of a start; expected {_REPORTS}")


def _fixed_s(arm: Mapping[str, float]) -> float:
    """The replica's start with a filled cache, without the stages that move bytes."""
    stages = {key.removeprefix(_REPLICA): value for key, value in arm.items() if key.startswith(_REPLICA)}
    fixed_s = float(arm["replica_s"]) * float(arm["replica_unnamed_share"])
    for stage, seconds in stages.items():
        process, _, name = stage.partition(": ")
        if process not in _OTHERS and not name.startswith(_MOVING):
            fixed_s += seconds
    return fixed_s


def _fanin(arms: Mapping[str, Mapping[str, float]]) -> tuple[Move, ...]:
    """The origin for one node; peers where most nodes fetched at once, each of which had its share from them."""
    most = max((name for name in arms if name.endswith(" x 1") and arms[name]["peer_bytes"] > 0), key=_nodes)
    arm = arms[most]
    return _move("origin", arms["1 x 1"]), Move("peer", round(arm["peer_bytes"] / _nodes(most)), float(arm["seconds"]))


def _nodes(arm: str) -> int:
    return int(arm.partition(" ")[0])


def _move(tier: str, arm: Mapping[str, float]) -> Move:
    seconds = float(arm["seconds"])
    return Move(tier, round(arm["gb_per_s"] * seconds * 1e9), seconds)
