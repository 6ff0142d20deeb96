"""A fetch together with other nodes: what one of them has comes from there, and only the rest from the object store."""

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal, Protocol

from rag_stack.artifacts.chunk import Buffer, Chunk
from rag_stack.artifacts.fetch import ATTEMPTS, Assignment, Origin
from rag_stack.artifacts.ledger import (
    NOTHING,
    Chunks,
    Failure,
    NodeId,
    Progress,
    Reply,
    Session,
    Task,
    UnknownSessionError,
)
from rag_stack.artifacts.partial import Partial
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError, RagStackError

# How often a fetch says that it lives; and how often one without peers looks whether it has some now.
HEARTBEAT_S: Final = 2.0


class Cluster(Protocol):
    """The other nodes and their ledger, as one fetch sees them. Calls block, for seconds at most, on any thread.

    All raise ArtifactError when the ledger cannot be reached, and UnknownSessionError when it has forgotten a session.
    """

    @property
    def node(self) -> NodeId:
        """The node that this process is on."""

    def has_others(self) -> bool:
        """Whether there is any other node now."""

    def holdings(self, *, fresh: bool) -> Mapping[NodeId, Chunks]:
        """What the other nodes have of the artifact: asked anew, or those that answered or appeared since."""

    def join(
        self,
        session: Session,
        *,
        have: Chunks,
        reading: Mapping[int, NodeId | None],
        bad_sources: Iterable[NodeId],
        holdings: Mapping[NodeId, Chunks] | None,
    ) -> None:
        """As the ledger's."""

    def hold(self, session_id: str, holdings: Mapping[NodeId, Chunks]) -> None: ...

    def next(self, session_id: str, progress: Progress) -> Reply:
        """As the ledger's, but "wait" only after some waiting for others' progress."""

    def leave(self, session_id: str, progress: Progress) -> None:
        """As the ledger's, without waiting for it."""

    def read(self, node: NodeId, chunk: Chunk) -> Buffer:
        """A chunk from a node. Raises ArtifactNotFoundError when it is not there, ArtifactError when nothing comes."""


