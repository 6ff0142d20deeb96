"""Activators that share a Lease: one may suspend, and nobody's request is cut off by it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from rag_stack.activator.kube_api import KubeApi, leases
from rag_stack.activator.lease import ACTIVATORS, SUSPENDING, LeaseReader
from rag_stack.activator.presence import Presence
from rag_stack.errors import KubernetesError
from tests.api_server import NAMESPACE, ApiServer, api_server

LEASE = "activators"
LEASE_S, IDLE_S = 15.0, 600.0


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Group:
    """Several activators, one clock and one API server."""

    server: ApiServer
    api: KubeApi
    clock: Clock = field(default_factory=Clock)
    looked: list[str] = field(default_factory=list)

    def member(self, name: str) -> Presence:
        async def look() -> None:
            self.looked.append(name)

        reader = LeaseReader(identity=name, lease_s=LEASE_S, idle_s=IDLE_S, clock=self.clock)
        kind = leases(NAMESPACE)
        return Presence(self.api, kind, LEASE, identity=name, reader=reader, look=look, clock=self.clock)

    @property
    def lease(self) -> dict[str, dict[str, object]]:
        return self.server.objects["leases", LEASE]


@asynccontextmanager
async def group() -> AsyncIterator[Group]:
    async with api_server() as (server, url), httpx.AsyncClient(base_url=url, timeout=5) as client:
        yield Group(server, KubeApi(client))


def idle() -> bool:
    return True


def busy() -> bool:
    return False


async def test_the_first_takes_the_lease_and_keeps_it() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        for _ in range(3):
            await first.beat(busy)
            await second.beat(busy)
            made.clock.now_s += LEASE_S * 0.6
        assert (first.leads, second.leads) == (True, False)
        spec = made.lease["spec"]
        assert (spec["holderIdentity"], spec["leaseTransitions"], spec["leaseDurationSeconds"]) == ("a", 1, 15)


async def test_one_that_is_killed_is_followed_by_another_once_its_lease_is_over() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(idle)
        await second.beat(idle)
        made.clock.now_s += LEASE_S - 1
        await second.beat(idle)
        assert not second.leads
        made.clock.now_s += 2
        await second.beat(idle)
        assert second.leads
        await first.beat(idle)  # it was only slow
        assert not first.leads
        assert made.lease["spec"]["leaseTransitions"] == 2


async def test_one_that_leaves_is_followed_at_once() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(idle)
        await second.beat(idle)
        await first.leave()
        await second.beat(idle)
        assert (first.leads, second.leads) == (False, True)
        assert '"a"' not in str(made.lease["metadata"]["annotations"])  # type: ignore[index]


async def test_one_that_leaves_after_requests_is_remembered() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(idle)
        await second.beat(busy)
        await second.leave()
        async with first.suspension() as may:
            assert not may
        made.clock.now_s += IDLE_S
        async with first.suspension() as may:
            assert may


async def test_one_that_has_just_started_tells_of_itself_before_its_first_request() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(idle)
        await second.stir()
        assert made.looked == ["b"]
        async with first.suspension() as may:
            assert not may


async def test_only_the_holder_suspends_and_only_if_all_are_quiet() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(idle)
        await second.beat(busy)
        async with first.suspension() as may:
            assert not may
        async with second.suspension() as may:
            assert not may
        await second.beat(idle)
        async with second.suspension() as may:
            assert not may
        async with first.suspension() as may:
            assert may
            assert str(made.lease["metadata"]["annotations"][SUSPENDING]).startswith("a ")  # type: ignore[index]
        assert made.lease["metadata"]["annotations"][SUSPENDING] == ""  # type: ignore[index]


async def test_a_request_that_is_told_first_prevents_a_suspension() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(idle)
        await second.beat(idle)
        await second.stir()
        assert not second.quiet
        assert made.looked == ["b"]
        async with first.suspension() as may:
            assert not may
        await second.stir()  # costs nothing from then on
        assert made.looked == ["b"]


async def test_a_request_in_the_middle_of_a_suspension_waits_for_its_end_wherever_it_comes() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(idle)
        await second.beat(idle)
        async with first.suspension() as may:
            assert may
            waiting = [asyncio.create_task(each.stir()) for each in (first, second, second)]
            looks = made.server.count("get", "leases")
            await made.server.until(lambda: made.server.count("get", "leases") > looks + 3)
            assert not any(task.done() for task in waiting)
            assert made.looked == []
        await asyncio.gather(*waiting)
        assert sorted(made.looked) == ["a", "b"]
        assert (first.quiet, second.quiet) == (False, False)


async def test_a_suspension_whose_activator_was_killed_is_not_waited_for_for_ever() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(idle)
        await second.beat(idle)
        suspension = first.suspension()
        assert await suspension.__aenter__()
        waiting = asyncio.create_task(second.stir())
        looks = made.server.count("get", "leases")
        await made.server.until(lambda: made.server.count("get", "leases") > looks + 1)
        made.clock.now_s += 60
        await asyncio.wait_for(waiting, 5)
        await suspension.__aexit__(None, None, None)


async def test_one_that_was_killed_with_requests_keeps_it_awake_for_the_time_of_idleness() -> None:
    async with group() as made:
        first, killed = made.member("a"), made.member("b")
        await killed.beat(busy)
        made.clock.now_s += LEASE_S * 2
        await first.beat(idle)
        made.clock.now_s += LEASE_S * 2
        await first.beat(idle)
        assert first.leads
        async with first.suspension() as may:
            assert not may
        made.clock.now_s += IDLE_S
        async with first.suspension() as may:
            assert may


async def test_one_that_was_killed_while_quiet_is_forgotten_soon() -> None:
    async with group() as made:
        first, killed = made.member("a"), made.member("b")
        await killed.beat(idle)
        await first.beat(idle)
        made.clock.now_s += LEASE_S * 4
        await first.beat(idle)
        assert '"b"' not in str(made.lease["metadata"]["annotations"][ACTIVATORS])  # type: ignore[index]


async def test_writers_that_come_in_between_are_let_through() -> None:
    async with group() as made:
        first, second = made.member("a"), made.member("b")
        await first.beat(busy)
        between = 0

        def another(verb: str, resource: str) -> None:
            nonlocal between
            if verb == "update" and between < 3:
                between += 1
                made.server.change({"metadata": {"annotations": {"other": str(between)}}}, "leases", LEASE)

        made.server.before = another
        await second.beat(busy)
        assert between == 3
        annotations = made.lease["metadata"]["annotations"]
        assert annotations["other"] == "3"  # type: ignore[index]
        assert '"b"' in annotations[ACTIVATORS]  # type: ignore[index]

        def always(verb: str, resource: str) -> None:
            if verb == "update":
                made.server.change({"metadata": {"annotations": {"other": str(made.server.version)}}}, "leases", LEASE)

        made.server.before = always
        with pytest.raises(KubernetesError, match="changed before each"):
            await second.beat(busy)


async def test_without_an_api_server_requests_go_on() -> None:
    async with group() as made:
        only = made.member("a")
        await only.beat(idle)
        made.server.status = 500
        await only.stir()
        assert not only.quiet
        with pytest.raises(KubernetesError):
            await only.beat(idle)


@pytest.mark.parametrize("nonsense", ["", "{", "[]", '{"b": 7}', '{"b": {"quiet": "yes"}}'])
async def test_what_somebody_else_wrote_is_not_believed(nonsense: str) -> None:
    async with group() as made:
        only = made.member("a")
        await only.beat(idle)
        made.server.change({"metadata": {"annotations": {ACTIVATORS: nonsense}}}, "leases", LEASE)
        await only.beat(idle)
        async with only.suspension() as may:
            assert may is ("yes" not in nonsense)  # whoever it is, it does not say that it is quiet
