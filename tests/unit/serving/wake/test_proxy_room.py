"""What the waiting room takes from a release, and what it does while nobody tells it anything."""

import asyncio
import pickle
from typing import Any

import pytest
from ray.serve._private.proxy_request_response import ASGIProxyRequest

from rag_stack.api.waiting_room import HELD_SINCE
from rag_stack.config import Release
from rag_stack.errors import UnavailableError
from rag_stack.serving.environment import prepare
from rag_stack.serving.wake.proxy_room import Lookout, middlewares, rules_of

RELEASE = {"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}}


class Teller:
    """A handle of the application behind /v1/models that answers when it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.asked = 0
        self.outlook = self

    async def remote(self) -> dict[str, Any]:
        self.asked += 1
        await self.may.wait()
        release = Release.model_validate(RELEASE).model_dump(mode="json")
        return {"release": release, "state": "asleep", "estimate_s": 7.0}


def test_one_of_several_keys_may_take_half_of_the_places() -> None:
    keys = ["0" * 64, "1" * 64]
    alone, shared = (
        rules_of(Release.model_validate({**RELEASE, "server": {"api_key_sha256": some}})) for some in (keys[:1], keys)
    )
    assert (alone.limits.requests_a_caller, shared.limits.requests_a_caller) == (1000, 500)
    assert (alone.models, alone.heartbeat_s) == (("m",), 10.0)


def test_the_environment_names_the_room() -> None:
    environ: dict[str, str] = {}
    prepare(environ)
    assert environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == f"{middlewares.__module__}.{middlewares.__name__}"


def test_a_replica_hears_from_serves_proxy_since_when_a_request_was_held() -> None:
    scope = {"type": "http", "path": "/v1/completions", "headers": [], HELD_SINCE: 12.5}
    passed = pickle.loads(ASGIProxyRequest(scope, None, None).serialized_replica_arg("proxy"))
    assert passed.asgi_scope[HELD_SINCE] == 12.5


async def test_only_the_first_request_waits_for_what_it_has_to_know() -> None:
    teller = Teller()
    lookout = Lookout(handle=teller, first_limit_s=0.05, fresh_s=0.0)
    with pytest.raises(UnavailableError):
        await lookout.look()
    assert teller.asked == 1
    teller.may.set()
    assert (await lookout.look()).estimate_s == 7.0
    teller.may.clear()
    assert (await lookout.look()).state == "asleep"  # although the next question is not answered
    await asyncio.sleep(0)
    assert (await lookout.look()).state == "asleep"
    assert teller.asked == 2
    teller.may.set()
