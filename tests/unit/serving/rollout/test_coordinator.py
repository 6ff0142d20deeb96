"""The coordinator with a real plan in a real store, and a fleet that behaves as Serve and its replicas do."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.errors import ArtifactError
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import PinnedRelease, pin
from rag_stack.releases.plan import RolloutPlan, RolloutStore
from rag_stack.releases.progress import CanaryResult
from rag_stack.releases.published import load
from rag_stack.releases.rollout import Rollout
from rag_stack.serving.rollout.coordinator import Assignment, Orders, ReleaseRollout
from rag_stack.serving.rollout.served import Served, ServeState
from rag_stack.serving.rollout.tally import Report, State

ROLLOUT = {"steps": [0.25, 0.5, 1.0], "step_requests": 10, "step_s": 2, "limit_s": 600}


class World:
    """A store with a release in it, and time."""

    def __init__(self, folder: Path, *, replicas: int, rollout: Mapping[str, object] = ROLLOUT) -> None:
        self.now_s = 1000.0
        self.tiers = _published(folder)
        self.release = Release.model_validate(
            {
                "name": "r",
                "artifacts": {"root": f"file://{folder}/store", "cache": folder / "cache"},
                "model": {"name": "m"},
                "embedder": {"name": "m"},
                "rollout": rollout,
            }
        )
        self.deployed = pin(self.release, self.tiers)
        self.rollout = Rollout(self.tiers.catalog, "r", clock=lambda: self.now_s)
        self.fleet = Fleet(replicas)
        self.coordinator = self.start_coordinator()

    def start_coordinator(self) -> ReleaseRollout:
        catalog = self.tiers.catalog
        self.coordinator = ReleaseRollout(
            self.deployed,
            self.rollout,
            RolloutStore(catalog.store, "r"),
            load=partial(load, catalog, "r", deployment=self.release),
            replicas=self.fleet.states,
            poll_s=0.0,
            clock=lambda: self.now_s,
        )
        return self.coordinator

    def apply(self, system: str) -> PinnedRelease:
        prompt = self.release.prompt.model_copy(update={"system": system})
        pinned = pin(self.release.model_copy(update={"prompt": prompt}), self.tiers)
        self.rollout.apply(pinned)
        return pinned

    def plan(self) -> RolloutPlan:
        found = self.rollout.plan()
        assert found is not None
        return found

    async def turn(self) -> None:
        self.now_s += 0.5
        await self.coordinator.tick()
        await self.fleet.turn(self.coordinator)

    async def until_steady(self, *, turns: int = 400) -> RolloutPlan:
        for _ in range(turns):
            await self.turn()
            if self.plan().state == "steady":
                return self.plan()
        raise AssertionError(f"still {self.plan()}, waits for {self.coordinator.waits_for}")

    async def until_starting(self, pinned: PinnedRelease) -> list[str]:
        for _ in range(20):
            await self.turn()
            if starting := [name for name in self.fleet.starting(pinned.version) if name in self.fleet.seen]:
                return starting
        raise AssertionError(f"none starts, {self.plan()}")


class Fleet:
    """Starts replicas up to the target and the surge that it hears of; one that is retired stops, and is replaced."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.made = 0
        self.serve: dict[str, ServeState] = {}
        self.release: dict[str, str] = {}
        self.report: dict[str, Report] = {}
        self.orders: dict[str, Orders] = {}
        self.bad: dict[str, str] = {}
        self.slow: set[str] = set()
        self.asked: list[str] = []
        self.seen: set[str] = set()
        # Each replica has a node of its own, of its name.
        self.nodes: set[str] = set()
        self.draining: set[str] = set()
        self.assigned: dict[str, Assignment] = {}
        self.wanted = target
        self.fewest = target
        self.most = 0

    async def states(self) -> Served:
        self.seen = {name for name in self.serve if name in self.assigned}
        self.nodes |= self.serve.keys()
        return Served(dict(self.serve), self.wanted, {name: name for name in self.serve}, self.nodes - self.draining)

    def running(self) -> list[str]:
        return [name for name, state in self.serve.items() if state == "running"]

    def releases(self) -> list[str]:
        return sorted(self.release[name] for name in self.running())

    async def turn(self, coordinator: ReleaseRollout) -> None:
        for name in [name for name, state in self.serve.items() if state == "stopping"]:
            del self.serve[name]
        for name in [name for name, state in self.serve.items() if state == "starting"]:
            await self._start(name, coordinator)
        self._report(coordinator)
        surge = max((each.surge for name, each in self.orders.items() if name in self.running()), default=0)
        wanted = self.wanted = self.target + surge if self.target else 0
        live = [name for name, state in self.serve.items() if state != "stopping"]
        for name in sorted(live, key=lambda name: self.serve[name] != "starting")[: max(0, len(live) - wanted)]:
            self.serve[name] = "stopping"
        for _ in range(wanted - len(live)):
            self.made += 1
            self.serve[f"replica{self.made}"] = "starting"
        self.most = max(self.most, sum(state != "stopping" for state in self.serve.values()))

    async def _start(self, name: str, coordinator: ReleaseRollout) -> None:
        if name not in self.assigned:
            self.assigned[name] = await coordinator.assign(name)
        assignment = self.assigned[name]
        version = self.release[name] = assignment.pinned.version
        if version in self.slow:
            return
        canaries = tuple(
            CanaryResult(question=each.question, passed=self.bad.get(version) != "canary")
            for each in assignment.canaries
        )
        fails = self.bad.get(version) == "start" or not all(each.passed for each in canaries)
        state: State = "failed" if fails else "ready"
        self.report[name] = Report(
            release=version, state=state, canaries=canaries, canaries_of_s=assignment.canaries_of_s
        )
        self.orders.pop(name, None)
        if fails:
            coordinator.sync(name, self.report[name])
            del self.serve[name]
        else:
            self.serve[name] = "running"

    def starting(self, version: str) -> list[str]:
        """Those that have taken a version and have not come up."""
        return [name for name, state in self.serve.items() if state == "starting" and self.release.get(name) == version]

    def _report(self, coordinator: ReleaseRollout) -> None:
        for name in self.running():
            last = self.report[name]
            bad = self.bad.get(last.release)
            failed = last.failed + (5 if bad == "errors" else 0)
            self.report[name] = Report(
                release=last.release,
                state="ready",
                answered=last.answered + 5,
                failed=failed,
                ttft_s=(0.5 if bad == "slow" else 0.1,) * 5,
                canaries=last.canaries,
                canaries_of_s=last.canaries_of_s,
            )
            orders = coordinator.sync(name, self.report[name])
            if orders is not None:
                self.orders[name] = orders
            if orders is not None and orders.canaries:
                self.asked.append(name)
                answers = tuple(CanaryResult(question=each.question, passed=bad is None) for each in orders.canaries)
                self.report[name] = replace(self.report[name], canaries=answers, canaries_of_s=orders.canaries_of_s)
            if orders is not None and orders.retire:
                self.serve[name] = "stopping"
        ready = [name for name in self.running() if not (name in self.orders and self.orders[name].retire)]
        if len(ready) >= self.target:
            self.fewest = min(self.fewest, self.target)
        elif self.made > self.target:
            self.fewest = min(self.fewest, len(ready))


