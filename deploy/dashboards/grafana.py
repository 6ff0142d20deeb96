"""Grafana's model of a dashboard. A panel is a title, a unit and its queries; all else is the same for all."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

_WIDTH: Final = 24
_PANEL: Final = 8  # wide and high
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
# Grafana's names of units.
Unit = Literal["s", "ms", "short", "reqps", "cps", "percentunit", "bytes", "GBs", "ops"]


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and how its series are called: `{{label}}` is a label's value."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph. `stacked` series add up to a whole."""

    title: str
    unit: Unit
    queries: tuple[Query, ...]
    description: str = ""
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels, in rows from left to right."""

    uid: str
    title: str
    panels: tuple[Panel, ...]

    def to_json(self) -> dict[str, Any]:
        """Grafana's model of it, without what Grafana fills in by itself."""
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["rag_stack"],
            "schemaVersion": 39,
            "editable": False,
            "refresh": "30s",
            "time": {"from": "now-3h", "to": "now"},
            "templating": {"list": [_datasource(), _namespace()]},
            "panels": list(_placed(self.panels)),
        }

    def to_text(self) -> str:
        """What the file holds."""
        return json.dumps(self.to_json(), indent=1) + "\n"


def graph(title: str, unit: Unit, *queries: Query, description: str = "", stacked: bool = False) -> Panel:
    """A panel."""
    return Panel(title, unit, queries, description, stacked)


def expressions(dashboard: Dashboard) -> Iterator[str]:
    """Every query of a dashboard, as Prometheus is asked it over all namespaces."""
    for panel in dashboard.panels:
        for query in panel.queries:
            yield query.expr.replace("$namespace", ".*").replace("$__rate_interval", "1m")


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _namespace() -> dict[str, Any]:
    return {
        "name": "namespace",
        "type": "query",
        "datasource": _SOURCE,
        "query": "label_values(ray_rag_stack_engine_state, namespace)",
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + _PANEL > _WIDTH:
            x, y = 0, y + _PANEL
        yield _panel(panel, number, x=x, y=y)
        x += _PANEL


def _panel(panel: Panel, number: int, *, x: int, y: int) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + n),
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
        }
        for n, query in enumerate(panel.queries)
    ]
    drawn = {"fillOpacity": 30, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 0}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": _PANEL, "h": _PANEL},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": drawn}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }
