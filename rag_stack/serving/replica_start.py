"""Times one replica's start, from its process's birth to its first token."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rag_stack.metrics import Recorder, record_load
from rag_stack.serving.start_report import StartReport, engine_spans
from rag_stack.timeline import Span, Timeline, process_start


class ReplicaStart:
    """The stages one after the other, and beside them those of the retrieval, which opens in a thread.

    `imports_s` is when the process began to import what it needs and when it had done so.
    """

    def __init__(self, recorder: Recorder, *, imports_s: tuple[float, float]) -> None:
        self._recorder = recorder
        self._started_s = process_start(os.getpid())
        self._engine: list[Span] = []
        self.timeline = Timeline(process="replica")
        self.beside = Timeline(process="replica", beside=True)
        began_s, self._mark_s = imports_s
        self.timeline.add("start Ray worker", self._started_s, began_s)
        self.timeline.add("import vLLM", began_s, self._mark_s)

    def lap(self, name: str) -> None:
        """A stage that began where the last one ended, and ends now."""
        now_s = time.time()
        self.timeline.add(name, self._mark_s, now_s)
        self._mark_s = now_s

    def mark(self) -> None:
        """The next lap begins now."""
        self._mark_s = time.time()

    def engine_ready(self, reports: Sequence[Mapping[str, Any]], *, ready_s: float) -> None:
        """Take over the workers' reports; the engine was asked to start where the last lap ended."""
        self._engine = engine_spans(reports, asked_s=self._mark_s, ready_s=ready_s)
        for span in (Span.from_wire(span) for report in reports for span in report["spans"]):
            if span.kind:
                record_load(
                    self._recorder,
                    kind=span.kind,
                    stage="load",
                    source=span.source,
                    seconds=span.seconds,
                    size_bytes=span.size_bytes,
                )

    def seconds(self) -> float:
        """From the process's start to the end of the last lap."""
        return max(0.0, self._mark_s - self._started_s)

    def report(self) -> StartReport:
        """From the process's start to the end of the last lap."""
        spans = (*self.timeline.spans(), *self._engine, *self.beside.spans())
        return StartReport(self._started_s, self._mark_s, spans)
