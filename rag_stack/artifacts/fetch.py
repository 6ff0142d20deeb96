"""Moves the missing chunks of one artifact: several at once, each verified, wherever a plan says they come from."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from rag_stack.artifacts.chunk import Buffer, Chunk
from rag_stack.artifacts.manifest import FileEntry, Manifest
from rag_stack.artifacts.object_store import ObjectReader, ObjectStore
from rag_stack.artifacts.partial import Partial
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError, RagStackError

Source: TypeAlias = Literal["cache", "mirror", "peer", "object_store"]

# Chunks in flight, which bounds memory too. Measured (`python -m loadtests.fetch`): more gain nothing on one server.
THREADS: Final = 4
# A chunk can be damaged on its way, and come right the next time.
ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class Assignment:
    """One chunk to move, from where, and how: `read` blocks, returns its bytes or raises."""

    chunk: Chunk
    source: Source
    read: Callable[[], Buffer]


class Plan(Protocol):
    """Says what to move next. Called from several threads."""

    def take(self) -> Assignment | None:
        """The next chunk; None when there is nothing left to begin. May wait for another node's progress."""

    def done(self, assignment: Assignment) -> None:
        """A chunk is verified and written."""

    def failed(self, assignment: Assignment, error: RagStackError) -> None:
        """A chunk did not come. Raises when there is no other way to get it."""

    def stop(self) -> None:
        """The fetch ends, well or not: whoever waits in `take` gets None."""


def fetch(partial: Partial, plan: Plan, *, threads: int = THREADS) -> Mapping[Source, int]:
    """Move what a plan assigns into a partial artifact; returns the bytes by source. Blocking.

    The first error that the plan cannot mend ends the fetch and is raised; what came stays for the next one.
    """
    errors: list[BaseException] = []

    def work() -> Counter[Source]:
        # Each thread counts for itself: adding to a common count is no single step, and would lose some.
        moved: Counter[Source] = Counter()
        try:
            while not errors and (assignment := plan.take()) is not None:
                if _move(assignment, partial, plan):
                    moved[assignment.source] += assignment.chunk.size_bytes
        except BaseException as exc:
            errors.append(exc)
            plan.stop()
        return moved

    try:
        with ThreadPoolExecutor(threads, "fetch") as pool:
            counts = [pool.submit(work) for _ in range(threads)]
    finally:
        plan.stop()
    if errors:
        raise errors[0]
    return sum((count.result() for count in counts), Counter())


def _move(assignment: Assignment, partial: Partial, plan: Plan) -> bool:
    try:
        data = assignment.read()
        # Verified there, and nothing else is ever written.
        partial.write(assignment.chunk, data)
    except RagStackError as exc:
        plan.failed(assignment, exc)
        return False
    plan.done(assignment)
    return True


class Origin:
    """Reads chunks of one artifact from the object store."""

    def __init__(self, store: ObjectStore, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._entries = {entry.path: entry for entry in manifest.files}
        self._readers: dict[str, ObjectReader] = {}
        self._lock = threading.Lock()

    def read(self, chunk: Chunk) -> Buffer:
        """A chunk's bytes as they came; the writer verifies them. Raises ArtifactError."""
        return self._reader(self._entries[chunk.path]).read_at(chunk.offset, chunk.size_bytes)

    def close(self) -> None:
        """Let go of the objects that were opened."""
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()

    def _reader(self, entry: FileEntry) -> ObjectReader:
        with self._lock:
            reader = self._readers.get(entry.path)
        if reader is None:
            opened = self._open(entry)
            with self._lock:
                reader = self._readers.setdefault(entry.path, opened)
            if reader is not opened:
                opened.close()
        return reader

    def _open(self, entry: FileEntry) -> ObjectReader:
        ref = str(self._manifest.ref)
        try:
            reader = self._store.reader(f"{ref}/{entry.path}")
        except ArtifactNotFoundError as exc:
            raise ArtifactCorruptError(
                f"file {entry.path!r} of {ref!r} is gone from {self._store.url}; delete the rest of that folder and "
                "publish it again"
            ) from exc
        if reader.size_bytes != entry.size_bytes:
            reader.close()
            raise ArtifactCorruptError(
                f"file {entry.path!r} of {ref!r} has {reader.size_bytes} bytes in {self._store.url}, expected "
                f"{entry.size_bytes}; its stored copy is damaged: delete that folder and publish it again"
            )
        return reader


class OriginPlan:
    """Everything from the object store: what a node does that has no peers."""

    def __init__(self, origin: Origin, missing: Sequence[Chunk]) -> None:
        self._origin = origin
        self._missing = deque(missing)
        self._failures: Counter[int] = Counter()

    def take(self) -> Assignment | None:
        """The next chunk, in the files' order."""
        try:
            chunk = self._missing.popleft()
        except IndexError:
            return None
        return Assignment(chunk, "object_store", lambda: self._origin.read(chunk))

    def done(self, assignment: Assignment) -> None:
        """Nobody else waits for it."""

    def failed(self, assignment: Assignment, error: RagStackError) -> None:
        """Try a damaged chunk again: it can come right the next time. Raises what cannot be mended."""
        chunk = assignment.chunk
        self._failures[chunk.index] += 1
        if not isinstance(error, ArtifactCorruptError) or self._failures[chunk.index] == ATTEMPTS:
            raise error
        self._missing.append(chunk)

    def stop(self) -> None:
        """Assign nothing more."""
        self._missing.clear()
