"""No deployment that is built has an unbounded queue."""

from collections.abc import Iterator
from typing import Any

import pytest
from ray import serve

from rag_stack.releases.pinned import PinnedRelease
from rag_stack.serving.bounds import ENGINE_ONGOING
from rag_stack.serving.control_apps import control_targets
from rag_stack.serving.deployment import engine_options, with_router

RELEASE = {"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}}


@serve.deployment
class Engine:
    """Stands for the engine's server class."""


def deployments(application: Any) -> Iterator[Any]:
    """An application's deployments, its router's and those that it is bound to."""
    yield application._bound_deployment
    router = getattr(application, "_ingress_request_router", None)
    if router is not None:
        yield router._bound_deployment


@pytest.fixture
def pinned() -> PinnedRelease:
    return PinnedRelease.model_validate({"release": RELEASE, "created_at": 1, "followed": []})


def test_every_deployment_bounds_what_runs_and_what_waits(pinned: PinnedRelease) -> None:
    engine = with_router(Engine.options(**engine_options(pinned.release)).bind())
    applications = [engine, *(target.target for target in control_targets(pinned))]
    found = [deployment for application in applications for deployment in deployments(application)]
    assert len(found) == len(applications) + 1, "the engine has a router"
    for deployment in found:
        assert 0 < deployment.max_queued_requests <= 1000, deployment.name
        assert deployment.max_ongoing_requests <= ENGINE_ONGOING, deployment.name
        assert deployment.backpressure_config.status_code == 429, deployment.name
        assert 1 <= deployment.backpressure_config.retry_after_s <= 60, deployment.name


def test_serve_lets_in_what_haproxy_does_so_that_our_own_queue_decides() -> None:
    from ray.serve._private.constants import RAY_SERVE_HAPROXY_MAXCONN

    assert ENGINE_ONGOING > RAY_SERVE_HAPROXY_MAXCONN
