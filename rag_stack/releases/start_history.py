"""How long starts took, kept beside the artifacts: what the autoscaler looks ahead by and `Retry-After` is made of.

One small object a release's name, `starts/<name>.json`, written by the application behind /v1/models alone. Versions of
the release that start alike share a label; each start is kept under that of the version that the replica took.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.config import Release
from rag_stack.errors import ArtifactNotFoundError
from rag_stack.releases.measured_start import MeasuredStart, Move

KEPT: Final = 64
_CACHE: Final = "cache"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a replica: of what (see `label_of`), from where its weights came, when it was ready, how long.

    `measured` is what another start can be reckoned from; None where an older rag_stack has kept it.
    """

    label: str
    tier: str
    ready_at: float
    seconds: float
    measured: MeasuredStart | None = None


@dataclass(frozen=True, slots=True)
class LoadTime:
    """What starts took, of `count` of them."""

    p50_s: float
    p90_s: float
    count: int


@dataclass(frozen=True, slots=True)
class StartHistory:
    """The newest starts of each label and tier, at most 64, and of at most 64 pairs."""

    starts: tuple[Start, ...] = ()

    def with_start(self, start: Start) -> Self:
        """One more. The same start told twice counts once."""
        if any(start.label == each.label and start.ready_at == each.ready_at for each in self.starts):
            return self
        kept: dict[tuple[str, str], list[Start]] = {}
        for each in sorted((*self.starts, start), key=lambda each: each.ready_at):
            kept.setdefault((each.label, each.tier), []).append(each)
        newest = sorted(kept.values(), key=lambda group: group[-1].ready_at)[-KEPT:]
        return type(self)(tuple(each for group in newest for each in group[-KEPT:]))

    def load_time(self, label: str, tier: str | None = None) -> LoadTime | None:
        """Of one tier, or of the tier of the newest start; None where nothing is known."""
        own = [each for each in self.starts if each.label == label]
        if not own:
            return None
        tier = max(own, key=lambda each: each.ready_at).tier if tier is None else tier
        seconds = sorted(each.seconds for each in own if each.tier == tier)
        if not seconds:
            return None
        return LoadTime(_quantile(seconds, 0.5), _quantile(seconds, 0.9), len(seconds))

    def measured(self, label: str) -> tuple[MeasuredStart, ...]:
        """What is known of the starts of a label, the newest first."""
        own = sorted((each for each in self.starts if each.label == label), key=lambda each: -each.ready_at)
        return tuple(each.measured for each in own if each.measured is not None)

    def to_json(self) -> bytes:
        """As it is kept."""
        return json.dumps({"starts": [asdict(each) for each in self.starts]}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What `to_json` gave. Raises ValueError for anything else."""
        try:
            return cls(tuple(_start(each) for each in json.loads(data)["starts"]))
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError("not a history of starts") from exc


def label_of(release: Release) -> str:
    """What decides how long a start takes: weights, engine settings and whether a process is kept ready."""
    told = {
        "model": release.model.model_dump(mode="json"),
        "engine": release.engine,
        "engine_env": release.engine_env,
        "standby": release.wake.standby,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tier_of(card: Mapping[str, Any]) -> str:
    """From where a start had its weights, by its card at /v1/models: a peer, the store, or this node's cache."""
    sources = [stage.get("source", "") for stage in card["stages"] if stage.get("kind") == "models"]
    return next((source for source in sources if source not in ("", _CACHE)), _CACHE)


def read_history(store: ObjectStore, name: str) -> StartHistory:
    """What is kept of a release's name; empty where nothing is, or nothing that can be read. Blocking.

    Raises ArtifactError when the store does not answer.
    """
    try:
        return StartHistory.from_json(store.read_bytes(_key(name)))
    except (ArtifactNotFoundError, ValueError):
        return StartHistory()


def write_history(store: ObjectStore, name: str, history: StartHistory) -> None:
    """Keep it. Blocking. Raises ArtifactError."""
    store.put_bytes(_key(name), history.to_json())


def _key(name: str) -> str:
    return f"starts/{name}.json"


def _start(fields: Mapping[str, Any]) -> Start:
    label, tier = str(fields["label"]), str(fields["tier"])
    return Start(label, tier, float(fields["ready_at"]), float(fields["seconds"]), _measured(fields.get("measured")))


def _measured(fields: Mapping[str, Any] | None) -> MeasuredStart | None:
    if fields is None:
        return None
    moves = (Move(str(each["tier"]), int(each["size_bytes"]), float(each["seconds"])) for each in fields["moves"])
    return MeasuredStart(float(fields["fixed_s"]), tuple(moves))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
