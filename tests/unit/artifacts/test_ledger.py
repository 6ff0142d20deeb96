"""Who fetches what from where."""

import pytest

from rag_stack.artifacts.ledger import (
    LEASE_S,
    NOTHING,
    READS_PER_SOURCE,
    SILENCE_S,
    Failure,
    Ledger,
    Progress,
    Session,
    Task,
    UnknownSessionError,
)

COUNT = 6
ALL = (1 << COUNT) - 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(clock=clock, seed=1)


def join(ledger: Ledger, node: str, *, have: int = 0, count: int = COUNT) -> str:
    session = Session(f"session-{node}", node, "a" * 64, count)
    ledger.join(session, have=have, reading={}, holdings={})
    return session.id


def drain(ledger: Ledger, session: str) -> list[Task]:
    """All that a session is given at once, nothing done meanwhile."""
    tasks = []
    while isinstance(task := ledger.next(session, NOTHING), Task):
        tasks.append(task)
    return tasks


def test_nodes_that_start_at_once_share_the_origin(ledger: Ledger) -> None:
    first, second = join(ledger, "n1"), join(ledger, "n2")
    tasks = [ledger.next(session, NOTHING) for session in (first, second) * 3]
    assert tasks == [Task(index, None) for index in range(COUNT)]
    assert ledger.next(first, NOTHING) == "wait"
    assert ledger.next(first, Progress(done=(0,))) == "wait"
    assert ledger.next(second, NOTHING) == Task(0, "n1")


def test_what_a_node_has_comes_from_there_and_only_the_rest_from_the_origin(ledger: Ledger) -> None:
    session = join(ledger, "n1")
    ledger.hold(session, {"n2": 0b110101})
    tasks = drain(ledger, session)
    assert {task.index: task.source for task in tasks} == {0: "n2", 1: None, 2: "n2", 3: None, 4: "n2", 5: "n2"}
    assert {tasks[0].source, tasks[1].source} == {"n2", None}, "one link waits for the other"
    assert ledger.next(session, NOTHING) is None


def test_rarest_first(ledger: Ledger) -> None:
    session = join(ledger, "n1")
    ledger.hold(session, {"n2": ALL, "n3": ALL & ~0b001000, "n4": ALL & ~0b001010})
    assert [task.index for task in drain(ledger, session)][:2] == [3, 1]


def test_reads_are_spread_over_the_least_busy_sources(ledger: Ledger) -> None:
    first, second = join(ledger, "n1"), join(ledger, "n2")
    ledger.hold(first, {"n3": ALL, "n4": ALL, "n5": ALL})
    sources = [task.source for session in (first, second) for task in drain(ledger, session)]
    assert {source: sources.count(source) for source in sources} == {"n3": 4, "n4": 4, "n5": 4}


def test_a_source_gives_to_so_many_at_once(ledger: Ledger) -> None:
    count = READS_PER_SOURCE + 3
    session = join(ledger, "n1", count=count)
    ledger.hold(session, {"n2": (1 << count) - 1})
    tasks = drain(ledger, session)
    assert len(tasks) == READS_PER_SOURCE
    assert ledger.next(session, NOTHING) == "wait"
    assert isinstance(ledger.next(session, Progress(done=(tasks[0].index,))), Task)


@pytest.mark.parametrize("reason", ["damaged", "silent"])
def test_a_bad_source_is_replaced(ledger: Ledger, reason: str) -> None:
    session = join(ledger, "n1")
    ledger.hold(session, {"n2": ALL, "n3": 0b000001})
    task = next(task for task in drain(ledger, session) if task.source == "n2")
    failed = Progress(failed=(Failure(task.index, "n2", reason),))  # type: ignore[arg-type]
    assert ledger.next(session, failed) == Task(task.index, None)


def test_a_damaged_copy_is_given_to_nobody_and_the_rest_of_its_node_is(ledger: Ledger) -> None:
    first, second = join(ledger, "n1"), join(ledger, "n2")
    ledger.hold(first, {"n3": ALL})
    ledger.next(first, NOTHING)
    ledger.leave(first, Progress(failed=(Failure(2, "n3", "damaged"),)))
    assert {task.index for task in drain(ledger, second) if task.source is None} == {2}


