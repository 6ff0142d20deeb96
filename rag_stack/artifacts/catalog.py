"""What is published, and which version is promoted. The promoted pointer is the only thing that ever changes."""

import getpass
import hashlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final

from rag_stack.artifacts.manifest import (
    MANIFEST_NAME,
    POINTER_NAME,
    RESERVED_NAMES,
    ArtifactKind,
    ArtifactRef,
    FileEntry,
    Manifest,
    canonical_json,
    check_address,
    describe_files,
)
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.promotion import (
    ARCHIVE_PROMOTIONS,
    MAX_BY_CHARS,
    Condemned,
    Pointer,
    PointerState,
    Promotion,
    archive_bytes,
    archive_name,
    archived_promotions,
    check_told,
)
from rag_stack.config import is_name
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactExistsError,
    ArtifactNotFoundError,
    ArtifactOutdatedError,
    PromotionConflictError,
    RollbackError,
)

_PUBLISHED_BY: Final[Mapping[str, str]] = {
    "models": "rag-stack model import",
    "indexes": "rag-stack index build",
    "releases": "rag-stack release apply",
}
_VERSION_HEX = 12
# Below a version while it is being published: whose content that is.
_CLAIM_NAME: Final = ".publishing"
# Below a name: the promotions that its pointer does not hold any more. No version's name begins with a dot.
_HISTORY: Final = ".history"


