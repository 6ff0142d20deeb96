"""Every metric, declared once, with its unit in the name. Adapters turn a declaration into a real metric.

On a Ray cluster the names appear with Ray's prefix: `ray_rag_stack_...`.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's declaration."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# A histogram and no gauge: Ray stops exporting a gauge that is not set again.
START_SECONDS = Metric(
    "rag_stack_cold_start_seconds", "histogram", "Seconds of each stage of a replica's start", ("stage",), _SECONDS
)
ARTIFACT_LOAD_SECONDS = Metric(
    "rag_stack_artifact_load_seconds",
    "histogram",
    "Seconds to bring an artifact into this process",
    ("kind", "stage", "source"),
    _SECONDS,
)
ARTIFACT_LOAD_BYTES = Metric(
    "rag_stack_artifact_load_bytes_total",
    "counter",
    "Bytes of artifacts brought into this process",
    ("kind", "stage", "source"),
)
REQUESTS = Metric("rag_stack_requests_total", "counter", "Requests answered", ("route", "status"))
RETRIEVAL_MS = Metric(
    "rag_stack_retrieval_milliseconds",
    "histogram",
    "Milliseconds of retrieval by stage (queue, embed, search, prompt)",
    ("stage",),
    _MS,
)
RETRIEVAL_QUEUE = Metric("rag_stack_retrieval_queue_length", "gauge", "Searches that wait for or hold a thread")
CITATIONS = Metric("rag_stack_citations_total", "counter", "Citations given", ("method",))

ALL = (
    START_SECONDS,
    ARTIFACT_LOAD_SECONDS,
    ARTIFACT_LOAD_BYTES,
    REQUESTS,
    RETRIEVAL_MS,
    RETRIEVAL_QUEUE,
    CITATIONS,
)


class Recorder(Protocol):
    """Takes values for declared metrics: adds to a counter, sets a gauge, observes into a histogram."""

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None: ...


class MemoryRecorder:
    """Keeps values in memory: for the command line and for tests."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None:
        self._values[metric.name, tuple(sorted((labels or {}).items()))].append(value)

    def values(self, metric: Metric, labels: Mapping[str, str] | None = None) -> list[float]:
        """All values recorded for one metric and one set of labels, oldest first."""
        return list(self._values.get((metric.name, tuple(sorted((labels or {}).items()))), []))
