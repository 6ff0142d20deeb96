"""An activator whose service, API server or rights are not as they should be."""

import asyncio
import json
from collections.abc import Callable

import httpx
import pytest

from rag_stack.activator.permissions import Permission
from tests.api_server import ray_service
from tests.awakened import SETTINGS, activator, caller, chat, known
from tests.loop_server import listening
from tests.servers import closed_port
from tests.staged import CHAT, ROLE, Stage, asleep, awake, seen, value, woken


async def test_a_wake_in_the_middle_of_a_suspension_waits_for_its_end(stage: Stage) -> None:
    """KubeRay carries a suspension through; Ready of the cluster that goes is not that of the one that comes."""
    stage.server.put("rayservices", ray_service())
    stage.server.ready()
    stage.server.change({"metadata": {"annotations": {"rag-stack.dev/suspended-by": "b"}}, "spec": {"suspend": True}})
    stage.server.conditions(Suspending=True)
    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "suspending")
        asking = asyncio.create_task(client.post(CHAT, json=chat()))
        await known(stage.server, made, "waking")
        stage.server.conditions(Suspending=True, Ready=True)  # still the old cluster
        stage.server.suspended()
        stage.server.conditions(Suspended=False, Ready=(False, "Initializing"))
        await seen(made, stage)
        assert not stage.behind.requests
        stage.server.ready()
        assert (await asking).status_code == 200


async def test_a_ready_of_an_older_generation_does_not_count(stage: Stage) -> None:
    asleep(stage)
    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "suspended")
        asking = asyncio.create_task(client.post(CHAT, json=chat()))
        await known(stage.server, made, "waking")
        stage.server.ready(generation=1)
        await seen(made, stage)
        assert made.watch.phase == "waking"
        assert not stage.behind.requests
        stage.server.ready()
        assert (await asking).status_code == 200
        # One that serves is edited: it goes on serving, though the operator has not looked yet.
        stage.server.change({"spec": {"serveConfigV2": "another"}})
        await seen(made, stage)
        assert made.watch.phase == "serving"


async def failed(url: str, happen: Callable[[], None]) -> str:
    """What a stream hears that was held when something happened, and a request after it by its status."""
    async with caller(url) as client:
        async with client.stream("POST", CHAT, json=chat()) as held:
            parts = held.aiter_raw()
            heard = await anext(parts)
            assert heard.startswith(b": ")
            happen()
            heard += b"".join([part async for part in parts])
        late = await client.post(CHAT, json=chat())
    *_, error, done, _ = heard.decode().split("\n\n")
    told = str(json.loads(error.removeprefix("data: "))["error"]["message"])
    assert done == "data: [DONE]"
    assert (late.status_code, late.json()["error"]["message"]) == (503, told)
    assert int(late.headers["retry-after"]) > 0
    return told


async def test_a_service_that_does_not_come_is_told_to_those_who_wait(stage: Stage) -> None:
    asleep(stage)
    async with activator(stage.api_url, stage.upstream, wake_limit_s=0.3) as (made, url):
        await known(stage.server, made, "suspended")
        assert "not Ready within 0.3 s" in await failed(url, lambda: None)
        assert await value(made, 'rag_stack_activator_wakes_total{outcome="failed"}') == 1
        # It comes after all.
        stage.server.ready()
        await known(stage.server, made, "serving")
        async with caller(url) as client:
            assert (await client.post(CHAT, json=chat())).status_code == 200


@pytest.mark.parametrize("what", ["deleted", "suspended", "timeout"])
async def test_what_ends_a_wake_is_told_to_those_who_wait(stage: Stage, what: str) -> None:
    asleep(stage)
    async with activator(stage.api_url, stage.upstream) as (made, url):
        await known(stage.server, made, "suspended")
        happens = {
            "deleted": stage.server.delete,
            "suspended": lambda: stage.server.change({"spec": {"suspend": True}}),
            "timeout": lambda: stage.server.conditions(Ready=(False, "InitializingTimeout")),
        }

        def happen() -> None:
            assert made.watch.phase == "waking"
            happens[what]()

        told = await failed(url, happen)
    expected = {"deleted": "no RayService", "suspended": "by somebody else", "timeout": "InitializingTimeout"}
    assert expected[what] in told


