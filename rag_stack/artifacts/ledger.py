"""Who has which chunks of an artifact, who fetches them, and what each node shall fetch next, from where.

One a cluster, in memory: all of it is told again by the sessions when it is lost. Sets of chunks are the bits of an
int, since a model has thousands of chunks and each question goes over the sets of all nodes.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

NodeId: TypeAlias = str
# Bit i is set when chunk i is in the set.
Chunks: TypeAlias = int

# Chunks that one node gives at once, to all others together.
READS_PER_SOURCE: Final = 8
# A session that is silent for so long has died; what it fetches from the origin is given to others. Longer than it
# takes to ask all nodes what they have.
SILENCE_S: Final = 12.0
# Another node may fetch a chunk, too, that has been on its way from the origin for so long.
LEASE_S: Final = 60.0
# Chunks with more copies than this are all alike.
_COPIES_COUNTED: Final = 8


@dataclass(frozen=True, slots=True)
class Session:
    """One process that fetches one artifact of `chunk_count` chunks to its node."""

    id: str
    node: NodeId
    artifact: str
    chunk_count: int


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk to fetch, from a node or (None) from the origin."""

    index: int
    source: NodeId | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A chunk that did not come: the source has it no more, sent other bytes, or did not answer."""

    index: int
    source: NodeId | None
    reason: Literal["absent", "damaged", "silent"]


@dataclass(frozen=True, slots=True)
class Progress:
    """What became of a session's tasks since it last asked."""

    done: Sequence[int] = ()
    failed: Sequence[Failure] = ()


@dataclass(slots=True)
class _Fetcher:
    session: Session
    wanted: Chunks
    heard_at: float
    # Nothing is read from the origin before it is known what the nodes have.
    ready: bool
    reading: dict[int, NodeId | None] = field(default_factory=dict)
    bad_sources: set[NodeId] = field(default_factory=set)


@dataclass(slots=True)
class _Artifact:
    # Every node that has a part, whether it fetches or not.
    holdings: dict[NodeId, Chunks] = field(default_factory=dict)
    # Chunks on their way from the origin: by whom, since when.
    leases: dict[int, tuple[str, float]] = field(default_factory=dict)
    fetchers: set[str] = field(default_factory=set)


# A task; None: nothing is left to begin; wait: others fetch what is left, or all who have it are busy.
Reply: TypeAlias = Task | Literal["wait"] | None
NOTHING: Final = Progress()


class UnknownSessionError(Exception):
    """The ledger was lost, or forgot a session that was silent; it has to join again."""


