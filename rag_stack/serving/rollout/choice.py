"""Which release a conversation goes to, and which replica of it. Pure; `router` asks it for every request."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from rag_stack.serving.routing.affinity import Affinity, Reason, rendezvous
from rag_stack.serving.routing.balance import Work
from rag_stack.serving.routing.subject import Subject

# Under this key a replica tells the router its Standing, among whatever else its engine reports.
STATS_KEY: Final = "rag_release"
_SPAN: Final = float(1 << 64)
# Of which words choose one. With two, each soon has half of everything cached, and what words win in the cache waiting
# takes again (loadtests.routing).
_LEAST_REPLICAS: Final = 3


@dataclass(frozen=True, slots=True)
class Split:
    """What share of new conversations goes to the release `next`. Of two, the one with the higher number is newer."""

    number: int = 0
    next: str = ""
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A replica as it stands: the release that it is, whether it takes requests, and the split that it knows of.

    `work` where its release wants questions about the same documents together.
    """

    release: str
    takes: bool
    split: Split
    work: Work | None = None

    def to_stats(self) -> dict[str, Any]:
        """What the replica reports."""
        split = [self.split.number, self.split.next, self.split.share]
        work = [self.work.under_way, self.work.arrived] if self.work else None
        return {STATS_KEY: {"release": self.release, "takes": self.takes, "split": split, "work": work}}

    @classmethod
    def from_stats(cls, stats: Mapping[str, Any]) -> Self | None:
        """None for a replica that has not reported yet."""
        told = stats.get(STATS_KEY)
        if not told:
            return None
        # A replica of the version before this one tells no work.
        work = told.get("work")
        return cls(told["release"], told["takes"], Split(*told["split"]), Work(*work) if work else None)


class ReleaseChoice:
    """One a router. It keeps what the shares owe, so that they are exact to one request and not by luck.

    A conversation that names its session goes by a hash of the name: to `next` once its share is over the hash, and
    then for good while the share rises; and within a release to the replica with the highest hash of both, so that the
    key-value cache of its last turn is found again, and the fewest move when replicas come and go. Others go, within
    their release, where their documents are (see Affinity), or in turns where the release does not want that.
    """

    def __init__(self) -> None:
        self._affinity = Affinity()
        self._standings: dict[str, Standing | None] = {}
        self._split = Split()
        # Half a request: the first one of a share of a half goes to `next`, and rounding is to the nearest.
        self._owed = 0.5
        self._turns: dict[str, itertools.count[int]] = {}

    def learn(self, standings: Mapping[str, Standing | None]) -> None:
        """All replicas by name, as they last reported."""
        self._standings = dict(standings)
        known = [standing.split for standing in standings.values() if standing is not None]
        self._split = max(known, key=lambda split: split.number, default=self._split)
        releases = {standing.release for standing in standings.values() if standing is not None}
        self._turns = {release: self._turns.get(release, itertools.count()) for release in releases}
        work = {name: told.work for name, told in standings.items() if told is not None and told.work is not None}
        self._affinity.learn(work, silent=standings.keys() - work.keys())

    def rank(self, replicas: Sequence[str], session: str | None) -> list[str]:
        """As `choose`, for a request of which no more is known."""
        return self.choose(replicas, session, lambda: None)[0]

    def choose(
        self, replicas: Sequence[str], session: str | None, subject: Callable[[], Subject | None]
    ) -> tuple[list[str], Reason]:
        """The replicas in the order in which to try them, and why the first.

        All of them, since nobody is refused for a release. `subject` is asked only where it matters.
        """
        told = {name: standing for name in replicas if (standing := self._standings.get(name)) is not None}
        to_next = self._is_for_next(session)
        takes = {name: standing.release == self._split.next for name, standing in told.items() if standing.takes}
        wanted = [name for name, is_next in takes.items() if is_next == to_next] or list(takes)
        others = [name for name in takes if name not in wanted]
        # One that has not reported is new, one that takes none is about to go; either answers better than nobody.
        rest = [n for n in replicas if n not in told] + [n for n, s in told.items() if not s.takes]
        ordered, reason = self._order(wanted, session, subject)
        return [*ordered, *others, *rest], reason

    def _is_for_next(self, session: str | None) -> bool:
        if not self._split.next:
            return False
        if session is not None:
            return rendezvous(self._split.next, session) < self._split.share * _SPAN
        self._owed += self._split.share
        if self._owed >= 1.0:
            self._owed -= 1.0
            return True
        return False

    def _order(
        self, names: Sequence[str], session: str | None, subject: Callable[[], Subject | None]
    ) -> tuple[list[str], Reason]:
        if len(names) < 2:
            return list(names), "alone"
        together = all((told := self._standings[name]) is not None and told.work is not None for name in names)
        if session is not None:
            ordered = sorted(names, key=lambda name: rendezvous(name, session), reverse=True)
            if together:
                self._affinity.sent(ordered[0], names)
            return ordered, "session"
        if together:
            about = subject()
            if about is not None and not about.given and len(names) < _LEAST_REPLICAS:
                about = None
            return self._affinity.order(names, about)
        # What is under way is known to the replicas alone; taking turns is the best that a router can do.
        standing = self._standings[names[0]]
        turn = next(self._turns[standing.release]) % len(names) if standing else 0
        return [*names[turn:], *names[:turn]], "turn"