async def test_who_suspended_it_by_hand_is_not_overruled(stage: Stage) -> None:
    stage.server.put("rayservices", ray_service(suspend=True))
    stage.server.suspended()
    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "suspended")
        answer = await client.post(CHAT, json=chat())
        assert answer.status_code == 503
        assert "suspended by somebody else" in answer.json()["error"]["message"]
        assert not stage.server.patches
        stage.server.change({"spec": {"suspend": False}})
        stage.server.ready()
        await known(stage.server, made, "serving")
        assert (await client.post(CHAT, json=chat())).status_code == 200


async def test_a_role_that_does_not_allow_the_patch_is_told(stage: Stage) -> None:
    asleep(stage)
    others = [each for each in ROLE if each.resource != "rayservices"]
    stage.server.role = (*others, Permission("ray.io", "rayservices", ("list", "watch"), ("rag-stack",)))
    async with activator(stage.api_url, stage.upstream) as (made, url):
        await known(stage.server, made, "suspended")
        async with caller(url) as client:
            answer = await client.post(CHAT, json=chat())
        assert "403" in answer.text
        assert "permissions.py" in answer.text
    assert ("patch", "rayservices", "rag-stack") in stage.server.refused


async def test_a_role_that_allows_nothing_is_told_and_the_pod_is_not_ready(stage: Stage) -> None:
    asleep(stage)
    stage.server.role = ()
    async with activator(stage.api_url, f"http://127.0.0.1:{closed_port()}") as (made, url):
        await stage.server.until(lambda: len(stage.server.refused) > 1)
        async with listening(made.ops) as ops, httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(f"{url}{CHAT}", json=chat())
            assert answer.status_code == 503
            assert "403" in answer.json()["error"]["message"]
            ready = await client.get(f"{ops}/readyz")
            assert (ready.status_code, "403" in ready.json()["trouble"]) == (503, True)
            assert (await client.get(f"{ops}/healthz")).status_code == 200
            assert (await client.get(f"{ops}/other")).status_code == 404


async def test_while_the_api_server_fails_who_waits_is_kept_and_woken_later(stage: Stage) -> None:
    asleep(stage)
    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "suspended")
        stage.server.status = 503
        asking = asyncio.create_task(client.post(CHAT, json=chat()))
        await stage.server.until(lambda: stage.server.failed > 2 and made.use.under_way == 1)
        stage.server.status = 0
        await stage.server.until(lambda: woken(stage))
        stage.server.ready()
        assert (await asking).status_code == 200


async def test_without_an_api_server_a_service_that_serves_goes_on(stage: Stage) -> None:
    """Also for an activator that starts just then, and has never known anything."""
    stage.server.status = 500
    nobody = f"http://127.0.0.1:{closed_port()}"
    for api_url in (stage.api_url, nobody):
        async with (
            activator(api_url, stage.upstream) as (made, url),
            caller(url) as client,
        ):
            assert (await client.post(CHAT, json=chat())).status_code == 200
            assert (await client.get("/v1/models")).status_code == 200
            assert made.watch.phase == "unknown"


async def test_one_that_is_ready_before_its_service_answers_is_waited_for(stage: Stage) -> None:
    awake(stage)
    port = closed_port()
    async with (
        activator(stage.api_url, f"http://127.0.0.1:{port}") as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "serving")
        async with client.stream("POST", CHAT, json=chat()) as answer:
            parts = answer.aiter_raw()
            assert (await anext(parts)).startswith(b": ")
            async with listening(stage.behind, port=port):
                rest = b"".join([part async for part in parts])
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_one_without_a_body_that_finds_nobody_is_held_too(stage: Stage) -> None:
    awake(stage)
    port = closed_port()
    async with (
        activator(stage.api_url, f"http://127.0.0.1:{port}") as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "serving")
        asking = asyncio.create_task(client.delete("/v1/files/file-1"))
        await stage.server.until(lambda: made.use.under_way == 1)
        async with listening(stage.behind, port=port):
            assert (await asking).status_code == 200
    assert [request[:2] for request in stage.behind.requests] == [("DELETE", "/v1/files/file-1")]


async def test_a_websocket_is_refused(stage: Stage) -> None:
    async with activator(stage.api_url, stage.upstream) as (made, _):
        sent: list[object] = []

        async def send(message: object) -> None:
            sent.append(message)

        await made.door({"type": "websocket", "path": "/"}, None, send)  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_settings_of_these_tests_are_valid() -> None:
    assert SETTINGS.rules(("a", "b")).limits.requests_a_caller == 500
