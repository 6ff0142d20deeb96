"""The rollback drill on a server: a real admin API and real searches over HTTP, which follow the pointer."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api.admin import Admin
from rag_stack.api.auth import AdminKeyRing, digest
from rag_stack.api.releases import ReleaseAdmin
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.retention import Retention
from rag_stack.artifacts.tiers import Tiers
from rag_stack.cli.admin_calls import ADMIN_KEY_VARIABLE, AdminCalls
from rag_stack.client import Client
from rag_stack.errors import RollbackError, UnavailableError
from rag_stack.recovery.live_rollback import roll_index, roll_release
from rag_stack.releases.progress import Evidence
from rag_stack.releases.rollout import Rollout
from tests.promoted import apply, release_of
from tests.servers import serve

KEY = "operator"
LIMIT_S = 30.0


@dataclass
class Live:
    """A server whose searches are answered from what is promoted, or from `stuck`."""

    catalog: Catalog
    stuck: str | None = None
    answered: list[str] = field(default_factory=list)

    async def search(self, _: Request) -> JSONResponse:
        pointer = self.catalog.promoted("indexes", "docs")
        version = self.stuck or (pointer.version if pointer else "")
        self.answered.append(version)
        return JSONResponse({"search_query": ["drill"], "data": [], "index_version": version, "timings_ms": {}})

    async def status(self, request: Request) -> JSONResponse:
        """A coordinator that has seen enough each time somebody looks."""
        rollout = Rollout(self.catalog, request.path_params["name"])
        rollout.advance(Evidence(now_s=1))
        return JSONResponse({})


@pytest.fixture
def live(catalog: Catalog) -> Live:
    return Live(catalog)


@pytest.fixture
def url(live: Live, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    keys = AdminKeyRing([digest(KEY)], api_digests=[])
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, KEY)
    with contextlib.ExitStack() as stack:
        admin = Admin(live.catalog, Retention(live.catalog), keys, max_body_bytes=1 << 20)
        releases = ReleaseAdmin(live.catalog, keys, max_body_bytes=1 << 20, now=lambda _: {})
        stack.callback(admin.close)
        stack.callback(releases.close)
        routes = [
            Route("/v1/vector_stores/{id}/search", live.search, methods=["POST"]),
            Route("/advance/{name}", live.status, methods=["POST"]),
            *admin.routes(),
            *releases.routes(),
        ]
        yield stack.enter_context(serve(Starlette(routes=routes)))


def test_an_index_goes_back_and_forward(live: Live, url: str) -> None:
    with Client(base_url=f"{url}/v1") as client:
        found = roll_index(AdminCalls(f"{url}/v1"), client, "docs", store="docs", server=url, limit_s=LIMIT_S)
    assert (found.old, found.new, found.problems, found.live) == ("v1", "v2", (), url)
    assert {"v1", "v2"} == set(live.answered)
    history = live.catalog.history("indexes", "docs")
    assert [(each.version, each.reason) for each in history[2:]] == [
        ("v1", "drill rollback"),
        ("v2", "drill rollback: forward again"),
    ]
    assert f"live on {url}" in found.figure()


def test_a_server_that_does_not_follow_is_left_as_it_was(live: Live, url: str) -> None:
    live.stuck = "v2"
    with Client(base_url=f"{url}/v1") as client, pytest.raises(UnavailableError, match="'v1'"):
        roll_index(AdminCalls(f"{url}/v1"), client, "docs", store="docs", server=url, limit_s=3.0)
    assert live.catalog.resolve("indexes", "docs").version == "v2"


def test_without_a_version_before_there_is_nothing_to_roll(live: Live, url: str) -> None:
    live.catalog.withdraw("indexes", "docs")
    live.catalog.promote(live.catalog.manifest(live.catalog.resolve("indexes", "docs", "v1").ref).ref)
    with Client(base_url=f"{url}/v1") as client, pytest.raises(RollbackError, match="no version before"):
        roll_index(AdminCalls(f"{url}/v1"), client, "docs", store="docs", server=url, limit_s=LIMIT_S)
    with pytest.raises(RollbackError, match="no version before"):
        roll_release(AdminCalls(f"{url}/v1"), "demo", server=url, limit_s=LIMIT_S)


class _Coordinated:
    """Admin calls of a server whose coordinator gets on with it between two looks."""

    def __init__(self, url: str) -> None:
        self._calls, self._url = AdminCalls(f"{url}/v1"), url

    def get(self, path: str) -> dict[str, Any]:
        httpx.post(f"{self._url}/advance/demo").raise_for_status()
        return self._calls.get(path)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._calls.post(path, body)


def test_a_release_goes_back_and_forward(tiers: Tiers, live: Live, url: str, tmp_path: Path) -> None:
    before = Rollout(live.catalog, "demo").settle().goal
    newer = release_of(live.catalog.store.url, tmp_path / "cache", prompt={"system": "Be brief."})
    after = apply(tiers, newer).version
    Rollout(live.catalog, "demo").advance(Evidence(now_s=1))
    found = roll_release(_Coordinated(url), "demo", server=url, limit_s=LIMIT_S)  # type: ignore[arg-type]
    assert (found.old, found.new) == (before, after)
    plan = Rollout(live.catalog, "demo").settle()
    assert (plan.state, plan.goal) == ("steady", after)
