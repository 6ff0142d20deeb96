"""Which version of each store every process prepares, and which it serves: level-triggered, without Ray or a clock.

A *participant* is a process that searches. It says again and again where it is (`sync`) and is told what is wanted; no
message matters more than the latest. A new target is first prepared by all, and only then served by any:

    set_target -> all prepare -> (all have, or the limit is over) -> all serve

so that a question gets the same answer from every process but for the moment in which they flip. Who cannot prepare
keeps what it serves, and is told of as lagging; the others wait for it for seconds only. A target that changes
meanwhile takes the place of the one under way; a rollback is a target like any other. Targets are numbered, and nobody
ever goes back to a smaller number. A coordinator that has restarted learns the numbers from the reports, and opens
nothing before all had time to report.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from rag_stack.errors import NotFoundError, StoreLimitError

# A participant that is silent for so long has ended, or will begin again.
SILENCE_S: Final = 15.0
# Who has failed tries again within seconds; for who fails still after so long nobody waits.
FAILURE_S: Final = 10.0
# Participants ask a coordinator that does not answer again every second.
GRACE_S: Final = 5.0
_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class FollowedStore:
    """A store whose index is followed: whatever version of it is promoted is served.

    `of_release` is false for one that was made over HTTP: a coordinator that has restarted takes it over from reports.
    """

    name: str
    index: str
    of_release: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """An index version to serve. `number` grows with each change; 0 is what a participant opened by itself.

    Without a version it is an empty store.
    """

    number: int = 0
    version: str = ""
    digest: str = ""

    def same(self, other: "Target | None") -> bool:
        """Whether it is the same content, whatever its number."""
        return other is not None and (self.version, self.digest) == (other.version, other.digest)


NOTHING: Final = Target()


@dataclass(frozen=True, slots=True)
class Failed:
    """A target that a participant could not prepare, and why. It tries again, less and less often."""

    target: Target
    reason: str


@dataclass(frozen=True, slots=True)
class StoreReport:
    """Where a participant is with a store."""

    store: FollowedStore
    serving: Target = NOTHING
    prepared: Target | None = None
    failed: Failed | None = None

    def has(self, target: Target) -> bool:
        """Whether it could serve the target at once, or does."""
        return target.same(self.serving) or target.same(self.prepared)


Report = Mapping[str, StoreReport]


@dataclass(frozen=True, slots=True)
class Order:
    """What a participant shall do: serve `serve` as soon as it can (None: what it has), and have `prepare` ready."""

    store: FollowedStore
    serve: Target | None
    prepare: Target | None


Orders = Mapping[str, Order]


@dataclass(frozen=True, slots=True)
class Lag:
    """A participant that serves an older version of a store than is wanted, and why."""

    participant: str
    serving: str
    reason: str


@dataclass(frozen=True, slots=True)
class StoreView:
    """A store as the coordinator sees it: what is served (empty: nothing is known), what is being rolled out."""

    store: FollowedStore
    version: str
    next_version: str | None
    lagging: tuple[Lag, ...]


@dataclass(slots=True)
class _Store:
    followed: FollowedStore
    current: Target | None = None
    next: Target | None = None
    began_s: float = 0.0
    opened_s: float = 0.0
    # The limit, and not the last participant, has opened it.
    overdue: bool = False
    highest: int = 0

    @property
    def wanted(self) -> Target | None:
        return self.next or self.current


@dataclass(slots=True)
class _Participant:
    heard_s: float
    report: dict[str, StoreReport] = field(default_factory=dict)
    # Stores whose target has changed since its report: what it was told before may have had it drop what it had.
    outdated: set[str] = field(default_factory=set)


class Coordinator:
    """See the module. Times are seconds of one clock, passed in. Not for several threads."""

    def __init__(
        self,
        stores: Iterable[FollowedStore] = (),
        *,
        now_s: float,
        limit_s: float,
        max_stores: int,
        silence_s: float = SILENCE_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._stores = {store.name: _Store(store) for store in stores}
        self._participants: dict[str, _Participant] = {}
        self._removed: dict[str, None] = {}
        self._learning_until_s = now_s + grace_s
        self._limit_s = limit_s
        self._max_stores = max_stores
        self._silence_s = silence_s

    @property
    def stores(self) -> tuple[FollowedStore, ...]:
        """The stores that are followed."""
        return tuple(store.followed for store in self._stores.values())

    def followed(self, name: str) -> FollowedStore:
        """A store that is followed. Raises NotFoundError."""
        return self._store(name).followed

    def add_store(self, store: FollowedStore) -> None:
        """Follow one more store; again does nothing. Raises StoreLimitError."""
        self._removed.pop(store.name, None)
        if store.name in self._stores:
            return
        if len(self._stores) >= self._max_stores:
            raise StoreLimitError(
                f"this server follows {len(self._stores)} stores, and {self._max_stores} at most: delete one, or raise "
                "`swap.max_stores` in the release"
            )
        self._stores[store.name] = _Store(store)

    def remove_store(self, name: str) -> None:
        """Follow a store no more, and have everybody drop it; again does nothing."""
        self._stores.pop(name, None)
        self._removed[name] = None
        while len(self._removed) > _REMEMBERED:
            del self._removed[next(iter(self._removed))]

    def set_target(self, name: str, *, version: str, digest: str, now_s: float) -> None:
        """What is promoted for a store now. Raises NotFoundError for one that is not followed."""
        store, target = self._store(name), Target(version=version, digest=digest)
        if target.same(store.wanted):
            return
        if target.same(store.current):
            # Taken back before anybody served it.
            store.next = None
            return
        store.highest += 1
        store.next, store.began_s = replace(target, number=store.highest), now_s
        for participant in self._participants.values():
            participant.outdated.add(name)

    def sync(self, participant: str, report: Report, *, now_s: float) -> Orders:
        """Take note of where a participant is; the first time it joins. Returns what it shall do now."""
        self._participants[participant] = _Participant(now_s, dict(report))
        for name, told in report.items():
            if name not in self._stores and name not in self._removed and not told.store.of_release:
                if len(self._stores) >= self._max_stores:
                    continue
                self._stores[name] = _Store(told.store)
            if name in self._stores:
                self._learn(self._stores[name], told, now_s)
        self.advance(now_s)
        return self.orders()

    def alive(self, participant: str, *, now_s: float) -> None:
        """A participant whose question is still open lives."""
        if participant in self._participants:
            self._participants[participant].heard_s = now_s

    def leave(self, participant: str) -> None:
        """A participant ends; nobody waits for it any more."""
        self._participants.pop(participant, None)

    def advance(self, now_s: float) -> None:
        """Forget who is silent, and open what all have prepared or whose limit is over."""
        for name in [n for n, p in self._participants.items() if now_s - p.heard_s > self._silence_s]:
            del self._participants[name]
        if now_s < self._learning_until_s:
            return
        for store in self._stores.values():
            if store.next is None:
                continue
            told = [self._told(participant, store) for participant in self._participants.values()]
            ready = [self._is_ready(participant, store, store.next) for participant in self._participants.values()]
            # Nobody waits for long for who says that it cannot, nor for ever for who says nothing.
            waited_for = [
                each
                for each, able in zip(told, ready, strict=True)
                if not able and not (each.failed and store.next.same(each.failed.target))
            ]
            waited_s = now_s - store.began_s
            overdue = waited_s >= (self._limit_s if waited_for else min(FAILURE_S, self._limit_s))
            if all(ready) or (overdue and any(ready)):
                store.current, store.next = store.next, None
                store.opened_s, store.overdue = now_s, not all(ready)

    def orders(self) -> Orders:
        """What everybody shall do now."""
        return {name: Order(store.followed, store.current, store.next) for name, store in self._stores.items()}

    def lagging(self, name: str, *, now_s: float) -> tuple[Lag, ...]:
        """Who will not serve what is wanted soon, and why. Raises NotFoundError."""
        store = self._store(name)
        target = store.wanted
        if target is None:
            return ()
        late = store.overdue if store.next is None else False
        late = late or now_s - (store.opened_s if store.next is None else store.began_s) >= self._limit_s
        found = []
        for participant, each in self._participants.items():
            told = self._told(each, store)
            # Who has it and does not serve it yet will do so with the next answer.
            if told.has(target):
                continue
            if told.failed is not None and target.same(told.failed.target):
                found.append(Lag(participant, told.serving.version, told.failed.reason))
            elif late:
                reason = f"has not prepared {target.version} within {self._limit_s:g} s"
                found.append(Lag(participant, told.serving.version, reason))
        return tuple(found)

    def waiting(self, name: str) -> tuple[str, ...]:
        """Who does not serve what is wanted yet; empty when a store is settled. Raises NotFoundError."""
        store = self._store(name)
        target = store.wanted
        if target is None:
            return ()
        return tuple(n for n, p in self._participants.items() if not target.same(self._told(p, store).serving))

    def is_open(self, name: str) -> bool:
        """Whether what is wanted may be served: no rollout is under way. Raises NotFoundError."""
        return self._store(name).next is None

    def versions(self) -> frozenset[tuple[str, str]]:
        """What is served, prepared or wanted anywhere: index and version."""
        found = {(s.followed.index, t.version) for s in self._stores.values() for t in (s.current, s.next) if t}
        for participant in self._participants.values():
            for told in participant.report.values():
                targets = (told.serving, told.prepared)
                found |= {(told.store.index, target.version) for target in targets if target}
        return frozenset((index, version) for index, version in found if version)

    def views(self, *, now_s: float) -> Sequence[StoreView]:
        """All stores, for those who look."""
        return tuple(
            StoreView(
                store.followed,
                store.current.version if store.current else "",
                store.next.version if store.next else None,
                self.lagging(name, now_s=now_s),
            )
            for name, store in self._stores.items()
        )

    def _learn(self, store: _Store, told: StoreReport, now_s: float) -> None:
        """What an earlier coordinator had opened is open; and no number is given twice."""
        known = [told.serving, told.prepared, told.failed.target if told.failed else None]
        store.highest = max(store.highest, *(target.number for target in known if target))
        if told.serving.number > (store.current.number if store.current else 0):
            store.current, store.opened_s = told.serving, now_s
        if store.next is None or store.current is None:
            return
        if store.next.same(store.current):
            store.next = None
        elif store.next.number <= store.current.number:
            store.highest += 1
            store.next = replace(store.next, number=store.highest)

    def _is_ready(self, participant: _Participant, store: _Store, target: Target) -> bool:
        """Whether it has the target, by a report that came after it was set, and will keep it until it is opened.

        Who does not serve what is open prepares that first, or flips to it, and then no longer has what it had.
        """
        told, current = self._told(participant, store), store.current
        if store.followed.name in participant.outdated:
            return False
        if current is None or current.same(told.serving) or (told.failed and current.same(told.failed.target)):
            return told.has(target)
        return target.same(told.serving) and not current.same(told.prepared)

    def _told(self, participant: _Participant, store: _Store) -> StoreReport:
        return participant.report.get(store.followed.name) or StoreReport(store.followed)

    def _store(self, name: str) -> _Store:
        store = self._stores.get(name)
        if store is None:
            raise NotFoundError(f"the store {name!r} is not followed; followed are {sorted(self._stores)}")
        return store