@pytest.mark.parametrize("replicas", [1, 2, 5])
async def test_a_good_release_takes_over_with_one_replica_more_and_none_less(tmp_path: Path, replicas: int) -> None:
    world = World(tmp_path, replicas=replicas)
    for _ in range(6):
        await world.turn()
    assert world.fleet.releases() == [world.deployed.version] * replicas
    new = world.apply("Be brief.")
    plan = await world.until_steady()
    assert (plan.old, plan.ended[-1].outcome) == (new.version, "promoted")
    for _ in range(4):
        await world.turn()
    assert world.fleet.releases() == [new.version] * replicas
    assert (world.fleet.fewest, world.fleet.most) == (replicas, replicas + 1)
    pointer = world.rollout.pointer()
    assert pointer is not None
    assert pointer.version == new.version


@pytest.mark.parametrize(("bad", "reason"), [("errors", "failed"), ("slow", "first token"), ("start", "to start")])
async def test_a_bad_release_goes_back_by_itself(tmp_path: Path, bad: str, reason: str) -> None:
    world = World(tmp_path, replicas=2)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be wrong.")
    world.fleet.bad[new.version] = bad
    plan = await world.until_steady()
    assert (plan.old, plan.ended[-1].outcome) == (world.deployed.version, "rolled_back")
    assert reason in plan.ended[-1].reason
    for _ in range(4):
        await world.turn()
    assert world.fleet.releases() == [world.deployed.version] * 2
    assert (world.fleet.fewest, world.fleet.most) == (2, 3)