class Ledger:
    """Assigns chunks, rarest first, each to the least busy node that has it. Not for several threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, seed: int | None = None) -> None:
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - it spreads load, and keeps no secret
        self._artifacts: dict[str, _Artifact] = {}
        self._fetchers: dict[str, _Fetcher] = {}
        self._reads: Counter[NodeId] = Counter()

    def join(
        self,
        session: Session,
        *,
        have: Chunks,
        reading: Mapping[int, NodeId | None],
        bad_sources: Iterable[NodeId] = (),
        holdings: Mapping[NodeId, Chunks] | None,
    ) -> None:
        """Begin a session, or go on with it after the ledger was lost, with what its node has and fetches now.

        `holdings` is what the other nodes have. While they are being asked (None) the session has to wait.
        """
        self._artifacts.setdefault(session.artifact, _Artifact()).fetchers.add(session.id)
        if session.id in self._fetchers:
            self._end_all(self._fetchers[session.id])
        wanted = ((1 << session.chunk_count) - 1) & ~have
        ready = holdings is not None
        fetcher = _Fetcher(session, wanted, self._clock(), ready=ready, bad_sources=set(bad_sources))
        self._fetchers[session.id] = fetcher
        self.hold(session.id, {**(holdings or {}), session.node: have})
        for index, source in reading.items():
            self._begin(fetcher, Task(index, source))

    def hold(self, session_id: str, holdings: Mapping[NodeId, Chunks]) -> None:
        """Take note of what nodes have of a session's artifact; also a sign of life. Raises UnknownSessionError."""
        known = self._artifacts[self._fetcher(session_id).session.artifact].holdings
        for node, chunks in holdings.items():
            known[node] = known.get(node, 0) | chunks

    def next(self, session_id: str, progress: Progress) -> Reply:
        """What a session shall fetch next: None when all is there or on its way. Raises UnknownSessionError."""
        fetcher = self._fetcher(session_id)
        self._note(fetcher, progress)
        self._forget_silent()
        unread = fetcher.wanted & ~_set_of(fetcher.reading)
        if not unread:
            return None
        if not fetcher.ready:
            return "wait"
        artifact = self._artifacts[fetcher.session.artifact]
        ways = [self._from_origin, self._from_peer]
        # Both at once, where both have something: neither link then waits for the other.
        if sum(source is None for source in fetcher.reading.values()) * 2 > len(fetcher.reading):
            ways.reverse()
        for way in ways:
            if task := way(fetcher, artifact, unread):
                self._begin(fetcher, task)
                return task
        return "wait"

    def leave(self, session_id: str, progress: Progress = NOTHING) -> None:
        """End a session, well or not. What its node has can still be had from there."""
        fetcher = self._fetchers.get(session_id)
        if fetcher is None:
            return
        self._note(fetcher, progress)
        self._end_all(fetcher)
        del self._fetchers[session_id]
        artifact = self._artifacts[fetcher.session.artifact]
        artifact.fetchers.discard(session_id)
        if not artifact.fetchers:
            # The next session asks the nodes again, whose disks know better.
            del self._artifacts[fetcher.session.artifact]

    def _fetcher(self, session_id: str) -> _Fetcher:
        fetcher = self._fetchers.get(session_id)
        if fetcher is None:
            raise UnknownSessionError(session_id)
        fetcher.heard_at = self._clock()
        return fetcher

    def _note(self, fetcher: _Fetcher, progress: Progress) -> None:
        holdings = self._artifacts[fetcher.session.artifact].holdings
        for index in progress.done:
            self._end(fetcher, index)
            fetcher.wanted &= ~(1 << index)
            holdings[fetcher.session.node] = holdings.get(fetcher.session.node, 0) | 1 << index
        for failure in progress.failed:
            self._end(fetcher, failure.index)
            if failure.source is None:
                continue
            if failure.reason == "absent":
                holdings.pop(failure.source, None)
                continue
            fetcher.bad_sources.add(failure.source)
            if failure.reason == "damaged" and failure.source in holdings:
                holdings[failure.source] &= ~(1 << failure.index)

    def _from_peer(self, fetcher: _Fetcher, artifact: _Artifact, unread: Chunks) -> Task | None:
        # A chunk's copies decide how rare it is, and only free sources who can give it.
        givers = self._givers(fetcher, artifact)
        free = [node for node in givers if self._reads[node] < READS_PER_SOURCE]
        rarity = _Rarity(artifact.holdings.values())
        for chunks in rarity.rarest_first(_union(artifact.holdings[node] for node in free) & unread):
            index = self._pick(chunks)
            holders = [node for node in free if artifact.holdings[node] >> index & 1]
            return Task(index, min(holders, key=lambda node: (self._reads[node], self._random.random())))
        return None

    def _from_origin(self, fetcher: _Fetcher, artifact: _Artifact, unread: Chunks) -> Task | None:
        held = _union(artifact.holdings[node] for node in self._givers(fetcher, artifact))
        overdue = self._clock() - LEASE_S
        leased = _set_of(index for index, (_, since) in artifact.leases.items() if since > overdue)
        free = unread & ~held & ~leased
        return Task(_lowest(free), None) if free else None

    def _givers(self, fetcher: _Fetcher, artifact: _Artifact) -> list[NodeId]:
        own = fetcher.session.node
        return [node for node in artifact.holdings if node != own and node not in fetcher.bad_sources]

    def _pick(self, chunks: Chunks) -> int:
        """Any of them, so that nodes that ask at once do not all fetch the same."""
        start = self._random.randrange(chunks.bit_length())
        return start + _lowest(chunks >> start)

    def _begin(self, fetcher: _Fetcher, task: Task) -> None:
        fetcher.reading[task.index] = task.source
        if task.source is None:
            leases = self._artifacts[fetcher.session.artifact].leases
            leases[task.index] = (fetcher.session.id, self._clock())
        else:
            self._reads[task.source] += 1

    def _end(self, fetcher: _Fetcher, index: int) -> None:
        source = fetcher.reading.pop(index, None)
        leases = self._artifacts[fetcher.session.artifact].leases
        if source is not None:
            self._reads[source] -= 1
        elif index in leases and leases[index][0] == fetcher.session.id:
            del leases[index]

    def _end_all(self, fetcher: _Fetcher) -> None:
        for index in list(fetcher.reading):
            self._end(fetcher, index)

    def _forget_silent(self) -> None:
        oldest = self._clock() - SILENCE_S
        for fetcher in [fetcher for fetcher in self._fetchers.values() if fetcher.heard_at < oldest]:
            self.leave(fetcher.session.id)


class _Rarity:
    """Chunks by the number of nodes that have them: `_at_least[k]` are those that more than k nodes have."""

    def __init__(self, holdings: Iterable[Chunks]) -> None:
        self._at_least: list[Chunks] = []
        for chunks in holdings:
            carried = chunks
            for copies, known in enumerate(self._at_least):
                self._at_least[copies], carried = known | carried, known & carried
                if not carried:
                    break
            if carried and len(self._at_least) < _COPIES_COUNTED:
                self._at_least.append(carried)

    def rarest_first(self, chunks: Chunks) -> Iterable[Chunks]:
        """The given chunks in groups that are equally rare; empty groups are left out."""
        for copies in range(len(self._at_least)):
            more = self._at_least[copies + 1] if copies + 1 < len(self._at_least) else 0
            if group := chunks & self._at_least[copies] & ~more:
                yield group


def _set_of(indices: Iterable[int]) -> Chunks:
    return _union(1 << index for index in indices)


def _union(sets: Iterable[Chunks]) -> Chunks:
    united = 0
    for chunks in sets:
        united |= chunks
    return united


def _lowest(chunks: Chunks) -> int:
    return (chunks & -chunks).bit_length() - 1
