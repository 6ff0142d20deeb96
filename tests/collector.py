"""A collector of traces: OTLP over HTTP as OpenTelemetry defines it, behind a real server."""

import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_LIMIT_S = 30.0


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it was received. Ids are hexadecimal; `parent` is empty for a root."""

    name: str
    trace: str
    id: str
    parent: str
    start_s: float
    end_s: float
    attributes: dict[str, Any]
    events: tuple[str, ...]
    resource: dict[str, Any]


@dataclass
class Collector:
    """What has come in. `endpoint` is what OTEL_EXPORTER_OTLP_ENDPOINT should be."""

    endpoint: str = ""
    spans: list[CollectedSpan] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, *names: str) -> dict[str, CollectedSpan]:
        """The spans with these names, once each has come."""
        until_s = time.monotonic() + _LIMIT_S
        with self.changed:
            while not set(names) <= {span.name for span in self.spans}:
                left_s = until_s - time.monotonic()
                assert left_s > 0, f"wanted {names}, got {[span.name for span in self.spans]}"
                self.changed.wait(left_s)
            return {span.name: span for span in self.spans}

    def take(self, data: bytes) -> None:
        """One request's body."""
        received = ExportTraceServiceRequest.FromString(data)
        with self.changed:
            for group in received.resource_spans:
                resource = {each.key: each.value.string_value for each in group.resource.attributes}
                for scope in group.scope_spans:
                    self.spans.extend(_read(span, resource) for span in scope.spans)
            self.changed.notify_all()


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    collected = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            collected.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collected.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, name="collector")
        thread.start()
        try:
            yield collected
        finally:
            server.shutdown()
            thread.join()


def _read(span: Any, resource: dict[str, Any]) -> CollectedSpan:
    return CollectedSpan(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start_s=span.start_time_unix_nano / 1e9,
        end_s=span.end_time_unix_nano / 1e9,
        attributes={each.key: _value(each.value) for each in span.attributes},
        events=tuple(event.name for event in span.events),
        resource=resource,
    )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))
