"""The engine's replicas as Serve's controller has them, and whose start has ended though it did not fail. Pure."""

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
    """Every replica that is not gone, by name, and how many that Serve does not stop there are to be.

    `nodes` names the node of each replica that has one, and `active_nodes` those that are alive and do not drain.
    """

    replicas: Mapping[str, ServeState] = field(default_factory=dict)
    wanted: int = 0
    nodes: Mapping[str, str] = field(default_factory=dict)
    active_nodes: Collection[str] = ()

    @classmethod
    def from_details(cls, details: Mapping[str, Any], application: str, *, active_nodes: Collection[str] = ()) -> Self:
        """What Serve's controller tells of all applications. One that it does not name has none, and wants none."""
        deployments = details.get("applications", {}).get(application, {}).get("deployments", {})
        engines = [deployment for name, deployment in deployments.items() if name != _ROUTER]
        told = {replica["replica_id"]: replica for engine in engines for replica in engine.get("replicas", ())}
        states = {name: _text(replica["state"]) for name, replica in told.items()}
        migrating = sum(state == _MIGRATING for state in states.values())
        return cls(
            {name: _STATES.get(state, "starting") for name, state in states.items()},
            sum(engine.get("target_num_replicas", 0) for engine in engines) + migrating,
            {name: node for name, replica in told.items() if (node := replica.get("node_id"))},
            active_nodes,
        )


def not_failed(before: Served, now: Served, *, heard_of: Collection[str]) -> set[str]:
    """Those that were starting and have ended since, because their node goes, or because Serve wanted fewer.

    A start that failed and one that was stopped look the same to who asks Serve for states, and one whose engine loads
    cannot say which it is. But a failed one's node stays, it is wanted still, and it leaves a place to fill. Serve
    stops first what has not come so far that it was `heard_of`.
    """
    starts = [
        name
        for name, state in before.replicas.items()
        if state == "starting" and now.replicas.get(name, "stopping") == "stopping"
    ]
    left_behind = {name for name in starts if _goes(now.nodes.get(name) or before.nodes.get(name), now.active_nodes)}
    surplus = sum(state != "stopping" for state in before.replicas.values()) - len(left_behind)
    surplus -= min(before.wanted, now.wanted)
    others = sorted((name for name in starts if name not in left_behind), key=lambda name: name in heard_of)
    return left_behind | set(others[: max(0, surplus)])


def _goes(node: str | None, active_nodes: Collection[str]) -> bool:
    return node is not None and node not in active_nodes


def _text(state: Any) -> str:  # noqa: ANN401 - an enumeration of Serve's or its name
    return str(getattr(state, "value", state))
