"""How a version is published: a claim, the files, the manifest last. Killed anywhere, it is published again."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from rag_stack.artifacts.address import claim_key, manifest_key
from rag_stack.artifacts.history import History
from rag_stack.artifacts.manifest import (
    ArtifactKind,
    ArtifactRef,
    FileEntry,
    Manifest,
    canonical_json,
    check_address,
    describe_files,
)
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.promotion import Condemned
from rag_stack.errors import (
    ArtifactError,
    ArtifactExistsError,
    ArtifactNotFoundError,
    ArtifactOutdatedError,
    PromotionConflictError,
)

_VERSION_HEX: Final = 12


class Publication:
    """Publishes versions on an object store. `manifest` reads a published one."""

    def __init__(self, store: ObjectStore, history: History, manifest: Callable[[ArtifactRef], Manifest]) -> None:
        self._store = store
        self._history = history
        self._manifest = manifest

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
        """See Catalog.publish."""
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
        if self._is_published(wanted) and not self._is_unfinished(wanted.ref):
            return self._same(wanted)
        with self._store.exclusive(manifest_key(wanted.ref)) as alone:
            if alone:
                self._acquit(wanted.ref)
            if not self._is_published(wanted):
                self._upload(directory, wanted, alone=alone)
            else:
                self._refuse_condemned(wanted.ref)
                # Its publisher was killed between its last two steps.
                self._store.delete(claim_key(wanted.ref))
        return self._same(wanted)

    def _is_published(self, wanted: Manifest) -> bool:
        return self._store.exists(manifest_key(wanted.ref))

    def _is_unfinished(self, ref: ArtifactRef) -> bool:
        """Whether a publisher, or who deletes the version, is at work or was killed at it."""
        return ref.version in self._history.state(ref.kind, ref.name)[0].condemned or self._store.exists(claim_key(ref))

    def _refuse_condemned(self, ref: ArtifactRef) -> None:
        condemned = self._history.state(ref.kind, ref.name)[0].condemned.get(ref.version)
        if condemned is not None:
            raise PromotionConflictError(being_deleted(ref, condemned))

    def _acquit(self, ref: ArtifactRef) -> None:
        """Take back that a version is to be deleted. Only for who holds its lock.

        A deletion marks it under that lock and holds it to the end: whoever has marked it was killed.
        """
        while True:
            state, data = self._history.state(ref.kind, ref.name)
            if ref.version not in state.condemned:
                return
            others = {version: mark for version, mark in state.condemned.items() if version != ref.version}
            with suppress(PromotionConflictError):
                self._history.swap(ref.kind, ref.name, state.with_condemned(others), expected=data)

    def _same(self, wanted: Manifest) -> Manifest:
        other_version = "publish under another version, or leave the version out to have one made from the content"
        try:
            found = self._manifest(wanted.ref)
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
        claim = claim_key(manifest.ref)
        self._claim(manifest, claim, alone=alone)
        try:
            # After the claim, for which a deletion looks after it has condemned: one of the two sees the other.
            self._refuse_condemned(manifest.ref)
        except PromotionConflictError:
            self._store.delete(claim)
            raise
        # Only now it is sure: a faster publisher has given up its claim after its manifest was there.
        if not self._is_published(manifest):
            for entry in manifest.files:
                self._store.upload(directory / entry.path, f"{manifest.ref}/{entry.path}")
            if describe_files(directory) != manifest.files:
                raise ArtifactError(
                    f"{str(directory)!r} changed while it was being published; let its writer finish first"
                )
            if not alone and self._read_claim(claim) is None and not self._is_published(manifest):
                raise ArtifactExistsError(
                    f"{str(manifest.ref)!r} took so long to publish that it was deleted as what a killed publisher "
                    "left; publish it again"
                )
            # When it is there already, it is that of another publisher with the same claim.
            self._store.create(manifest_key(manifest.ref), manifest.to_bytes())
        self._store.delete(claim)

    def _claim(self, manifest: Manifest, key: str, *, alone: bool) -> None:
        """Two writers of one version with different files would overwrite each other's before either has a manifest."""
        content = _content_version(manifest.files, manifest.metadata).encode("ascii")
        claimed = None
        # None when it is there, and then not: its publisher has ended between the two looks.
        while claimed is None:
            claimed = content if self._store.create(key, content) else self._read_claim(key)
        # A claim on what is published already is of one that came too late, and will see so.
        if claimed == content or self._is_published(manifest):
            return
        if not alone:
            raise ArtifactExistsError(
                f"{str(manifest.ref)!r} is being published with other content; publish under another version, or, if "
                f"that publish was killed, delete {self._store.url}/{manifest.ref} and publish again"
            )
        # Nobody else publishes it now, so whoever claimed it was killed.
        self._store.put_bytes(key, content)

    def _read_claim(self, key: str) -> bytes | None:
        try:
            return self._store.read_bytes(key)
        except ArtifactNotFoundError:
            return None


def being_deleted(ref: ArtifactRef, condemned: Condemned) -> str:
    """Why a version cannot be promoted or published now."""
    return (
        f"{str(ref)!r} is being deleted by `rag-stack index gc`, since {condemned.at}; when that is done (run it again "
        "if it was killed) publish the version again, then promote it"
    )


def _content_version(files: tuple[FileEntry, ...], metadata: Mapping[str, Any]) -> str:
    content = {"files": [(entry.path, entry.size_bytes, entry.chunks) for entry in files], "metadata": metadata}
    return hashlib.sha256(canonical_json(content)).hexdigest()[:_VERSION_HEX]
