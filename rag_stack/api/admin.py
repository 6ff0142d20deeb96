"""/admin/indexes: what is published and promoted, and the calls that change it; /admin/swaps: its way into service.

Operators have keys of their own.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.api.auth import AdminKeyRing
from rag_stack.api.http import header, read_json
from rag_stack.api.validation import validated
from rag_stack.artifacts.catalog import Catalog, Expected
from rag_stack.artifacts.manifest import RESERVED_NAMES, ArtifactRef
from rag_stack.artifacts.promotion import MAX_REASON_CHARS, Pointer
from rag_stack.artifacts.retention import KEEP, OLDER_THAN_S, Retention, seconds_of
from rag_stack.config import Name, is_name
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    IndexVersionError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
)
from rag_stack.index.difference import compare
from rag_stack.index.judgement import promote_index, rollback_index, verify
from rag_stack.index.listing import promotion_row, version_rows

T = TypeVar("T")
# Told at once that a version is promoted: index name, version.
Promoted = Callable[[str, str], Awaitable[None]]
# What is served of each store that follows an index, what is on its way, and who lags and why.
Swaps = Callable[[], Sequence[Mapping[str, Any]]]

_log = logging.getLogger(__name__)
# Longer names of a caller would not fit into the history beside the fingerprint.
_MAX_BY_CHARS: Final = 100
_HISTORY: Final = 100
_MAX_HISTORY: Final = 1000

Reason = Annotated[str, Field(max_length=MAX_REASON_CHARS)]
By = Annotated[str, Field(max_length=_MAX_BY_CHARS)]


class Promote(BaseModel):
    """The body of a promotion. Without `expected_version` whichever version is promoted may be replaced."""

    version: Name
    reason: Reason = ""
    force: bool = False
    expected_version: Name | None = None
    by: By = ""


class Rollback(BaseModel):
    """The body of a rollback. Without `to` it goes to what was promoted before."""

    to: Name | None = None
    reason: Reason = ""
    expected_version: Name | None = None
    by: By = ""


class Verify(BaseModel):
    """The body of a verification. Without a version, the promoted one."""

    version: Name | None = None


class Collect(BaseModel):
    """The body of a collection. `older_than` is a number of seconds, or a text such as 7d."""

    keep: Annotated[int, Field(ge=0, le=10_000)] = KEEP
    older_than: str | float = OLDER_THAN_S
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """A bounded pool for calls that block. One more than `queue` waiting is refused."""

    pool: ThreadPoolExecutor
    slots: asyncio.Semaphore

    @classmethod
    def start(cls, *, threads: int, queue: int, name: str) -> "Workers":
        """Threads that begin with the first call; end them with `pool.shutdown`."""
        return cls(ThreadPoolExecutor(threads, name), asyncio.Semaphore(threads + queue))

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work` from a thread. Raises OverloadedError when too many wait already."""
        if self.slots.locked():
            raise OverloadedError("too many admin calls wait for the object store; try again", retry_after_s=5)
        async with self.slots:
            return await asyncio.get_running_loop().run_in_executor(self.pool, work)


