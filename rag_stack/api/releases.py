"""/admin/releases: what is promoted, how its rollout stands, what was before, and the call that goes back.

Applying is the command line's: it checks engine settings against vLLM, which these processes do not import.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api.admin import Rollback, Workers, caller_and, check_version, limit_of
from rag_stack.api.auth import AdminKeyRing
from rag_stack.api.http import header, read_json
from rag_stack.api.validation import validated
from rag_stack.artifacts.catalog import Catalog
from rag_stack.config import is_name
from rag_stack.errors import NotFoundError
from rag_stack.releases.listing import history_row, status_row
from rag_stack.releases.rollout import Rollout

# What is seen now of a release that is served here: evidence, and what its rollout waits for; {} for any other.
Now = Callable[[str], Mapping[str, Any]]


class ReleaseAdmin:
    """The handlers. `now` is asked in the event loop, without it there is nothing to see."""

    def __init__(
        self,
        catalog: Catalog,
        keys: AdminKeyRing,
        *,
        max_body_bytes: int,
        now: Now | None = None,
        queue: int = 16,
    ) -> None:
        self._catalog = catalog
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._now = now
        self._workers = Workers.start(threads=2, queue=queue, name="admin-releases")

    def routes(self) -> list[Route]:
        """What this owns."""
        one = "/admin/releases/{name}"
        return [
            Route("/admin/releases", self.list_releases, methods=["GET"]),
            Route(one, self.status, methods=["GET"]),
            Route(f"{one}/history", self.history, methods=["GET"]),
            Route(f"{one}/rollback", self.rollback, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the threads, after what they do now."""
        self._workers.pool.shutdown(wait=True, cancel_futures=True)

    async def list_releases(self, request: Request) -> JSONResponse:
        """Every release, as `status` tells it; not one of which a version is published and none applied yet."""
        self._caller(request)

        def look() -> list[dict[str, Any]]:
            rows = []
            for name in self._catalog.names("releases"):
                with suppress(NotFoundError):
                    rows.append(status_row(Rollout(self._catalog, name)))
            return rows

        return JSONResponse({"object": "list", "data": await self._workers.run(look)})

    async def status(self, request: Request) -> JSONResponse:
        """What is promoted, the plan of its rollout, and what is seen of it now."""
        self._caller(request)
        rollout = self._rollout(request)
        return self._told(rollout, await self._workers.run(lambda: status_row(rollout)))

    async def history(self, request: Request) -> JSONResponse:
        """The last promotions and ended rollouts, newest first; `limit` of each (default 100)."""
        self._caller(request)
        rollout, limit = self._rollout(request), limit_of(request)
        return JSONResponse(await self._workers.run(lambda: history_row(rollout, last=limit)))

    async def rollback(self, request: Request) -> JSONResponse:
        """Take the running rollout back, else promote what was promoted before, or `to` a version further back."""
        caller, rollout = self._caller(request), self._rollout(request)
        body = await read_json(request.scope, request.receive, max_bytes=self._max_body_bytes)
        asked = validated(Rollback, body)
        check_version(asked.to, param="to")

        def go_back() -> dict[str, Any]:
            rollout.rollback(
                to=asked.to, reason=asked.reason, by=caller_and(caller, asked.by), expected=asked.expected_version
            )
            return status_row(rollout)

        return self._told(rollout, await self._workers.run(go_back))

    def _caller(self, request: Request) -> str:
        return self._keys.check(header(request.scope, b"authorization"))

    def _rollout(self, request: Request) -> Rollout:
        name = str(request.path_params["name"])
        if not is_name(name):
            raise NotFoundError(f"the release {name[:40]!r} does not exist", param="name")
        return Rollout(self._catalog, name)

    def _told(self, rollout: Rollout, row: dict[str, Any]) -> JSONResponse:
        return JSONResponse({**row, "now": dict(self._now(rollout.name)) if self._now else {}})
