"""The plan of a rollout: which version serves, which one takes over, and how far that is. The one object that moves.

    steady         `old` serves; there is no `new`. `reason` says how the last rollout ended
    canary         `new` takes `share` of the new conversations, `old` the others. In step -1 it has no share yet: it
                   starts and answers its canary questions
    promoting      `new` is what the release is from now on: `old` gets no new conversation, and goes
    rolling_back   `old` is what the release is from now on: `new` gets no new conversation, and goes

In all of them a version without a ready replica gets nothing, and the other one answers in its place: `share` is what
is wanted of two versions that can both answer. The promoted pointer follows the plan (see `rollout`): it names `goal`.

It is one JSON object at `releases/<name>/ROLLOUT`, replaced by compare-and-set. Times are Unix seconds by the clock of
whoever moved the plan.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from rag_stack.artifacts.manifest import ROLLOUT_NAME, canonical_json, check_address, parse_json_object
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.config import RolloutConfig, describe
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError, PromotionConflictError

State: TypeAlias = Literal["steady", "canary", "promoting", "rolling_back"]
Outcome: TypeAlias = Literal["promoted", "rolled_back", "replaced"]

# Ended rollouts that the plan remembers. Promotions are kept for good, in the promoted pointer's history.
MAX_ENDED: Final = 100
# The step in which a new version has no share yet.
FIRST_STEP: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A rollout that is over: from which version to which, how it ended and why, and at which step it was."""

    old: str
    new: str
    outcome: Outcome
    reason: str
    by: str
    step: int
    began_s: float
    ended_s: float

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """What the replicas of a release are to be. Made by `steady` or by the functions of `rollout` and `progress`.

    `rollout` is how this rollout goes, as it was applied: a coordinator that starts anew needs nothing but the plan.
    `by` is who began what goes on now. `revision` counts the moves, so no two plans of a name have the same bytes.
    """

    old: str
    new: str | None = None
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    state: State = "steady"
    step: int = FIRST_STEP
    began_s: float
    step_began_s: float
    reason: str = ""
    by: str = ""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    ended: tuple[Ended, ...] = ()
    revision: int = 0

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def goal(self) -> str:
        """The version that is, or is to be, promoted as things stand."""
        return self.new if self.state == "promoting" and self.new is not None else self.old

    @property
    def running(self) -> bool:
        """Whether a version is on its way in or out."""
        return self.state != "steady"

    @property
    def leaving(self) -> str | None:
        """The version whose replicas are to end; the plan becomes steady when the last one has."""
        return {"promoting": self.old, "rolling_back": self.new}.get(self.state)

    def shares(self) -> Mapping[str, float]:
        """The share of new conversations for each version that has, or may still have, replicas."""
        if self.new is None:
            return {self.old: 1.0}
        return {self.old: 1.0 - self.share, self.new: self.share}

    def to_json(self) -> dict[str, Any]:
        """As the object holds it, and over HTTP."""
        return {**asdict(self), "rollout": self.rollout.model_dump(mode="json")}

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes, *, url: str) -> "RolloutPlan":
        """Read a plan. Raises ArtifactCorruptError that names the `url`."""
        try:
            plan = _PLAN.validate_python(parse_json_object(data, what=url))
        except ValidationError as exc:
            raise _not_a_plan(url, describe(exc)) from exc
        if plan.running == (plan.new is None) or plan.new == plan.old:
            raise _not_a_plan(url, f"{plan.state} from {plan.old!r} to {plan.new!r}")
        return plan


_PLAN: Final = TypeAdapter(RolloutPlan)


def steady(version: str, *, now_s: float, reason: str = "", by: str = "") -> RolloutPlan:
    """The plan of a release that has one version and no rollout."""
    return RolloutPlan(old=version, began_s=now_s, step_began_s=now_s, reason=reason, by=by)


class RolloutStore:
    """The plan of one release in its object store."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        check_address("releases", name)
        self._store = store
        self._key = f"releases/{name}/{ROLLOUT_NAME}"
        self.name = name

    def read(self) -> RolloutPlan | None:
        """The plan; None before the first release of the name. Blocking. Raises ArtifactCorruptError."""
        return self._read()[0]

    def move(self, expected: RolloutPlan | None, following: RolloutPlan) -> RolloutPlan:
        """Replace the plan that is expected to be there (None: none); returns what is there now, with its revision.

        Of several who move it, exactly one wins. Blocking. Raises PromotionConflictError for the others: read again.
        """
        found, data = self._read()
        if found != expected:
            raise self._conflict(found)
        wanted = replace(following, revision=(found.revision if found else 0) + 1)
        try:
            self._store.compare_and_set(self._key, wanted.to_bytes(), expected=data)
        except PromotionConflictError as exc:
            # The answer to our own write may have been lost on its way.
            now = self.read()
            if now != wanted:
                raise self._conflict(now) from exc
        return wanted

    def _read(self) -> tuple[RolloutPlan | None, bytes | None]:
        try:
            data = self._store.read_bytes(self._key)
        except ArtifactNotFoundError:
            return None, None
        return RolloutPlan.from_bytes(data, url=f"{self._store.url}/{self._key}"), data

    def _conflict(self, found: RolloutPlan | None) -> PromotionConflictError:
        told = f"{found.state} from {found.old!r} to {found.new!r}" if found else "none"
        return PromotionConflictError(
            f"another writer moved the rollout of {self.name!r} first: now it is {told}; look at it and try again"
        )


def _not_a_plan(url: str, reason: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(
        f"{url} is not a rollout plan: {reason}; delete it, and `rag-stack release apply` writes it again"
    )
