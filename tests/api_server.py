"""A stand-in for a Kubernetes API server, and for the operator behind it: as much as an activator notices of them.

Versions, generations, merge patches, preconditions, watches with bookmarks and 410, and a Role that is enforced. Used
from one event loop; what has happened is waited for, never slept for.
"""

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rag_stack.activator.permissions import Permission
from tests.loop_server import listening

Object = dict[str, Any]
NAMESPACE, SERVICE = "rag-stack", "rag-stack"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


class ApiServer:
    """An ASGI app. `role` None: everything is allowed. `token`: what callers must show, if anything."""

    def __init__(self, role: tuple[Permission, ...] | None = None) -> None:
        self.role = role
        self.token = ""
        self.status = 0  # every call is answered with it, if it is set
        self.failed = 0
        self.gone_as_event = True
        self.objects: dict[tuple[str, str], Object] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.watched_from: list[str] = []
        self.patches: list[Object] = []
        self.refused: list[tuple[str, str, str]] = []
        self.version = 100
        self.before: Callable[[str, str], None] = lambda verb, resource: None
        self._oldest = 0
        self._events: list[tuple[int, str, Object]] = []
        self._watchers: list[asyncio.Queue[tuple[str, Object] | None]] = []
        self._happened = asyncio.Condition()

    async def until(self, true: Callable[[], bool], limit_s: float = 60.0) -> None:
        """Wait until something is so, looking whenever anything has happened here."""
        async with asyncio.timeout(limit_s), self._happened:
            await self._happened.wait_for(true)

    def count(self, verb: str, resource: str = "rayservices") -> int:
        return sum(call[:2] == (verb, resource) for call in self.calls)

    @property
    def watching(self) -> int:
        return len(self._watchers)

    # What others do.

    def put(self, resource: str, told: Object) -> None:
        """A new object, or another one in its place."""
        name = told["metadata"]["name"]
        kind = "MODIFIED" if (resource, name) in self.objects else "ADDED"
        self._store(resource, copy.deepcopy(told), kind)

    def change(self, patch: Object, resource: str = "rayservices", name: str = SERVICE) -> Object:
        """Somebody's merge patch."""
        old = self.objects[resource, name]
        new = merged(old, patch)
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        return self._store(resource, new, "MODIFIED")

    def delete(self, name: str = SERVICE) -> None:
        gone = self.objects.pop(("rayservices", name))
        self._emit("DELETED", self._stamped(copy.deepcopy(gone)))

    def conditions(self, *, generation: int | None = None, **true: bool | tuple[bool, str]) -> None:
        """The operator sets conditions, of the newest generation if no other is said."""
        service = self.objects["rayservices", SERVICE]
        seen = service["metadata"]["generation"] if generation is None else generation
        status = copy.deepcopy(service.get("status") or {"conditions": []})
        kept = [each for each in status["conditions"] if each["type"] not in true]
        for name, told in true.items():
            value, reason = told if isinstance(told, tuple) else (told, "AsToldByATest")
            condition = {"type": name, "status": str(value), "reason": reason, "message": f"{name} {value}"}
            kept.append({**condition, "observedGeneration": seen})
        self._store("rayservices", {**service, "status": {"conditions": kept, "observedGeneration": seen}}, "MODIFIED")

    def suspended(self) -> None:
        """The operator has deleted all."""
        self.conditions(Suspending=False, Suspended=True, Ready=(False, "SuspendComplete"))

    def ready(self, generation: int | None = None) -> None:
        """The operator has endpoints."""
        self.conditions(generation=generation, Suspending=False, Suspended=False, Ready=(True, "NonZeroServeEndpoints"))

    # What goes wrong.

    def drop_watches(self) -> None:
        """Every watch ends."""
        for queue in self._watchers:
            queue.put_nowait(None)

    def compact(self) -> None:
        """Nothing older than now is remembered."""
        self._oldest, self._events = self.version, []

    def bookmark(self) -> None:
        """The version moves on, though nothing that is watched has changed."""
        self.version += 1
        told = {"kind": "RayService", "metadata": {"resourceVersion": str(self.version)}}
        for queue in self._watchers:
            queue.put_nowait(("BOOKMARK", told))

    # The API.

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._answer(request)
        async with self._happened:
            self._happened.notify_all()
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        _, _, group, _, _, namespace, resource, *names = request.url.path.split("/")
        name = names[0] if names else request.query_params.get("fieldSelector", "").removeprefix("metadata.name=")
        watch = request.query_params.get("watch") == "true"
        verb = _VERBS.get(request.method) or ("get" if names else "watch" if watch else "list")
        if self.status:
            self.failed += 1
            return refusal(self.status, "as told by a test")
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return refusal(401, "Unauthorized")
        self.calls.append((verb, resource, name))
        if self.role is not None and not any(p.allows(group, resource, verb, name) for p in self.role):
            self.refused.append((verb, resource, name))
            return refusal(403, f'{resource} "{name}" is forbidden: cannot {verb} in namespace "{namespace}"')
        self.before(verb, resource)
        if verb == "watch":
            self.watched_from.append(request.query_params["resourceVersion"])
            return self._watch(int(request.query_params["resourceVersion"]))
        body = await request.json() if request.method in _VERBS else {}
        return self._do(verb, resource, name or body.get("metadata", {}).get("name", ""), body, request)

    def _do(self, verb: str, resource: str, name: str, body: Object, request: Request) -> Response:
        known = self.objects.get((resource, name))
        if verb == "list":
            items = [known] if known else []
            return JSONResponse({"metadata": {"resourceVersion": str(self.version)}, "items": items})
        if verb == "create":
            return refusal(409, "already exists") if known else JSONResponse(self._store(resource, body, "ADDED"), 201)
        if known is None:
            return refusal(404, f'{resource} "{name}" not found')
        wanted = body.get("metadata", {}).get("resourceVersion")
        if verb != "get" and wanted is not None and wanted != known["metadata"]["resourceVersion"]:
            return refusal(409, "the object has been modified; please apply your changes to the latest version")
        if verb == "update":
            return JSONResponse(self._store(resource, body, "MODIFIED"))
        if verb == "patch":
            assert request.headers["content-type"] == "application/merge-patch+json"
            self.patches.append(body)
            return JSONResponse(self.change(body, resource, name))
        return JSONResponse(known)

    def _watch(self, version: int) -> Response:
        if version < self._oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            if not self.gone_as_event:
                return refusal(410, "too old resource version")
            return Response(json.dumps({"type": "ERROR", "object": gone}) + "\n", media_type="application/json")
        queue: asyncio.Queue[tuple[str, Object] | None] = asyncio.Queue()
        for at, kind, told in self._events:
            if at > version:
                queue.put_nowait((kind, told))
        self._watchers.append(queue)
        return StreamingResponse(self._stream(queue), media_type="application/json")

    async def _stream(self, queue: "asyncio.Queue[tuple[str, Object] | None]") -> AsyncIterator[str]:
        try:
            while (event := await queue.get()) is not None:
                yield json.dumps({"type": event[0], "object": event[1]}) + "\n"
        finally:
            self._watchers.remove(queue)

    def _store(self, resource: str, told: Object, kind: str) -> Object:
        stored = self._stamped(told)
        stored["metadata"].setdefault("generation", 1)
        self.objects[resource, stored["metadata"]["name"]] = stored
        if resource == "rayservices":
            self._emit(kind, stored)
        return stored

    def _stamped(self, told: Object) -> Object:
        self.version += 1
        return {**told, "metadata": {**told["metadata"], "resourceVersion": str(self.version)}}

    def _emit(self, kind: str, told: Object) -> None:
        self._events.append((self.version, kind, told))
        for queue in self._watchers:
            queue.put_nowait((kind, told))


def ray_service(*, suspend: bool = False, uid: str = "one", **annotations: str) -> Object:
    """One that has just been created. Underscores of the annotations' names stand for dashes."""
    notes = {f"rag-stack.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    metadata = {"name": SERVICE, "namespace": NAMESPACE, "uid": uid, "annotations": notes}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": {"suspend": suspend}}


def merged(old: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merged(new.get(key), value)
    return new


def refusal(status: int, message: str) -> Response:
    return JSONResponse({"kind": "Status", "code": status, "message": message}, status)


@asynccontextmanager
async def api_server(role: tuple[Permission, ...] | None = None) -> AsyncIterator[tuple[ApiServer, str]]:
    """One that listens, and its URL."""
    server = ApiServer(role)
    async with listening(server) as url:
        try:
            yield server, url
        finally:
            server.drop_watches()
