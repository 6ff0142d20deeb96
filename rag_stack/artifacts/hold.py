"""Who needs which versions: small objects that keep them from being deleted, each replaced as a whole by its owner."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from rag_stack.artifacts.manifest import ArtifactRef, canonical_json, parse_json_object
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.config import describe, is_name
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError

_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class Hold:
    """The versions that one owner needs, and when it last said so by the store's clock."""

    owner: str
    refs: frozenset[str]
    renewed_at: datetime


@dataclass(frozen=True, slots=True)
class _Document:
    refs: tuple[Annotated[str, StringConstraints(min_length=1)], ...]

    __pydantic_config__ = ConfigDict(extra="forbid")


_DOCUMENT: Final = TypeAdapter(_Document)


class Holds:
    """One folder of the object store with an object for each owner, such as `pins/<release>.json`."""

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self._store = store
        self._folder = folder

    def put(self, owner: str, refs: Sequence[ArtifactRef]) -> None:
        """Hold these versions and let go of those that the owner held before. Raises ArtifactError for its name."""
        self._store.put_bytes(self._key(owner), canonical_json({"refs": sorted({str(ref) for ref in refs})}))

    def drop(self, owner: str) -> None:
        """Let go of all; again does nothing."""
        self._store.delete(self._key(owner))

    def drop_older(self, than: datetime) -> None:
        """Let go of all that its owner last renewed before that time of the store's clock."""
        for entry in self._store.entries(self._folder):
            if not entry.key.endswith(_SUFFIX) or entry.modified_at >= than:
                continue
            with suppress(ArtifactNotFoundError):
                # Not if the owner has come back since this was listed.
                if self._store.modified_at(entry.key) < than:
                    self._store.delete(entry.key)

    def of(self, owner: str) -> tuple[str, ...]:
        """What one owner holds, sorted; nothing if it is not there. Raises ArtifactCorruptError."""
        try:
            return tuple(sorted(self._read(self._key(owner))))
        except ArtifactNotFoundError:
            return ()

    def all(self) -> list[Hold]:
        """Every owner's, sorted. Raises ArtifactCorruptError: nobody knows what a damaged one holds."""
        found = []
        for entry in self._store.entries(self._folder):
            owner = entry.key.removeprefix(f"{self._folder}/").removesuffix(_SUFFIX)
            if not is_name(owner) or not entry.key.endswith(_SUFFIX):
                continue  # what a killed writer left
            try:
                refs = self._read(entry.key)
            except ArtifactNotFoundError:
                continue  # let go since it was listed
            found.append(Hold(owner, refs, entry.modified_at))
        return sorted(found, key=lambda hold: hold.owner)

    def _read(self, key: str) -> frozenset[str]:
        url = f"{self._store.url}/{key}"
        try:
            return frozenset(_DOCUMENT.validate_python(parse_json_object(self._store.read_bytes(key), what=url)).refs)
        except (ValidationError, ArtifactCorruptError) as exc:
            reason = describe(exc) if isinstance(exc, ValidationError) else exc.message
            raise ArtifactCorruptError(
                f"{url} does not say which versions are needed: {reason}; restart its owner, which writes it again, or "
                "delete it if that is gone for good"
            ) from exc

    def _key(self, owner: str) -> str:
        if not is_name(owner):
            raise ArtifactError(
                f"{owner!r} cannot own {self._folder}: expected 1 to 128 letters, digits, '.', '_' or '-' that begin "
                "with a letter or digit"
            )
        return f"{self._folder}/{owner}{_SUFFIX}"