def scaled_down(world: World, name: str) -> None:
    """Serve stops those that start first."""
    world.fleet.target -= 1


def drained(world: World, name: str) -> None:
    """Its node goes: it hears of that, and tells; another one is wanted in its place."""
    world.coordinator.sync(name, Report(release=world.fleet.release[name], state="stopped"))
    world.fleet.serve[name] = "stopping"


def drained_while_its_engine_loads(world: World, name: str) -> None:
    """Its node goes; Serve kills it before it has heard of that, and another one is wanted in its place."""
    world.fleet.draining.add(name)
    world.fleet.serve[name] = "stopping"


def gone_with_its_node(world: World, name: str) -> None:
    """As one whose process is gone, but for the node."""
    world.fleet.draining.add(name)
    del world.fleet.serve[name]


@pytest.mark.parametrize("stop", [scaled_down, drained, drained_while_its_engine_loads, gone_with_its_node])
async def test_a_start_that_was_told_to_stop_has_not_failed(tmp_path: Path, stop: Callable[[World, str], None]) -> None:
    world = World(tmp_path, replicas=2)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be brief.")
    world.fleet.slow.add(new.version)
    for _ in range(4):
        starting = await world.until_starting(new)
        stop(world, starting[0])
        for _ in range(3):
            await world.turn()
        assert starting[0] not in world.fleet.serve
        world.fleet.target = 2
    assert world.plan().state == "canary"
    world.fleet.slow.clear()
    plan = await world.until_steady()
    assert (plan.old, plan.ended[-1].outcome) == (new.version, "promoted")


def dies(world: World, name: str) -> None:
    """Its process is gone, without a word."""
    del world.fleet.serve[name]


def fails_while_scaled_down(world: World, name: str) -> None:
    """It tells that it does not start; and Serve wants one less."""
    world.coordinator.sync(name, Report(release=world.fleet.release[name], state="failed"))
    world.fleet.target -= 1


@pytest.mark.parametrize("end", [dies, fails_while_scaled_down])
async def test_a_version_whose_starts_fail_goes_back_whatever_else_is_stopped(
    tmp_path: Path, end: Callable[[World, str], None]
) -> None:
    world = World(tmp_path, replicas=2)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be wrong.")
    world.fleet.slow.add(new.version)
    for _ in range(3):
        assert world.plan().state == "canary"
        starting = await world.until_starting(new)
        end(world, starting[0])
        for _ in range(3):
            await world.turn()
        assert starting[0] not in world.fleet.serve
        world.fleet.target = 2
    plan = await world.until_steady()
    assert "failed to start 3 times" in plan.ended[-1].reason


async def test_of_two_starts_that_end_when_one_less_is_wanted_one_has_failed(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=0)
    await world.turn()
    new = world.apply("Be wrong.")
    for number in range(3):
        names = (f"{number}a", f"{number}b")
        world.fleet.serve, world.fleet.wanted = dict.fromkeys(names, "starting"), 2
        await world.coordinator.tick()
        for name in names:
            world.coordinator.sync(name, Report(release=new.version, state="starting"))
        assert world.plan().state == "canary"
        world.fleet.serve, world.fleet.wanted = {}, 1
        await world.coordinator.tick()
    assert "failed to start 3 times" in world.plan().reason


async def test_a_failed_canary_goes_back_before_anybody_was_asked(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1, rollout={**ROLLOUT, "canaries": [{"question": "Who?"}]})
    for _ in range(6):
        await world.turn()
    new = world.apply("Be wrong.")
    world.fleet.bad[new.version] = "canary"
    plan = await world.until_steady()
    assert "Who?" in plan.ended[-1].reason
    assert plan.ended[-1].step == -1
    assert new.version not in world.fleet.releases()


async def test_canaries_are_asked_of_the_new_release_alone(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1, rollout={**ROLLOUT, "canaries": [{"question": "Who?"}]})
    assert not (await world.coordinator.assign("a")).canaries
    world.apply("Be brief.")
    await world.turn()
    assert [each.question for each in (await world.coordinator.assign("b")).canaries] == ["Who?"]


