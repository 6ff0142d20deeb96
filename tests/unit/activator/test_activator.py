"""A whole activator before a stand-in API server and a real upstream: woken by the first request, held, passed on."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.awakened import activator, caller, chat, known
from tests.staged import CHAT, Stage, asleep, awake, value, woken


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
