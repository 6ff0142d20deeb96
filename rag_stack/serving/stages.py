"""How long each stage of a start took, how many bytes it moved, and from where."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from rag_stack.metrics import START_SECONDS, Recorder


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. `size_bytes` is 0 where no data moves; `source` says from where it came."""

    name: str
    seconds: float
    size_bytes: int = 0
    source: str = ""

    @property
    def gb_per_s(self) -> float:
        """Decimal gigabytes a second."""
        return self.size_bytes / self.seconds / 1e9 if self.seconds > 0 else 0.0


class StageClock:
    """Collects stages in the order in which they end, and reports each as a metric."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._stages: list[Stage] = []

    def add(self, stage: Stage) -> None:
        """Report a stage that was timed elsewhere."""
        self._stages.append(stage)
        self._recorder.record(START_SECONDS, stage.seconds, {"stage": stage.name})

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time the block as a stage; a stage that fails is not reported."""
        started = time.perf_counter()
        yield
        self.add(Stage(name, time.perf_counter() - started))

    def stages(self) -> tuple[Stage, ...]:
        """What has ended so far."""
        return tuple(self._stages)

    def to_wire(self) -> list[dict[str, Any]]:
        """The stages as plain dictionaries, to cross a process border."""
        return [asdict(stage) for stage in self._stages]
