"""Calls of the Kubernetes API: what is sent, and what becomes of what comes back."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from rag_stack.activator.cluster import Cluster, in_cluster
from rag_stack.activator.kube_api import KubeApi, leases, ray_services
from rag_stack.activator.lease import new_lease
from rag_stack.errors import ConfigError, KubernetesError
from tests.api_server import NAMESPACE, SERVICE, ApiServer, api_server, ray_service
from tests.loop_server import listening
from tests.servers import closed_port

KIND = ray_services(NAMESPACE)


@pytest.fixture
async def server() -> AsyncIterator[tuple[ApiServer, KubeApi]]:
    async with api_server() as (server, url), httpx.AsyncClient(base_url=url, timeout=60) as client:
        server.put("rayservices", ray_service())
        yield server, KubeApi(client)


async def test_a_patch_holds_only_for_the_version_that_it_names(server: tuple[ApiServer, KubeApi]) -> None:
    stand_in, api = server
    found, version = await api.find(KIND, SERVICE)
    assert found is not None
    assert version == found["metadata"]["resourceVersion"]
    stand_in.change({"metadata": {"annotations": {"a": "b"}}})
    with pytest.raises(KubernetesError, match="modified") as refused:
        await api.patch(KIND, SERVICE, {"metadata": {"resourceVersion": version}, "spec": {"suspend": True}})
    assert refused.value.answer == 409
    changed = await api.patch(KIND, SERVICE, {"spec": {"suspend": True}})
    assert changed["metadata"]["generation"] == 2


async def test_none_is_found_where_there_is_none(server: tuple[ApiServer, KubeApi]) -> None:
    stand_in, api = server
    stand_in.delete()
    assert await api.find(KIND, SERVICE) == (None, str(stand_in.version))
    with pytest.raises(KubernetesError) as missing:
        await api.get(KIND, SERVICE)
    assert missing.value.answer == 404


async def test_a_lease_is_replaced_only_as_it_was_read(server: tuple[ApiServer, KubeApi]) -> None:
    _, api = server
    kind = leases(NAMESPACE)
    first = await api.create(kind, new_lease("a"))
    with pytest.raises(KubernetesError) as twice:
        await api.create(kind, new_lease("a"))
    await api.replace(kind, "a", {**first, "spec": {"holderIdentity": "me"}})
    with pytest.raises(KubernetesError) as late:
        await api.replace(kind, "a", {**first, "spec": {"holderIdentity": "you"}})
    assert (twice.value.answer, late.value.answer) == (409, 409)
    assert (await api.get(kind, "a"))["spec"] == {"holderIdentity": "me"}


@pytest.mark.parametrize("as_event", [True, False])
async def test_a_version_that_is_forgotten_is_a_410(server: tuple[ApiServer, KubeApi], *, as_event: bool) -> None:
    stand_in, api = server
    stand_in.gone_as_event = as_event
    stand_in.bookmark()
    stand_in.compact()
    with pytest.raises(KubernetesError, match="too old") as gone:
        await anext(api.watch(KIND, SERVICE, "100"))
    assert gone.value.answer == 410


async def test_who_cannot_be_reached_or_talks_nonsense_is_told(server: tuple[ApiServer, KubeApi]) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{closed_port()}") as client:
        with pytest.raises(KubernetesError, match="cannot be reached") as nobody:
            await KubeApi(client).find(KIND, SERVICE)
        with pytest.raises(KubernetesError, match="cannot be reached"):
            await anext(KubeApi(client).watch(KIND, SERVICE, "1"))
    assert nobody.value.answer == 0

    async def nonsense(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>\n"})

    async with listening(nonsense) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        with pytest.raises(KubernetesError, match="expected JSON"):
            await KubeApi(client).find(KIND, SERVICE)
        with pytest.raises(KubernetesError, match="expected an event"):
            await anext(KubeApi(client).watch(KIND, SERVICE, "1"))


async def test_a_token_is_read_anew_once_it_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    async with api_server() as (stand_in, url):
        stand_in.token = "first"
        async with Cluster(url, token, None).client() as client:
            api = KubeApi(client)
            await api.find(KIND, SERVICE)
            stand_in.token = "second"
            with pytest.raises(KubernetesError) as old:
                await api.find(KIND, SERVICE)
            assert old.value.answer == 401
            token.write_text("second\n")
            await api.find(KIND, SERVICE)
            token.unlink()  # what was read last may still do
            await api.find(KIND, SERVICE)


def test_a_pod_finds_its_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        in_cluster({}, tmp_path)
    (tmp_path / "token").write_text("t")
    for host, url in [("10.0.0.1", "https://10.0.0.1:6443"), ("fd00::1", "https://[fd00::1]:6443")]:
        environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": "6443"}
        assert in_cluster(environ, tmp_path).url == url
    with pytest.raises(ConfigError, match="certificate authority"):
        in_cluster(environ, tmp_path).client()


async def test_one_object_is_selected_as_a_role_with_a_name_wants_it(server: tuple[ApiServer, KubeApi]) -> None:
    stand_in, api = server
    await api.find(KIND, SERVICE)
    watch = api.watch(KIND, SERVICE, str(stand_in.version))
    stand_in.put("rayservices", ray_service(suspend=True))
    event, told = await anext(watch)
    assert (event, told["spec"]) == ("MODIFIED", {"suspend": True})
    assert stand_in.calls == [("list", "rayservices", SERVICE), ("watch", "rayservices", SERVICE)]
    assert json.dumps(told)
