"""What the activators' Lease says: who holds it, who lives and is quiet, whether one of them suspends.

Times are never compared between machines: what counts is for how long, by its own clock, an activator has seen
something unchanged.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rag_stack.activator.kube_api import Object

ACTIVATORS: Final = "rag-stack.dev/activators"
SUSPENDING: Final = "rag-stack.dev/suspending"
# Longer than the calls that a suspension consists of can take.
SUSPENDING_S: Final = 30.0


@dataclass(slots=True)
class Notes:
    """What the annotations say, to be changed and written back. `activators` are those that live, each with its state.

    `suspending` names who suspends now, and is empty while nobody does.
    """

    activators: dict[str, dict[str, Any]]
    suspending: str

    def all_quiet(self) -> bool:
        """Whether nobody would mind a suspension."""
        return all(state.get("quiet") is True for state in self.activators.values())

    def write(self, lease: Object) -> None:
        """Into the Lease's annotations."""
        told = {ACTIVATORS: json.dumps(self.activators, sort_keys=True), SUSPENDING: self.suspending}
        metadata = lease["metadata"]
        metadata["annotations"] = {**(metadata.get("annotations") or {}), **told}


class LeaseReader:
    """Reads the Lease again and again, and remembers since when each thing in it is as it is."""

    def __init__(
        self, *, identity: str, lease_s: float, idle_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._identity = identity
        self._lease_s = lease_s
        self._idle_s = idle_s
        self._clock = clock
        self._seen: dict[str, tuple[Any, float]] = {}

    def notes(self, lease: Object) -> Notes:
        """Of the others alone. One that went without being quiet has had requests, and counts for `idle_s` more."""
        told = lease["metadata"].get("annotations") or {}
        living: dict[str, dict[str, Any]] = {}
        for name, state in _objects(told.get(ACTIVATORS) or "").items():
            gone_s = 3 * self._lease_s
            limit_s = gone_s if state.get("quiet") is True else max(gone_s, self._idle_s)
            if name != self._identity and self._unchanged_s(f"activator {name}", state) < limit_s:
                living[name] = state
        suspending = str(told.get(SUSPENDING) or "")
        if suspending and self._unchanged_s("suspending", suspending) >= SUSPENDING_S:
            suspending = ""  # whoever began it is gone
        return Notes(living, suspending)

    def take(self, lease: Object) -> bool:
        """Make it this activator's, if it is already, or nobody's, or its holder does not renew it. Whether it is."""
        spec = lease.setdefault("spec", {})
        holder = str(spec.get("holderIdentity") or "")
        unchanged_s = self._unchanged_s("holder", (holder, spec.get("renewTime")))
        if holder not in ("", self._identity) and unchanged_s < self._lease_s:
            return False
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        if holder != self._identity:
            spec.update(acquireTime=now, leaseTransitions=int(spec.get("leaseTransitions") or 0) + 1)
        spec.update(holderIdentity=self._identity, leaseDurationSeconds=max(1, int(self._lease_s)), renewTime=now)
        return True

    def release(self, lease: Object) -> None:
        """Nobody's, if it was this activator's."""
        spec = lease.setdefault("spec", {})
        if spec.get("holderIdentity") == self._identity:
            spec["holderIdentity"] = ""

    def _unchanged_s(self, what: str, value: object) -> float:
        known, since_s = self._seen.get(what, (None, 0.0))
        if known != value:
            since_s = self._clock()
            self._seen[what] = (value, since_s)
        return self._clock() - since_s


def new_lease(name: str) -> Object:
    """One that is not there yet."""
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}


def _objects(told: str) -> dict[str, dict[str, Any]]:
    """Anybody may write an annotation: what is not as an activator writes it is left out."""
    try:
        found = json.loads(told or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): state for name, state in found.items() if isinstance(state, dict)}
