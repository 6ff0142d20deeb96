"""Spans of requests and starts: `tracer` is what the rest knows, `otel` and `span_queue` are OpenTelemetry's side."""
