"""The newest RayService, whatever the API server does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from rag_stack.activator.kube_api import KubeApi, ray_services
from rag_stack.activator.ray_service import Phase
from rag_stack.activator.watch import Watch
from tests.api_server import NAMESPACE, SERVICE, ApiServer, api_server, ray_service


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[ApiServer, Watch]]:
    async with api_server() as (server, url), httpx.AsyncClient(base_url=url, timeout=2) as client:
        server.put("rayservices", ray_service())
        server.ready()
        watch = Watch(KubeApi(client), ray_services(NAMESPACE), SERVICE, pause_s=0.01)
        running = asyncio.create_task(watch.run())
        try:
            async with asyncio.timeout(60):
                await watch.until(Phase.SERVING)
            await server.until(lambda: server.watching == 1)
            yield server, watch
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def reaches(watch: Watch, *phases: Phase) -> None:
    async with asyncio.timeout(60):
        await watch.until(*phases)


async def test_a_watch_that_ends_is_taken_up_where_it_was() -> None:
    async with watched() as (server, watch):
        server.change({"spec": {"suspend": True}})
        await reaches(watch, Phase.SUSPENDING)
        newest = server.version
        server.drop_watches()
        await server.until(lambda: len(server.watched_from) == 2)
        assert server.watched_from[1] == str(newest)
        server.suspended()
        await reaches(watch, Phase.SUSPENDED)
        assert server.count("list") == 1


async def test_what_happens_between_two_watches_is_not_missed() -> None:
    async with watched() as (server, watch):
        seen = 0

        def before(verb: str, resource: str) -> None:
            nonlocal seen
            seen += verb == "watch"
            if verb == "watch" and seen == 1:
                server.change({"spec": {"suspend": True}})

        server.before = before
        server.drop_watches()
        await reaches(watch, Phase.SUSPENDING)


async def test_a_bookmark_moves_the_version_on() -> None:
    async with watched() as (server, _):
        server.bookmark()
        marked = server.version
        server.drop_watches()
        await server.until(lambda: len(server.watched_from) == 2)
        assert server.watched_from[1] == str(marked)


@pytest.mark.parametrize("as_event", [True, False])
async def test_a_version_that_is_forgotten_is_looked_up_anew(*, as_event: bool) -> None:
    async with watched() as (server, watch):
        server.gone_as_event = as_event

        def forget(verb: str, resource: str) -> None:
            if verb == "watch" and server.count("watch") == 2:
                server.put("rayservices", ray_service(suspend=True, uid="one"))
                server.compact()

        server.before = forget
        server.drop_watches()
        await reaches(watch, Phase.SUSPENDING)
        await server.until(lambda: server.watching == 1)
        assert server.count("list") == 2
        assert watch.trouble == ""


async def test_while_the_api_server_fails_what_was_known_stays_known() -> None:
    async with watched() as (server, watch):
        server.status = 500
        server.drop_watches()
        await server.until(lambda: server.failed > 3)
        assert watch.phase is Phase.SERVING
        assert "500" in watch.trouble
        server.change({"spec": {"suspend": True}})
        server.status = 0
        await reaches(watch, Phase.SUSPENDING)
        assert watch.trouble == ""


async def test_one_that_is_deleted_and_made_anew() -> None:
    async with watched() as (server, watch):
        old = server.objects["rayservices", SERVICE]
        server.delete()
        await reaches(watch, Phase.MISSING)
        watch.take(old)  # an answer that the deletion has overtaken
        assert watch.phase is Phase.MISSING
        server.put("rayservices", ray_service(uid="two"))
        await reaches(watch, Phase.WAKING)
        server.ready()
        await reaches(watch, Phase.SERVING)


async def test_an_answer_that_an_event_has_overtaken_is_not_news() -> None:
    async with watched() as (server, watch):
        old = server.objects["rayservices", SERVICE]
        server.change({"spec": {"suspend": True}})
        await reaches(watch, Phase.SUSPENDING)
        watch.take(old)
        assert watch.phase is Phase.SUSPENDING
