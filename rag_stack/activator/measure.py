"""What the activator measures, declared once, and told in Prometheus' text format."""

from collections.abc import Mapping
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rag_stack.metrics import HELD, HELD_BYTES, HELD_REFUSED, Metric

_SECONDS: Final = tuple(float(2**n) for n in range(12))  # 1 s to 34 minutes
REQUESTS: Final = Metric(
    "rag_stack_activator_requests_total",
    "counter",
    "Requests by what became of them: passed (on at once), held (until the service woke), refused, answered (here)",
    ("outcome",),
)
UNDER_WAY: Final = Metric("rag_stack_activator_under_way", "gauge", "Requests under way that keep the service awake")
WAKES: Final = Metric("rag_stack_activator_wakes_total", "counter", "Wakes by outcome (served, failed)", ("outcome",))
WAKE_SECONDS: Final = Metric(
    "rag_stack_activator_wake_seconds",
    "histogram",
    "Seconds from the patch that wakes until the RayService is Ready",
    (),
    _SECONDS,
)
SUSPENSIONS: Final = Metric("rag_stack_activator_suspensions_total", "counter", "Times this activator suspended")
OVERRULED: Final = Metric(
    "rag_stack_activator_overruled_total", "counter", "Suspensions of an activator that somebody else ended"
)
PHASE: Final = Metric("rag_stack_activator_phase", "gauge", "1 for the phase of the RayService, else 0", ("phase",))
LEADS: Final = Metric("rag_stack_activator_leads", "gauge", "1 while this activator may suspend, else 0")
ALL: Final = (
    HELD,
    HELD_BYTES,
    HELD_REFUSED,
    REQUESTS,
    UNDER_WAY,
    WAKES,
    WAKE_SECONDS,
    SUSPENSIONS,
    OVERRULED,
    PHASE,
    LEADS,
)
_Real: TypeAlias = Counter | Gauge | Histogram


class PrometheusRecorder:
    """A Recorder of the metrics above, and their text."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._real: dict[str, _Real] = {metric.name: self._make(metric) for metric in ALL}

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Take a value."""
        real = self._real[metric.name]
        chosen = real.labels(**labels) if labels else real
        match chosen:
            case Counter():
                chosen.inc(value)
            case Gauge():
                chosen.set(value)
            case Histogram():
                chosen.observe(value)

    def text(self) -> bytes:
        """All of them, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _make(self, metric: Metric) -> _Real:
        told = (metric.name, metric.description, metric.labels)
        match metric.kind:
            case "counter":
                return Counter(*told, registry=self._registry)
            case "gauge":
                return Gauge(*told, registry=self._registry)
            case "histogram":
                return Histogram(*told, registry=self._registry, buckets=metric.buckets)
