"""Writes the dashboards' files."""

from deploy.dashboards import DASHBOARDS, FOLDER

for dashboard in DASHBOARDS:
    (FOLDER / f"{dashboard.uid}.json").write_text(dashboard.to_text(), encoding="utf-8")
