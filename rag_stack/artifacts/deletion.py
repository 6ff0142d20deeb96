"""How a published version goes away while others publish, promote, start and collect at the same time.

A deletion and a promotion of one version must not both succeed. Both move the same object, the promoted pointer, by
compare-and-set: a deletion first writes the version into its `condemned`, and a promotion refuses what stands there
(the argument is at `Catalog._promotable`). So one of the two is first. If it is the promotion, `condemn` sees the
version promoted, and keeps it; if it is the deletion, the promotion fails and nobody was told that it succeeded.

Everyone else who may need the version writes down that he does *before* he looks whether it is condemned, and a
deletion condemns *before* it looks for what others have written: of the two at least one sees the other. That holds for
pins (`Retention.pin`), for the claims of publishers on stores without locks (`Catalog._upload`), and, on `file://`,
the publishers' lock is held meanwhile, and says more: that there is none.

The manifest goes first, so that what a killed deletion leaves is what a killed publish leaves: files that are no
version. The mark stays until the last file is gone. If a run is killed, the next one clears its mark: at once where the
lock says that it is dead; on S3 after an hour by the store's clock, and a run stops deleting long before that.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from rag_stack.artifacts.address import claim_key, manifest_key
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactKind, ArtifactRef
from rag_stack.artifacts.promotion import Condemned, PointerState
from rag_stack.errors import ArtifactBusyError, ArtifactError, PromotionConflictError

_DEAD_AFTER_S: Final = 3600.0
_STOPS_AFTER_S: Final = 1200.0

# Why a version is needed, by a state of its pointer and by what is written down at the time of the call.
Reasons = Callable[[PointerState], tuple[str, ...]]


class Deletion:
    """One run that deletes versions. `now` is the store's time at its start."""

    def __init__(self, catalog: Catalog, *, now: datetime, dead_after_s: float = _DEAD_AFTER_S) -> None:
        self._catalog = catalog
        self._store = catalog.store
        self._now = now
        self._dead_after = timedelta(seconds=dead_after_s)
        self._id = secrets.token_hex(8)

    def clear(self, kind: ArtifactKind, name: str) -> None:
        """Take away the marks of killed runs; what nobody needs is marked again."""
        for version, mark in self._catalog.state(kind, name)[0].condemned.items():
            ref = ArtifactRef(kind, name, version)
            with suppress(ArtifactBusyError), self._store.exclusive(manifest_key(ref), wait=False) as alone:
                if alone or self._is_dead(mark):
                    self._acquit(ref, mark.by)
            self._store.prune(str(ref))

    def delete(self, ref: ArtifactRef, reasons: Reasons) -> tuple[str, ...]:
        """Delete a version unless there are reasons to keep it, which are returned then. Blocking.

        `reasons` is asked twice: before and after the version is condemned.
        """
        started = time.monotonic()
        try:
            with self._store.exclusive(manifest_key(ref), wait=False) as alone:
                kept = self._condemn(ref, reasons, alone=alone) or self._reprieve(ref, reasons)
                if not kept:
                    self._remove(ref, until=None if alone else started + _STOPS_AFTER_S)
                    self._acquit(ref, self._id)
        except ArtifactBusyError:
            return ("being published or deleted by another process",)
        if not kept:
            self._store.prune(str(ref))
        return kept

    def _condemn(self, ref: ArtifactRef, reasons: Reasons, *, alone: bool) -> tuple[str, ...]:
        while True:
            state, data = self._catalog.state(ref.kind, ref.name)
            kept = reasons(state)
            other = state.condemned.get(ref.version)
            if not kept and other is not None and not alone:
                kept = (f"being deleted by another run, since {other.at}",)
            if kept:
                return kept
            at = self._now if alone else self._store.now()  # with a lock nobody goes by the time
            mark = Condemned(self._id, at.isoformat(timespec="seconds"))
            try:
                wanted = state.with_condemned({**state.condemned, ref.version: mark})
                self._catalog.swap(ref.kind, ref.name, wanted, expected=data)
            except PromotionConflictError:
                continue
            return ()

    def _reprieve(self, ref: ArtifactRef, reasons: Reasons) -> tuple[str, ...]:
        kept = reasons(self._catalog.state(ref.kind, ref.name)[0])
        if kept:
            self._acquit(ref, self._id)
        return kept

    def _remove(self, ref: ArtifactRef, *, until: float | None) -> None:
        first, last = manifest_key(ref), claim_key(ref)
        keys = {entry.key for entry in self._store.entries(str(ref))} - {first, last}
        for key in (first, *sorted(keys), last):
            if until is not None and time.monotonic() > until:
                raise ArtifactError(
                    f"deleting {str(ref)!r} took more than {_STOPS_AFTER_S:.0f} s; run `rag-stack index gc` again in "
                    "an hour, which goes on with it"
                )
            self._store.delete(key)

    def _acquit(self, ref: ArtifactRef, by: str) -> None:
        while True:
            state, data = self._catalog.state(ref.kind, ref.name)
            mark = state.condemned.get(ref.version)
            if mark is None or mark.by != by:
                return
            try:
                others = {version: each for version, each in state.condemned.items() if version != ref.version}
                self._catalog.swap(ref.kind, ref.name, state.with_condemned(others), expected=data)
            except PromotionConflictError:
                continue
            return

    def _is_dead(self, other: Condemned) -> bool:
        return self._now - datetime.fromisoformat(other.at) > self._dead_after