class Admin:
    """The handlers. `promoted` is awaited after each promotion and rollback, before the answer.

    `swaps` is asked in the event loop; without it there is no such route.

    Calls that take as long as an index is large (verify, diff, gc) have a thread of their own, so that a promotion
    never waits for one. The keys are checked here, in each handler: the gate before this must let every key pass.
    """

    def __init__(
        self,
        catalog: Catalog,
        retention: Retention,
        keys: AdminKeyRing,
        *,
        max_body_bytes: int,
        promoted: Promoted | None = None,
        swaps: Swaps | None = None,
        queue: int = 16,
    ) -> None:
        self._catalog = catalog
        self._retention = retention
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._promoted = promoted
        self._swaps = swaps
        self._quick = Workers.start(threads=2, queue=queue, name="admin")
        self._slow = Workers.start(threads=1, queue=queue, name="admin-slow")

    def routes(self) -> list[Route]:
        """What this owns."""
        one = "/admin/indexes/{name}"
        return [
            *([Route("/admin/swaps", self.list_swaps, methods=["GET"])] if self._swaps else []),
            Route("/admin/indexes", self.list_indexes, methods=["GET"]),
            Route(f"{one}/versions", self.versions, methods=["GET"]),
            Route(f"{one}/history", self.history, methods=["GET"]),
            Route(f"{one}/diff", self.diff, methods=["GET"]),
            Route(f"{one}/promote", self.promote, methods=["POST"]),
            Route(f"{one}/rollback", self.rollback, methods=["POST"]),
            Route(f"{one}/verify", self.verify, methods=["POST"]),
            Route(f"{one}/gc", self.gc, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the threads, after what they do now."""
        for workers in (self._quick, self._slow):
            workers.pool.shutdown(wait=True, cancel_futures=True)

    async def list_indexes(self, request: Request) -> JSONResponse:
        """Every index, with what is promoted."""
        self._caller(request)

        def look() -> list[dict[str, Any]]:
            names = self._catalog.names("indexes")
            return [_index_row(name, self._catalog.promoted("indexes", name)) for name in names]

        return _list(await self._quick.run(look))

    async def list_swaps(self, request: Request) -> JSONResponse:
        """Every store whose index is followed: the version that is served, the next one, and who lags and why."""
        self._caller(request)
        return _list([dict(row) for row in self._swaps()] if self._swaps else [])

    async def versions(self, request: Request) -> JSONResponse:
        """The published versions, oldest first; `unreadable` ones with what is wrong with them."""
        self._caller(request)
        name = _name(request)
        rows, problems = await self._quick.run(lambda: version_rows(self._catalog, name))
        if not rows and not problems:
            raise NotFoundError(f"the index {name!r} does not exist", param="name")
        unreadable = [{"version": version, "problem": problem} for version, problem in problems.items()]
        return JSONResponse({"object": "list", "data": rows, "unreadable": unreadable})

    async def history(self, request: Request) -> JSONResponse:
        """The last promotions, newest first; `limit` of them (default 100)."""
        self._caller(request)
        name, limit = _name(request), limit_of(request)

        def look() -> list[dict[str, Any]]:
            found = self._catalog.history("indexes", name, last=limit)
            if not found and not self._catalog.versions("indexes", name):
                raise NotFoundError(f"the index {name!r} does not exist", param="name")
            return [promotion_row(each) for each in reversed(found)]

        return _list(await self._quick.run(look))

    async def diff(self, request: Request) -> JSONResponse:
        """What changes `from` a version `to` another one (default: the promoted)."""
        self._caller(request)
        name, query = _name(request), request.query_params
        before, after = query.get("from"), query.get("to")
        if before is None:
            raise InvalidRequestError("`from` is missing: the version to compare with", param="from")
        for param, version in (("from", before), ("to", after)):
            check_version(version, param=param)

        def look() -> dict[str, Any]:
            old = self._catalog.manifest(ArtifactRef("indexes", name, before))
            return compare(self._catalog, old, self._catalog.resolve("indexes", name, after)).to_json()

        return JSONResponse(await self._found(self._slow, look))

    async def promote(self, request: Request) -> JSONResponse:
        """Promote a published version whose gates have passed, or any by force."""
        caller, name = self._caller(request), _name(request)
        asked = validated(Promote, await self._body(request))
        check_version(asked.version, param="version")
        expected = Expected.CURRENT if asked.expected_version is None else asked.expected_version
        pointer = await self._found(
            self._quick,
            lambda: promote_index(
                self._catalog,
                name,
                asked.version,
                force=asked.force,
                expected_version=expected,
                by=caller_and(caller, asked.by),
                reason=asked.reason,
            ),
        )
        return await self._moved(name, pointer)

    async def rollback(self, request: Request) -> JSONResponse:
        """Promote what was promoted before, or `to` a version further back."""
        caller, name = self._caller(request), _name(request)
        asked = validated(Rollback, await self._body(request))
        check_version(asked.to, param="to")
        expected = Expected.CURRENT if asked.expected_version is None else asked.expected_version
        pointer = await self._found(
            self._quick,
            lambda: rollback_index(
                self._catalog,
                name,
                to=asked.to,
                by=caller_and(caller, asked.by),
                reason=asked.reason,
                expected_version=expected,
            ),
        )
        return await self._moved(name, pointer)

    async def verify(self, request: Request) -> JSONResponse:
        """Read a version, check every byte and open it. What is wrong with it is an answer too: `ok` is false then."""
        self._caller(request)
        name, asked = _name(request), validated(Verify, await self._body(request))
        check_version(asked.version, param="version")

        def look() -> dict[str, Any]:
            ref = self._catalog.resolve("indexes", name, asked.version).ref
            try:
                found = verify(self._catalog, ref)
            except (ArtifactCorruptError, IndexVersionError) as exc:
                return {"ref": str(ref), "version": ref.version, "ok": False, "problem": exc.message}
            told = {"size_bytes": found.size_bytes, "seconds": round(found.seconds, 3)}
            return {"ref": str(ref), "version": ref.version, "ok": True, "problem": None, **told}

        return JSONResponse(await self._found(self._slow, look))

    async def gc(self, request: Request) -> JSONResponse:
        """Delete the versions that nobody needs; what was kept comes with the reasons."""
        self._caller(request)
        name, asked = _name(request), validated(Collect, await self._body(request))
        older_than = asked.older_than if isinstance(asked.older_than, float) else seconds_of(asked.older_than)
        collected = await self._found(
            self._slow,
            lambda: self._retention.collect(
                "indexes", name, keep=asked.keep, older_than_s=older_than, dry_run=asked.dry_run
            ),
        )
        return JSONResponse(collected.to_json())

    def _caller(self, request: Request) -> str:
        return self._keys.check(header(request.scope, b"authorization"))

    async def _body(self, request: Request) -> dict[str, Any]:
        return await read_json(request.scope, request.receive, max_bytes=self._max_body_bytes)

    async def _found(self, workers: Workers, work: Callable[[], T]) -> T:
        try:
            return await workers.run(work)
        except ArtifactNotFoundError as exc:
            raise NotFoundError(exc.message, param="version") from exc

    async def _moved(self, name: str, pointer: Pointer) -> JSONResponse:
        if self._promoted is not None:
            try:
                await self._promoted(name, pointer.version)
            except Exception:
                # It is promoted, and whoever follows the pointer sees it a little later.
                _log.exception("index %s: nobody could be told that %s is promoted", name, pointer.version)
        return JSONResponse({"name": name, **promotion_row(pointer.promotion)})


def _name(request: Request) -> str:
    name = str(request.path_params["name"])
    if not is_name(name):
        raise NotFoundError(f"the index {name[:40]!r} does not exist", param="name")
    return name


def check_version(version: str | None, *, param: str) -> None:
    """Raise InvalidRequestError for what can be no version."""
    if version is not None and (not is_name(version) or version in RESERVED_NAMES):
        raise InvalidRequestError(f"`{param}` is no version: {version[:40]!r}", param=param)


def limit_of(request: Request) -> int:
    """The `limit` of a history. Raises InvalidRequestError."""
    given = request.query_params.get("limit", str(_HISTORY))
    if not (given.isascii() and given.isdigit() and len(given) <= 4 and 1 <= int(given) <= _MAX_HISTORY):
        raise InvalidRequestError(f"`limit` must be 1 to {_MAX_HISTORY}, got {given[:20]!r}", param="limit")
    return int(given)


def caller_and(caller: str, said: str) -> str:
    """For the history: whose key it was, and who says to use it."""
    return f"{caller} {said}".strip()


def _index_row(name: str, pointer: Pointer | None) -> dict[str, Any]:
    promoted = promotion_row(pointer.promotion) if pointer else None
    return {"name": name, "version": pointer.version if pointer else None, "promoted": promoted}


def _list(rows: list[dict[str, Any]]) -> JSONResponse:
    return JSONResponse({"object": "list", "data": rows})
