"""Which series of ours Prometheus has: their names, labels, and a label's values where code knows them all."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, get_args

from rag_stack import metrics
from rag_stack.activator import measure
from rag_stack.activator.ray_service import Phase
from rag_stack.api.outlook import EngineState
from rag_stack.artifacts.fetch import Source
from rag_stack.artifacts.manifest import ArtifactKind
from rag_stack.metrics import Metric
from rag_stack.releases.plan import State

# By Prometheus, of the pod that it asks, and by components/monitoring's relabelling.
_OF_A_TARGET: Final = frozenset({"namespace", "pod", "container", "endpoint", "job", "instance"})
# By Ray, on what its workers tell. SessionName and Version are dropped by the monitors.
_OF_RAY: Final = frozenset({"ray_io_cluster", "ray_io_group", "NodeAddress", "WorkerId", "Component"})
_SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "histogram": ("_bucket", "_sum", "_count"),
    "counter": ("",),
    "gauge": ("",),
}
_LOADS: Final = (metrics.ARTIFACT_LOAD_SECONDS, metrics.ARTIFACT_LOAD_BYTES, metrics.ARTIFACT_LOAD_RATE)
# Who reads weights in vLLM is told by its loader's name; what is not read from a tier comes from this node's disk.
_LOADERS: Final = ("disk", "auto", "safetensors", "safetensors prefetch", "runai_streamer", "dummy")
_VALUES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    **{
        each.name: {
            "kind": get_args(ArtifactKind),
            "stage": ("fetch", "open", "prefault", "load"),
            "source": (*get_args(Source), *_LOADERS),
        }
        for each in _LOADS
    },
    metrics.ENGINE_STATE.name: {"state": get_args(EngineState)},
    metrics.ROLLOUT_STATE.name: {"state": get_args(State)},
    measure.PHASE.name: {"phase": tuple(each.value for each in Phase)},
}


@dataclass(frozen=True, slots=True)
class Series:
    """What a name stands for: the labels that it has, and those whose values are known, with them."""

    name: str
    labels: frozenset[str]
    values: Mapping[str, frozenset[str]]


@cache
def declared_series() -> Mapping[str, Series]:
    """All that our processes tell, by the name that Prometheus has it under."""
    told = [*_series(metrics.ALL, prefix="ray_", scraped=_OF_A_TARGET | _OF_RAY)]
    told += _series(measure.ALL, prefix="", scraped=_OF_A_TARGET)
    return {each.name: each for each in told}


def _series(declared: Iterable[Metric], *, prefix: str, scraped: frozenset[str]) -> Iterator[Series]:
    for metric in declared:
        for suffix in _SUFFIXES[metric.kind]:
            bound = {"le"} if suffix == "_bucket" else set()
            yield Series(f"{prefix}{metric.name}{suffix}", scraped | {*metric.labels} | bound, _values(metric))


def _values(metric: Metric) -> dict[str, frozenset[str]]:
    known = dict(_VALUES.get(metric.name, {}))
    if metric.starts_with and len(metric.labels) == 1:
        known[metric.labels[0]] = metric.starts_with
    return {label: frozenset(values) for label, values in known.items()}
