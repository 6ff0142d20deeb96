"""Metrics through Ray, so that they are on the port that KubeRay's monitors scrape, as `ray_rag_stack_...`."""

import threading
import weakref
from collections.abc import Mapping
from typing import Final

from ray.util import metrics as ray_metrics

from rag_stack.metrics import ALL, Metric

# Ray drops a gauge that was not set for twenty seconds.
_AGAIN_S: Final = 5.0


class RayRecorder:
    """A Recorder that keeps one Ray metric for each declaration.

    Counters whose labels are known are there from the start, at 0. Gauges without labels stay at what they were set to
    for as long as the recorder lives; who sets one with labels sets it again, since it alone knows which still are.
    """

    def __init__(self) -> None:
        self._metrics = {metric.name: _make(metric) for metric in ALL}
        self._gauges: dict[str, float] = {}
        for metric in ALL:
            self._begin(metric)
        ended = threading.Event()
        weakref.finalize(self, ended.set)
        keeping = threading.Thread(target=_keep, args=(weakref.ref(self), ended), name="gauges", daemon=True)
        keeping.start()

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Add, set or observe, as the metric's kind says."""
        if metric.kind == "gauge" and not metric.labels and self._gauges.get(metric.name) == value:
            return  # it stands at that, and is kept there
        tags = dict(labels or {})
        match self._metrics[metric.name]:
            case ray_metrics.Counter() as counter:
                if value > 0:  # Ray refuses to add nothing
                    counter.inc(value, tags=tags)
            case ray_metrics.Gauge() as gauge:
                if not metric.labels:
                    self._gauges[metric.name] = value
                gauge.set(value, tags=tags)
            case ray_metrics.Histogram() as histogram:
                histogram.observe(value, tags=tags)

    def set_again(self) -> None:
        """Set the gauges without labels to what they are."""
        for name, value in list(self._gauges.items()):
            self._metrics[name].set(value)

    def _begin(self, metric: Metric) -> None:
        """Have a counter stand at 0, which `inc` refuses to add."""
        if metric.kind != "counter" or (metric.labels and not metric.starts_with):
            return
        for tags in [{metric.labels[0]: value} for value in metric.starts_with] or [{}]:
            self._metrics[metric.name]._record(0, tags=tags)


def _keep(recorder: "weakref.ref[RayRecorder]", ended: threading.Event) -> None:
    while not ended.wait(_AGAIN_S):
        if (living := recorder()) is not None:
            living.set_again()
        del living


def _make(metric: Metric) -> ray_metrics.Metric:
    match metric.kind:
        case "counter":
            return ray_metrics.Counter(metric.name, description=metric.description, tag_keys=metric.labels)
        case "gauge":
            return ray_metrics.Gauge(metric.name, description=metric.description, tag_keys=metric.labels)
        case "histogram":
            return ray_metrics.Histogram(
                metric.name, description=metric.description, boundaries=list(metric.buckets), tag_keys=metric.labels
            )
