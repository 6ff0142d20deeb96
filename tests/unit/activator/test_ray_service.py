"""Where a RayService is, by its fields."""

from typing import Any

import pytest

from rag_stack.activator.ray_service import measured_patch, suspend_patch, view_of


def told(*, suspend: bool = False, seen: int = 4, **conditions: str) -> dict[str, Any]:
    """One of generation 4, whose operator has seen the generation `seen`."""
    made = [{"type": name, "status": status, "reason": "R", "message": "m"} for name, status in conditions.items()]
    metadata = {"name": "a", "uid": "u", "resourceVersion": "7", "generation": 4}
    status = {"conditions": made, "observedGeneration": seen}
    return {"metadata": metadata, "spec": {"suspend": suspend}, "status": status}


@pytest.mark.parametrize(
    ("service", "phase"),
    [
        (told(), "waking"),
        (told(Ready="True"), "serving"),
        (told(Ready="Unknown"), "waking"),
        (told(Ready="True", Suspending="True"), "waking"),
        (told(Ready="True", RayServiceSuspending="True"), "waking"),
        (told(Ready="True", Suspending="False", Suspended="False"), "serving"),
        (told(Ready="True", seen=3), "waking"),
        (told(Ready="True", seen=4), "serving"),
        (told(suspend=True, Ready="True"), "suspending"),
        (told(suspend=True, Suspending="True"), "suspending"),
        (told(suspend=True, Suspended="True"), "suspended"),
        ({"metadata": {"name": "a"}}, "waking"),
        ({"metadata": {"name": "a"}, "spec": None, "status": None}, "waking"),
    ],
)
def test_the_phase(service: dict[str, Any], phase: str) -> None:
    assert view_of(service).phase(awake_since=4) == phase


def test_a_condition_s_own_generation_is_what_counts() -> None:
    service = told(Ready="True")
    service["status"]["conditions"][0]["observedGeneration"] = 3
    assert view_of(service).phase(awake_since=4) == "waking"
    assert view_of(service).phase(awake_since=3) == "serving"


@pytest.mark.parametrize("reason", ["InitializingTimeout", "ValidationFailed"])
def test_what_the_operator_gives_up_is_hopeless(reason: str) -> None:
    service = told(Ready="False")
    service["status"]["conditions"][0]["reason"] = reason
    assert view_of(service).hopeless() == f"{reason}: m"
    assert view_of({**service, "spec": {"suspend": True}}).hopeless() == ""
    assert view_of(told(Ready="False")).hopeless() == ""


def test_an_edit_that_the_operator_refuses_takes_nobody_out_of_service() -> None:
    service = told(Ready="False")
    service["status"]["conditions"][0]["reason"] = "ValidationFailed"
    service["status"]["numServeEndpoints"] = 2
    assert view_of(service).phase(awake_since=4) == "serving"
    assert view_of(service).hopeless() == ""
    service["status"]["conditions"][0]["reason"] = "InitializingTimeout"
    assert view_of(service).phase(awake_since=4) == "waking"


def test_the_newest_wakes_are_kept() -> None:
    service = told()
    service["metadata"]["annotations"] = {"rag-stack.dev/wake-seconds": "1,inf,-2,nan,x,,30.25"}
    view = view_of(service)
    assert view.wakes_s == (1.0, 30.25)
    kept = measured_patch(tuple(float(n) for n in range(1, 40)), 50.04)["metadata"]["annotations"]
    assert kept["rag-stack.dev/wake-seconds"].split(",")[-2:] == ["39.000", "50.040"]
    assert len(kept["rag-stack.dev/wake-seconds"].split(",")) == 16


def test_a_suspension_holds_only_for_what_was_seen() -> None:
    patch = suspend_patch("17", identity="pod-a")
    assert patch["metadata"] == {"resourceVersion": "17", "annotations": {"rag-stack.dev/suspended-by": "pod-a"}}
    assert patch["spec"] == {"suspend": True}
