"""What Serve's controller tells, and whose start it ended."""

from typing import Any

import pytest
from ray import NodeID
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from rag_stack.serving.rollout.serve_replicas import active_nodes
from rag_stack.serving.rollout.served import Served, ServeState, not_failed


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
    assert not_failed(Served(before, wanted[0]), Served(after, wanted[1]), heard_of={"b"}) == found


def test_where_a_replica_is_is_known_once_serve_has_found_it_a_node() -> None:
    told = details(2, a="STARTING", b="STARTING")
    told["applications"]["engine"]["deployments"]["Engine"]["replicas"][0]["node_id"] = "n1"
    served = Served.from_details(told, "engine", active_nodes={"n1", "n2"})
    assert (served.nodes, served.active_nodes) == ({"a": "n1"}, {"n1", "n2"})


@pytest.mark.parametrize(
    ("wanted", "now", "active", "found"),
    [
        ((3, 3), {"b": "stopping", "c": "starting"}, {"n1"}, {"b"}),
        ((3, 3), {"c": "starting"}, {"n1"}, {"b"}),
        ((3, 3), {}, {"n1"}, {"b"}),
        ((3, 3), {}, {"n1", "n2"}, set()),
        ((3, 2), {}, {"n1"}, {"b"}),
        ((3, 1), {}, {"n1"}, {"b", "c"}),
        ((3, 3), {"b": "starting", "c": "starting"}, {"n1"}, set()),
    ],
    ids=["drains", "gone", "beside one that fails", "both fail", "one less, and it is gone", "two less", "not yet"],
)
def test_a_start_on_a_node_that_goes_has_not_failed(
    wanted: tuple[int, int], now: dict[str, ServeState], active: set[str], found: set[str]
) -> None:
    before: dict[str, ServeState] = {"a": "running", "b": "starting", "c": "starting"}
    after: dict[str, ServeState] = {"a": "running", **now}
    nodes = {"a": "n1", "b": "n2", "c": "n1"}
    then = Served(before, wanted[0], nodes, {"n1", "n2"})
    later = Served(after, wanted[1], {name: nodes[name] for name in after}, active)
    assert not_failed(then, later, heard_of=()) == found


class Head:
    """What Ray's head tells of its nodes: one is alive, one drains, one has died."""

    def get_all_node_info(self, *, timeout: float) -> dict[NodeID, GcsNodeInfo]:
        states = {"aa": GcsNodeInfo.ALIVE, "bb": GcsNodeInfo.ALIVE, "cc": GcsNodeInfo.DEAD}
        return {node(name): GcsNodeInfo(state=state) for name, state in states.items()}

    def get_draining_nodes(self, *, timeout: float) -> dict[str, int]:
        return {node("bb").hex(): 0}


def node(name: str) -> NodeID:
    return NodeID.from_hex(name * 28)


def test_a_node_that_drains_or_has_died_is_not_active() -> None:
    assert active_nodes(Head()) == {node("aa").hex()}
