"""Every metric, declared once, with its unit in the name. Adapters turn a declaration into a real metric.

On a Ray cluster the names appear with Ray's prefix: `ray_rag_stack_...`.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
# Close together: Ray exports each observation as the middle of its bucket, also in the histogram's sum.
_SECONDS = tuple(round(0.001 * 1.5**n, 5) for n in range(36))  # 1 ms to 24 minutes
_GB_PER_S = tuple(round(0.005 * 1.5**n, 5) for n in range(25))  # 5 MB/s to 84 GB/s


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's declaration."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# A gauge and no histogram, whose sums Ray would round; it must be set again every few seconds for Ray to keep it.
START_SECONDS = Metric(
    "rag_stack_cold_start_seconds",
    "gauge",
    "Seconds that this replica's start, from process start to first token, waited for each stage; the stages add up",
    ("stage",),
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
ARTIFACT_LOAD_RATE = Metric(
    "rag_stack_artifact_load_gb_per_second",
    "histogram",
    "Decimal gigabytes a second at which an artifact was brought into this process",
    ("kind", "stage", "source"),
    _GB_PER_S,
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
ADMISSION_QUEUE = Metric("rag_stack_admission_queue_length", "gauge", "Requests that wait for the engine")
ADMISSION_TOKENS = Metric(
    "rag_stack_admission_queue_tokens", "gauge", "Prompt and answer tokens of the requests that wait for the engine"
)
ADMISSION_REFUSED = Metric(
    "rag_stack_admission_refused_total",
    "counter",
    "Requests answered 429 or 503 and not by the engine, by reason (full, pushed out, late, engine)",
    ("reason",),
)
ADMISSION_WAIT_SECONDS = Metric(
    "rag_stack_admission_wait_seconds",
    "histogram",
    "Seconds that a request waited for the engine before it was let in",
    (),
    _SECONDS,
)
# No version is a label: a store may have thousands over its life.
SWAPS = Metric(
    "rag_stack_index_swaps_total",
    "counter",
    "Index versions that this process was to take into service, by outcome (flipped, failed, superseded)",
    ("outcome",),
)
SWAP_SECONDS = Metric(
    "rag_stack_index_swap_seconds",
    "histogram",
    "Seconds of a swap by stage (fetch, open, prefault, try out, wait for the others, flip)",
    ("stage",),
    _SECONDS,
)
SWAP_LAGGING = Metric(
    "rag_stack_index_lagging",
    "gauge",
    "1 while this process serves an older index version than it should, else 0",
    ("store",),
)
HELD = Metric("rag_stack_held_requests", "gauge", "Requests held while no replica serves")
HELD_BYTES = Metric("rag_stack_held_bytes", "gauge", "Bytes of the bodies of held requests")
HELD_REFUSED = Metric("rag_stack_held_refused_total", "counter", "Requests for which there was no place", ("reason",))
CITATIONS = Metric("rag_stack_citations_total", "counter", "Citations given", ("method",))

ALL = (
    START_SECONDS,
    ARTIFACT_LOAD_SECONDS,
    ARTIFACT_LOAD_BYTES,
    ARTIFACT_LOAD_RATE,
    REQUESTS,
    RETRIEVAL_MS,
    RETRIEVAL_QUEUE,
    ADMISSION_QUEUE,
    ADMISSION_TOKENS,
    ADMISSION_REFUSED,
    ADMISSION_WAIT_SECONDS,
    SWAPS,
    SWAP_SECONDS,
    SWAP_LAGGING,
    HELD,
    HELD_BYTES,
    HELD_REFUSED,
    CITATIONS,
)


class Recorder(Protocol):
    """Takes values for declared metrics: adds to a counter, sets a gauge, observes into a histogram."""

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None: ...


def record_load(recorder: Recorder, *, kind: str, stage: str, source: str, seconds: float, size_bytes: int = 0) -> None:
    """One artifact brought one stage nearer: seconds, bytes and, where bytes moved, their rate.

    `stage` is fetch (to this node), open, prefault or load; `source` is a tier, or the loader that read the weights.
    """
    labels = {"kind": kind, "stage": stage, "source": source}
    recorder.record(ARTIFACT_LOAD_SECONDS, seconds, labels)
    if size_bytes > 0:
        recorder.record(ARTIFACT_LOAD_BYTES, size_bytes, labels)
        if seconds > 0:
            recorder.record(ARTIFACT_LOAD_RATE, size_bytes / seconds / 1e9, labels)


class MemoryRecorder:
    """Keeps values in memory: for the command line and for tests."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None:
        self._values[metric.name, tuple(sorted((labels or {}).items()))].append(value)

    def values(self, metric: Metric, labels: Mapping[str, str] | None = None) -> list[float]:
        """All values recorded for one metric and one set of labels, oldest first."""
        return list(self._values.get((metric.name, tuple(sorted((labels or {}).items()))), []))
