"""A start, reported: its spans, the stages that add up to the whole, the metrics, and what a client is shown of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rag_stack.generation.birth import Birth
from rag_stack.metrics import START_SECONDS, Recorder
from rag_stack.timeline import UNNAMED, Breakdown, Span, Stage, break_down
from rag_stack.tracing.tracer import Attributes, Tracer


@dataclass(frozen=True, slots=True)
class StartReport:
    """From the start of a process to its first token, or until it was ready. Unix seconds."""

    started_s: float
    ready_s: float
    spans: tuple[Span, ...]

    def breakdown(self) -> Breakdown:
        """Where the whole went."""
        return break_down(self.spans, start_s=self.started_s, end_s=self.ready_s)

    def record(self, recorder: Recorder) -> None:
        """Each stage as a metric, what is unnamed too: their sum is the whole."""
        breakdown = self.breakdown()
        for stage in breakdown.stages:
            if stage.critical_s > 0:
                recorder.record(START_SECONDS, stage.critical_s, {"stage": stage_name(stage.span)})
        recorder.record(START_SECONDS, breakdown.unnamed_s, {"stage": UNNAMED})

    def trace(self, tracer: Tracer) -> None:
        """The start as a trace of its own: its stages below the whole."""
        whole = tracer.open("start", start_s=self.started_s)
        for span in self.spans:
            tracer.add(stage_name(span), span.start_s, span.end_s, _attributes(span), parent=whole)
        whole.end(self.ready_s)

    def to_card(self) -> dict[str, Any]:
        """What GET /v1/models/{id} shows: `critical_seconds` and `unnamed_seconds` add up to `seconds`."""
        breakdown = self.breakdown()
        return {
            "seconds": round(breakdown.seconds, 6),
            "started_at": round(self.started_s, 6),
            "ready_at": round(self.ready_s, 6),
            "unnamed_seconds": round(breakdown.unnamed_s, 6),
            "stages": [_card(stage, began_s=self.started_s) for stage in breakdown.stages],
        }

    def to_wire(self) -> dict[str, Any]:
        """Plain values, to cross a process border."""
        spans = [span.to_wire() for span in self.spans]
        return {"started_s": self.started_s, "ready_s": self.ready_s, "spans": spans}

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any]) -> Self:
        """What `to_wire` gave."""
        return cls(fields["started_s"], fields["ready_s"], tuple(map(Span.from_wire, fields["spans"])))


def stage_name(span: Span) -> str:
    """A stage's name among those of all processes: `worker: import vLLM`."""
    return f"{span.process}: {span.name}" if span.process else span.name


def engine_spans(reports: Sequence[Mapping[str, Any]], *, asked_s: float, ready_s: float) -> list[Span]:
    """The engine's start as its workers tell it, from when the replica had configured it until it was ready.

    Of several workers the one that had its weights last is shown, since the others waited for it. Without a worker's
    report there is one span for all.
    """
    reports = [report for report in reports if report["spans"]]
    if not reports:
        return [Span("start engine", asked_s, ready_s, "engine")]
    told = [tuple(map(Span.from_wire, report["spans"])) for report in reports]
    slowest = max(range(len(told)), key=lambda n: max((span.end_s for span in told[n] if span.kind), default=0.0))
    worker = told[slowest]
    first_s, last_s = min(span.start_s for span in worker), max(span.end_s for span in worker)
    connect = Span("connect engine", last_s, ready_s, "replica")
    # What the core does between the worker's steps is short and stands in the report as unnamed.
    if (fields := reports[slowest].get("birth")) is not None:
        return [*_forked_spans(Birth.from_fields(fields), asked_s=asked_s, first_s=first_s), *worker, connect]
    processes = reports[slowest]["processes"]
    return [*_started_spans(processes, asked_s=asked_s, first_s=first_s), *worker, connect]


def _started_spans(processes: Sequence[Mapping[str, Any]], *, asked_s: float, first_s: float) -> list[Span]:
    """Until a worker's first step, where each process began as a new Python."""
    # A worker's parent is the engine's core where each has a process; under another executor it is not of this start.
    births = sorted(process["started_s"] for process in processes)
    births = [born_s for born_s in births if asked_s < born_s < first_s]
    spans = [Span("configure engine", asked_s, births[0] if births else first_s, "replica")]
    if len(births) > 1:
        spans.append(Span("import vLLM", births[0], births[-1], "engine core"))
    if births:
        spans.append(Span("import vLLM", births[-1], first_s, "worker"))
    return spans


def _forked_spans(worker: Birth, *, asked_s: float, first_s: float) -> list[Span]:
    """Until a worker's first step, where a fork server forked it, and the engine's core if that is told.

    A fork that takes long has waited for the server's import.
    """
    core = worker.parent if worker.parent is not None and worker.parent.launched_s >= asked_s else None
    spans = [Span("configure engine", asked_s, (core or worker).launched_s, "replica"), worker.import_span()]
    if core is not None:
        spans.append(Span("fork", core.launched_s, core.forked_s, "engine core"))
        spans.append(Span("set up engine core", core.forked_s, worker.launched_s, "engine core"))
    spans.append(Span("fork", worker.launched_s, worker.forked_s, "worker"))
    spans.append(Span("take over settings", worker.forked_s, first_s, "worker"))
    return spans


def _attributes(span: Span) -> Attributes:
    if not span.kind:
        return {"process": span.process}
    moved: Attributes = {"artifact.kind": span.kind, "artifact.source": span.source, "artifact.bytes": span.size_bytes}
    return {"process": span.process, **moved}


def _card(stage: Stage, *, began_s: float) -> dict[str, Any]:
    span = stage.span
    moved = {"size_bytes": span.size_bytes, "gb_per_s": round(span.gb_per_s, 4)} if span.size_bytes else {}
    artifact = {key: value for key, value in (("kind", span.kind), ("source", span.source)) if value}
    return {
        "name": span.name,
        "process": span.process,
        "start_seconds": round(span.start_s - began_s, 6),
        "seconds": round(span.seconds, 6),
        "critical_seconds": round(stage.critical_s, 6),
        **artifact,
        **moved,
        **({"beside": True} if span.beside else {}),
    }
