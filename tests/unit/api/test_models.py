"""GET /v1/models/{id} tells how the last start went, whether or not somebody has told it."""

from typing import Any

import httpx
import openai
from starlette.applications import Starlette

from rag_stack.api.models import Models, Starts


def card(started_s: float) -> dict[str, Any]:
    stages = [{"name": "load weights", "process": "worker", "seconds": 3.0, "critical_seconds": 3.0}]
    times = {"started_at": started_s, "ready_at": started_s + 4, "seconds": 4.0, "unnamed_seconds": 1.0}
    return {**times, "stages": stages}


async def seen(starts: Starts, name: str = "generator") -> openai.types.Model:
    app = Starlette(routes=Models("generator", lambda: ("town",), 1_700_000_000, load=starts.load).routes())
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
    async with openai.AsyncOpenAI(base_url="http://models/v1", api_key="-", http_client=http) as client:
        assert {model.id async for model in client.models.list()} == {"generator", "generator@town"}
        return await client.models.retrieve(name)


async def test_a_model_that_never_started_has_no_load() -> None:
    model = await seen(Starts())
    assert model.id == "generator"
    assert not hasattr(model, "load")


async def test_the_official_client_sees_the_last_start() -> None:
    starts = Starts()
    starts.keep("replica", card(100))
    for name in ("generator", "generator@town"):
        assert (await seen(starts, name)).load == card(100)  # type: ignore[attr-defined]


async def test_the_newest_of_several_replicas_stays() -> None:
    starts = Starts()
    for started_s in (100, 300, 200):
        starts.keep("replica", card(started_s))
    starts.keep("command", card(50))
    load: dict[str, Any] = (await seen(starts)).load  # type: ignore[attr-defined]
    assert load == {**card(300), "command": card(50)}


async def test_a_command_is_known_before_any_replica() -> None:
    starts = Starts()
    starts.keep("command", card(50))
    assert (await seen(starts)).load == {"command": card(50)}  # type: ignore[attr-defined]
