"""Which published versions are still needed, by whom, and the deletion of the others.

All ages are by the store's clock: that of an object written now against those of the objects in question. Clocks of
the machines that publish, serve and collect may be wrong.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from rag_stack.artifacts.address import claim_key, manifest_key
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.deletion import Deletion
from rag_stack.artifacts.hold import Hold, Holds
from rag_stack.artifacts.manifest import (
    RESERVED_NAMES,
    ROLLOUT_NAME,
    ArtifactKind,
    ArtifactRef,
    Manifest,
    check_address,
    parse_json_object,
)
from rag_stack.artifacts.object_store import ObjectEntry
from rag_stack.artifacts.point import Points
from rag_stack.artifacts.promotion import PointerState
from rag_stack.config import is_name
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    ArtifactOutdatedError,
    InvalidRequestError,
    PromotionConflictError,
)

KEEP: Final = 5
# Where the manifest of a release lists what it pins.
PINS_KEY: Final = "pins"
OLDER_THAN_S: Final = 7 * 86400.0
# A build that has published a version and is about to promote it.
_GRACE_S: Final = 3600.0
_LEASE_S: Final = 86400.0
# Where no lock tells whether a publisher is alive: longer than any upload of one file takes.
_LEAVINGS_S: Final = 86400.0
# A century; what is far beyond it is no difference between two dates.
_MAX_AGE_S: Final = 100 * 365 * 86400.0
_DURATION: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhdw]?)")
_UNIT_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a version: deleted, or kept for the `reasons`. `published` is false for a killed publish."""

    ref: ArtifactRef
    published: bool
    size_bytes: int
    reasons: tuple[str, ...]

    @property
    def deleted(self) -> bool:
        """Whether nobody needed it."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """For scripts and over HTTP."""
        told = {"ref": str(self.ref), "version": self.ref.version, "published": self.published}
        return {**told, "size_bytes": self.size_bytes, "reasons": list(self.reasons)}


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did, or would do in a dry run."""

    verdicts: tuple[Verdict, ...]
    dry_run: bool

    @property
    def deleted(self) -> tuple[Verdict, ...]:
        """The versions and leavings that are gone, or would be."""
        return tuple(each for each in self.verdicts if each.deleted)

    @property
    def kept(self) -> tuple[Verdict, ...]:
        """Those that stay, with the reasons."""
        return tuple(each for each in self.verdicts if not each.deleted)

    @property
    def freed_bytes(self) -> int:
        """The bytes of what is deleted."""
        return sum(each.size_bytes for each in self.deleted)

    def to_json(self) -> dict[str, Any]:
        """For scripts and over HTTP."""
        return {
            "dry_run": self.dry_run,
            "deleted": [each.to_json() for each in self.deleted],
            "kept": [each.to_json() for each in self.kept],
            "freed_bytes": self.freed_bytes,
        }


class Retention:
    """Holds versions for those who need them, and deletes what nobody holds."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        grace_s: float = _GRACE_S,
        lease_s: float = _LEASE_S,
        leavings_s: float = _LEAVINGS_S,
    ) -> None:
        self.catalog = catalog
        self._store = catalog.store
        self._pins = Holds(catalog.store, "pins")
        self._leases = Holds(catalog.store, "leases")
        self._grace = timedelta(seconds=grace_s)
        self._lease = timedelta(seconds=lease_s)
        self._leavings = timedelta(seconds=leavings_s)

    def pin(self, release: str, refs: Sequence[ArtifactRef]) -> None:
        """Hold what a release serves until its next `pin`, or `unpin`; it replaces what the release held.

        Raises ArtifactNotFoundError when a version is not there, PromotionConflictError while one is being deleted:
        then this pin may have come too late.
        """
        self._pins.put(release, refs)
        self.require(refs, holder=f"release {release!r}")

    def require(self, refs: Sequence[ArtifactRef], *, holder: str) -> None:
        """Raise for what is not there, or not for long any more, after it was written down that it is needed.

        Raises ArtifactNotFoundError, or PromotionConflictError while a version is being deleted.
        """
        for kind, name in sorted({(ref.kind, ref.name) for ref in refs}):
            condemned = self.catalog.state(kind, name)[0].condemned
            for ref in refs:
                if (ref.kind, ref.name) == (kind, name) and ref.version in condemned:
                    raise PromotionConflictError(
                        f"{str(ref)!r} is being deleted by `rag-stack index gc`; {holder} holds it now, so "
                        "start again: if it is not there then, publish it again"
                    )
        for ref in refs:
            if not self._store.exists(manifest_key(ref)):
                raise ArtifactNotFoundError(f"no artifact {str(ref)!r} in {self._store.url}; publish it again")

    def unpin(self, release: str) -> None:
        """Let go of what a release holds; again does nothing."""
        self._pins.drop(release)

    def pinned(self, release: str) -> tuple[str, ...]:
        """What a release holds. Raises ArtifactCorruptError for a damaged pin, which `unpin` removes all the same."""
        return self._pins.of(release)

    def pins(self) -> list[Hold]:
        """What the releases hold."""
        return self._pins.all()

    def lease(self, holder: str, refs: Sequence[ArtifactRef]) -> None:
        """Hold the versions that a running process has mapped, for 24 hours; again renews, and replaces what it held.

        Write it before the versions are fetched. One that is deleted at this moment is not found by the fetch.
        """
        self._leases.put(holder, refs)

    def release(self, holder: str) -> None:
        """Let go of what a process holds; again does nothing."""
        self._leases.drop(holder)

    def leases(self) -> list[Hold]:
        """What running processes hold, also leases that have run out since the last collection."""
        return self._leases.all()

    def end_leases(self, now: datetime) -> None:
        """Remove the leases that have run out at this time of the store's clock."""
        self._leases.drop_older(now - self._lease)

    def collect(
        self,
        kind: ArtifactKind,
        name: str | None = None,
        *,
        keep: int = KEEP,
        older_than_s: float = OLDER_THAN_S,
        dry_run: bool = False,
    ) -> Collected:
        """Delete the versions of a name, or of all names, that nobody needs, and what killed publishers left.

        Kept are: what is promoted and what a rollback would bring back, the `keep` versions promoted last, what a
        release pins or a process leases, what a backup point or a release version names, a model that an index was
        built with, what is in a rollout's plan, and all that is younger than `older_than_s`, but at least the grace
        period. Leases that have run out are removed. Blocking. Raises ArtifactError, on a store that cannot compare and
        set too: nothing is promoted there either.
        """
        if keep < 0 or not 0 <= older_than_s <= _MAX_AGE_S:
            raise InvalidRequestError(
                f"keep must not be negative and older_than 0 to {_MAX_AGE_S:.0f} seconds, got {keep} and {older_than_s}"
            )
        if name is not None:
            check_address(kind, name)
        names = self._store.list_names(kind) if name is None else [name]
        now = self._store.now()
        if not dry_run:
            self.end_leases(now)
        run = _Run(self, now, keep, max(timedelta(seconds=older_than_s), self._grace))
        verdicts = []
        for each in filter(is_name, names):
            if not dry_run:
                run.clear(kind, each)
            verdicts += [run.judge(ref, dry_run=dry_run) for ref in self._refs(kind, each)]
        return Collected(tuple(verdict for verdict in verdicts if verdict is not None), dry_run)

    def _refs(self, kind: ArtifactKind, name: str) -> list[ArtifactRef]:
        found = self._store.list_names(f"{kind}/{name}")
        return [
            ArtifactRef(kind, name, version) for version in found if is_name(version) and version not in RESERVED_NAMES
        ]


@dataclass(frozen=True, slots=True)
class _Holds:
    leases: Sequence[Hold]
    pins: Sequence[Hold]
    points: Sequence[Hold]