class PeerPlan:
    """The plan of one fetch (`fetch.Plan`): the ledger's, or everything from the origin while there is none."""

    def __init__(self, partial: Partial, origin: Origin, cluster: Cluster, *, heartbeat_s: float = HEARTBEAT_S) -> None:
        missing = partial.missing()
        self._heartbeat_s = heartbeat_s
        self._chunks = partial.chunks
        self._origin = origin
        self._cluster = cluster
        self._session = Session(uuid.uuid4().hex, cluster.node, partial.manifest.hex, len(self._chunks))
        self._log = logging.getLogger(__name__)
        self._lock = threading.Lock()
        # In the files' order, as the origin is read best. What is in neither of these two is here.
        self._unread = {chunk.index: None for chunk in missing}
        self._reading: dict[int, NodeId | None] = {}
        self._done: list[int] = []
        self._failed: list[Failure] = []
        self._bad_sources: set[NodeId] = set()
        self._failures: Counter[int] = Counter()
        self._asking = 0
        self._joined = False
        self._joins = 0
        self._warned = False
        self._connecting = threading.Lock()
        self._rejoining = threading.Lock()
        self._stopped = threading.Event()
        if missing:
            self._connect()
            threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def take(self) -> Assignment | None:
        """The next chunk; None when there is nothing left to begin. May wait for another node's progress."""
        while not self._stopped.is_set():
            with self._lock:
                if not self._joined:
                    return self._begin(Task(next(iter(self._unread)), None)) if self._unread else None
                progress, joins = self._progress(), self._joins
                if not self._unread and progress == NOTHING:
                    return None
                self._asking += 1
            reply = self._ask(progress, joins=joins)
            with self._lock:
                self._asking -= 1
                if isinstance(reply, Task) and reply.index in self._unread:
                    return self._begin(reply)
                # Told that nothing is left while something is: an answer of the ledger was lost on its way.
                lost = reply is None and bool(self._unread) and not self._asking
            if lost:
                self._join_again(joins)
            elif reply is None:
                return None
        return None

    def done(self, assignment: Assignment) -> None:
        """Others can have it from here as soon as the ledger hears of it: with this thread's next question."""
        with self._lock:
            self._reading.pop(assignment.chunk.index, None)
            self._done.append(assignment.chunk.index)

    def failed(self, assignment: Assignment, error: RagStackError) -> None:
        """A peer is replaced; the origin is tried again only for a damaged chunk. Raises what cannot be mended."""
        index = assignment.chunk.index
        with self._lock:
            source = self._reading.pop(index, None)
            self._unread[index] = None
            reason = _reason(error)
            self._failed.append(Failure(index, source, reason))
            if source is not None and reason != "absent":
                self._bad_sources.add(source)
        if source is not None:
            self._log.warning("chunk %d of %s not from node %s: %s", index, self._session.artifact, source, error)
            return
        self._failures[index] += 1
        if not isinstance(error, ArtifactCorruptError) or self._failures[index] == ATTEMPTS:
            raise error

    def stop(self) -> None:
        """The fetch ends, well or not: whoever waits in `take` gets None."""
        with self._lock:
            joined, self._joined = self._joined, False
            self._stopped.set()
            progress = self._progress()
        if joined:
            try:
                self._cluster.leave(self._session.id, progress)
            except ArtifactError as exc:
                self._log.debug("the ledger will notice by itself that this fetch has ended: %s", exc)

    def _begin(self, task: Task) -> Assignment:
        del self._unread[task.index]
        self._reading[task.index] = task.source
        chunk, node = self._chunks[task.index], task.source
        if node is None:
            return Assignment(chunk, "object_store", lambda: self._origin.read(chunk))
        return Assignment(chunk, "peer", lambda: self._cluster.read(node, chunk))

    def _progress(self) -> Progress:
        progress = Progress(tuple(self._done), tuple(self._failed))
        self._done.clear()
        self._failed.clear()
        return progress

    def _ask(self, progress: Progress, *, joins: int) -> Reply:
        try:
            return self._cluster.next(self._session.id, progress)
        except UnknownSessionError:
            self._join_again(joins)
        except ArtifactError as exc:
            self._part(exc)
        return "wait"

    def _connect(self) -> None:
        """Join the ledger, if there are others. What has come so far stays, and what is on its way goes on."""
        with self._connecting:
            try:
                if not self._cluster.has_others():
                    self._joined = False
                    return
                # Before the nodes are asked, so that what they get while they answer is known, too.
                self._tell_all(None)
                self._tell_all(self._cluster.holdings(fresh=True))
            except ArtifactError as exc:
                self._part(exc)
                return
            with self._lock:
                self._joined, self._warned = not self._stopped.is_set(), False
                self._joins += 1
            if not self._joined:
                self._cluster.leave(self._session.id, NOTHING)

    def _tell_all(self, holdings: Mapping[NodeId, Chunks] | None) -> None:
        """What is here, what is on its way, and what other nodes have."""
        with self._lock:
            missing = {*self._unread, *self._reading}
            reading, bad_sources = dict(self._reading), tuple(self._bad_sources)
            # Told with the rest; and what changes from here on is told later.
            self._progress()
        have = sum(1 << index for index in range(len(self._chunks)) if index not in missing)
        # Not under the lock: while the ledger does not answer, the fetch goes on.
        self._cluster.join(self._session, have=have, reading=reading, bad_sources=bad_sources, holdings=holdings)

    def _join_again(self, joins: int) -> None:
        """After the ledger was lost; of several threads that notice the first does it."""
        with self._rejoining:
            if self._joined and self._joins == joins:
                self._connect()

    def _part(self, error: Exception) -> None:
        """Go on without peers until they can be reached again."""
        self._joined = False
        if not self._warned and not self._stopped.is_set():
            self._warned = True
            self._log.warning("no peers for %s, it comes from the object store: %s", self._session.artifact, error)

    def _watch(self) -> None:
        while not self._stopped.wait(self._heartbeat_s):
            joins = self._joins
            try:
                if self._joined:
                    self._cluster.hold(self._session.id, self._cluster.holdings(fresh=False))
                else:
                    self._connect()
            except UnknownSessionError:
                self._join_again(joins)
            except ArtifactError as exc:
                self._part(exc)


def _reason(error: RagStackError) -> Literal["absent", "damaged", "silent"]:
    if isinstance(error, ArtifactCorruptError):
        return "damaged"
    return "absent" if isinstance(error, ArtifactNotFoundError) else "silent"
