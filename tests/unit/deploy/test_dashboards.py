"""The dashboards' files are those that the code makes, and Grafana is told to load them."""

import json

import pytest
import yaml

from deploy.dashboards import DASHBOARDS, FOLDER
from deploy.dashboards.grafana import Dashboard
from tests.prometheus import MONITORING, rule_groups


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)
def test_a_dashboards_file_is_what_the_code_makes(dashboard: Dashboard) -> None:
    told = "write it again: python -m deploy.dashboards"
    assert (FOLDER / f"{dashboard.uid}.json").read_text() == dashboard.to_text(), told


def test_every_dashboard_is_in_the_config_map_that_grafana_looks_for() -> None:
    kustomization = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    (generator,) = kustomization["configMapGenerator"]
    assert generator["options"]["labels"] == {"grafana_dashboard": "1"}
    listed = {MONITORING / file for file in generator["files"]}
    assert listed == set(FOLDER.glob("*.json")) == {FOLDER / f"{each.uid}.json" for each in DASHBOARDS}


def test_panels_neither_overlap_nor_leave_the_page() -> None:
    for dashboard in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(dashboard.to_text())["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
            assert not cells & taken
            assert max(x for x, _ in cells) < 24
            taken |= cells


def test_a_recorded_series_is_recorded() -> None:
    recorded = {rule["record"] for group in rule_groups() for rule in group["rules"] if "record" in rule}
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                name = query.expr.partition("{")[0]
                assert not name.startswith("rag_stack:") or name in recorded, query.expr