class _Run:
    """One collection."""

    def __init__(self, retention: Retention, now: datetime, keep: int, older_than: timedelta) -> None:
        self._retention = retention
        self._catalog = retention.catalog
        self._store = retention.catalog.store
        self._now = now
        self._keep = keep
        self._older_than = older_than
        self._deletion = Deletion(self._catalog, now=now)
        self._points = Points(self._store)
        # Good enough for a first look. Before anything is deleted they are read again: see Deletion.
        self._holds = self._read_holds()

    def clear(self, kind: ArtifactKind, name: str) -> None:
        """End what killed runs have begun with a name."""
        self._deletion.clear(kind, name)

    def judge(self, ref: ArtifactRef, *, dry_run: bool) -> Verdict | None:
        """Delete a version if nobody needs it. None when there is nothing of it."""
        entries = self._store.entries(str(ref))
        if not entries:
            return None
        published = any(entry.key == manifest_key(ref) for entry in entries)
        reasons = self._reasons(ref, self._catalog.state(ref.kind, ref.name)[0], self._holds)
        if not reasons and not dry_run:
            reasons = self._deletion.delete(ref, lambda state: self._reasons(ref, state, self._read_holds()))
        return Verdict(ref, published, sum(entry.size_bytes for entry in entries), reasons)

    def _reasons(self, ref: ArtifactRef, state: PointerState, holds: _Holds) -> tuple[str, ...]:
        """Why a version is needed, from what is written down now."""
        entries = {entry.key: entry for entry in self._store.entries(str(ref))}
        manifest, claim = entries.get(manifest_key(ref)), entries.get(claim_key(ref))
        reasons = self._claimed(claim)
        if manifest is None:
            # What is no version any more is neither gone back to nor held by a pin that came too late; but whoever has
            # lost the manifest of what is promoted will want the rest.
            promoted = state.pointer is not None and state.pointer.version == ref.version
            reasons += ["promoted"] if promoted else self._unfinished(list(entries.values()))
        else:
            reasons += [*self._promotions(ref, state), *self._held(ref, holds)]
            if self._age(manifest) <= self._older_than:
                reasons.append(f"younger than {duration(self._older_than)}")
        if ref.kind == "releases":
            reasons += self._planned(ref)
        elif not reasons and manifest is not None:
            reasons += self._released(ref)
        if not reasons and ref.kind == "models" and manifest is not None:
            reasons += self._embeds(ref)
        return tuple(reasons)

    def _promotions(self, ref: ArtifactRef, state: PointerState) -> list[str]:
        pointer = state.pointer
        if pointer is None:
            return []
        reasons = []
        if ref.version == pointer.version:
            reasons.append("promoted")
        if ref.version == pointer.previous:
            reasons.append("what a rollback goes back to")
        recent = list(dict.fromkeys(each.version for each in reversed(pointer.promotions)))
        if len(recent) < self._keep and pointer.archived:
            history = self._catalog.history(ref.kind, ref.name)
            recent = list(dict.fromkeys(each.version for each in reversed(history)))
        if ref.version in recent[: self._keep]:
            reasons.append(f"one of the {self._keep} promoted last")
        return reasons

    def _read_holds(self) -> _Holds:
        # Leases first: a backup lets go of its lease once its point is there, so one of the two is seen.
        leases = self._retention.leases()
        return _Holds(leases, self._retention.pins(), self._points.holds())

    def _held(self, ref: ArtifactRef, holds: _Holds) -> list[str]:
        pins = [f"pinned by release {hold.owner}" for hold in holds.pins if str(ref) in hold.refs]
        leases = [hold for hold in holds.leases if str(ref) in hold.refs]
        live = [hold for hold in leases if self._now - hold.renewed_at <= self._retention._lease]
        points = [f"in the backup point {hold.owner}" for hold in holds.points if str(ref) in hold.refs]
        return [*pins, *(f"in use by {hold.owner}" for hold in live), *points]

    def _claimed(self, claim: ObjectEntry | None) -> list[str]:
        # On file:// the publishers' lock is asked, which knows: a claim may be that of a dead one.
        if claim is None or self._store.has_locks or self._age(claim) > self._retention._leavings:
            return []
        return ["perhaps being published"]

    def _unfinished(self, entries: list[ObjectEntry]) -> list[str]:
        least = self._retention._grace if self._store.has_locks else self._retention._leavings
        youngest = min((self._age(entry) for entry in entries), default=least + least)
        return [] if youngest > least else [f"left by a publish, and younger than {duration(least)}"]

    def _planned(self, ref: ArtifactRef) -> list[str]:
        """A rollout goes from one version to another, of which one at most is promoted."""
        key = f"{ref.kind}/{ref.name}/{ROLLOUT_NAME}"
        try:
            plan = parse_json_object(self._store.read_bytes(key), what=key)
        except ArtifactNotFoundError:
            return []
        return ["in the plan of a rollout"] if ref.version in (plan.get("old"), plan.get("new")) else []

    def _released(self, ref: ArtifactRef) -> list[str]:
        """A release version needs what it pins for as long as it is there itself."""
        for release in self._manifests("releases"):
            if str(ref) in release.metadata.get(PINS_KEY, ()):
                return [f"pinned by {release.ref}"]
        return []

    def _manifests(self, kind: ArtifactKind) -> Iterator[Manifest]:
        """All that can be read; what cannot does not stop a collection."""
        for name in self._catalog.names(kind):
            for version in self._catalog.versions(kind, name):
                with suppress(ArtifactNotFoundError, ArtifactCorruptError, ArtifactOutdatedError):
                    yield self._catalog.manifest(ArtifactRef(kind, name, version))

    def _embeds(self, ref: ArtifactRef) -> list[str]:
        """An index version can be searched only with the model that made its vectors."""
        try:
            digest = self._catalog.manifest(ref).digest
        except (ArtifactNotFoundError, ArtifactCorruptError, ArtifactOutdatedError):
            return []
        for index in self._manifests("indexes"):
            embedder = index.metadata.get("embedder")
            if isinstance(embedder, dict) and embedder.get("digest") == digest:
                return [f"{index.ref} was built with it"]
        return []

    def _age(self, entry: ObjectEntry) -> timedelta:
        return self._now - entry.modified_at


def seconds_of(text: str) -> float:
    """Seconds of a duration such as 90, 30m, 12h, 7d or 2w. Raises InvalidRequestError."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None:
        raise InvalidRequestError(f"{text[:40]!r} is no duration: expected a number with s, m, h, d or w, such as 7d")
    return float(match.group(1)) * _UNIT_S[match.group(2)]


def duration(value: timedelta) -> str:
    """A duration for people: 45 s, 1 h, 7 d."""
    seconds = value.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"
