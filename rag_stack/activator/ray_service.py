"""What the fields of a RayService say: whether it serves, sleeps or is on the way from one to the other.

KubeRay 1.7: `spec.suspend: true` has the operator delete the RayClusters and Services; meanwhile the condition
`Suspending` is true, then `Suspended`. A suspension that has begun is carried through even if `suspend` is false
again; only then comes a new cluster. `Ready` is true while the Serve service has endpoints. A condition says of which
generation it is: one that is older than the wake says nothing about it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from rag_stack.activator.kube_api import Object

# Who suspended it. Without this mark it was not an activator, and no request undoes it.
SUSPENDED_BY: Final = "rag-stack.dev/suspended-by"
# The newest wakes, from the patch to Ready, in seconds.
WAKE_SECONDS: Final = "rag-stack.dev/wake-seconds"
_KEPT: Final = 16
_READY: Final = "Ready"
# The operator's conditions of a RayCluster have the kind before their names, those of a RayService have not: both are
# understood, since neither has been seen on a cluster.
_SUSPENDING: Final = ("Suspending", "RayServiceSuspending")
_SUSPENDED: Final = ("Suspended", "RayServiceSuspended")
# Reasons of Ready=False after which the operator does nothing more by itself. With this one it has refused an edit, and
# what was there serves on.
_REFUSED: Final = "ValidationFailed"
_HOPELESS: Final = frozenset({"InitializingTimeout", _REFUSED})


class Phase(StrEnum):
    """Where a RayService is."""

    UNKNOWN = "unknown"
    MISSING = "missing"
    SUSPENDED = "suspended"
    SUSPENDING = "suspending"
    WAKING = "waking"
    SERVING = "serving"


@dataclass(frozen=True, slots=True)
class Condition:
    """One of `status.conditions`."""

    true: bool
    reason: str
    message: str
    generation: int


@dataclass(frozen=True, slots=True)
class RayServiceView:
    """What the activator reads of a RayService."""

    uid: str
    version: str
    generation: int
    suspend: bool
    suspended_by: str
    wakes_s: tuple[float, ...]
    conditions: Mapping[str, Condition]
    endpoints: int = 0

    def phase(self, *, awake_since: int) -> Phase:
        """`awake_since` is the generation with which `suspend` became false."""
        if self.suspend:
            return Phase.SUSPENDED if self._is(_SUSPENDED) else Phase.SUSPENDING
        ready = self.conditions.get(_READY)
        if self._serves_as_before():
            return Phase.SERVING
        if self._is(_SUSPENDING) or ready is None or not ready.true or ready.generation < awake_since:
            return Phase.WAKING
        return Phase.SERVING

    def hopeless(self) -> str:
        """Why it will never serve as it is; empty while it may."""
        ready = self.conditions.get(_READY)
        if self.suspend or ready is None or ready.true or ready.reason not in _HOPELESS or self._serves_as_before():
            return ""
        return f"{ready.reason}: {ready.message}"

    def _serves_as_before(self) -> bool:
        ready = self.conditions.get(_READY)
        refused = ready is not None and not ready.true and ready.reason == _REFUSED
        return refused and self.endpoints > 0 and not self._is(_SUSPENDING)

    def _is(self, names: tuple[str, ...]) -> bool:
        return any(name in self.conditions and self.conditions[name].true for name in names)


def view_of(told: Object) -> RayServiceView:
    """The view of an object of the API."""
    metadata, spec, status = told["metadata"], told.get("spec") or {}, told.get("status") or {}
    notes = metadata.get("annotations") or {}
    seen = int(status.get("observedGeneration") or 0)
    return RayServiceView(
        uid=str(metadata.get("uid", "")),
        version=str(metadata.get("resourceVersion", "")),
        generation=int(metadata.get("generation") or 0),
        suspend=bool(spec.get("suspend", False)),
        suspended_by=str(notes.get(SUSPENDED_BY, "")),
        wakes_s=_seconds(str(notes.get(WAKE_SECONDS, ""))),
        conditions={each["type"]: _condition(each, seen) for each in status.get("conditions") or []},
        endpoints=int(status.get("numServeEndpoints") or 0),
    )


def suspend_patch(version: str, *, identity: str) -> Object:
    """Suspends it, if nothing of it has changed since `version`."""
    metadata = {"resourceVersion": version, "annotations": {SUSPENDED_BY: identity}}
    return {"metadata": metadata, "spec": {"suspend": True}}


def wake_patch() -> Object:
    """Wakes it, whatever else has changed."""
    return {"metadata": {"annotations": {SUSPENDED_BY: None}}, "spec": {"suspend": False}}


def unmark_patch() -> Object:
    """Takes away the mark of a suspension that somebody else has ended."""
    return {"metadata": {"annotations": {SUSPENDED_BY: None}}}


def measured_patch(wakes_s: tuple[float, ...], seconds: float) -> Object:
    """Keeps one more wake."""
    kept = ",".join(f"{each:.3f}" for each in (*wakes_s, seconds)[-_KEPT:])
    return {"metadata": {"annotations": {WAKE_SECONDS: kept}}}


def _condition(told: Mapping[str, Any], seen: int) -> Condition:
    return Condition(
        true=told.get("status") == "True",
        reason=str(told.get("reason", "")),
        message=str(told.get("message", "")),
        generation=int(told.get("observedGeneration") or seen),
    )


def _seconds(told: str) -> tuple[float, ...]:
    """Anybody may write an annotation: what is no number of seconds is left out."""
    found = []
    for part in told.split(","):
        try:
            seconds = float(part)
        except ValueError:
            continue
        if 0 < seconds < float("inf"):
            found.append(seconds)
    return tuple(found[-_KEPT:])
