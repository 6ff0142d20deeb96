"""Backup points: what was promoted at one moment, by digest. One immutable object each, `backups/<time>-<id>.json`.

The object is the protection, too: `gc` keeps what any point names. So there is nothing that a killed process could
leave behind, and whoever removes a point lets go of what it names.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from rag_stack.artifacts.hold import Hold
from rag_stack.artifacts.manifest import ArtifactKind, ArtifactRef, canonical_json, parse_json_object
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.promotion import PointerState
from rag_stack.config import Digest, Name, describe, is_name
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ArtifactExistsError, ArtifactNotFoundError

FOLDER: Final = "backups"
SCHEMA_VERSION: Final = 1
_SUFFIX: Final = ".json"

Size = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointedAt:
    """A promoted pointer: `number` is its place in the history, `state` the whole object but what is being deleted."""

    kind: ArtifactKind
    name: Name
    version: Name
    digest: Digest
    number: Annotated[int, Field(strict=True, ge=1)]
    promoted_at: str
    state: Mapping[str, Any]

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def address(self) -> str:
        """`indexes/docs`."""
        return f"{self.kind}/{self.name}"

    def pointer_state(self, *, url: str) -> PointerState:
        """What the pointer's object holds. Raises ArtifactCorruptError that names the `url`."""
        return PointerState.from_bytes(canonical_json(self.state), url=url)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptArtifact:
    """An artifact that the point needs: promoted, pinned by a release that is, or the embedder of an index."""

    kind: ArtifactKind
    name: Name
    version: Name
    digest: Digest
    files: Size
    size_bytes: Size

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def ref(self) -> ArtifactRef:
        """Its address."""
        return ArtifactRef(self.kind, self.name, self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptObject:
    """A small object besides, such as a store's state or an upload's card, as it was: `key` -> `document`.

    `content_bytes` is the size of the upload's content beside it, which has no digest of its own.
    """

    key: str
    document: Mapping[str, Any]
    content_bytes: Size | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class PointCanary:
    """A question whose answer is known: in which index it is searched, and what must be among its sources.

    Without a `version` it is searched in what is promoted of the index; a release may name another one.
    """

    question: Annotated[str, Field(min_length=1)]
    index: Name
    version: Name | None = None
    expect: tuple[str, ...] = ()
    answer_contains: str = ""
    top_k: Annotated[int, Field(ge=1, le=50)] = 5
    store: str = ""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Everything that was promoted at `taken_at`, by the store's clock (ISO 8601, UTC), below `root`.

    `rollouts` are the releases that were on their way to another version, which is not in the point.
    """

    name: Name
    taken_at: str
    by: str
    root: str
    label: str = ""
    pointers: tuple[PointedAt, ...] = ()
    artifacts: tuple[KeptArtifact, ...] = ()
    objects: tuple[KeptObject, ...] = ()
    canaries: tuple[PointCanary, ...] = ()
    rollouts: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def files(self) -> int:
        """Files of all artifacts, and contents of uploads."""
        return sum(each.files for each in self.artifacts) + sum(o.content_bytes is not None for o in self.objects)

    @property
    def size_bytes(self) -> int:
        """Bytes of all artifacts and uploads."""
        uploads = sum(each.content_bytes or 0 for each in self.objects)
        return sum(each.size_bytes for each in self.artifacts) + uploads

    @property
    def at(self) -> datetime:
        """When it was taken."""
        return datetime.fromisoformat(self.taken_at)

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_bytes(cls, data: bytes, *, url: str) -> "Point":
        """Read a point. Raises ArtifactCorruptError that names the `url`."""
        try:
            document = parse_json_object(data, what=url)
        except ArtifactCorruptError as exc:
            raise _no_point(url, exc.message) from exc
        if document.get("schema_version") != SCHEMA_VERSION:
            told = document.get("schema_version")
            raise _no_point(url, f"it has schema version {told!r}, this release reads {SCHEMA_VERSION}")
        try:
            point = _POINT.validate_python(document)
            _ = point.at
        except ValidationError as exc:
            raise _no_point(url, describe(exc)) from exc
        except ValueError as exc:
            raise _no_point(url, str(exc)) from exc
        return point


_POINT: Final = TypeAdapter(Point)


class Points:
    """The points of an object store. A point never changes, so each is read once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._read: dict[str, Point] = {}

    def names(self) -> list[str]:
        """Oldest first: a name begins with the time."""
        found = self._store.list_names(FOLDER)
        return sorted(n.removesuffix(_SUFFIX) for n in found if n.endswith(_SUFFIX) and is_name(n))

    def get(self, name: str) -> Point:
        """A point. Raises ArtifactNotFoundError, or ArtifactCorruptError for one that is damaged."""
        if name not in self._read:
            url = f"{self._store.url}/{_key(name)}"
            try:
                data = self._store.read_bytes(_key(name))
            except ArtifactNotFoundError as exc:
                raise ArtifactNotFoundError(f"no backup point {url!r}; {self._known()}") from exc
            point = Point.from_bytes(data, url=url)
            if point.name != name:
                raise _no_point(url, f"it holds the point {point.name!r}; was it copied by hand?")
            self._read[name] = point
        return self._read[name]

    def last(self) -> Point:
        """The newest point. Raises ArtifactNotFoundError where there is none."""
        names = self.names()
        if not names:
            raise ArtifactNotFoundError(
                f"{self._store.url} has no backup point; take one with `rag-stack backup point`"
            )
        return self.get(names[-1])

    def create(self, point: Point) -> None:
        """Write a point: whole, or not at all. Raises ArtifactExistsError for a name that is taken."""
        if not self._store.create(_key(point.name), point.to_bytes()):
            raise ArtifactExistsError(f"{self._store.url}/{_key(point.name)} is there already; take the point again")

    def delete(self, name: str) -> None:
        """Remove a point, damaged or not, and so let go of what it names. Raises ArtifactNotFoundError."""
        if not self._store.exists(_key(name)):
            raise ArtifactNotFoundError(f"no backup point {name!r} in {self._store.url}; {self._known()}")
        self._store.delete(_key(name))
        self._read.pop(name, None)

    def holds(self) -> list[Hold]:
        """What the points keep from deletion. Raises ArtifactCorruptError: nobody knows what a damaged one names."""
        found = []
        for name in self.names():
            try:
                point = self.get(name)
            except ArtifactNotFoundError:
                continue  # removed since it was listed
            found.append(Hold(name, frozenset(str(each.ref) for each in point.artifacts), point.at))
        return found

    def _known(self) -> str:
        names = self.names()
        listed = ", ".join(names[-5:])
        return f"the newest points are {listed}" if names else "there is none: take one with `rag-stack backup point`"


def _key(name: str) -> str:
    if not is_name(name):
        raise ArtifactError(f"{name!r} is no backup point's name; `rag-stack backup ls` shows them")
    return f"{FOLDER}/{name}{_SUFFIX}"


def _no_point(url: str, reason: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(
        f"{url} is not a backup point: {reason}; nobody knows what it keeps: restore that object, or remove the point "
        "with `rag-stack backup rm`"
    )
