"""The coordinator's rules, against participants that prepare, fail, restart and go silent in any order."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rag_stack.errors import NotFoundError, StoreLimitError
from rag_stack.retrieval.rollout import (
    FAILURE_S,
    GRACE_S,
    NOTHING,
    SILENCE_S,
    Coordinator,
    Failed,
    FollowedStore,
    Order,
    Orders,
    StoreReport,
    Target,
)

LIMIT_S = 60.0
TOWN = FollowedStore("town", "town-index", of_release=True)
MADE = FollowedStore("vs_1", "vs_1")


def coordinator(*stores: FollowedStore, now_s: float = 0.0, **changes: float) -> Coordinator:
    limits = {"limit_s": LIMIT_S, "max_stores": 3, "grace_s": 0.0, **changes}
    return Coordinator(stores, now_s=now_s, **limits)  # type: ignore[arg-type]


@dataclass
class Participant:
    """A process that searches, as `Follower` behaves: what it is told, what it has, what it reports."""

    name: str
    serving: dict[str, Target] = field(default_factory=dict)
    prepared: dict[str, Target] = field(default_factory=dict)
    failed: dict[str, Failed] = field(default_factory=dict)
    stores: dict[str, FollowedStore] = field(default_factory=dict)
    orders: Orders = field(default_factory=dict)
    served: list[tuple[str, Target]] = field(default_factory=list)

    def report(self) -> dict[str, StoreReport]:
        return {
            name: StoreReport(store, self.serving.get(name, NOTHING), self.prepared.get(name), self.failed.get(name))
            for name, store in self.stores.items()
        }

    def sync(self, with_: Coordinator, now_s: float) -> None:
        self.orders = with_.sync(self.name, self.report(), now_s=now_s)
        self.stores = {name: order.store for name, order in self.orders.items()}
        for name, order in self.orders.items():
            self._follow(name, order)

    def prepare(self) -> None:
        """What is wanted in service first."""
        for name, target in self._wanted():
            self.prepared[name] = target
            self.failed.pop(name, None)
            self._follow(name, self.orders[name])

    def fail(self, reason: str = "no room") -> None:
        for name, target in self._wanted():
            self.failed[name] = Failed(target, reason)

    def version(self, name: str = "town") -> str:
        return self.serving.get(name, NOTHING).version

    def _wanted(self) -> list[tuple[str, Target]]:
        wanted = []
        for name, order in self.orders.items():
            serving = self.serving.get(name, NOTHING)
            for target in (order.serve, order.prepare):
                if target is not None and target.number >= serving.number and not target.same(serving):
                    if not target.same(self.prepared.get(name)):
                        wanted.append((name, target))
                    break
        return wanted

    def _follow(self, name: str, order: Order) -> None:
        target, serving = order.serve, self.serving.get(name, NOTHING)
        if target is not None and target.number >= serving.number:
            if target.same(serving):
                self.serving[name] = target
            elif target.same(self.prepared.get(name)):
                self.serving[name] = target
                del self.prepared[name]
                self.served.append((name, target))
        if (had := self.prepared.get(name)) and not had.same(order.serve) and not had.same(order.prepare):
            del self.prepared[name]


def promote(to: Coordinator, version: str, *, now_s: float = 0.0, name: str = "town") -> None:
    to.set_target(name, version=version, digest=f"sha256:{version}", now_s=now_s)


def running(to: Coordinator, *names: str, version: str = "a") -> list[Participant]:
    """Participants that serve a version of "town"."""
    promote(to, version)
    made = [Participant(name) for name in names]
    for _ in range(3):
        for each in made:
            each.sync(to, 0.0)
            each.prepare()
    for each in made:
        each.sync(to, 0.0)
        assert each.version() == version
    return made


def test_nobody_serves_what_one_has_not_prepared() -> None:
    at = coordinator(TOWN)
    one, two = running(at, "one", "two")
    promote(at, "b")
    one.sync(at, 1.0)
    two.sync(at, 1.0)
    one.prepare()
    one.sync(at, 2.0)
    assert (one.version(), two.version()) == ("a", "a")
    assert at.views(now_s=2.0)[0].next_version == "b"
    two.prepare()
    two.sync(at, 3.0)
    one.sync(at, 3.0)
    assert (one.version(), two.version()) == ("b", "b")
    assert at.waiting("town") == ("one", "two")  # neither has said so yet
    one.sync(at, 3.1)
    two.sync(at, 3.1)
    assert at.waiting("town") == ()


def test_who_says_that_it_cannot_is_waited_for_for_seconds_and_lags_with_its_reason() -> None:
    at = coordinator(TOWN)
    one, two = running(at, "one", "two")
    promote(at, "b", now_s=1.0)
    for each in (one, two):
        each.sync(at, 1.0)
    one.prepare()
    two.fail("no room")
    for now_s in (1.0, 5.0, 1.0 + FAILURE_S - 0.1):
        one.sync(at, now_s)
        two.sync(at, now_s)
    assert one.version() == "a"
    assert [lag.reason for lag in at.lagging("town", now_s=5.0)] == ["no room"]
    one.sync(at, 1.0 + FAILURE_S)
    two.sync(at, 1.0 + FAILURE_S)
    assert (one.version(), two.version()) == ("b", "a")
    assert [(lag.participant, lag.serving) for lag in at.lagging("town", now_s=12.0)] == [("two", "a")]
    two.prepare()
    two.sync(at, 13.0)
    assert two.version() == "b"
    two.sync(at, 13.0)
    one.sync(at, 13.0)
    assert at.lagging("town", now_s=13.0) == ()


def test_after_the_limit_the_ready_ones_do_not_wait_for_who_says_nothing() -> None:
    at = coordinator(TOWN)
    one, two = running(at, "one", "two")
    promote(at, "b", now_s=1.0)
    for each in (one, two):
        each.sync(at, 1.0)
    one.prepare()
    for now_s in (10.0, 20.0, 30.0, 40.0, 50.0, 60.0):
        one.sync(at, now_s)
        two.sync(at, now_s)
    assert one.version() == "a"
    one.sync(at, 61.0)
    two.sync(at, 61.0)
    assert (one.version(), two.version()) == ("b", "a")


def test_who_is_silent_is_not_waited_for() -> None:
    at = coordinator(TOWN)
    one, _two = running(at, "one", "two")
    promote(at, "b", now_s=1.0)
    one.sync(at, 1.0)
    one.prepare()
    one.sync(at, 2.0)
    assert one.version() == "a"
    one.sync(at, SILENCE_S + 0.1)
    assert one.version() == "b"
    one.sync(at, SILENCE_S + 0.2)
    assert at.waiting("town") == ()


def test_who_leaves_is_not_waited_for() -> None:
    at = coordinator(TOWN)
    one, two = running(at, "one", "two")
    promote(at, "b", now_s=1.0)
    one.sync(at, 1.0)
    one.prepare()
    one.sync(at, 1.0)
    at.leave(two.name)
    one.sync(at, 1.1)
    assert one.version() == "b"


def test_who_joins_midway_serves_what_all_serve_and_is_waited_for() -> None:
    at = coordinator(TOWN)
    (one,) = running(at, "one")
    promote(at, "b", now_s=1.0)
    one.sync(at, 1.0)
    late = Participant("late")
    late.sync(at, 1.5)
    late.prepare()
    assert late.version() == "a"
    one.prepare()
    one.sync(at, 2.0)
    assert one.version() == "a"
    late.sync(at, 2.0)
    late.prepare()
    late.sync(at, 2.1)
    one.sync(at, 2.1)
    assert (one.version(), late.version()) == ("b", "b")


def test_a_target_that_changes_takes_the_place_of_the_one_under_way() -> None:
    at = coordinator(TOWN)
    (one,) = running(at, "one")
    promote(at, "b", now_s=1.0)
    one.sync(at, 1.0)
    one.prepare()
    promote(at, "c", now_s=1.1)
    one.sync(at, 1.2)
    assert one.prepared == {}
    assert one.version() == "a"
    one.prepare()
    one.sync(at, 1.3)
    assert one.version() == "c"


def test_a_target_that_is_taken_back_changes_nothing() -> None:
    at = coordinator(TOWN)
    (one,) = running(at, "one")
    promote(at, "b", now_s=1.0)
    one.sync(at, 1.0)
    one.prepare()
    promote(at, "a", now_s=1.1)
    one.sync(at, 1.2)
    one.sync(at, 1.3)
    assert (one.version(), one.prepared) == ("a", {})
    assert at.waiting("town") == ()
    assert at.is_open("town")


def test_what_was_dropped_for_a_target_since_taken_back_does_not_count_as_prepared() -> None:
    at = coordinator(TOWN)
    one, two = running(at, "one", "two")
    promote(at, "b", now_s=1.0)
    one.sync(at, 1.0)
    one.prepare()
    one.sync(at, 1.0)
    promote(at, "a", now_s=1.1)
    one.sync(at, 1.1)
    assert one.prepared == {}
    promote(at, "b", now_s=1.2)
    two.sync(at, 1.2)
    two.prepare()
    two.sync(at, 1.3)
    assert two.version() == "a"  # "one" has to prepare it again
    one.sync(at, 1.3)
    one.prepare()
    one.sync(at, 1.4)
    two.sync(at, 1.4)
    assert (one.version(), two.version()) == ("b", "b")


def test_who_flips_does_not_count_as_serving_what_it_did() -> None:
    at = coordinator(TOWN)
    one, two = running(at, "one", "two")
    promote(at, "b", now_s=1.0)
    for each in (one, two):
        each.sync(at, 1.0)
        each.prepare()
    one.sync(at, 1.1)
    two.sync(at, 1.1)
    assert (one.version(), two.version()) == ("a", "b")  # "one" is told with its next question
    promote(at, "a", now_s=1.2)
    one.sync(at, 1.2)
    two.sync(at, 1.2)
    assert (one.version(), two.version()) == ("b", "b")
    for now_s in (1.3, 1.4, 1.5):
        for each in (one, two):
            each.prepare()
            each.sync(at, now_s)
    assert (one.version(), two.version()) == ("a", "a")


def test_a_rollback_is_a_target_like_any_other() -> None:
    at = coordinator(TOWN)
    (one,) = running(at, "one")
    for version in ("b", "a", "b"):
        promote(at, version, now_s=1.0)
        one.sync(at, 1.0)
        one.prepare()
        one.sync(at, 1.0)
        assert one.version() == version
    numbers = [target.number for _, target in one.served]
    assert numbers == sorted(set(numbers))


def test_what_was_opened_at_the_start_needs_no_second_opening() -> None:
    at = coordinator(TOWN)
    one = Participant("one", serving={"town": Target(0, "a", "sha256:a")}, stores={"town": TOWN})
    promote(at, "a")
    one.sync(at, 0.0)
    assert one.serving["town"] == Target(1, "a", "sha256:a")
    assert one.served == []


def test_stores_are_added_and_removed_for_all() -> None:
    at = coordinator(TOWN)
    (one,) = running(at, "one")
    at.add_store(MADE)
    at.add_store(MADE)
    one.sync(at, 1.0)
    assert set(one.stores) == {"town", "vs_1"}
    promote(at, "x", name="vs_1", now_s=1.0)
    one.sync(at, 1.0)
    one.prepare()
    one.sync(at, 1.0)
    assert one.version("vs_1") == "x"
    at.remove_store("vs_1")
    one.sync(at, 1.1)
    assert set(one.stores) == {"town"}
    with pytest.raises(NotFoundError, match="vs_1"):
        promote(at, "y", name="vs_1")


def test_there_is_a_limit_to_stores() -> None:
    at = coordinator(TOWN, MADE, max_stores=2)
    with pytest.raises(StoreLimitError, match="2 at most"):
        at.add_store(FollowedStore("vs_2", "vs_2"))


def test_a_coordinator_that_restarts_learns_from_the_reports() -> None:
    before = coordinator(TOWN)
    before.add_store(MADE)
    one, two = running(before, "one", "two")
    promote(before, "x", name="vs_1")
    promote(before, "b", now_s=1.0)
    for each in (one, two):
        each.sync(before, 1.0)
        each.prepare()
    one.sync(before, 1.0)
    two.sync(before, 1.0)
    one.sync(before, 1.0)
    assert (one.version(), two.version("vs_1")) == ("b", "x")
    after = coordinator(TOWN, now_s=100.0, grace_s=GRACE_S)
    promote(after, "c", now_s=100.0)
    after.advance(100.0 + GRACE_S - 1)
    one.sync(after, 101.0)
    assert one.version() == "b"
    two.sync(after, 101.0)
    assert {store.name for store in after.stores} == {"town", "vs_1"}
    for now_s in (102.0, 100.0 + GRACE_S, 106.0, 107.0):
        for each in (one, two):
            each.sync(after, now_s)
            each.prepare()
    assert (one.version(), two.version()) == ("c", "c")
    assert one.serving["town"].number > before.orders()["town"].serve.number  # type: ignore[union-attr]


def test_what_was_removed_is_not_learned_again() -> None:
    at = coordinator()
    at.remove_store("vs_1")
    one = Participant("one", serving={"vs_1": Target(4, "x", "sha256:x")}, stores={"vs_1": MADE})
    one.sync(at, 0.0)
    assert one.stores == {}


class Rollouts(RuleBasedStateMachine):
    """Any number of processes, promotions, failures, restarts and silences, in any order."""

    @initialize()
    def begin(self) -> None:
        self.now_s = 0.0
        self.at = coordinator(TOWN)
        # Whom this coordinator has heard.
        self.heard: set[str] = set()
        self.members: dict[str, Participant] = {}
        self.count = 0
        self.promoted_s: dict[str, float] = {}
        self.target = ""

    @rule(version=st.sampled_from("abcd"))
    def promote(self, version: str) -> None:
        if version != self.target:
            self.promoted_s[version] = self.now_s
        self.target = version
        promote(self.at, version, now_s=self.now_s)

    @precondition(lambda self: len(self.members) < 4)
    @rule()
    def join(self) -> None:
        self.count += 1
        self.members[f"p{self.count}"] = Participant(f"p{self.count}")

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def sync(self, data: st.DataObject) -> None:
        self._sync(self._any(data))

    @precondition(lambda self: self.members)
    @rule(data=st.data(), fails=st.booleans())
    def prepare(self, data: st.DataObject, fails: bool) -> None:
        member = self._any(data)
        member.fail() if fails else member.prepare()

    @precondition(lambda self: self.members)
    @rule(data=st.data(), politely=st.booleans())
    def end(self, data: st.DataObject, politely: bool) -> None:
        member = self._any(data)
        del self.members[member.name]
        if politely:
            self.at.leave(member.name)

    @rule(seconds=st.sampled_from((0.1, 1.0, 4.0)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self._advance()
        for member in self.members.values():
            self._sync(member)

    @rule()
    def restart(self) -> None:
        self.at = coordinator(TOWN, now_s=self.now_s, grace_s=GRACE_S)
        self.heard = set()
        if self.target:
            self.promoted_s[self.target] = self.now_s
            promote(self.at, self.target, now_s=self.now_s)

    @invariant()
    def nobody_goes_back(self) -> None:
        for member in getattr(self, "members", {}).values():
            numbers = [target.number for _, target in member.served]
            assert numbers == sorted(set(numbers))

    def teardown(self) -> None:
        """Once nothing happens any more, all serve what is promoted: within the limit and the silence of the dead."""
        if not getattr(self, "target", ""):
            return
        for _ in range(30):
            self.now_s += 4.0
            # As the pointers are looked at, again and again.
            promote(self.at, self.target, now_s=self.now_s)
            self._advance()
            for member in self.members.values():
                self._sync(member)
                member.prepare()
        assert {member.version() for member in self.members.values()} <= {self.target}
        assert self.at.is_open("town")
        assert self.at.waiting("town") == ()
        assert self.at.lagging("town", now_s=self.now_s) == ()

    def _any(self, data: st.DataObject) -> Participant:
        return self.members[data.draw(st.sampled_from(sorted(self.members)))]

    def _sync(self, member: Participant) -> None:
        before = self.at.orders()["town"].serve
        self.heard.add(member.name)
        member.sync(self.at, self.now_s)
        self._check(before, member)

    def _advance(self) -> None:
        before = self.at.orders()["town"].serve
        self.at.advance(self.now_s)
        self._check(before, None)

    def _check(self, before: Target | None, reporting: Participant | None) -> None:
        """What has been opened: all that live have it or have said long ago that they cannot, or the limit is over.

        Or an earlier coordinator had opened it: then the one that reports serves it.
        """
        opened = self.at.orders()["town"].serve
        if opened is None or opened.same(before):
            return
        live = [member for name, member in self.members.items() if name in self.heard]
        have = [opened.same(m.serving.get("town")) or opened.same(m.prepared.get("town")) for m in live]
        waited_s = self.now_s - self.promoted_s.get(opened.version, 0.0)
        cannot = [(failed := m.failed.get("town")) is not None and opened.same(failed.target) for m in live]
        refused = waited_s >= FAILURE_S and all(able or not_able for able, not_able in zip(have, cannot, strict=True))
        overdue = waited_s >= LIMIT_S
        learned = reporting is not None and opened.same(reporting.serving.get("town"))
        assert all(have) or refused or overdue or learned


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
