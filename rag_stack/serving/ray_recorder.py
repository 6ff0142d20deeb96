"""Metrics through Ray, so that they are on the port that KubeRay's monitors scrape, as `ray_rag_stack_...`."""

from collections.abc import Mapping

from ray.util import metrics as ray_metrics

from rag_stack.metrics import ALL, Metric


class RayRecorder:
    """A Recorder that keeps one Ray metric for each declaration."""

    def __init__(self) -> None:
        self._metrics = {metric.name: _make(metric) for metric in ALL}

    def record(self, metric: Metric, value: float, labels: Mapping[str, str] | None = None) -> None:
        """Add, set or observe, as the metric's kind says."""
        tags = dict(labels or {})
        match self._metrics[metric.name]:
            case ray_metrics.Counter() as counter:
                if value > 0:  # Ray refuses to add nothing
                    counter.inc(value, tags=tags)
            case ray_metrics.Gauge() as gauge:
                gauge.set(value, tags=tags)
            case ray_metrics.Histogram() as histogram:
                histogram.observe(value, tags=tags)


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
