"""What a start took, as far as another start can be reckoned from it: bytes moved between tiers, and all the rest."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

# By a stage's source, as GET /v1/models/{id} tells it.
_TIERS: Final[Mapping[str, str]] = {"object_store": "origin", "peer": "peer", "mirror": "mirror", "disk": "disk"}
# The stage in which the engine takes the weights from memory; its source names the loader.
_ENGINE_STAGE: Final = "load weights"


@dataclass(frozen=True, slots=True)
class Move:
    """Bytes that came from a tier in a time: `origin`, `peer`, `mirror`, `disk`, or memory into the `engine`."""

    tier: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MeasuredStart:
    """`fixed_s` passed in what depends on no artifact's size: imports, the engine's set-up, the first token."""

    fixed_s: float
    moves: tuple[Move, ...] = ()


def measured_start(card: Mapping[str, Any]) -> MeasuredStart:
    """From a card of a start, which is `load` of GET /v1/models/{id}.

    A move counts with all its seconds, also those in which the start waited for something else: that is its rate.
    """
    fixed_s, moves = float(card.get("unnamed_seconds", 0.0)), []
    for stage in card["stages"]:
        if (tier := _tier(stage)) is not None:
            moves.append(Move(tier, int(stage["size_bytes"]), float(stage["seconds"])))
        else:
            fixed_s += float(stage.get("critical_seconds", 0.0))
    return MeasuredStart(fixed_s, _by_tier(moves))


def _tier(stage: Mapping[str, Any]) -> str | None:
    if not stage.get("kind") or not stage.get("size_bytes"):
        return None
    return "engine" if stage["name"] == _ENGINE_STAGE else _TIERS.get(stage.get("source", ""))


def _by_tier(moves: Iterable[Move]) -> tuple[Move, ...]:
    """One a tier: a large artifact then weighs as much as it moved."""
    found: dict[str, Move] = {}
    for move in moves:
        known = found.get(move.tier, Move(move.tier, 0, 0.0))
        found[move.tier] = Move(move.tier, known.size_bytes + move.size_bytes, known.seconds + move.seconds)
    return tuple(found[tier] for tier in sorted(found))
