"""Expressions that the dashboards are made of. `$namespace` and `$__rate_interval` are filled in by Grafana."""

from typing import Final

NAMESPACE: Final = 'namespace=~"$namespace"'


def rate(metric: str, *, by: str = "", where: str = "") -> str:
    """A counter's growth a second."""
    return f"sum{_by(by)} (rate({metric}{{{_and(where)}}}[$__rate_interval]))"


def grown(metric: str, *, by: str, window: str) -> str:
    """A counter's growth over a window."""
    return f"sum{_by(by)} (increase({metric}{{{NAMESPACE}}}[{window}]))"


def quantile(share: float, histogram: str, *, by: str = "") -> str:
    """A quantile of what a histogram observed lately."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{{{NAMESPACE}}}[$__rate_interval])))"


def mean(histogram: str, *, by: str) -> str:
    """Over the lives of the processes that there are: of what is too rare for a rate."""
    return f"{total(f'{histogram}_sum', by=by)} / {total(f'{histogram}_count', by=by)}"


def highest(gauge: str, *, by: str = "", where: str = "") -> str:
    """The largest of a gauge's series."""
    return f"max{_by(by)} ({gauge}{{{_and(where)}}})"


def total(metric: str, *, by: str = "", where: str = "") -> str:
    """The sum of series as they stand."""
    return f"sum{_by(by)} ({metric}{{{_and(where)}}})"


def recorded(name: str) -> str:
    """What a recording rule keeps."""
    return f"{name}{{{NAMESPACE}}}"


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _and(where: str) -> str:
    return f"{NAMESPACE}, {where}" if where else NAMESPACE
