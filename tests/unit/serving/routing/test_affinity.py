"""Questions stay with their documents, within bounds, and move only when they must."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rag_stack.serving.routing.affinity import Affinity
from rag_stack.serving.routing.balance import Balance, Work
from rag_stack.serving.routing.memory import Memory
from rag_stack.serving.routing.subject import Subject

NAMES = ("a", "b", "c", "d")
IDLE = dict.fromkeys(NAMES, Work())
names_of = st.lists(st.sampled_from(NAMES), min_size=2, unique=True)


def affinity(*names: str) -> Affinity:
    made = Affinity()
    made.learn({name: Work() for name in names or NAMES})
    return made


def key(number: int) -> Subject:
    return Subject((number,), given=True)


def answered(made: Affinity, counts: Counter[str]) -> None:
    """All replicas report: nothing is under way, and so many have arrived."""
    made.learn({name: Work(0, counts[name]) for name in NAMES})


def test_questions_that_share_words_go_where_the_words_were_asked_about() -> None:
    made, counts = affinity(), Counter[str]()
    places: dict[int, set[str]] = {}
    for turn in range(40):
        topic = turn % 8
        # Ten words of a topic, of which each question has other five.
        words = tuple(100 * topic + (turn + n) % 10 for n in range(5))
        chosen, _ = made.order(NAMES, Subject(words))
        counts[chosen[0]] += 1
        answered(made, counts)
        places.setdefault(topic, set()).add(chosen[0])
    assert all(len(found) == 1 for found in places.values())
    assert len(set.union(*places.values())) == len(NAMES)


def test_why_a_replica_was_chosen_is_told() -> None:
    made = affinity("a", "b")
    assert made.order(("a", "b"), Subject((1, 2)))[1] == "load"
    made.learn({"a": Work(0, 1), "b": Work(0, 1)})
    assert made.order(("a", "b"), Subject((1, 3)))[1] == "affinity"
    assert made.order(("a", "b"), None)[1] == "load"


@given(st.lists(st.tuples(st.integers(0, 2), names_of), max_size=200))
def test_without_reports_no_replica_gets_more_than_a_few_beyond_its_part(asked: list[tuple[int, list[str]]]) -> None:
    balance = Balance()
    balance.learn(IDLE)
    for number, among in asked:
        room = balance.with_room(among)
        assert room
        assert room <= set(among)
        loads = {name: balance.load(name) for name in among}
        for name in room:
            least = loads[name] == min(loads.values())
            assert least or loads[name] <= max(2, 1.25 * (sum(loads.values()) + 1) / len(among))
        chosen = sorted(room)[number % len(room)]
        balance.send(chosen, among)


@given(st.integers(2, 4), st.integers(20, 300))
def test_one_hot_subject_is_spread_when_it_is_more_than_one_replica_can_do(replicas: int, requests: int) -> None:
    names = NAMES[:replicas]
    made = affinity(*names)
    counts = Counter(made.order(names, key(7))[0][0] for _ in range(requests))
    assert max(counts.values()) <= 1.25 * (requests / replicas + 1) + 2
    assert len(counts) == replicas


def test_a_hot_subject_stays_where_it_is_while_that_replica_keeps_up() -> None:
    made, counts = affinity(), Counter[str]()
    for _ in range(50):
        chosen = made.order(NAMES, key(7))[0][0]
        counts[chosen] += 1
        answered(made, counts)
    assert len(counts) == 1


@given(st.lists(st.integers(0, 1 << 60), min_size=1, max_size=50, unique=True), st.sampled_from(NAMES))
def test_when_a_replica_goes_only_its_own_keys_move(keys: list[int], gone: str) -> None:
    rest = tuple(name for name in NAMES if name != gone)
    before = {each: affinity().order(NAMES, key(each))[0][0] for each in keys}
    after = {each: affinity(*rest).order(rest, key(each))[0][0] for each in keys}
    assert all(after[each] == name for each, name in before.items() if name != gone)


def test_every_router_places_a_key_alike_also_after_it_was_started_again() -> None:
    first, second = affinity(), affinity()
    second.order(NAMES, Subject((1, 2, 3)))
    second.learn({name: Work(0, 9) for name in NAMES})
    assert first.order(NAMES, key(3))[0][0] == second.order(NAMES[::-1], key(3))[0][0]


def test_a_busy_replica_is_passed_over_for_what_it_knows_and_all_full_still_have_an_order() -> None:
    made = affinity("a", "b")
    home = made.order(("a", "b"), Subject((1, 2)))[0][0]
    other = "b" if home == "a" else "a"
    made.learn({home: Work(40, 50), other: Work(3, 20)})
    assert made.order(("a", "b"), Subject((1, 2)))[0] == [other, home]
    made.learn({"a": Work(900, 1000), "b": Work(900, 1000)})
    assert sorted(made.order(("a", "b"), Subject((1, 2)))[0]) == ["a", "b"]


def test_what_a_replica_that_is_gone_had_is_forgotten() -> None:
    made = affinity("a", "b")
    home = made.order(("a", "b"), Subject((1, 2)))[0][0]
    rest = "b" if home == "a" else "a"
    made.learn({rest: Work()})
    made.learn({rest: Work(), home: Work()})
    assert made.order(("a", "b"), Subject((1, 2)))[1] == "load"


def test_a_memory_is_bounded_and_forgets_what_was_not_asked_about_for_longest() -> None:
    memory = Memory(words=10)
    for number in range(100):
        memory.learn((number, 1000), "a")
    assert len(memory) == 10
    assert memory.scores((5,), ("a",)) == {"a": 0.0}
    assert memory.scores((99,), ("a",))["a"] == 1.0


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=4), st.sampled_from(NAMES)), max_size=50))
def test_scores_are_shares(learnt: list[tuple[list[int], str]]) -> None:
    memory = Memory()
    for words, name in learnt:
        memory.learn(tuple(dict.fromkeys(words)), name)
    scores = memory.scores(tuple(range(10)), NAMES)
    assert all(score >= 0 for score in scores.values())
    assert sum(scores.values()) <= 1 + 1e-9
