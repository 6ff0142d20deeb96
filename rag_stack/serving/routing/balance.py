"""How far affinity may go: which replicas have room for one more request. Pure, and without a clock."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

# A replica may have had so many requests more than its part; the excess is forgotten over so many turns of all. With
# more, more is cached, and what waits behind it costs first tokens more than that gains them (loadtests.routing).
_AHEAD: Final = 1.0
_TURNS: Final = 2.0
# By what it reports it may have a quarter more than its part, and two in any case ("Consistent Hashing with Bounded
# Loads", Mirrokni, Thorup and Zadimoghaddam, 2018). This is for one that is slower than the others.
_OVER: Final = 1.25
_LEAST: Final = 2


@dataclass(frozen=True, slots=True)
class Work:
    """What a replica reports: requests under way there, and how many have ever arrived."""

    under_way: int = 0
    arrived: int = 0


class Balance:
    """One a router. What waits for a first token is what hurts, and reports of it come a second late.

    So the router counts itself: each request gives all replicas the same credit, and takes one from whom it goes to.
    A replica that has next to nothing to do is not held back by that.
    """

    def __init__(self) -> None:
        self._reported: dict[str, Work] = {}
        self._sent: dict[str, int] = {}
        self._credit: dict[str, float] = {}

    def learn(self, reported: Mapping[str, Work]) -> None:
        """All replicas as they last reported. A report that differs from the last one has counted what was sent."""
        self._sent = {
            name: self._sent.get(name, 0) if work == self._reported.get(name) else 0 for name, work in reported.items()
        }
        self._credit = {name: self._credit.get(name, 0.0) for name in reported}
        self._reported = dict(reported)

    def send(self, name: str, among: Sequence[str]) -> None:
        """A request goes to `name`, one of those `among` which it could have gone to."""
        leak, part = 1.0 - 1.0 / (_TURNS * len(among)), 1.0 / len(among)
        for each in among:
            self._credit[each] = self._credit.get(each, 0.0) * leak + part
        self._credit[name] -= 1.0
        for each in among:
            self._credit[each] = min(_AHEAD, max(-_AHEAD, self._credit[each]))
        self._sent[name] = self._sent.get(name, 0) + 1

    def credit(self, name: str) -> float:
        """Requests that a replica is behind the others; below 0 those that it is ahead of them."""
        return self._credit.get(name, 0.0)

    def load(self, name: str) -> int:
        """Requests that a replica has, as far as is known."""
        return self._reported.get(name, Work()).under_way + self._sent.get(name, 0)

    def with_room(self, names: Collection[str]) -> frozenset[str]:
        """Those that one more request brings over no bound; where there are none, the one that is most behind."""
        loads = {name: self.load(name) for name in names}
        bound = max(_LEAST, ceil(_OVER * (sum(loads.values()) + 1) / max(1, len(loads))))
        after = 1.0 / max(1, len(loads)) - 1.0
        room = {
            name
            for name, load in loads.items()
            if load < _LEAST or (load < bound and self.credit(name) + after >= -_AHEAD)
        }
        return frozenset(room or {max(names, key=lambda name: (self.credit(name), -loads[name]))})
