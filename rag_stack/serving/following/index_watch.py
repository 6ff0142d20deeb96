"""What an operator wants to know of each followed index: how old it is, and whether a newer version was refused.

A build is a process that has ended before anybody asks it, so its outcome is read where it leaves it: in the catalog.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.errors import ArtifactError, ArtifactNotFoundError
from rag_stack.index.judgement import failed_gates
from rag_stack.metrics import INDEX_AGE_SECONDS, INDEX_FAILED_GATES, INDEX_UNPROMOTED, Recorder

_LOG: Final = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Seen:
    """A store's index as the catalog has it. `published_s` is when the version that is served was, in Unix seconds."""

    published_s: float | None = None
    unpromoted: bool = False
    failed_gates: int = 0


class IndexWatch:
    """Looks into the catalog now and then, and tells what it saw as often as Ray needs to hear it."""

    def __init__(self, catalog: Catalog, recorder: Recorder, *, clock: Callable[[], float] = time.time) -> None:
        self._catalog = catalog
        self._recorder = recorder
        self._clock = clock
        self._seen: Mapping[str, Seen] = {}
        self._published_s: dict[ArtifactRef, float] = {}
        self._unreadable: set[str] = set()

    def look(self, served: Iterable[tuple[str, str, str]]) -> None:
        """Read what there is of each (store, index, version that is served). Blocking.

        What cannot be read stays as it was seen last; that is said once.
        """
        seen = {}
        for store, index, version in served:
            try:
                seen[store] = self._look_at(index, version)
                self._unreadable.discard(store)
            except ArtifactError as exc:
                seen[store] = self._seen.get(store, Seen())
                if store not in self._unreadable:
                    _LOG.warning("cannot see which versions the index %s has: %s", index, exc)
                self._unreadable.add(store)
        self._seen = seen

    def tell(self) -> None:
        """Set the gauges of the stores that were seen last."""
        for store, seen in self._seen.items():
            labels = {"store": store}
            if seen.published_s is not None:
                self._recorder.record(INDEX_AGE_SECONDS, max(0.0, self._clock() - seen.published_s), labels)
            self._recorder.record(INDEX_UNPROMOTED, float(seen.unpromoted), labels)
            self._recorder.record(INDEX_FAILED_GATES, seen.failed_gates, labels)

    def _look_at(self, index: str, version: str) -> Seen:
        served_s = self._published_at(ArtifactRef("indexes", index, version)) if version else None
        published = {each: self._published_at(ArtifactRef("indexes", index, each)) for each in self._versions(index)}
        newest = max(published, key=lambda each: published[each] or 0.0, default=None)
        pointer = self._catalog.promoted("indexes", index)
        promoted = {each.version for each in pointer.promotions} if pointer else set()
        seen = Seen(served_s)
        if newest is None or newest in promoted:
            return seen
        failed = failed_gates(self._catalog.manifest(ArtifactRef("indexes", index, newest)))
        return replace(seen, unpromoted=True, failed_gates=len(failed))

    def _versions(self, index: str) -> list[str]:
        versions = self._catalog.versions("indexes", index)
        gone = [ref for ref in self._published_s if ref.name == index and ref.version not in versions]
        for ref in gone:
            del self._published_s[ref]
        return versions

    def _published_at(self, ref: ArtifactRef) -> float | None:
        """None for one that is being deleted."""
        if ref not in self._published_s:
            try:
                self._published_s[ref] = self._catalog.published_at(ref).timestamp()
            except ArtifactNotFoundError:
                return None
        return self._published_s[ref]
