"""`python -m rag_stack.activator`: a process of its own, from its flags to its end."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests.api_server import ApiServer, api_server, ray_service
from tests.awakened import Behind, chat
from tests.loop_server import listening
from tests.servers import closed_port

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def program(*flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rag_stack.activator", *flags, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def flags(api_url: str, upstream: str, port: int, ops_port: int) -> list[str]:
    named = {
        "namespace": "rag-stack",
        "identity": "pod-a",
        "upstream": upstream,
        "api": api_url,
        "port": port,
        "ops-port": ops_port,
        "host": "127.0.0.1",
        "idle-s": 0,
        "drain-s": 30,
        "heartbeat-s": 0.2,
    }
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


async def up(server: ApiServer) -> None:
    server.put("rayservices", ray_service(suspend=True, suspended_by="pod-b"))
    server.suspended()


async def test_it_ends_what_it_holds_before_it_ends() -> None:
    behind, port, ops_port = Behind(), closed_port(), closed_port()
    async with api_server() as (server, api_url), listening(behind) as upstream:
        await up(server)
        async with program(*flags(api_url, upstream, port, ops_port)) as process:
            await server.until(lambda: server.watching == 1 and "leases" in str(server.calls), limit_s=60)
            async with httpx.AsyncClient(timeout=60) as client:
                ready = await client.get(f"http://127.0.0.1:{ops_port}/readyz")
                assert (ready.status_code, ready.json()["phase"]) == (200, "suspended")
                metrics = await client.get(f"http://127.0.0.1:{ops_port}/metrics")
                assert 'rag_stack_activator_phase{phase="suspended"} 1.0' in metrics.text
                asking = asyncio.create_task(client.post(f"http://127.0.0.1:{port}{CHAT}", json=chat()))
                await server.until(lambda: bool(server.patches))
                process.send_signal(signal.SIGTERM)
                server.ready()
                assert (await asking).text.endswith("data: [DONE]\n\n")
            assert await asyncio.wait_for(process.wait(), 60) == 0
        lease = server.objects["leases", "rag-stack-activator"]
        assert lease["spec"]["holderIdentity"] == ""


async def test_one_that_is_killed_loses_no_wake() -> None:
    """Its client's connection breaks; who asks again is held by the next one until the same wake is over."""
    behind, port = Behind(), closed_port()
    async with api_server() as (server, api_url), listening(behind) as upstream:
        await up(server)
        async with httpx.AsyncClient(timeout=60, base_url=f"http://127.0.0.1:{port}") as client:
            async with program(*flags(api_url, upstream, port, closed_port())) as process:
                await server.until(lambda: server.watching == 1 and "leases" in str(server.calls), limit_s=60)
                asking = asyncio.create_task(client.post(CHAT, json=chat()))
                await server.until(lambda: bool(server.patches))
                process.kill()
                broken = (await asyncio.gather(asking, return_exceptions=True))[0]
                assert isinstance(broken, httpx.TransportError)
            async with program(*flags(api_url, upstream, port, closed_port())):
                watches = server.count("watch")
                await server.until(lambda: server.count("watch") > watches, limit_s=60)
                asking = asyncio.create_task(client.post(CHAT, json=chat()))
                server.ready()
                assert (await asking).status_code == 200
        assert len([patch for patch in server.patches if "spec" in patch]) == 1


async def test_outside_of_a_cluster_it_says_what_it_needs() -> None:
    async with program("--namespace", "a") as process:
        _, told = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert b"KUBERNETES_SERVICE_HOST" in told
    assert b"Traceback" not in told