class Expected(Enum):
    """What `promote` may expect beside a version: whatever is promoted at the time of the call."""

    CURRENT = "current"


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
        if self._is_published(wanted) and not self._is_unfinished(wanted.ref):
            return self._same(wanted)
        with self.store.exclusive(manifest_key(wanted.ref)) as alone:
            if alone:
                self._acquit(wanted.ref)
            if not self._is_published(wanted):
                self._upload(directory, wanted, alone=alone)
            else:
                self._refuse_condemned(wanted.ref)
                # Its publisher was killed between its last two steps.
                self.store.delete(claim_key(wanted.ref))
        return self._same(wanted)

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """A published manifest. Raises ArtifactNotFoundError, or ArtifactCorruptError when it is another's.

        Raises ArtifactOutdatedError when an older rag_stack has published it.
        """
        try:
            # Not `read_bytes`: a manifest never changes, and its files will be read the same way.
            with closing(self.store.reader(manifest_key(ref))) as reader:
                data = bytes(reader.read_at(0, reader.size_bytes))
        except ArtifactNotFoundError as exc:
            raise ArtifactNotFoundError(f"no artifact {str(ref)!r} in {self.store.url}; {self._advice(ref)}") from exc
        try:
            manifest = Manifest.from_bytes(data)
        except (ArtifactCorruptError, ArtifactOutdatedError) as exc:
            raise type(exc)(f"{self.store.url}/{manifest_key(ref)}: {exc}") from exc
        if manifest.ref != ref:
            raise ArtifactCorruptError(
                f"{self.store.url}/{manifest_key(ref)} is the manifest of {str(manifest.ref)!r}; "
                "was it copied by hand? Publish the artifact again"
            )
        return manifest

    def names(self, kind: ArtifactKind) -> list[str]:
        """The names under which something is published, sorted."""
        return [name for name in self.store.list_names(kind) if is_name(name) and self.versions(kind, name)]

    def versions(self, kind: ArtifactKind, name: str) -> list[str]:
        """The published versions of a name, sorted; an interrupted publish is none."""
        check_address(kind, name)
        found = [v for v in self.store.list_names(f"{kind}/{name}") if is_name(v) and v not in RESERVED_NAMES]
        return [v for v in found if self.store.exists(manifest_key(ArtifactRef(kind, name, v)))]

    def published_at(self, ref: ArtifactRef) -> datetime:
        """When a version's manifest was written, UTC by the store's clock. Raises ArtifactNotFoundError."""
        return self.store.modified_at(manifest_key(ref))

    def promoted(self, kind: ArtifactKind, name: str) -> Pointer | None:
        """What is promoted under a name, or None. Raises ArtifactCorruptError."""
        return self.state(kind, name)[0].pointer

    def promote(
        self,
        ref: ArtifactRef,
        *,
        expected_version: str | Expected | None = Expected.CURRENT,
        by: str | None = None,
        reason: str = "",
        forced: bool = False,
    ) -> Pointer:
        """Move the promoted pointer to a published version, and remember `by` whom (default: user@host) and why.

        `expected_version` is what must be promoted now (None: nothing). Promoting what is promoted changes nothing.
        Raises PromotionConflictError when something else is promoted, another writer is faster, or the version is
        being deleted; InvalidRequestError when `by` or `reason` is too long.
        """
        told = {"by": promoter() if by is None else by, "reason": reason}
        check_told(**told)

        def move(state: PointerState) -> PointerState:
            _require(ref.kind, ref.name, state, expected_version)
            digest = self._promotable(ref, state).digest
            if state.pointer and (state.pointer.version, state.pointer.digest) == (ref.version, digest):
                return state
            return state.promote(ref.version, digest, forced=forced, **told)

        return self._move(ref.kind, ref.name, move)

    def rollback(
        self,
        kind: ArtifactKind,
        name: str,
        *,
        to: str | None = None,
        by: str | None = None,
        reason: str = "",
        expected_version: str | Expected | None = Expected.CURRENT,
        check: Callable[[Manifest], object] = lambda _: None,
    ) -> Pointer:
        """Promote what was promoted before, or `to` a version further back; again goes back further.

        After promotions of v1, v2 and v3 it goes to v2, and then to v1. `check` raises for a version that must not
        serve, as one of another format. Raises RollbackError when there is nothing before, `to` is not among it or the
        version is gone, and PromotionConflictError as `promote` does.
        """
        told = {"by": promoter() if by is None else by, "reason": reason}
        check_told(**told)

        def move(state: PointerState) -> PointerState:
            _require(kind, name, state, expected_version)
            target = self._before(kind, name, state, to)
            ref = ArtifactRef(kind, name, target.version)
            try:
                manifest = self._promotable(ref, state)
            except ArtifactNotFoundError as exc:
                raise RollbackError(
                    f"{str(ref)!r}, to which a rollback would go, is deleted; name one further back with `to`, or "
                    f"promote one of the published versions: {', '.join(self.versions(kind, name))}"
                ) from exc
            check(manifest)
            digest = manifest.digest
            if target.digest not in ("", digest):
                raise RollbackError(
                    f"{str(ref)!r} has digest {digest} now, and {target.digest} was promoted then: it was deleted and "
                    "published again with other content; promote it by its version if that is what you want"
                )
            return state.restore(target, digest, **told)

        return self._move(kind, name, move)

    def withdraw(self, kind: ArtifactKind, name: str) -> None:
        """Nothing is promoted under a name any more, and nothing ever was; again does nothing.

        For a name with one writer, who promotes nothing meanwhile. When killed in between, do it again.
        """
        check_address(kind, name)
        self.store.delete(_pointer_key(kind, name))
        # Numbers begin anew, and an archive of the old ones would stand in the way of the new.
        for entry in self.store.entries(f"{kind}/{name}/{_HISTORY}"):
            self.store.delete(entry.key)

    def history(self, kind: ArtifactKind, name: str, *, last: int | None = None) -> list[Promotion]:
        """All promotions of a name, or the last so many, oldest first; none when there was none.

        Raises ArtifactCorruptError when one is missing.
        """
        pointer = self.promoted(kind, name)
        if pointer is None:
            return []
        found = pointer.promotions
        first = 1 if last is None else max(1, pointer.number - last + 1)
        while found[0].number > first:
            found = (*self._archived(kind, name, found[0].number - 1), *found)
        return [each for each in found if each.number >= first]

    def state(self, kind: ArtifactKind, name: str) -> tuple[PointerState, bytes | None]:
        """The promoted pointer's object, and its bytes to compare with. Raises ArtifactCorruptError."""
        check_address(kind, name)
        key = _pointer_key(kind, name)
        try:
            data = self.store.read_bytes(key)
        except ArtifactNotFoundError:
            return PointerState(), None
        return PointerState.from_bytes(data, url=f"{self.store.url}/{key}"), data

    def swap(self, kind: ArtifactKind, name: str, state: PointerState, *, expected: bytes | None) -> None:
        """Replace the promoted pointer's object. Raises PromotionConflictError when it is not the expected one."""
        self.store.compare_and_set(_pointer_key(kind, name), state.to_bytes(), expected=expected)

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
        return self.store.exists(manifest_key(wanted.ref))

    def _is_unfinished(self, ref: ArtifactRef) -> bool:
        """Whether a publisher, or who deletes the version, is at work or was killed at it."""
        return ref.version in self.state(ref.kind, ref.name)[0].condemned or self.store.exists(claim_key(ref))

    def _refuse_condemned(self, ref: ArtifactRef) -> None:
        condemned = self.state(ref.kind, ref.name)[0].condemned.get(ref.version)
        if condemned is not None:
            raise PromotionConflictError(_being_deleted(ref, condemned))

    def _acquit(self, ref: ArtifactRef) -> None:
        """Take back that a version is to be deleted. Only for who holds its lock.

        A deletion marks it under that lock and holds it to the end: whoever has marked it was killed.
        """
        while True:
            state, data = self.state(ref.kind, ref.name)
            if ref.version not in state.condemned:
                return
            others = {version: mark for version, mark in state.condemned.items() if version != ref.version}
            with suppress(PromotionConflictError):
                self.swap(ref.kind, ref.name, state.with_condemned(others), expected=data)

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
        claim = claim_key(manifest.ref)
        self._claim(manifest, claim, alone=alone)
        try:
            # After the claim, for which a deletion looks after it has condemned: one of the two sees the other.
            self._refuse_condemned(manifest.ref)
        except PromotionConflictError:
            self.store.delete(claim)
            raise
        # Only now it is sure: a faster publisher has given up its claim after its manifest was there.
        if not self._is_published(manifest):
            for entry in manifest.files:
                self.store.upload(directory / entry.path, f"{manifest.ref}/{entry.path}")
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
            self.store.create(manifest_key(manifest.ref), manifest.to_bytes())
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

    def _move(self, kind: ArtifactKind, name: str, move: Callable[[PointerState], PointerState]) -> Pointer:
        while True:
            state, data = self.state(kind, name)
            wanted = move(state)
            if wanted.pointer is None:
                raise AssertionError("a promotion leaves something promoted")
            if wanted is state:
                return wanted.pointer
            self._archive(kind, name, state)
            try:
                self.swap(kind, name, wanted, expected=data)
            except PromotionConflictError as exc:
                now, _ = self.state(kind, name)
                # The answer was lost on its way, and others have promoted since.
                if now.has(wanted.pointer.id):
                    return wanted.pointer
                # Only what is being deleted changed: look whether ours is among it, and try again.
                if now.number == state.number:
                    continue
                winner = now.pointer
                told = (
                    f"{winner.version!r} is promoted, since {winner.promoted_at}" if winner else "nothing is promoted"
                )
                raise PromotionConflictError(
                    f"another writer moved {kind}/{name} first: now {told}; look at it and promote again"
                ) from exc
            return wanted.pointer

    def _promotable(self, ref: ArtifactRef, state: PointerState) -> Manifest:
        """The manifest of a version that is not being deleted in this state of the pointer.

        The manifest is read after the pointer. Whoever deletes a version has it condemned in the pointer before its
        manifest goes. So when the manifest is there and the pointer is then moved from this very state, the version
        was not condemned in between: it is there, and from now on it is promoted, which protects it.
        """
        if ref.version in state.condemned:
            raise PromotionConflictError(_being_deleted(ref, state.condemned[ref.version]))
        return self.manifest(ref)

    def _before(self, kind: ArtifactKind, name: str, state: PointerState, to: str | None) -> Promotion:
        """What a rollback goes to. A promotion of the form without a history knows the version before it, no more."""
        if state.pointer is None:
            raise RollbackError(f"nothing is promoted as {kind}/{name}, so there is nothing to go back from")
        at: Promotion = state.pointer
        passed: list[str] = []
        while at.previous is not None:
            if at.back is None:
                at = Promotion(version=at.previous, digest="", previous=None, promoted_at="")
            else:
                at = self._promotion(kind, name, state.pointer, at.back)
            if to is None or at.version == to:
                return at
            passed.append(at.version)
        if not passed and to is None:
            raise RollbackError(
                f"{kind}/{name} has {state.pointer.version!r} promoted, and nothing was promoted before it; "
                "promote another version"
            )
        listed = f"one of {', '.join(dict.fromkeys(passed))}" if passed else "nothing"
        raise RollbackError(
            f"{to!r} was not promoted before {state.pointer.version!r} as {kind}/{name}: before it was {listed}; "
            "promote it instead of going back to it"
        )

    def _promotion(self, kind: ArtifactKind, name: str, pointer: Pointer, number: int) -> Promotion:
        held = pointer.promotions if number > pointer.archived else self._archived(kind, name, number)
        return next(each for each in held if each.number == number)

    def _archive(self, kind: ArtifactKind, name: str, state: PointerState) -> None:
        """Keep what the pointer will drop. Promotions do not change, so whoever does this writes the same bytes."""
        promotions = state.overflow()
        if not promotions:
            return
        key, data = archive_key(kind, name, promotions[0].number), archive_bytes(promotions)
        if not self.store.create(key, data) and self.store.read_bytes(key) != data:
            raise ArtifactCorruptError(
                f"{self.store.url}/{key} holds other promotions than {kind}/{name} had; was the promoted pointer "
                "deleted, or the store restored from a copy? Move that object away and promote again"
            )

    def _archived(self, kind: ArtifactKind, name: str, number: int) -> tuple[Promotion, ...]:
        key = archive_key(kind, name, number)
        try:
            found = archived_promotions(self.store.read_bytes(key), url=f"{self.store.url}/{key}")
        except ArtifactNotFoundError as exc:
            raise ArtifactCorruptError(
                f"promotion {number} of {kind}/{name} is lost: {self.store.url}/{key} was deleted"
            ) from exc
        first = number - (number - 1) % ARCHIVE_PROMOTIONS
        if [each.number for each in found] != list(range(first, first + ARCHIVE_PROMOTIONS)):
            raise ArtifactCorruptError(
                f"{self.store.url}/{key} does not hold the {ARCHIVE_PROMOTIONS} promotions from {first}"
            )
        return found

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