CANARIES = {**ROLLOUT, "canaries": [{"question": "Who?"}]}


async def applied_again(world: World) -> None:
    """What is deployed, a new version in its place at once, and it again while replicas of it still serve."""
    for _ in range(6):
        await world.turn()
    prompt = world.release.prompt.model_copy(update={"system": "Be brief."})
    world.rollout.apply(pin(world.release.model_copy(update={"prompt": prompt}), world.tiers), at_once=True)
    for _ in range(4):
        await world.turn()
    assert len(set(world.fleet.releases())) == 2
    world.rollout.apply(world.deployed, replacing=True)


async def test_a_version_that_serves_still_is_asked_its_canaries_where_it_serves(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=2, rollout=CANARIES)
    await applied_again(world)
    plan = await world.until_steady()
    assert (plan.old, plan.ended[-1].outcome) == (world.deployed.version, "promoted")
    assert len(world.fleet.asked) == 1, "one that runs answers for all, once"


async def test_a_version_that_serves_still_goes_back_when_it_answers_a_canary_wrong(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=2, rollout=CANARIES)
    world.fleet.bad[world.deployed.version] = "canary"
    await applied_again(world)
    plan = await world.until_steady()
    assert (plan.ended[-1].outcome, plan.ended[-1].step) == ("rolled_back", -1)
    assert "Who?" in plan.ended[-1].reason


async def test_what_a_replica_answered_in_another_rollout_says_nothing_of_this_one(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1, rollout=CANARIES)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be brief.")
    await world.turn()
    old = Report(
        release=new.version,
        state="ready",
        canaries=(CanaryResult(question="Who?", passed=False),),
        canaries_of_s=world.plan().began_s - 1.0,
    )
    orders = world.coordinator.sync("from before", old)
    assert orders is not None
    assert ([each.question for each in orders.canaries], orders.canaries_of_s) == (["Who?"], world.plan().began_s)
    assert (await world.until_steady()).old == new.version


def asked_of(orders: Orders | None) -> list[str]:
    assert orders is not None
    return [each.question for each in orders.canaries]


async def test_of_those_that_serve_already_one_is_asked_and_another_once_that_goes(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1, rollout=CANARIES)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be brief.")
    await world.coordinator.tick()
    ready = Report(release=new.version, state="ready")
    told = {name: world.coordinator.sync(name, ready) for name in ("a", "b", "c")}
    assert {name: asked_of(orders) for name, orders in told.items()} == {"a": ["Who?"], "b": [], "c": []}
    assert asked_of(world.coordinator.sync("b", ready)) == []
    assert asked_of(world.coordinator.sync("a", ready)) == ["Who?"], "until it has answered"
    world.coordinator.sync("a", replace(ready, retiring=True))
    assert asked_of(world.coordinator.sync("c", ready)) == []
    assert asked_of(world.coordinator.sync("b", ready)) == ["Who?"]
    world.now_s += 60.0
    assert asked_of(world.coordinator.sync("c", ready)) == ["Who?"], "the other is not heard of any more"
    assert asked_of(world.coordinator.sync("b", ready)) == []


async def test_a_wrong_answer_stays_wrong_whoever_tells_of_right_ones_after_it(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1, rollout=CANARIES)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be wrong.")
    await world.coordinator.tick()
    for name, passed in (("a", True), ("b", False), ("a", True)):
        canaries = (CanaryResult(question="Who?", passed=passed),)
        report = Report(release=new.version, state="ready", canaries=canaries, canaries_of_s=world.plan().began_s)
        world.coordinator.sync(name, report)
    await world.coordinator.tick()
    assert world.plan().state == "rolling_back"
    assert "Who?" in world.plan().reason


async def test_one_that_is_stopped_while_it_is_assigned_has_not_failed(tmp_path: Path) -> None:
    """Its process may hear that it is to stop before it hears what it is, and the coordinator that first, too."""
    world = World(tmp_path, replicas=1)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be brief.")
    running, world.fleet.wanted = dict(world.fleet.serve), 2
    for name in ("first", "second", "third"):
        world.fleet.serve = {**running, name: "starting"}
        await world.coordinator.tick()
        world.coordinator.sync(name, Report(release="", state="stopped"))
        assert (await world.coordinator.assign(name)).pinned.version == new.version
        world.fleet.serve[name] = "stopping"
        await world.coordinator.tick()
        assert "" not in world.coordinator.now()["seen"]
        world.fleet.serve = running
        await world.coordinator.tick()
    assert world.plan().state == "canary"


