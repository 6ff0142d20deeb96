"""An activator's surroundings: a stand-in API server and a real upstream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from rag_stack.activator.activator import Activator
from rag_stack.activator.permissions import permissions
from tests.api_server import ApiServer, api_server, ray_service
from tests.awakened import Behind
from tests.loop_server import listening

ROLE = permissions(service="rag-stack", lease="rag-stack-activator")
CHAT = "/v1/chat/completions"


@dataclass
class Stage:
    """All that takes part."""

    server: ApiServer
    api_url: str
    behind: Behind
    upstream: str


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    behind = Behind()
    async with api_server(ROLE) as (server, api_url), listening(behind) as upstream:
        yield Stage(server, api_url, behind, upstream)


def asleep(stage: Stage, **annotations: str) -> None:
    stage.server.put("rayservices", ray_service(suspend=True, **(annotations or {"suspended_by": "pod-b"})))
    stage.server.suspended()


def awake(stage: Stage) -> None:
    stage.server.put("rayservices", ray_service())
    stage.server.ready()


def woken(stage: Stage) -> bool:
    return stage.server.objects["rayservices", "rag-stack"]["spec"]["suspend"] is False


async def value(made: Activator, line: str) -> float:
    """Of a metric, as Prometheus reads it."""
    async with listening(made.ops) as url, httpx.AsyncClient(timeout=60) as client:
        told = (await client.get(f"{url}/metrics")).text
    found = [each for each in told.splitlines() if each.startswith(f"{line} ")]
    assert len(found) == 1, told
    return float(found[0].rpartition(" ")[2])


async def seen(made: Activator, stage: Stage) -> None:
    """Wait until the activator knows of the newest version."""
    newest = stage.server.objects["rayservices", "rag-stack"]["metadata"]["resourceVersion"]
    async with asyncio.timeout(60):
        while made.watch.view is None or made.watch.view.version != newest:
            await made.watch.change_within(1)
