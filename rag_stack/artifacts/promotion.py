"""What the promoted pointer holds: the version that is promoted, how it came to that, and what is being deleted.

    {"version": ..., "digest": ..., "previous": ..., "promoted_at": ..., "by": ..., "reason": ..., "forced": ...,
     "number": 7, "back": 6, "restores": null, "id": ...,     the last promotion
     "earlier": [{... "number": 1}, ... {... "number": 6}],   those before it, without a gap; the oldest may be archived
     "condemned": {"v1": {"by": ..., "at": ...}},             versions that are being deleted, and cannot be promoted
     "revision": 9}                                           one more with every write: no two have the same bytes

It is one object, moved by compare-and-set, so that promotions and deletions of one name are in one order: that of the
revisions. Promotions are ordered by their number and never by their time, which is the promoter's clock's.
"""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from rag_stack.artifacts.manifest import canonical_json, parse_json_object
from rag_stack.config import Digest, describe
from rag_stack.errors import ArtifactCorruptError, InvalidRequestError

# What an archive object holds, and what the pointer keeps at most. Both are part of the format: an archive object's
# name follows from the number of its first promotion.
ARCHIVE_PROMOTIONS: Final = 50
POINTER_PROMOTIONS: Final = 2 * ARCHIVE_PROMOTIONS
MAX_REASON_CHARS: Final = 1000
MAX_BY_CHARS: Final = 200

