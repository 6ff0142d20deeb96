"""The Grafana dashboards, as code; `python -m deploy.dashboards` writes their files for components/monitoring."""

from pathlib import Path
from typing import Final

from deploy.dashboards import capacity, data_path, indexes, overview

DASHBOARDS: Final = (overview.DASHBOARD, data_path.DASHBOARD, indexes.DASHBOARD, capacity.DASHBOARD)
FOLDER: Final = Path(__file__).parents[1] / "kuberay" / "components" / "monitoring" / "dashboards"
