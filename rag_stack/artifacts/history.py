"""The promoted pointers of an object store, and the promotions that they do not hold any more."""

from rag_stack.artifacts.address import archive_key, history_prefix, pointer_key
from rag_stack.artifacts.manifest import ArtifactKind, check_address
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.promotion import (
    ARCHIVE_PROMOTIONS,
    Pointer,
    PointerState,
    Promotion,
    archive_bytes,
    archived_promotions,
)
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError, RollbackError


class History:
    """What was promoted when, by name. The pointer is moved by compare-and-set; what it drops is archived first."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def state(self, kind: ArtifactKind, name: str) -> tuple[PointerState, bytes | None]:
        """The promoted pointer's object, and its bytes to compare with. Raises ArtifactCorruptError."""
        check_address(kind, name)
        key = pointer_key(kind, name)
        try:
            data = self.store.read_bytes(key)
        except ArtifactNotFoundError:
            return PointerState(), None
        return PointerState.from_bytes(data, url=f"{self.store.url}/{key}"), data

    def swap(self, kind: ArtifactKind, name: str, state: PointerState, *, expected: bytes | None) -> None:
        """Replace the promoted pointer's object. Raises PromotionConflictError when it is not the expected one."""
        self.store.compare_and_set(pointer_key(kind, name), state.to_bytes(), expected=expected)

    def withdraw(self, kind: ArtifactKind, name: str) -> None:
        """Nothing is promoted under a name any more, and nothing ever was; again does nothing.

        For a name with one writer, who promotes nothing meanwhile. When killed in between, do it again.
        """
        check_address(kind, name)
        self.store.delete(pointer_key(kind, name))
        # Numbers begin anew, and an archive of the old ones would stand in the way of the new.
        for entry in self.store.entries(history_prefix(kind, name)):
            self.store.delete(entry.key)

    def promotions(self, kind: ArtifactKind, name: str, *, last: int | None = None) -> list[Promotion]:
        """All promotions of a name, or the last so many, oldest first; none when there was none.

        Raises ArtifactCorruptError when one is missing.
        """
        pointer = self.state(kind, name)[0].pointer
        if pointer is None:
            return []
        found = pointer.promotions
        first = 1 if last is None else max(1, pointer.number - last + 1)
        while found[0].number > first:
            found = (*self._archived(kind, name, found[0].number - 1), *found)
        return [each for each in found if each.number >= first]

    def before(self, kind: ArtifactKind, name: str, state: PointerState, to: str | None) -> Promotion:
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

    def archive(self, kind: ArtifactKind, name: str, state: PointerState) -> None:
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