async def test_at_zero_replicas_the_rollout_waits_for_the_next_start_which_takes_it(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, replicas=0)
    await world.turn()
    new = world.apply("Be brief.")
    world.now_s += 10 * 600.0
    for _ in range(3):
        await world.turn()
    assert world.plan().state == "canary", "no time passes while nobody could show what it is like"
    world.fleet.target = 1
    plan = await world.until_steady()
    assert (plan.old, world.fleet.made) == (new.version, 1)


async def test_where_nothing_serves_the_last_try_is_made_beside_the_old_release(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=0)
    await world.turn()
    new = world.apply("Be wrong.")
    world.fleet.bad[new.version] = "start"
    world.fleet.target = 1
    plan = await world.until_steady()
    assert "failed to start 3 times" in plan.ended[-1].reason
    taken = [world.fleet.release[f"replica{number}"] for number in range(1, 5)]
    assert taken == [new.version, new.version, world.deployed.version, new.version]
    assert world.fleet.releases() == [world.deployed.version]


async def test_no_time_passes_at_zero_replicas_after_the_canaries_either(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1, rollout={**ROLLOUT, "canaries": [{"question": "Who?"}]})
    for _ in range(6):
        await world.turn()
    new = world.apply("Be brief.")
    while world.plan().step < 0:
        await world.turn()
    world.fleet.target = 0
    for _ in range(4):
        await world.turn()
    assert not world.fleet.serve
    world.now_s += 400.0
    await world.turn()
    world.now_s += 400.0
    await world.turn()
    assert world.plan().state == "canary"
    world.fleet.target = 1
    assert (await world.until_steady()).old == new.version


async def test_a_version_that_cannot_be_read_goes_back_in_time(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be brief.")
    for file in (tmp_path / "store" / "releases" / "r" / new.version).iterdir():
        file.write_bytes(b"what another rag_stack reads")
    world.now_s += 601.0
    with pytest.raises(ArtifactError):
        await world.coordinator.tick()
    assert world.plan().state == "rolling_back"


async def test_a_start_does_not_wait_where_no_plan_can_be_written(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1)
    (tmp_path / "store" / "releases").write_text("no folder, so that nothing is written into it")
    with pytest.raises(ArtifactError):
        await world.coordinator.tick()
    assert (await world.coordinator.assign("a")).pinned == world.deployed


async def test_one_that_is_gone_and_says_that_it_goes_is_not_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=1)
    for _ in range(6):
        await world.turn()
    calm_s = {each.again_s for each in world.fleet.orders.values()}
    world.coordinator.sync("gone", Report(release=world.deployed.version, state="ready", retiring=True))
    for _ in range(3):
        await world.turn()
    assert {each.again_s for each in world.fleet.orders.values()} == calm_s == {1.0}


async def test_a_coordinator_that_starts_anew_goes_on_with_what_it_finds(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=2)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be brief.")
    while world.plan().old != new.version:
        for _ in range(40):
            await world.turn()
        assert world.plan().state in {"canary", "promoting", "steady"}
        world.start_coordinator()
    assert world.fleet.most == 3


async def test_shares_that_are_told_never_fall_while_a_rollout_goes_well(tmp_path: Path) -> None:
    world = World(tmp_path, replicas=3)
    for _ in range(6):
        await world.turn()
    new = world.apply("Be brief.")
    shares = []
    while world.plan().old != new.version:
        await world.turn()
        told = [orders.split for orders in world.fleet.orders.values() if orders.split.next == new.version]
        shares += [split.share for split in sorted(told, key=lambda split: split.number)[-1:]]
    assert shares == sorted(shares)
    assert {0.0, 0.25, 1.0} <= set(shares)


def _published(folder: Path) -> Tiers:
    tiers = open_tiers(ArtifactsConfig(root=f"file://{folder}/store", cache=folder / "cache"), MemoryRecorder())
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    tiers.catalog.promote(tiers.catalog.publish(folder / "model", kind="models", name="m", metadata={}).ref)
    return tiers
