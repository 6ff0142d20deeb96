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
    # Of a counter with one label: the values that it has from the start, at 0. A rate sees no first event of a series
    # that begins with it, and an alert no series that is not there.
    starts_with: tuple[str, ...] = ()


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
CACHE_EVICTIONS = Metric(
    "rag_stack_cache_evictions_total", "counter", "Artifacts that this process evicted from the node's cache"
)
CACHE_EVICTED_BYTES = Metric(
    "rag_stack_cache_evicted_bytes_total", "counter", "Bytes of artifacts evicted from the node's cache"
)
CACHE_BYTES = Metric(
    "rag_stack_cache_bytes", "gauge", "Bytes in the node's cache, those of running fetches with their final size"
)
REQUESTS = Metric("rag_stack_requests_total", "counter", "Requests answered", ("route", "status"))
RETRIEVAL_MS = Metric(
    "rag_stack_retrieval_milliseconds",
    "histogram",
    "Milliseconds of retrieval by stage (queue, embed, search, rerank, prompt)",
    ("stage",),
    _MS,
)
PROMPT_TOKENS = Metric(
    "rag_stack_prompt_tokens_total",
    "counter",
    "Tokens of prompts: all, those that the engine had in its prefix cache (cached), and those that the order of the "
    "documents was chosen for (predicted)",
    ("part",),
    starts_with=("all", "cached", "predicted"),
)
RETRIEVAL_QUEUE = Metric("rag_stack_retrieval_queue_length", "gauge", "Searches that wait for or hold a thread")
QUERY_CACHE = Metric(
    "rag_stack_query_cache_total",
    "counter",
    "Look-ups of a question's vector, or of a search's result, that were there from before (hit), or not (miss)",
    ("cache", "outcome"),
)
ADMISSION_QUEUE = Metric("rag_stack_admission_queue_length", "gauge", "Requests that wait for the engine")
ADMISSION_TOKENS = Metric(
    "rag_stack_admission_queue_tokens", "gauge", "Prompt and answer tokens of the requests that wait for the engine"
)
ADMISSION_REFUSED = Metric(
    "rag_stack_admission_refused_total",
    "counter",
    "Requests answered 429 or 503 and not by the engine, by reason (full, pushed out, late, engine)",
    ("reason",),
    starts_with=("full", "pushed out", "late", "engine"),
)
ADMISSION_WAIT_SECONDS = Metric(
    "rag_stack_admission_wait_seconds",
    "histogram",
    "Seconds that a request waited for the engine before it was let in",
    (),
    _SECONDS,
)
TTFT_SECONDS = Metric(
    "rag_stack_time_to_first_token_seconds",
    "histogram",
    "Seconds from a request's arrival at the replica to the first token of its stream",
    (),
    _SECONDS,
)
ANSWERS = Metric(
    "rag_stack_answers_total",
    "counter",
    "Requests that generate, by how they ended (good: first token, or whole answer, within the target; late, failed, "
    "refused, aborted)",
    ("outcome",),
    starts_with=("good", "late", "failed", "refused", "aborted"),
)
KV_CACHE_USAGE = Metric(
    "rag_stack_kv_cache_usage_ratio", "gauge", "Share of the engine's memory for keys and values in use, 0 to 1"
)
KV_CACHE_TOKENS = Metric(
    "rag_stack_kv_cache_tokens", "gauge", "Tokens whose keys and values fit in the engine's memory for them"
)
ENGINE_STATE = Metric(
    "rag_stack_engine_state",
    "gauge",
    "1 for the state of the engine (asleep, starting, ready, failed), else 0",
    ("state",),
)
# No version is a label: a store may have thousands over its life.
SWAPS = Metric(
    "rag_stack_index_swaps_total",
    "counter",
    "Index versions that this process was to take into service, by outcome (flipped, failed, superseded)",
    ("outcome",),
    starts_with=("flipped", "failed", "superseded"),
)
GPU_INDEX_BYTES = Metric(
    "rag_stack_gpu_index_bytes", "gauge", "Bytes of the device that this process's indexes take, as planned"
)
INDEX_SEARCHES = Metric(
    "rag_stack_gpu_index_searches_total",
    "counter",
    "Searches of indexes that are on a device, by who answered (device, host): with a filter it is the host",
    ("place",),
    starts_with=("device", "host"),
)
SWAP_SECONDS = Metric(
    "rag_stack_index_swap_seconds",
    "histogram",
    "Seconds of a swap by stage (fetch, open, prefault, try out, place, wait for the others, flip)",
    ("stage",),
    _SECONDS,
)
SWAP_LAGGING = Metric(
    "rag_stack_index_lagging",
    "gauge",
    "1 while this process serves an older index version than it should, else 0",
    ("store",),
)
INDEX_AGE_SECONDS = Metric(
    "rag_stack_index_age_seconds",
    "gauge",
    "Seconds since the index version that is wanted in service was published",
    ("store",),
)
INDEX_UNPROMOTED = Metric(
    "rag_stack_index_unpromoted",
    "gauge",
    "1 while the newest version of a store's index has never been promoted, as one that a gate has refused, else 0",
    ("store",),
)
INDEX_FAILED_GATES = Metric(
    "rag_stack_index_failed_gates",
    "gauge",
    "Gates of its own content that the newest version has failed, while it has never been promoted; else 0",
    ("store",),
)
ROLLOUT_STATE = Metric(
    "rag_stack_release_rollout_state",
    "gauge",
    "1 for the state of the release's rollout (steady, canary, promoting, rolling_back), else 0",
    ("state",),
)
ROLLOUT_SHARE = Metric(
    "rag_stack_release_rollout_share_ratio", "gauge", "Share of new conversations that go to the version on its way in"
)
HELD = Metric("rag_stack_held_requests", "gauge", "Requests held while no replica serves")
HELD_BYTES = Metric("rag_stack_held_bytes", "gauge", "Bytes of the bodies of held requests")
HELD_REFUSED = Metric(
    "rag_stack_held_refused_total",
    "counter",
    "Requests for which there was no place",
    ("reason",),
    starts_with=("requests", "caller", "bytes"),
)
CITATIONS = Metric(
    "rag_stack_citations_total", "counter", "Citations given", ("method",), starts_with=("marker", "overlap")
)
PREFILLS = Metric(
    "rag_stack_prefills_total",
    "counter",
    "Prompts that the engine began to read during a rerank, and what became of each: used by the final prompt, "
    "cancelled (other documents, or the client went away) or failed",
    ("outcome",),
    starts_with=("started", "used", "cancelled", "failed"),
)
ROUTED = Metric(
    "rag_stack_routed_total",
    "counter",
    "Requests that a router gave to a replica, by why to that one (affinity: its documents were asked about there; "
    "load: others are busier, or nothing is known of it; session; turn: affinity is off; alone: there was one)",
    ("reason",),
    starts_with=("affinity", "load", "session", "turn", "alone"),
)
TRACE_SPANS = Metric(
    "rag_stack_trace_spans_total",
    "counter",
    "Spans that ended, by what became of them (sent, failed: the collector did not take them, dropped: no room)",
    ("outcome",),
    starts_with=("sent", "failed", "dropped"),
)

