"""Whether reading a prompt ahead pays, and how far: decided from the newest requests and from nothing else."""

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Final

# So many requests are looked at before anything is decided, and so many are remembered.
_LEAST: Final = 4
_NEWEST: Final = 32
# One request in so many does the other thing, so that a decision is measured again.
_EXPLORE: Final = 16
# A document is read ahead that is at least as likely to stay in its place as not.
_LIKELY: Final = 0.5
# What reading ahead must save of the time from the provisional documents to the first token.
_MOST_REST: Final = 0.98


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt that was read ahead: its documents, and with how many of them the final prompt began."""

    documents: int
    kept: int


class Payoff:
    """Moving medians and a verdict. Used from one event loop alone.

    `least_share`: of the time to the first token, what the rest of the retrieval must take.
    """

    def __init__(self, *, least_share: float) -> None:
        self._least_share = least_share
        self._left_s: deque[float] = deque(maxlen=_NEWEST)
        self._ttft_s: deque[float] = deque(maxlen=_NEWEST)
        self._readings: deque[Reading] = deque(maxlen=_NEWEST)
        # From the provisional documents to the first token, without and with a prompt that was read ahead.
        self._rest_s: dict[bool, deque[float]] = {ahead: deque(maxlen=_NEWEST) for ahead in (False, True)}
        self._asked = 0

    def depth(self, documents: int) -> int:
        """With how many of its provisional documents the next prompt should be read ahead; 0: not at all."""
        if min(len(self._left_s), len(self._ttft_s)) < _LEAST or self.share() < self._least_share:
            return 0
        self._asked += 1
        likely = self.likely(documents)
        if self._asked % _EXPLORE == 0:
            return 0 if likely and self.pays() else documents
        if self._asked % _EXPLORE == _EXPLORE // 2 and likely:
            return documents if self.pays() else 0
        return likely if self.pays() else 0

    def share(self) -> float:
        """Of the time to the first token, what was left of the retrieval when the provisional documents were there."""
        ttft_s = statistics.median(self._ttft_s) if self._ttft_s else 0.0
        return statistics.median(self._left_s) / ttft_s if self._left_s and ttft_s > 0 else 0.0

    def likely(self, documents: int) -> int:
        """How many of so many documents, from the first on, will probably be what the final prompt begins with."""
        for depth in range(documents, 0, -1):
            told = [reading.kept >= depth for reading in self._readings if reading.documents >= depth]
            if len(told) < _LEAST or statistics.fmean(told) >= _LIKELY:
                return depth
        return 0

    def pays(self) -> bool:
        """Whether first tokens have come sooner for it; yes until it has been tried."""
        without, ahead = (self._rest_s[key] for key in (False, True))
        if min(len(without), len(ahead)) < _LEAST:
            return True
        return statistics.median(ahead) <= _MOST_REST * statistics.median(without)

    def retrieved(self, left_s: float) -> None:
        """A retrieval ended so long after its provisional documents."""
        self._left_s.append(left_s)

    def read(self, reading: Reading) -> None:
        """What became of a prompt that was read ahead."""
        self._readings.append(reading)

    def began(self, *, ttft_s: float, rest_s: float, ahead: bool) -> None:
        """A first token came: `ttft_s` after the question, `rest_s` after the provisional documents."""
        self._ttft_s.append(ttft_s)
        self._rest_s[ahead].append(rest_s)