def test_a_source_that_lost_it_is_asked_by_nobody(ledger: Ledger) -> None:
    first, second = join(ledger, "n1"), join(ledger, "n2")
    ledger.hold(first, {"n3": ALL})
    task = ledger.next(first, NOTHING)
    assert isinstance(task, Task)
    assert ledger.next(first, Progress(failed=(Failure(task.index, "n3", "absent"),))) == Task(0, None)
    assert all(task.source is None for task in drain(ledger, second))


def test_what_a_silent_session_fetched_is_given_to_others(ledger: Ledger, clock: Clock) -> None:
    dead, alive = join(ledger, "n1"), join(ledger, "n2")
    assert len(drain(ledger, dead)) == COUNT
    assert ledger.next(alive, NOTHING) == "wait"
    clock.now = SILENCE_S / 2
    ledger.hold(alive, {})
    clock.now = SILENCE_S + 1
    assert ledger.next(alive, NOTHING) == Task(0, None)
    with pytest.raises(UnknownSessionError):
        ledger.next(dead, NOTHING)


def test_a_chunk_that_stays_away_for_long_may_be_fetched_twice(ledger: Ledger, clock: Clock) -> None:
    slow, other = join(ledger, "n1"), join(ledger, "n2")
    drain(ledger, slow)
    for clock.now in range(0, int(LEASE_S) + 2, 2):
        ledger.hold(slow, {})
        ledger.hold(other, {})
    assert ledger.next(other, NOTHING) == Task(0, None)


def test_a_failed_session_gives_its_chunks_back_and_what_it_has_stays(ledger: Ledger) -> None:
    failed, other = join(ledger, "n1"), join(ledger, "n2")
    drain(ledger, failed)
    ledger.next(failed, Progress(done=(0,)))
    ledger.leave(failed)
    tasks = drain(ledger, other)
    assert {task.index: task.source for task in tasks} == {0: "n1"} | dict.fromkeys(range(1, COUNT))


def test_a_ledger_that_was_lost_learns_all_again(clock: Clock) -> None:
    ledger = Ledger(clock=clock)
    with pytest.raises(UnknownSessionError):
        ledger.next("session-n1", NOTHING)
    first = Session("session-n1", "n1", "a" * 64, COUNT)
    reading = {2: None, 3: "n3"}
    ledger.join(first, have=0b000011, reading=reading, bad_sources=["n4"], holdings={"n4": ALL})
    assert {task.index: task.source for task in drain(ledger, first.id)} == {4: None, 5: None}
    others = {task.index for task in drain(ledger, join(ledger, "n2"))}
    assert others == set(range(COUNT)), "n4 is bad for the first session only"
    assert ledger.next(first.id, Progress(done=(2, 3, 4, 5))) is None


def test_nothing_comes_from_the_origin_while_the_nodes_are_asked_what_they_have(ledger: Ledger) -> None:
    session = Session("session-n1", "n1", "a" * 64, COUNT)
    ledger.join(session, have=0, reading={}, holdings=None)
    other = join(ledger, "n2")
    assert ledger.next(other, NOTHING) == Task(0, None)
    assert ledger.next(other, Progress(done=(0,))) == Task(1, None)
    assert ledger.next(session.id, NOTHING) == "wait"
    ledger.hold(session.id, {"n3": 0b011110})
    assert ledger.next(session.id, NOTHING) == "wait"
    ledger.join(session, have=0, reading={}, holdings={})
    tasks = {task.index: task.source for task in drain(ledger, session.id)}
    assert tasks == {0: "n2", 1: "n3", 2: "n3", 3: "n3", 4: "n3", 5: None}


def test_nothing_is_left_to_begin(ledger: Ledger) -> None:
    assert ledger.next(join(ledger, "n1", have=ALL), NOTHING) is None


def test_artifacts_do_not_mix(ledger: Ledger) -> None:
    first = join(ledger, "n1", have=ALL)
    other = Session("other", "n2", "b" * 64, COUNT)
    ledger.join(other, have=0, reading={}, holdings={})
    assert ledger.next(other.id, NOTHING) == Task(0, None)
    assert ledger.next(first, NOTHING) is None
