"""What is published, and which version is promoted. The promoted pointer is the only thing that ever changes."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from rag_stack.artifacts.manifest import (
    MANIFEST_NAME,
    POINTER_NAME,
    ArtifactKind,
    ArtifactRef,
    FileEntry,
    Manifest,
    canonical_json,
    check_address,
    describe_files,
    parse_json_object,
)
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.config import Digest, describe, is_name
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactExistsError,
    ArtifactNotFoundError,
    ArtifactOutdatedError,
    PromotionConflictError,
)

_PUBLISHED_BY: Final[Mapping[str, str]] = {"models": "rag-stack model import", "indexes": "rag-stack index build"}
_VERSION_HEX = 12
# Below a version while it is being published: whose content that is.
_CLAIM_NAME: Final = ".publishing"


class Expected(Enum):
    """What `promote` may expect beside a version: whatever is promoted at the time of the call."""

    CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Pointer:
    """The promoted version, its manifest's digest, the version before it, and when it was promoted (ISO 8601, UTC)."""

    version: str
    digest: Digest
    previous: str | None
    promoted_at: str

    __pydantic_config__ = ConfigDict(extra="forbid")


_POINTER: Final = TypeAdapter(Pointer)


class Catalog:
    """The artifacts of one object store."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def publish(
        self,
        directory: Path,
        *,
        kind: ArtifactKind,
        name: str,
        metadata: Mapping[str, Any],
        version: str | None = None,
        parent: str | None = None,
    ) -> Manifest:
        """Upload a directory's files, then the manifest, last: a version without a manifest does not exist.

        Without a version, it is made from the content. Publishing what is there already changes nothing and
        returns the published manifest. Raises ArtifactExistsError when the version holds something else.
        """
        check_address(kind, name)
        if not directory.is_dir():
            raise ArtifactError(f"{str(directory)!r} is not a directory; expected one that holds the artifact's files")
        files = describe_files(directory)
        metadata = json.loads(canonical_json(metadata))
        wanted = Manifest(
            kind=kind,
            name=name,
            version=version or _content_version(files, metadata),
            files=files,
            metadata=metadata,
            parent=parent,
        )
        if not self._is_published(wanted):
            with self.store.exclusive(_manifest_key(wanted.ref)) as alone:
                self._upload(directory, wanted, alone=alone)
        elif self.store.exists(_claim_key(wanted.ref)):
            # Its publisher was killed between its last two steps.
            with self.store.exclusive(_manifest_key(wanted.ref)):
                self.store.delete(_claim_key(wanted.ref))
        return self._same(wanted)

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """A published manifest. Raises ArtifactNotFoundError, or ArtifactCorruptError when it is another's.

        Raises ArtifactOutdatedError when an older rag_stack has published it.
        """
        try:
            # Not `read_bytes`: a manifest never changes, and its files will be read the same way.
            with closing(self.store.reader(_manifest_key(ref))) as reader:
                data = bytes(reader.read_at(0, reader.size_bytes))
        except ArtifactNotFoundError as exc:
            raise ArtifactNotFoundError(f"no artifact {str(ref)!r} in {self.store.url}; {self._advice(ref)}") from exc
        try:
            manifest = Manifest.from_bytes(data)
        except (ArtifactCorruptError, ArtifactOutdatedError) as exc:
            raise type(exc)(f"{self.store.url}/{_manifest_key(ref)}: {exc}") from exc
        if manifest.ref != ref:
            raise ArtifactCorruptError(
                f"{self.store.url}/{_manifest_key(ref)} is the manifest of {str(manifest.ref)!r}; "
                "was it copied by hand? Publish the artifact again"
            )
        return manifest

    def names(self, kind: ArtifactKind) -> list[str]:
        """The names under which something is published, sorted."""
        return [name for name in self.store.list_names(kind) if is_name(name) and self.versions(kind, name)]

    def versions(self, kind: ArtifactKind, name: str) -> list[str]:
        """The published versions of a name, sorted; an interrupted publish is none."""
        check_address(kind, name)
        found = [v for v in self.store.list_names(f"{kind}/{name}") if is_name(v) and v != POINTER_NAME]
        return [v for v in found if self.store.exists(_manifest_key(ArtifactRef(kind, name, v)))]

    def promoted(self, kind: ArtifactKind, name: str) -> Pointer | None:
        """What is promoted under a name, or None. Raises ArtifactCorruptError."""
        return self._read_pointer(kind, name)[0]

    def promote(self, ref: ArtifactRef, *, expected_version: str | Expected | None = Expected.CURRENT) -> Pointer:
        """Move the promoted pointer to a published version; rolling back is promoting `previous`.

        `expected_version` is what must be promoted now (None: nothing). Promoting what is promoted changes nothing.
        Raises PromotionConflictError when something else is promoted, or another writer is faster.
        """
        digest = self.manifest(ref).digest
        current, data = self._read_pointer(ref.kind, ref.name)
        version = current.version if current else None
        if expected_version is not Expected.CURRENT and version != expected_version:
            raise PromotionConflictError(
                f"{ref.kind}/{ref.name} has {version!r} promoted, expected {expected_version!r}; "
                "look at what is promoted now and promote again"
            )
        if current and (current.version, current.digest) == (ref.version, digest):
            return current
        previous = current.previous if current and version == ref.version else version
        pointer = Pointer(ref.version, digest, previous, datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            self.store.compare_and_set(_pointer_key(ref.kind, ref.name), canonical_json(asdict(pointer)), expected=data)
        except PromotionConflictError as exc:
            winner = self.promoted(ref.kind, ref.name)
            now = f"{winner.version!r} is promoted, since {winner.promoted_at}" if winner else "nothing is promoted"
            raise PromotionConflictError(
                f"another writer moved {ref.kind}/{ref.name} first: now {now}; look at it and promote again"
            ) from exc
        return pointer

    def resolve(self, kind: ArtifactKind, name: str, version: str | None = None) -> Manifest:
        """The manifest of a version, or of the promoted one.

        Raises ArtifactNotFoundError, ArtifactCorruptError or ArtifactOutdatedError.
        """
        if version is not None:
            return self.manifest(ArtifactRef(kind, name, version))
        check_address(kind, name)
        pointer = self.promoted(kind, name)
        if pointer is None:
            known = self.versions(kind, name)
            state = f"published but not promoted: {', '.join(known)}" if known else self._advice_for(kind)
            raise ArtifactNotFoundError(f"nothing is promoted as {kind}/{name} in {self.store.url}; {state}")
        manifest = self.manifest(ArtifactRef(kind, name, pointer.version))
        if manifest.digest != pointer.digest:
            raise ArtifactCorruptError(
                f"the manifest of {str(manifest.ref)!r} has digest {manifest.digest}, but {pointer.digest} was "
                "promoted; it was changed after that: publish the artifact again and promote the new version"
            )
        return manifest

    def readable(self, kind: ArtifactKind, name: str) -> Manifest | None:
        """What is promoted; None when nothing is, or only what an older rag_stack published. Raises ArtifactError."""
        if self.promoted(kind, name) is None:
            return None
        try:
            return self.resolve(kind, name)
        except ArtifactOutdatedError:
            return None

    def _is_published(self, wanted: Manifest) -> bool:
        return self.store.exists(_manifest_key(wanted.ref))

    def _same(self, wanted: Manifest) -> Manifest:
        other_version = "publish under another version, or leave the version out to have one made from the content"
        try:
            found = self.manifest(wanted.ref)
        except ArtifactOutdatedError as exc:
            raise ArtifactExistsError(
                f"{str(wanted.ref)!r} was published by an older rag_stack, and a published version is never changed; "
                f"{other_version}"
            ) from exc
        if (found.files, found.metadata) != (wanted.files, wanted.metadata):
            raise ArtifactExistsError(
                f"{str(wanted.ref)!r} is published with other content, and a published version is never changed; "
                f"{other_version}"
            )
        return found

    def _upload(self, directory: Path, manifest: Manifest, *, alone: bool) -> None:
        claim = _claim_key(manifest.ref)
        self._claim(manifest, claim, alone=alone)
        # Only now it is sure: a faster publisher has given up its claim after its manifest was there.
        if not self._is_published(manifest):
            for entry in manifest.files:
                self.store.upload(directory / entry.path, f"{manifest.ref}/{entry.path}")
            if describe_files(directory) != manifest.files:
                raise ArtifactError(
                    f"{str(directory)!r} changed while it was being published; let its writer finish first"
                )
            # When it is there already, it is that of another publisher with the same claim.
            self.store.create(_manifest_key(manifest.ref), manifest.to_bytes())
        self.store.delete(claim)

    def _claim(self, manifest: Manifest, key: str, *, alone: bool) -> None:
        """Two writers of one version with different files would overwrite each other's before either has a manifest."""
        content = _content_version(manifest.files, manifest.metadata).encode("ascii")
        claimed = None
        # None when it is there, and then not: its publisher has ended between the two looks.
        while claimed is None:
            claimed = content if self.store.create(key, content) else self._read_claim(key)
        # A claim on what is published already is of one that came too late, and will see so.
        if claimed == content or self._is_published(manifest):
            return
        if not alone:
            raise ArtifactExistsError(
                f"{str(manifest.ref)!r} is being published with other content; publish under another version, or, if "
                f"that publish was killed, delete {self.store.url}/{manifest.ref} and publish again"
            )
        # Nobody else publishes it now, so whoever claimed it was killed.
        self.store.put_bytes(key, content)

    def _read_claim(self, key: str) -> bytes | None:
        try:
            return self.store.read_bytes(key)
        except ArtifactNotFoundError:
            return None

    def _read_pointer(self, kind: ArtifactKind, name: str) -> tuple[Pointer | None, bytes | None]:
        check_address(kind, name)
        key = _pointer_key(kind, name)
        try:
            data = self.store.read_bytes(key)
        except ArtifactNotFoundError:
            return None, None
        try:
            return _POINTER.validate_python(parse_json_object(data, what=f"{self.store.url}/{key}")), data
        except ValidationError as exc:
            raise ArtifactCorruptError(
                f"{self.store.url}/{key} is not a promoted pointer: {describe(exc)}; delete it and promote again"
            ) from exc

    def _advice(self, ref: ArtifactRef) -> str:
        versions = self.versions(ref.kind, ref.name)
        if versions:
            return f"published versions of {ref.name!r}: {', '.join(versions)}"
        return self._advice_for(ref.kind)

    def _advice_for(self, kind: ArtifactKind) -> str:
        names = self.names(kind)
        listed = f"published {kind}: {', '.join(names)}" if names else f"no {kind} are published there"
        return f"{listed}; publish with `{_PUBLISHED_BY[kind]}`"


def _content_version(files: tuple[FileEntry, ...], metadata: Mapping[str, Any]) -> str:
    content = {"files": [(entry.path, entry.size_bytes, entry.chunks) for entry in files], "metadata": metadata}
    return hashlib.sha256(canonical_json(content)).hexdigest()[:_VERSION_HEX]


def _manifest_key(ref: ArtifactRef) -> str:
    return f"{ref}/{MANIFEST_NAME}"


def _claim_key(ref: ArtifactRef) -> str:
    return f"{ref}/{_CLAIM_NAME}"


def _pointer_key(kind: ArtifactKind, name: str) -> str:
    return f"{kind}/{name}/{POINTER_NAME}"