def _being_deleted(ref: ArtifactRef, condemned: Condemned) -> str:
    return (
        f"{str(ref)!r} is being deleted by `rag-stack index gc`, since {condemned.at}; when that is done (run it again "
        "if it was killed) publish the version again, then promote it"
    )


def manifest_key(ref: ArtifactRef) -> str:
    """Where a version's manifest is; while it is not there the version does not exist."""
    return f"{ref}/{MANIFEST_NAME}"


def claim_key(ref: ArtifactRef) -> str:
    """Where a publisher says that it is at work on a version."""
    return f"{ref}/{_CLAIM_NAME}"


def _require(kind: ArtifactKind, name: str, state: PointerState, expected_version: str | Expected | None) -> None:
    version = state.pointer.version if state.pointer else None
    if expected_version is not Expected.CURRENT and version != expected_version:
        raise PromotionConflictError(
            f"{kind}/{name} has {version!r} promoted, expected {expected_version!r}; "
            "look at what is promoted now and promote again"
        )


def promoter() -> str:
    """Who promotes, where nobody says: `user@host` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have it
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:MAX_BY_CHARS]


def archive_key(kind: ArtifactKind, name: str, number: int) -> str:
    """Where the promotion with a number is, once the pointer does not hold it any more."""
    return f"{kind}/{name}/{_HISTORY}/{archive_name(number)}"


def _pointer_key(kind: ArtifactKind, name: str) -> str:
    return f"{kind}/{name}/{POINTER_NAME}"
