"""The engine's replicas as Serve's controller has them, and whose start it has ended because it wanted fewer. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, TypeAlias

ServeState: TypeAlias = Literal["starting", "running", "stopping"]

# Serve's own deployment in an engine's application; all others are engines.
_ROUTER: Final = "LLMRouter"
# It stays until another one runs in its place, beside those that are wanted.
_MIGRATING: Final = "PENDING_MIGRATION"
_STATES: Final[Mapping[str, ServeState]] = {"RUNNING": "running", _MIGRATING: "running", "STOPPING": "stopping"}


@dataclass(frozen=True, slots=True)
class Served:
    """Every replica that is not gone, by name, and how many that Serve does not stop there are to be."""

    replicas: Mapping[str, ServeState] = field(default_factory=dict)
    wanted: int = 0

    @classmethod
    def from_details(cls, details: Mapping[str, Any], application: str) -> Self:
        """What Serve's controller tells of all applications. One that it does not name has none, and wants none."""
        deployments = details.get("applications", {}).get(application, {}).get("deployments", {})
        engines = [deployment for name, deployment in deployments.items() if name != _ROUTER]
        told = {
            replica["replica_id"]: _text(replica["state"])
            for engine in engines
            for replica in engine.get("replicas", ())
        }
        migrating = sum(state == _MIGRATING for state in told.values())
        wanted = sum(engine.get("target_num_replicas", 0) for engine in engines) + migrating
        return cls({name: _STATES.get(state, "starting") for name, state in told.items()}, wanted)


def not_wanted(before: Served, now: Served, *, heard_of: Collection[str]) -> set[str]:
    """Those that were starting and that Serve has stopped since, because it wanted fewer than there were.

    A start that failed and one that was stopped look the same to who asks Serve for states. But a failed one is wanted
    still, and leaves a place to fill. Serve stops first what has not come so far that it was `heard_of`.
    """
    there = [name for name, state in before.replicas.items() if state != "stopping"]
    surplus = len(there) - min(before.wanted, now.wanted)
    ended = [name for name in there if now.replicas.get(name, "stopping") == "stopping"]
    starts = [name for name in ended if before.replicas[name] == "starting"]
    return set(sorted(starts, key=lambda name: name in heard_of)[: max(0, surplus)])


def _text(state: Any) -> str:  # noqa: ANN401 - an enumeration of Serve's or its name
    return str(getattr(state, "value", state))
