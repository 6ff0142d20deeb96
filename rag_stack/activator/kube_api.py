"""The few calls of the Kubernetes API that the activator makes."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import httpx

from rag_stack.errors import KubernetesError

Object: TypeAlias = dict[str, Any]

CONFLICT: Final = 409
FORBIDDEN: Final = 403
GONE: Final = 410
NOT_FOUND: Final = 404
UNREACHED: Final = 0
# The server ends a watch after so long; a connection that died unnoticed is given up soon after.
_WATCH_S: Final = 120
_WATCH_GRACE_S: Final = 20.0
_TOLD: Final = 300


@dataclass(frozen=True, slots=True)
class Kind:
    """Objects of one kind in one namespace."""

    group: str
    version: str
    resource: str
    namespace: str

    @property
    def path(self) -> str:
        """Of all of them."""
        return f"/apis/{self.group}/{self.version}/namespaces/{self.namespace}/{self.resource}"


def ray_services(namespace: str) -> Kind:
    """KubeRay's RayServices."""
    return Kind("ray.io", "v1", "rayservices", namespace)


def leases(namespace: str) -> Kind:
    """Leases, of which one says who may write."""
    return Kind("coordination.k8s.io", "v1", "leases", namespace)


class KubeApi:
    """Every call raises KubernetesError, with the status of the answer or 0 where there was none."""

    def __init__(self, client: httpx.AsyncClient, *, watch_s: int = _WATCH_S) -> None:
        self._client = client
        self._watch_s = watch_s

    async def get(self, kind: Kind, name: str) -> Object:
        """One object."""
        return await self._call("GET", f"{kind.path}/{name}")

    async def create(self, kind: Kind, body: Object) -> Object:
        """A new object; 409 when there is one of that name."""
        return await self._call("POST", kind.path, body=body)

    async def replace(self, kind: Kind, name: str, body: Object) -> Object:
        """All of an object; 409 unless it still has the `resourceVersion` of `body`."""
        return await self._call("PUT", f"{kind.path}/{name}", body=body)

    async def patch(self, kind: Kind, name: str, body: Object) -> Object:
        """Some fields of an object; 409 when `body` has a `resourceVersion` that is not the object's."""
        return await self._call("PATCH", f"{kind.path}/{name}", body=body, media="application/merge-patch+json")

    async def find(self, kind: Kind, name: str) -> tuple[Object | None, str]:
        """One object, None where there is none, and the version of the list from which a watch can go on.

        A list and no get: an object's own version may be older than what the server still remembers.
        """
        told = await self._call("GET", kind.path, params=_only(name))
        items = told.get("items") or []
        return (items[0] if items else None), str(told.get("metadata", {}).get("resourceVersion", ""))

    async def watch(self, kind: Kind, name: str, version: str) -> AsyncIterator[tuple[str, Object]]:
        """What happens to one object after `version`, until the server ends it. BOOKMARKs have a version alone."""
        params = {
            **_only(name),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(self._watch_s),
        }
        timeout = httpx.Timeout(10.0, read=self._watch_s + _WATCH_GRACE_S)
        try:
            async with self._client.stream("GET", kind.path, params=params, timeout=timeout) as response:
                if response.is_error:
                    raise _refused(response.request, response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    yield _event(line, response)
        except httpx.HTTPError as exc:
            raise _unreached(f"watching {kind.resource}/{name}", exc) from exc

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Object | None = None,
        media: str = "application/json",
    ) -> Object:
        content = None if body is None else json.dumps(body)
        headers = {"content-type": media} if content else {}
        try:
            response = await self._client.request(method, path, params=params, content=content, headers=headers)
        except (httpx.HTTPError, OSError) as exc:
            raise _unreached(f"{method} {path}", exc) from exc
        if response.is_error:
            raise _refused(response.request, response.status_code, response.content)
        try:
            told: Object = response.json()
        except ValueError as exc:
            raise KubernetesError(f"expected JSON of {method} {path}, got {response.text[:80]!r}", answer=0) from exc
        return told


def _only(name: str) -> dict[str, str]:
    """A Role may name the objects of a list or watch, if this is how they are selected."""
    return {"fieldSelector": f"metadata.name={name}"}


def _event(line: str, response: httpx.Response) -> tuple[str, Object]:
    try:
        event = json.loads(line)
        kind, told = str(event["type"]), dict(event["object"])
    except (ValueError, KeyError, TypeError) as exc:
        raise KubernetesError(f"expected an event in a watch, got {line[:80]!r}", answer=0) from exc
    if kind == "ERROR":
        raise _refused(response.request, int(told.get("code", 500)), json.dumps(told).encode())
    return kind, told


def _unreached(what: str, exc: Exception) -> KubernetesError:
    told = str(exc) or type(exc).__name__
    return KubernetesError(f"the API server cannot be reached ({what}): {told[:_TOLD]}", answer=UNREACHED)


def _refused(request: httpx.Request, status: int, content: bytes) -> KubernetesError:
    try:
        why = str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        why = content[:_TOLD].decode(errors="replace")
    told = f"the API server answered {status} to {request.method} {request.url.path}: {why[:_TOLD]}"
    if status == FORBIDDEN:
        told += "; the activator's Role must allow what rag_stack/activator/permissions.py lists"
    return KubernetesError(told, answer=status)
