"""A whole activator before a stand-in API server and a real upstream: woken by the first request, held, passed on."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from rag_stack.activator.activator import Activator
from rag_stack.activator.permissions import Permission, permissions
from tests.api_server import ApiServer, api_server, ray_service
from tests.awakened import SETTINGS, Behind, activator, caller, chat, known
from tests.loop_server import listening
from tests.servers import closed_port

ROLE = permissions(service="rag-stack", lease="rag-stack-activator")
CHAT = "/v1/chat/completions"


@dataclass
class Stage:
    """All that takes part."""

    server: ApiServer
    api_url: str
    behind: Behind
    upstream: str


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
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


async def test_fifty_clients_are_one_wake_and_all_are_answered(stage: Stage) -> None:
    asleep(stage)
    async with activator(stage.api_url, stage.upstream) as (made, url):
        await known(stage.server, made, "suspended")
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=15, max_retries=0) as client:
            asking = [
                asyncio.create_task(client.chat.completions.create(**chat(stream=False)))  # type: ignore[call-overload]
                for _ in range(50)
            ]
            await stage.server.until(lambda: woken(stage))
            await stage.server.until(lambda: made.use.under_way == 50)
            assert not stage.behind.requests
            stage.server.ready()
            answers = await asyncio.gather(*asking)
        assert [answer.choices[0].message.content for answer in answers] == ["hello"] * 50
        wakes = [patch for patch in stage.server.patches if "spec" in patch]
        assert wakes == [
            {"metadata": {"annotations": {"rag-stack.dev/suspended-by": None}}, "spec": {"suspend": False}}
        ]
        await stage.server.until(lambda: len(stage.server.patches) == 2)
        kept = stage.server.patches[1]["metadata"]["annotations"]["rag-stack.dev/wake-seconds"]
        assert float(kept) > 0
        assert await value(made, 'rag_stack_activator_wakes_total{outcome="served"}') == 1
        assert await value(made, "rag_stack_activator_wake_seconds_count") == 1
        assert await value(made, 'rag_stack_activator_requests_total{outcome="held"}') == 50
        assert await value(made, "rag_stack_held_requests") == 0
        assert await value(made, 'rag_stack_activator_phase{phase="serving"}') == 1
    assert not stage.server.refused


@pytest.mark.slow
async def test_the_official_client_waits_longer_than_its_read_timeout(stage: Stage) -> None:
    """Seventeen seconds of silence would end a client that waits 15 s for a byte."""
    asleep(stage)
    async with activator(stage.api_url, stage.upstream, heartbeat_s=10.0) as (made, url):
        await known(stage.server, made, "suspended")
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", timeout=15, max_retries=0) as client:
            whole = asyncio.create_task(client.chat.completions.create(**chat(stream=False)))  # type: ignore[call-overload]
            stream = asyncio.create_task(client.chat.completions.create(**chat()))  # type: ignore[call-overload]
            await asyncio.sleep(17)  # what is measured is time
            assert not whole.done()
            stage.server.ready()
            assert (await whole).choices[0].message.content == "hello"
            assert [chunk.choices[0].delta.content async for chunk in await stream] == ["hel", "lo"]


async def test_a_held_client_hears_something_before_its_read_timeout_is_over(stage: Stage) -> None:
    """The same with a timeout of three seconds, for every run."""
    asleep(stage)
    async with activator(stage.api_url, stage.upstream, heartbeat_s=0.2) as (made, url):
        await known(stage.server, made, "suspended")
        async with httpx.AsyncClient(base_url=url, timeout=3.0) as client:
            async with client.stream("POST", CHAT, json=chat()) as stream:
                heard = b""
                lines = stream.aiter_raw()
                while heard.count(b": the engine starts") < 20:
                    heard += await anext(lines)
                stage.server.ready()
                heard += b"".join([part async for part in lines])
            assert stream.status_code == 200
            assert heard.endswith(b"data: [DONE]\n\n")


async def test_a_stream_is_passed_on_as_it_comes(stage: Stage) -> None:
    awake(stage)
    stage.behind.next.clear()
    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "serving")
        headers = {"x-own": "2", "connection": "x-hop", "x-hop": "1", "te": "trailers", "accept": "text/event-stream"}
        async with client.stream("POST", f"{CHAT}?a=%2F", json=chat(), headers=headers) as answer:
            parts = answer.aiter_raw()
            first = await anext(parts)
            assert b"hel" in first
            assert b"DONE" not in first
            stage.behind.next.set()
            rest = b"".join([part async for part in parts])
    assert rest.endswith(b"data: [DONE]\n\n")
    assert answer.headers["x-own"] == "1"
    assert "keep-alive" not in answer.headers
    method, path, seen, body = stage.behind.requests[0]
    assert (method, path, json.loads(body)) == ("POST", f"{CHAT}?a=%2F", chat())
    assert (seen["x-own"], seen["accept"], seen["x-request-id"]) == ("2", "text/event-stream", seen["x-request-id"])
    assert not {"x-hop", "te"} & set(seen)
    assert seen["x-forwarded-for"] == "127.0.0.1"


async def test_a_body_is_passed_on_while_it_still_comes(stage: Stage) -> None:
    awake(stage)
    more = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await more.wait()
        yield b"second"

    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "serving")
        sending = asyncio.create_task(client.post("/v1/files", content=body()))
        async with asyncio.timeout(60):
            assert await stage.behind.parts.get() == b"first"
        more.set()
        assert (await sending).json()["bytes"] == len(b"firstsecond")


@pytest.mark.parametrize("held", [False, True])
async def test_a_client_that_goes_ends_its_request_behind(stage: Stage, *, held: bool) -> None:
    asleep(stage) if held else awake(stage)
    stage.behind.go.clear()
    async with activator(stage.api_url, stage.upstream) as (made, url):
        await known(stage.server, made, "suspended" if held else "serving")
        async with caller(url) as client:
            asking = asyncio.create_task(client.post(CHAT, json=chat()))
            if held:
                await stage.server.until(lambda: woken(stage))
                stage.server.ready()
            async with asyncio.timeout(60):
                await stage.behind.came.wait()
                asking.cancel()
                await stage.behind.left.wait()
                await stage.server.until(lambda: made.use.under_way == 0)
    assert stage.behind.left.is_set()


async def test_a_stream_that_breaks_behind_ends_with_an_error_frame(stage: Stage) -> None:
    awake(stage)
    stage.behind.breaks = True
    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "serving")
        answer = await client.post(CHAT, json=chat())
    *_, error, done, _ = answer.text.split("\n\n")
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert done == "data: [DONE]"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/v1/models", 503),
        ("GET", "/metrics", 503),
        ("GET", "/v1/vector_stores/vs_1", 503),
        ("OPTIONS", CHAT, 503),
        ("POST", "/wp-login.php", 404),
        ("POST", "/v1/models", 404),
        ("DELETE", CHAT, 404),
    ],
)
async def test_what_does_not_wake(stage: Stage, method: str, path: str, status: int) -> None:
    asleep(stage, suspended_by="pod-b", wake_seconds="41.5,nonsense,43.5")
    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "suspended")
        answer = await client.request(method, path)
        assert answer.status_code == status
        if status == 503:
            assert answer.headers["retry-after"] == "43"  # the median of 41.5 and 43.5
            assert answer.json()["error"]["type"] == "server_error"
        assert made.use.arrived == 0
    assert not stage.server.patches


async def test_other_changes_wake_too_and_a_body_that_is_no_json_is_kept_as_it_is(stage: Stage) -> None:
    asleep(stage)
    async with (
        activator(stage.api_url, stage.upstream) as (made, url),
        caller(url) as client,
    ):
        await known(stage.server, made, "suspended")
        sending = asyncio.create_task(client.post("/v1/files", files={"file": ("a.bin", b"\x00\xff" * 1000)}))
        await stage.server.until(lambda: woken(stage))
        stage.server.ready()
        assert (await sending).json()["id"] == "file-1"
    assert b"\x00\xff" * 1000 in stage.behind.requests[0][3]


async def test_a_key_that_is_not_known_wakes_nobody(stage: Stage, tmp_path: Path) -> None:
    asleep(stage)
    (tmp_path / "api").write_text("right\nother\n")
    async with activator(stage.api_url, stage.upstream, keys=tmp_path) as (made, url):
        await known(stage.server, made, "suspended")
        async with caller(url) as client:
            for path, key, status in [
                (CHAT, "wrong", 401),
                (CHAT, "", 401),
                ("/admin/indexes/a/promote", "right", 403),
            ]:
                answer = await client.post(path, json=chat(), headers={"authorization": f"Bearer {key}"} if key else {})
                assert answer.status_code == status
            assert not stage.server.patches
            (tmp_path / "api").write_text("newer\n")
            await made.keys.read()
            asking = asyncio.create_task(client.post(CHAT, json=chat(), headers={"authorization": "Bearer newer"}))
            await stage.server.until(lambda: woken(stage))
            stage.server.ready()
            assert (await asking).status_code == 200


async def test_more_than_may_wait_is_told_when_to_come_again(stage: Stage) -> None:
    asleep(stage)
    async with activator(stage.api_url, stage.upstream, hold_requests=1, hold_bytes=4096, hold_body_bytes=2048) as (
        made,
        url,
    ):
        await known(stage.server, made, "suspended")
        async with caller(url) as client:
            large = await client.post("/v1/files", content=b"x" * 3000)
            assert (large.status_code, large.headers["retry-after"]) == (503, "60")
            await stage.server.until(lambda: woken(stage))  # who comes again shall find it awake
            first = asyncio.create_task(client.post(CHAT, json=chat()))
            await stage.server.until(lambda: made.use.under_way == 1)
            second = await client.post(CHAT, json=chat())
            assert second.status_code == 429
            assert int(second.headers["retry-after"]) > 0
            stage.server.ready()
            assert (await first).status_code == 200


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


async def seen(made: Activator, stage: Stage) -> None:
    """Wait until the activator knows of the newest version."""
    newest = stage.server.objects["rayservices", "rag-stack"]["metadata"]["resourceVersion"]
    async with asyncio.timeout(60):
        while made.watch.view is None or made.watch.view.version != newest:
            await made.watch.change_within(1)


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
