"""What becomes of spans that have ended: sent in batches, or counted as lost. Imports OpenTelemetry."""

import threading
from collections.abc import Sequence
from os import environ

from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from rag_stack.metrics import TRACE_SPANS, Recorder

_QUEUE = 2048


class SpanQueue(BatchSpanProcessor):
    """The SDK's batch processor, with a count: of what was sent, what the collector did not take, what had no room.

    A full queue drops the newest span, without a word in the log for each.
    """

    def __init__(self, exporter: SpanExporter, recorder: Recorder) -> None:
        self._room = _Room(int(environ.get(OTEL_BSP_MAX_QUEUE_SIZE) or _QUEUE))
        self._recorder = recorder
        super().__init__(_Counted(exporter, self._room, recorder))

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span, if it is sampled and there is room."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._room.take():
            super().on_end(span)
        else:
            self._recorder.record(TRACE_SPANS, 1, {"outcome": "dropped"})


class _Room:
    """Places in the queue and on the way to the collector."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._lock = threading.Lock()

    def take(self) -> bool:
        with self._lock:
            if self._free <= 0:
                return False
            self._free -= 1
            return True

    def give_back(self, places: int) -> None:
        with self._lock:
            self._free += places


class _Counted(SpanExporter):
    def __init__(self, inner: SpanExporter, room: _Room, recorder: Recorder) -> None:
        self._inner = inner
        self._room = room
        self._recorder = recorder

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self._room.give_back(len(spans))
            outcome = "sent" if result is SpanExportResult.SUCCESS else "failed"
            self._recorder.record(TRACE_SPANS, len(spans), {"outcome": outcome})
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)