ALL = (
    START_SECONDS,
    ARTIFACT_LOAD_SECONDS,
    ARTIFACT_LOAD_BYTES,
    ARTIFACT_LOAD_RATE,
    CACHE_EVICTIONS,
    CACHE_EVICTED_BYTES,
    CACHE_BYTES,
    REQUESTS,
    RETRIEVAL_MS,
    PROMPT_TOKENS,
    RETRIEVAL_QUEUE,
    QUERY_CACHE,
    ADMISSION_QUEUE,
    ADMISSION_TOKENS,
    ADMISSION_REFUSED,
    ADMISSION_WAIT_SECONDS,
    TTFT_SECONDS,
    ANSWERS,
    KV_CACHE_USAGE,
    KV_CACHE_TOKENS,
    ENGINE_STATE,
    GPU_INDEX_BYTES,
    INDEX_SEARCHES,
    SWAPS,
    SWAP_SECONDS,
    SWAP_LAGGING,
    INDEX_AGE_SECONDS,
    INDEX_UNPROMOTED,
    INDEX_FAILED_GATES,
    ROLLOUT_STATE,
    ROLLOUT_SHARE,
    HELD,
    HELD_BYTES,
    HELD_REFUSED,
    CITATIONS,
    PREFILLS,
    ROUTED,
    TRACE_SPANS,
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
