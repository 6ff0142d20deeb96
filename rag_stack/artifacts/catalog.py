"""What is published, and which version is promoted. The promoted pointer is the only thing that ever changes."""

import getpass
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final

from rag_stack.artifacts.address import manifest_key
from rag_stack.artifacts.history import History
from rag_stack.artifacts.manifest import (
    RESERVED_NAMES,
    ArtifactKind,
    ArtifactRef,
    Manifest,
    check_address,
)
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.promotion import (
    MAX_BY_CHARS,
    Pointer,
    PointerState,
    Promotion,
    check_told,
)
from rag_stack.artifacts.publication import Publication, being_deleted
from rag_stack.config import is_name
from rag_stack.errors import (
    ArtifactCorruptError,
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


class Expected(Enum):
    """What `promote` may expect beside a version: whatever is promoted at the time of the call."""

    CURRENT = "current"


class Catalog:
    """The artifacts of one object store."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._history = History(store)

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
        return Publication(self.store, self._history, self.manifest).publish(
            directory, kind=kind, name=name, metadata=metadata, version=version, parent=parent
        )

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
            target = self._history.before(kind, name, state, to)
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
        self._history.withdraw(kind, name)

    def history(self, kind: ArtifactKind, name: str, *, last: int | None = None) -> list[Promotion]:
        """All promotions of a name, or the last so many, oldest first; none when there was none.

        Raises ArtifactCorruptError when one is missing.
        """
        return self._history.promotions(kind, name, last=last)

    def state(self, kind: ArtifactKind, name: str) -> tuple[PointerState, bytes | None]:
        """The promoted pointer's object, and its bytes to compare with. Raises ArtifactCorruptError."""
        return self._history.state(kind, name)

    def swap(self, kind: ArtifactKind, name: str, state: PointerState, *, expected: bytes | None) -> None:
        """Replace the promoted pointer's object. Raises PromotionConflictError when it is not the expected one."""
        self._history.swap(kind, name, state, expected=expected)

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

    def _move(self, kind: ArtifactKind, name: str, move: Callable[[PointerState], PointerState]) -> Pointer:
        while True:
            state, data = self.state(kind, name)
            wanted = move(state)
            if wanted.pointer is None:
                raise AssertionError("a promotion leaves something promoted")
            if wanted is state:
                return wanted.pointer
            self._history.archive(kind, name, state)
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
            raise PromotionConflictError(being_deleted(ref, state.condemned[ref.version]))
        return self.manifest(ref)

    def _advice(self, ref: ArtifactRef) -> str:
        versions = self.versions(ref.kind, ref.name)
        if versions:
            return f"published versions of {ref.name!r}: {', '.join(versions)}"
        return self._advice_for(ref.kind)

    def _advice_for(self, kind: ArtifactKind) -> str:
        names = self.names(kind)
        listed = f"published {kind}: {', '.join(names)}" if names else f"no {kind} are published there"
        return f"{listed}; publish with `{_PUBLISHED_BY[kind]}`"


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
