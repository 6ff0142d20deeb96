"""What the plan says of the storage overlays, what the page says, and what there is."""

from pathlib import Path

import pytest

from rag_stack.releases.storage_overlay import OVERLAYS

KUBERAY = Path(__file__).parents[3] / "deploy" / "kuberay"
PAGE = (KUBERAY / "STORAGE.md").read_text()


@pytest.mark.parametrize("name", sorted({overlay.name.partition(" + ")[0] for overlay in OVERLAYS}))
def test_every_overlay_of_the_plan_can_be_applied_and_is_on_the_page(name: str) -> None:
    kustomization = (KUBERAY / "overlays" / name / "kustomization.yaml").read_text()
    assert f"../../components/storage-{name}" in kustomization
    assert f"`{name}`" in PAGE


def test_every_component_of_the_plan_is_there() -> None:
    added = {overlay.name.partition(" + ")[2] for overlay in OVERLAYS} - {""}
    assert added == {"warm-cache"}
    assert all((KUBERAY / "components" / name / "kustomization.yaml").is_file() for name in added)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda overlay: overlay.name)
def test_the_page_calls_cold_what_the_plan_reads_from_afar(overlay: object) -> None:
    """The table's columns pod, node and zone; `warm-cache` rows follow the row that they are the same as."""
    name, _, added = overlay.name.partition(" + ")  # type: ignore[attr-defined]
    rows = [line.split(" | ") for line in PAGE.split("## What each")[0].splitlines() if line.startswith("| ")]
    at = next(number for number, row in enumerate(rows) if f"`{name}`" in row[0])
    row = rows[at + 1] if added else rows[at]
    for loss, cell in (("pod", row[1]), ("node", row[2]), ("zone", row[4])):
        recovery = overlay.recovery(loss)  # type: ignore[attr-defined]
        if recovery.models in ("snapshot", "disk", "volume", "mirror"):
            assert "warm" in cell
        elif name != "portworx":
            assert "cold" in cell or "wait" in cell
