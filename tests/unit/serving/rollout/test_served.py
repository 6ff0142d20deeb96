"""What Serve's controller tells, and whose start it ended."""

from typing import Any

import pytest

from rag_stack.serving.rollout.served import Served, ServeState, not_wanted


def details(target: int, **states: str) -> dict[str, Any]:
    replicas = [{"replica_id": name, "state": state} for name, state in states.items()]
    router = {"target_num_replicas": 1, "replicas": [{"replica_id": "router", "state": "RUNNING"}]}
    engine = {"target_num_replicas": target, "replicas": replicas}
    return {"applications": {"engine": {"deployments": {"LLMRouter": router, "Engine": engine}}}}


def test_the_router_is_no_engine_and_one_that_migrates_is_beside_those_that_are_wanted() -> None:
    told = details(2, a="RUNNING", b="PENDING_MIGRATION", c="STARTING", d="STOPPING")
    replicas = {"a": "running", "b": "running", "c": "starting", "d": "stopping"}
    assert Served.from_details(told, "engine") == Served(replicas, wanted=3)
    assert Served.from_details(told, "other") == Served()


@pytest.mark.parametrize(
    ("wanted", "now", "found"),
    [
        ((3, 3), {}, set()),
        ((3, 2), {"b": "stopping", "c": "starting"}, {"b"}),
        ((3, 2), {}, {"c"}),
        ((3, 1), {}, {"b", "c"}),
        ((2, 3), {"b": "stopping", "c": "starting"}, {"b"}),
        ((3, 2), {"b": "starting", "c": "starting"}, set()),
    ],
    ids=["all fail", "one stops", "one of two", "both", "wanted again", "none ended"],
)
def test_as_many_starts_as_there_were_too_many_were_stopped(
    wanted: tuple[int, int], now: dict[str, ServeState], found: set[str]
) -> None:
    before: dict[str, ServeState] = {"a": "running", "b": "starting", "c": "starting", "d": "stopping"}
    after: dict[str, ServeState] = {"a": "running", **now}
    assert not_wanted(Served(before, wanted[0]), Served(after, wanted[1]), heard_of={"b"}) == found
