"""Spans by OpenTelemetry's SDK. Imported by who traces, and by nobody else."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, Span, SpanKind, TraceState, get_current_span, set_span_in_context, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from rag_stack.metrics import Recorder
from rag_stack.tracing.span_queue import SpanQueue
from rag_stack.tracing.tracer import Attributes, Headers, OpenSpan

_CLOSE_S: Final = 3.0
_SERVICE: Final = "rag-stack"
_CONTEXT: Final = frozenset({b"traceparent", b"tracestate"})


class _OtelSpan:
    """OpenTelemetry's span; times are its nanoseconds."""

    def __init__(self, span: Span, propagator: TraceContextTextMapPropagator) -> None:
        self.span = span
        self._propagator = propagator

    def note(self, attributes: Attributes) -> None:
        self.span.set_attributes(dict(attributes))

    def event(self, name: str) -> None:
        self.span.add_event(name)

    def carried(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        ours: dict[str, str] = {}
        self._propagator.inject(ours, context=set_span_in_context(self.span))
        kept = [(key, value) for key, value in headers if key not in _CONTEXT]
        return [*kept, *((key.encode(), value.encode()) for key, value in ours.items())]

    def end(self, at_s: float | None = None) -> None:
        self.span.end(None if at_s is None else _ns(at_s))


class OtelTracer:
    """Spans to a collector by OTLP over HTTP, from a bounded queue and a thread of its own."""

    enabled = True

    def __init__(self, recorder: Recorder) -> None:
        # What the environment says of the service goes before our name for it.
        resource = Resource({"service.name": _SERVICE}).merge(OTELResourceDetector().detect())
        # A provider of our own and not the global one: vLLM and Ray set that.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.sampler = starts_too(self._provider.sampler)
        self._provider.add_span_processor(SpanQueue(OTLPSpanExporter(), recorder))
        self._tracer = self._provider.get_tracer("rag_stack")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, name: str, headers: Headers) -> Iterator[OpenSpan]:
        """See Tracer."""
        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers if key in _CONTEXT}
        span = self._tracer.start_span(name, context=self._propagator.extract(carrier), kind=SpanKind.SERVER)
        with use_span(span, end_on_exit=True):
            yield _OtelSpan(span, self._propagator)

    def open(self, name: str, attributes: Attributes | None = None, *, start_s: float | None = None) -> OpenSpan:
        """See Tracer."""
        return self._open(name, attributes, start_s=start_s, parent=None)

    def add(
        self,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Attributes | None = None,
        *,
        parent: OpenSpan | None = None,
    ) -> None:
        """See Tracer."""
        # Such as the questions that a replica asks itself before it serves.
        if parent is None and not get_current_span().get_span_context().is_valid:
            return
        self._open(name, attributes, start_s=start_s, parent=parent).end(max(start_s, end_s))

    def close(self) -> None:
        """See Tracer. A collector that is away takes the exporter OTEL_EXPORTER_OTLP_TIMEOUT a batch: nobody waits."""
        closing = threading.Thread(target=self._provider.shutdown, name="trace-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _open(
        self, name: str, attributes: Attributes | None, *, start_s: float | None, parent: OpenSpan | None
    ) -> "_OtelSpan":
        context = set_span_in_context(parent.span) if isinstance(parent, _OtelSpan) else None
        began_ns = None if start_s is None else _ns(start_s)
        span = self._tracer.start_span(name, context=context, attributes=dict(attributes or {}), start_time=began_ns)
        return _OtelSpan(span, self._propagator)


def starts_too(sampler: Sampler) -> Sampler:
    """The environment's sampler, but for starts: there are few, each is looked for, and a share of them is of no use.

    A part of a request is sampled as the request is. `always_off` stays what it is.
    """
    if sampler is ALWAYS_OFF:
        return sampler
    return ParentBased(_Starts(sampler), remote_parent_sampled=sampler, remote_parent_not_sampled=sampler)


class _Starts(Sampler):
    """For spans without a parent: one that answers nobody is a start."""

    def __init__(self, requests: Sampler) -> None:
        self._requests = requests

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        chosen = self._requests if kind is SpanKind.SERVER else ALWAYS_ON
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return f"starts, and {self._requests.get_description()}"


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)
