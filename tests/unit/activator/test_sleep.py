"""When a RayService is suspended, by whom, and what keeps it awake."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from rag_stack.activator.permissions import permissions
from rag_stack.activator.ray_service import SUSPENDED_BY
from rag_stack.activator.settings import Settings
from rag_stack.errors import ConfigError
from tests.api_server import ApiServer, api_server, ray_service
from tests.awakened import Behind, activator, caller, chat, known
from tests.loop_server import listening

CHAT = "/v1/chat/completions"
ROLE = permissions(service="rag-stack", lease="rag-stack-activator")
QUICK = {"idle_s": 0.4, "lease_s": 0.4}


@pytest.fixture
async def stage() -> AsyncIterator[tuple[ApiServer, str, Behind, str]]:
    behind = Behind()
    async with api_server(ROLE) as (server, api_url), listening(behind) as upstream:
        server.put("rayservices", ray_service())
        server.ready()
        yield server, api_url, behind, upstream


def is_suspended(server: ApiServer) -> bool:
    return bool(server.objects["rayservices", "rag-stack"]["spec"]["suspend"])


def annotations(server: ApiServer) -> dict[str, str]:
    found: dict[str, str] = server.objects["rayservices", "rag-stack"]["metadata"]["annotations"]
    return found


async def test_a_whole_life_with_the_calls_that_the_role_allows_and_no_others(
    stage: tuple[ApiServer, str, Behind, str],
) -> None:
    """Suspended when idle, woken by a request, suspended again."""
    server, api_url, _, upstream = stage
    async with (
        activator(api_url, upstream, **QUICK) as (made, url),
        caller(url) as client,
    ):
        for _ in range(2):
            await server.until(lambda: is_suspended(server))
            assert annotations(server)[SUSPENDED_BY] == "pod-a"
            await known(server, made, "suspending")
            server.suspended()
            asking = asyncio.create_task(client.post(CHAT, json=chat()))
            await server.until(lambda: not is_suspended(server))
            assert SUSPENDED_BY not in annotations(server)
            server.ready()
            assert (await asking).status_code == 200
    used = {(resource, verb) for verb, resource, _ in server.calls}
    allowed = {(each.resource, verb) for each in ROLE for verb in each.verbs}
    assert used == allowed
    assert not server.refused


async def test_a_request_under_way_keeps_it_awake(stage: tuple[ApiServer, str, Behind, str]) -> None:
    server, api_url, behind, upstream = stage
    behind.go.clear()
    async with (
        activator(api_url, upstream, **QUICK) as (made, url),
        caller(url) as client,
    ):
        await known(server, made, "serving")
        asking = asyncio.create_task(client.post(CHAT, json=chat()))
        await behind.came.wait()
        beats = server.count("update", "leases")
        await server.until(lambda: server.count("update", "leases") > beats + 20)  # more than a second
        assert not is_suspended(server)
        behind.go.set()
        await asking
        await server.until(lambda: is_suspended(server))


async def test_reads_do_not_keep_it_awake(stage: tuple[ApiServer, str, Behind, str]) -> None:
    server, api_url, _, upstream = stage
    async with (
        activator(api_url, upstream, **QUICK) as (made, url),
        caller(url) as client,
    ):
        await known(server, made, "serving")

        async def scrape() -> None:
            while not is_suspended(server):
                await client.get("/v1/models")
                await client.post("/unknown")

        await asyncio.wait_for(scrape(), 60)


async def test_a_request_at_the_very_moment_is_answered_once(
    stage: tuple[ApiServer, str, Behind, str],
) -> None:
    """It comes after the activator has said that it suspends, and before it does."""
    server, api_url, behind, upstream = stage
    async with (
        activator(api_url, upstream, **QUICK) as (made, url),
        caller(url) as client,
    ):
        await known(server, made, "serving")
        asking: list[asyncio.Task[httpx.Response]] = []

        def request(verb: str, resource: str) -> None:
            lists = verb == "list" and server.count("list") > 1
            if lists and not asking:  # the look before the patch
                asking.append(asyncio.create_task(client.post(CHAT, json=chat())))
                made.use._under_way += 0

        server.before = request
        await server.until(lambda: bool(asking))
        answer = await asyncio.wait_for(_with_operator(server, asking[0]), 60)
        assert answer.status_code == 200
        assert len(behind.requests) == 1


async def _with_operator(server: ApiServer, asking: "asyncio.Task[httpx.Response]") -> httpx.Response:
    """The answer; the operator does meanwhile what it is told."""
    while not asking.done():
        if is_suspended(server):
            server.suspended()
        elif "Suspended" in str(server.objects["rayservices", "rag-stack"]["status"]):
            server.ready()
        done = server.count("update", "leases")
        await server.until(lambda seen=done: server.count("update", "leases") > seen)  # type: ignore[misc]
    return await asking


async def test_an_edit_at_the_very_moment_prevents_it(stage: tuple[ApiServer, str, Behind, str]) -> None:
    server, api_url, _, upstream = stage
    edits = 0

    def edit(verb: str, resource: str) -> None:
        nonlocal edits
        if (verb, resource) == ("patch", "rayservices") and edits < 2:
            edits += 1
            server.change({"metadata": {"annotations": {"edited": str(edits)}}})

    server.before = edit
    async with activator(api_url, upstream, **QUICK):
        await server.until(lambda: is_suspended(server))
    assert edits == 2
    assert len([patch for patch in server.patches if "spec" in patch]) == 1  # the others were refused by their version


async def test_two_activators_suspend_only_when_both_are_idle_and_either_wakes(
    stage: tuple[ApiServer, str, Behind, str],
) -> None:
    server, api_url, behind, upstream = stage
    behind.go.clear()
    async with (
        activator(api_url, upstream, **QUICK) as (first, _),
        activator(api_url, upstream, identity="pod-b", **QUICK) as (second, second_url),
        caller(second_url) as client,
    ):
        await known(server, first, "serving")
        await known(server, second, "serving")
        asking = asyncio.create_task(client.post(CHAT, json=chat()))
        await behind.came.wait()
        beats = server.count("update", "leases")
        await server.until(lambda: server.count("update", "leases") > beats + 40)
        assert not is_suspended(server)
        behind.go.set()
        await asking
        await server.until(lambda: is_suspended(server))
        server.suspended()
        await known(server, second, "suspended")
        again = asyncio.create_task(client.post(CHAT, json=chat()))
        await server.until(lambda: not is_suspended(server))
        server.ready()
        assert (await again).status_code == 200
    assert len({patch["metadata"]["annotations"][SUSPENDED_BY] for patch in server.patches if _suspends(patch)}) == 1


def _suspends(patch: dict[str, dict[str, object]]) -> bool:
    return patch.get("spec", {}).get("suspend") is True


async def test_who_wakes_it_by_other_means_keeps_it_awake_until_it_is_asked(
    stage: tuple[ApiServer, str, Behind, str], caplog: pytest.LogCaptureFixture
) -> None:
    """A GitOps tool that puts `suspend: false` back would otherwise fight with the activator for ever."""
    server, api_url, _, upstream = stage
    async with (
        activator(api_url, upstream, **QUICK) as (made, url),
        caller(url) as client,
    ):
        await server.until(lambda: is_suspended(server))
        server.suspended()
        server.change({"spec": {"suspend": False}})
        server.ready()
        await server.until(
            lambda: SUSPENDED_BY not in server.objects["rayservices", "rag-stack"]["metadata"]["annotations"]
        )
        beats = server.count("update", "leases")
        await server.until(lambda: server.count("update", "leases") > beats + 20)
        assert not is_suspended(server)
        assert "GitOps" in caplog.text
        assert b"rag_stack_activator_overruled_total 1.0" in made.recorder.text()
        assert (await client.post(CHAT, json=chat())).status_code == 200
        await server.until(lambda: is_suspended(server))


async def test_it_never_suspends_when_it_is_told_so(stage: tuple[ApiServer, str, Behind, str]) -> None:
    server, api_url, _, upstream = stage
    async with activator(api_url, upstream, idle_s=0.0):
        await server.until(lambda: server.count("update", "leases") > 20)
    assert not server.patches


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"lease_s": 5.0, "beat_s": 4.0}, "outlast"),
        ({"idle_s": 1.0}, "at least lease_s"),
        ({"hold_body_bytes": 2**40}, "hold_bytes"),
        ({"heartbeat_s": 11.0}, "at most 10"),
        ({"identity": ""}, "is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, object], told: str) -> None:
    given = {"namespace": "a", "service": "b", "identity": "c", "upstream": "http://d", **fields}
    with pytest.raises(ConfigError, match=told):
        Settings(**given)  # type: ignore[arg-type]
