"""What the replicas of each release have answered since a step of the rollout began. Pure."""

import statistics
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from rag_stack.releases.progress import CanaryResult

_KEPT: Final = 2048
# A start ends as `ready`, or as `failed`; or `stopped`, where Serve wanted no replica there any more.
State: TypeAlias = Literal["starting", "ready", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A replica tells where it is. `answered`, which includes the `failed`, counts since its start.

    `ttft_s` are the times to the first token that it has not told before. `canaries` are its last answers, to the
    questions of the rollout that began at `canaries_of_s`, in Unix seconds.
    """

    release: str
    state: State
    retiring: bool = False
    answered: int = 0
    failed: int = 0
    ttft_s: tuple[float, ...] = ()
    canaries: tuple[CanaryResult, ...] = ()
    canaries_of_s: float = 0.0
    reason: str = ""


class Tally:
    """Adds up the reports. A replica that was never heard of before brings nothing with it."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}
        self.start_over()

    def start_over(self) -> None:
        """A step begins."""
        self._answered: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._ttft_s: dict[str, deque[float]] = {}

    def take(self, name: str, report: Report) -> None:
        """Count what has come since the replica's last report."""
        answered, failed = self._last.get(name, (report.answered, report.failed))
        self._last[name] = (report.answered, report.failed)
        self._answered[report.release] += report.answered - answered
        self._failed[report.release] += report.failed - failed
        self._ttft_s.setdefault(report.release, deque(maxlen=_KEPT)).extend(report.ttft_s)

    def forget(self, name: str) -> None:
        """The replica is gone; what it answered stays counted."""
        self._last.pop(name, None)

    def answered(self, release: str) -> int:
        """Answers, the failed ones too."""
        return self._answered[release]

    def failed(self, release: str) -> int:
        """Failed answers."""
        return self._failed[release]

    def ttft(self, release: str) -> tuple[int, float]:
        """How many times to the first token there are, and their median in seconds."""
        found = self._ttft_s.get(release)
        return (len(found), statistics.median(found)) if found else (0, 0.0)
