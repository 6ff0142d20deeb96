"""What is told about a release: for the command line and over HTTP."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.promotion import Promotion
from rag_stack.releases.rollout import Rollout


def status_row(rollout: Rollout) -> dict[str, Any]:
    """What is promoted, and the plan without what is over. Raises NotFoundError when nothing was ever applied."""
    plan = rollout.settle()
    pointer = rollout.pointer()
    shown = {key: value for key, value in plan.to_json().items() if key != "ended"}
    promoted = _promotion(pointer.promotion) if pointer else None
    return {"name": rollout.name, "version": plan.goal, "promoted": promoted, "shares": plan.shares(), "plan": shown}


def history_row(rollout: Rollout, *, last: int | None = None) -> dict[str, Any]:
    """Promotions and ended rollouts, the latest first. Raises NotFoundError when nothing was ever applied."""
    ended = rollout.settle().ended
    promotions = [_promotion(each) for each in reversed(rollout.promotions(last=last))]
    rollouts = [asdict(each) for each in reversed(ended[-last:] if last else ended)]
    return {"name": rollout.name, "promotions": promotions, "rollouts": rollouts}


def version_rows(catalog: Catalog, name: str) -> list[dict[str, Any]]:
    """The published versions of a release, oldest first."""
    pointer = catalog.promoted("releases", name)
    refs = [ArtifactRef("releases", name, version) for version in catalog.versions("releases", name)]
    rows = [
        {
            "version": ref.version,
            "published_at": catalog.published_at(ref).isoformat(timespec="seconds"),
            "promoted": pointer is not None and pointer.version == ref.version,
        }
        for ref in refs
    ]
    return sorted(rows, key=lambda row: (str(row["published_at"]), str(row["version"])))


def _promotion(promotion: Promotion) -> dict[str, Any]:
    shown: Mapping[str, Any] = promotion.to_json()
    return {key: value for key, value in shown.items() if key not in ("id", "back")}
