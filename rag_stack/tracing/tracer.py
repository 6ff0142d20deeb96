"""Spans of requests and of starts, for whoever collects them with OpenTelemetry. Off and not imported unless asked for.

The standard environment turns it on: OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT), and OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_... mean what they mean everywhere. A collector that is slow or
away costs spans, which are counted, and never a request. Starts are traced whatever share of requests is.
"""

import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeAlias

from rag_stack.metrics import Recorder

Attributes: TypeAlias = Mapping[str, str | int | float | bool]
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"
_LOG: Final = logging.getLogger("ray.serve")


class OpenSpan(Protocol):
    """A span that has begun."""

    def note(self, attributes: Attributes) -> None:
        """Say more of it."""

    def event(self, name: str) -> None:
        """Something has happened in it, now."""

    def carried(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """A request's headers with this span as the parent of whatever its receiver does (W3C trace context)."""

    def end(self, at_s: float | None = None) -> None:
        """It is over, now or at a time in Unix seconds."""


class Tracer(Protocol):
    """Takes spans. What is given no parent is a part of the request that is being answered."""

    enabled: bool

    def request(self, name: str, headers: Headers) -> AbstractContextManager[OpenSpan]:
        """A request from outside, under the span that its client names; what the block does becomes a part of it."""

    def open(self, name: str, attributes: Attributes | None = None, *, start_s: float | None = None) -> OpenSpan:
        """A span that begins now, or began at a time in Unix seconds; outside of any request, a trace of its own."""

    def add(
        self,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Attributes | None = None,
        *,
        parent: OpenSpan | None = None,
    ) -> None:
        """A span that is over, in Unix seconds. Outside of any request, and without a parent, nothing."""

    def close(self) -> None:
        """Send what is left. Blocking: a few seconds at most."""


class _NoSpan:
    """Nothing, as a span, and as the block of one."""

    def note(self, attributes: Attributes) -> None:
        pass

    def event(self, name: str) -> None:
        pass

    def carried(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        return list(headers)

    def end(self, at_s: float | None = None) -> None:
        pass

    def __enter__(self) -> "_NoSpan":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Untraced:
    """The tracer of who asked for none."""

    enabled = False

    def __init__(self) -> None:
        self._nothing = _NoSpan()

    def request(self, name: str, headers: Headers) -> AbstractContextManager[OpenSpan]:  # noqa: ARG002
        """Nothing."""
        return self._nothing

    def open(
        self,
        name: str,  # noqa: ARG002
        attributes: Attributes | None = None,  # noqa: ARG002
        *,
        start_s: float | None = None,  # noqa: ARG002
    ) -> OpenSpan:
        """Nothing."""
        return self._nothing

    def add(
        self,
        name: str,
        start_s: float,
        end_s: float,
        attributes: Attributes | None = None,
        *,
        parent: OpenSpan | None = None,
    ) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


UNTRACED: Final = Untraced()


def open_tracer(recorder: Recorder, environ: Mapping[str, str]) -> Tracer:
    """The tracer that the environment asks for. What it asks for in vain is said in the log, and nothing is traced."""
    on = any(environ.get(name) for name in _ENDPOINTS) and environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
    if not on or environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return UNTRACED
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        told = (
            "nothing is traced: OTEL_EXPORTER_OTLP_PROTOCOL is %r, and spans are sent by %r alone: leave it out, and "
            "name the collector's HTTP port (4318) in OTEL_EXPORTER_OTLP_ENDPOINT"
        )
        _LOG.warning(told, protocol, _PROTOCOL)
        return UNTRACED
    # Imported here: half a second, for those who trace.
    from rag_stack.tracing.otel import OtelTracer

    try:
        return OtelTracer(recorder)
    except ValueError as exc:  # of the SDK, which reads most of OTEL_... itself
        _LOG.warning("nothing is traced: a variable OTEL_... does not fit: %s", exc)
        return UNTRACED