Count = Annotated[int, Field(strict=True, ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """One move of a promoted pointer.

    `number` counts the promotions of a name from 1. `previous` is the version to which a rollback from here goes, and
    `back` the promotion that brought it; a rollback `restores` that one. `promoted_at` is ISO 8601, UTC, by the clock
    of the promoter. `id` is of this attempt alone.
    """

    version: str
    digest: Digest
    previous: str | None
    promoted_at: str
    by: str = ""
    reason: str = ""
    forced: bool = False
    number: Count = 1
    back: Count | None = None
    restores: Count | None = None
    id: str = ""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """As the pointer and its archive hold it."""
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS: Final = tuple(each.name for each in fields(Promotion))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer(Promotion):
    """The last promotion, and those before it that the pointer still holds, oldest first."""

    earlier: tuple[Promotion, ...] = ()

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def promotions(self) -> tuple[Promotion, ...]:
        """All that the pointer holds, oldest first; older ones are in the archive."""
        return (*self.earlier, self.promotion)

    @property
    def promotion(self) -> Promotion:
        """The last one alone."""
        return Promotion(**self.to_json())

    @property
    def archived(self) -> int:
        """How many promotions are in the archive: those with the numbers from 1 to this."""
        return self.number - len(self.earlier) - 1


@dataclass(frozen=True, slots=True)
class Condemned:
    """A version that is being deleted: by which run, and since when by the store's clock (ISO 8601, UTC)."""

    by: str
    at: str

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class PointerState:
    """The whole object. Without a `pointer` nothing is promoted."""

    pointer: Pointer | None = None
    condemned: Mapping[str, Condemned] = field(default_factory=dict)
    revision: int = 0

    @property
    def number(self) -> int:
        """How many promotions there were."""
        return self.pointer.number if self.pointer else 0

    def has(self, attempt: str) -> bool:
        """Whether an attempt to promote is among the promotions that the pointer holds."""
        return self.pointer is not None and any(each.id == attempt for each in self.pointer.promotions)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        promoted = self.pointer.to_json() if self.pointer else {}
        earlier = {"earlier": [each.to_json() for each in self.pointer.earlier]} if self.pointer else {}
        condemned = {version: asdict(each) for version, each in self.condemned.items()}
        return canonical_json({**promoted, **earlier, "condemned": condemned, "revision": self.revision})

    @classmethod
    def from_bytes(cls, data: bytes, *, url: str) -> "PointerState":
        """Read a pointer, also one of the form without a history. Raises ArtifactCorruptError that names the `url`."""
        document = parse_json_object(data, what=url)
        try:
            revision = _REVISION.validate_python(document.pop("revision", 0))
            condemned = _CONDEMNED.validate_python(document.pop("condemned", {}))
            pointer = _POINTER.validate_python(document) if document or not revision else None
        except ValidationError as exc:
            raise _not_a_pointer(url, describe(exc)) from exc
        if pointer and [each.number for each in pointer.promotions] != _numbers(pointer):
            raise _not_a_pointer(url, "its promotions are not numbered one after the other")
        return cls(pointer, condemned, revision)

    def after(self, promotion: Promotion) -> "PointerState":
        """With one more promotion. Those that `overflow` named must be in the archive."""
        earlier = self.pointer.promotions if self.pointer else ()
        if len(earlier) >= POINTER_PROMOTIONS:
            earlier = earlier[ARCHIVE_PROMOTIONS:]
        pointer = Pointer(**promotion.to_json(), earlier=earlier)
        return replace(self, pointer=pointer, revision=self.revision + 1)

    def overflow(self) -> tuple[Promotion, ...]:
        """What must be in the archive before another promotion, because the pointer then drops it."""
        held = self.pointer.promotions if self.pointer else ()
        return held[:ARCHIVE_PROMOTIONS] if len(held) >= POINTER_PROMOTIONS else ()

    def with_condemned(self, condemned: Mapping[str, Condemned]) -> "PointerState":
        """With other versions that are being deleted."""
        return replace(self, condemned=dict(condemned), revision=self.revision + 1)

    def promote(self, version: str, digest: str, **told: Any) -> "PointerState":  # noqa: ANN401 - by, reason, forced
        """With a version promoted: a rollback from it goes to what is promoted now."""
        now = self.pointer
        if now is None:
            return self._moved(version, digest, previous=None, back=None, **told)
        if now.version == version:
            # The same version with another content: what was before it stays before it.
            return self._moved(version, digest, previous=now.previous, back=now.back, **told)
        return self._moved(version, digest, previous=now.version, back=now.number, **told)

    def restore(self, target: Promotion, digest: str, **told: Any) -> "PointerState":  # noqa: ANN401
        """With an earlier promotion's version promoted again: a rollback from it goes where that one's would go."""
        # What a pointer without a history remembers of the version before it has no number.
        number = target.number if target.digest else None
        return self._moved(target.version, digest, previous=target.previous, back=target.back, restores=number, **told)

    def _moved(self, version: str, digest: str, **told: Any) -> "PointerState":  # noqa: ANN401
        at = datetime.now(UTC).isoformat(timespec="seconds")
        promotion = Promotion(
            version=version,
            digest=digest,
            promoted_at=at,
            number=self.number + 1,
            id=secrets.token_hex(8),
            **told,
        )
        return self.after(promotion)


_POINTER: Final = TypeAdapter(Pointer)
_CONDEMNED: Final = TypeAdapter(dict[str, Condemned])
_REVISION: Final = TypeAdapter(Annotated[int, Field(strict=True, ge=0)])
_ARCHIVE: Final = TypeAdapter(tuple[Promotion, ...])


def check_told(*, by: str, reason: str) -> None:
    """Raise InvalidRequestError for a text that is too long to be kept with every later promotion."""
    for name, text, most in (("by", by, MAX_BY_CHARS), ("reason", reason, MAX_REASON_CHARS)):
        if len(text) > most:
            raise InvalidRequestError(f"`{name}` has {len(text)} characters, at most {most} are kept", param=name)


def archive_name(number: int) -> str:
    """The name of the archive object in which a promotion is, or will be."""
    return f"{number - (number - 1) % ARCHIVE_PROMOTIONS:08d}.json"


def archive_bytes(promotions: tuple[Promotion, ...]) -> bytes:
    """An archive object: the same promotions always give the same bytes."""
    return canonical_json({"promotions": [each.to_json() for each in promotions]})


def archived_promotions(data: bytes, *, url: str) -> tuple[Promotion, ...]:
    """Read an archive object. Raises ArtifactCorruptError."""
    try:
        return _ARCHIVE.validate_python(parse_json_object(data, what=url).get("promotions"))
    except ValidationError as exc:
        raise ArtifactCorruptError(f"{url} is no part of a history of promotions: {describe(exc)}") from exc


def _numbers(pointer: Pointer) -> list[int]:
    return list(range(pointer.archived + 1, pointer.number + 1))


def _not_a_pointer(url: str, reason: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(f"{url} is not a promoted pointer: {reason}; delete it and promote again")
