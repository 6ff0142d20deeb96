"""Questions about the same documents go to the same replica, as long as it has room."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, TypeAlias

from rag_stack.serving.routing.balance import Balance, Work
from rag_stack.serving.routing.memory import Memory
from rag_stack.serving.routing.subject import Subject

# Why a request goes where it goes: by what is known there, by how busy the replicas are, by its session's name, or in
# turns; `alone` where there was nothing to choose.
Reason: TypeAlias = Literal["affinity", "load", "session", "turn", "alone"]

# So much of what the words say one request behind or ahead of the others weighs.
_CREDIT: Final = 0.1


class Affinity:
    """One a router."""

    def __init__(self) -> None:
        self._memory = Memory()
        self._balance = Balance()
        self._known: frozenset[str] = frozenset()

    def learn(self, reported: Mapping[str, Work], *, silent: Collection[str] = ()) -> None:
        """What all replicas last reported, by name; `silent` are those that are there and have reported nothing.

        They are not gone: after a controller's restart nobody has.
        """
        self._balance.learn(reported)
        now = frozenset((*reported, *silent))
        gone, self._known = self._known - now, now
        if gone:
            self._memory.forget(gone)

    def order(self, names: Sequence[str], subject: Subject | None) -> tuple[list[str], Reason]:
        """The replicas, the best first, and why that one."""
        if subject is None:
            ordered = self._by_load(names)
            self._balance.send(ordered[0], names)
            return ordered, "load"
        room = self._balance.with_room(names)
        scores = self._scores(names, subject)
        value = {name: scores[name] + _CREDIT * self._balance.credit(name) for name in names}
        # The last of it where nothing is known, so that several routers begin alike.
        ordered = sorted(names, key=lambda n: (n in room, value[n], rendezvous(n, subject.words[0])), reverse=True)
        chosen, best = ordered[0], max(scores.values())
        self._memory.learn(subject.words, chosen)
        self._balance.send(chosen, names)
        return ordered, "affinity" if best > 0.0 and scores[chosen] == best else "load"

    def sent(self, name: str, among: Sequence[str]) -> None:
        """A request went to `name` for another reason."""
        self._balance.send(name, among)

    def _scores(self, names: Sequence[str], subject: Subject) -> Mapping[str, float]:
        if not subject.given:
            return self._memory.scores(subject.words, names)
        # What the client names is placed by its name alone: alike in all routers, and after a router's restart.
        chosen = max(names, key=lambda name: rendezvous(name, subject.words[0]))
        return {name: float(name == chosen) for name in names}

    def _by_load(self, names: Sequence[str]) -> list[str]:
        room = self._balance.with_room(names)
        return sorted(names, key=lambda n: (n in room, self._balance.credit(n), -self._balance.load(n)), reverse=True)


def rendezvous(first: object, second: object) -> int:
    """A hash of the two together, the same in every router.

    Of those of several `first` the highest wins; where one comes or goes, nothing else moves (highest random weight,
    Thaler and Ravishankar, 1998).
    """
    return int.from_bytes(hashlib.blake2b(f"{first}\0{second}".encode(), digest_size=8).digest(), "big")
