"""Shares are exact, conversations move once, and nobody is refused for a release."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_stack.serving.rollout.choice import ReleaseChoice, Split, Standing
from rag_stack.serving.routing.balance import Work
from rag_stack.serving.routing.subject import Subject

OLD, NEW = "old", "new"


def choice(share: float, *, old: int = 2, new: int = 1, number: int = 1) -> ReleaseChoice:
    made = ReleaseChoice()
    made.learn(standings(share, old=old, new=new, number=number))
    return made


def standings(share: float, *, old: int = 2, new: int = 1, number: int = 1) -> dict[str, Standing | None]:
    split = Split(number, NEW, share)
    replicas = {f"o{n}": Standing(OLD, True, split) for n in range(old)}
    return {**replicas, **{f"n{n}": Standing(NEW, True, split) for n in range(new)}}


def first(made: ReleaseChoice, replicas: list[str], session: str | None = None) -> str:
    return made.rank(replicas, session)[0]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.3333, 0.5, 0.97, 1.0])
def test_of_a_thousand_conversations_two_routers_send_the_share_to_the_new_release(share: float) -> None:
    routers = [choice(share), choice(share)]
    replicas = ["o0", "o1", "n0"]
    new = sum(first(routers[n % 2], replicas).startswith("n") for n in range(1000))
    assert abs(new - 1000 * share) <= 2


def test_within_a_release_replicas_take_turns() -> None:
    made = choice(0.5, old=2, new=2)
    counts = Counter(first(made, ["o0", "n0", "o1", "n1"]) for _ in range(400))
    assert set(counts.values()) == {100}


def test_a_session_moves_once_and_forward_while_the_share_rises() -> None:
    shares = (0.0, 0.05, 0.25, 0.5, 1.0)
    made = ReleaseChoice()
    for session in (f"s{n}" for n in range(200)):
        releases = []
        for number, share in enumerate(shares, start=1):
            made.learn(standings(share, number=number))
            releases.append(first(made, ["o0", "o1", "n0"], session)[0])
        assert "".join(releases) == "o" * releases.count("o") + "n" * releases.count("n")
        assert releases[0] == "o"
        assert releases[-1] == "n"


def test_sessions_are_divided_by_the_share_and_each_stays_with_its_replica() -> None:
    made, other = choice(0.25, new=2), choice(0.25, new=2)
    replicas = ["o0", "o1", "n0", "n1"]
    chosen = {f"s{n}": first(made, replicas, f"s{n}") for n in range(2000)}
    assert sum(name.startswith("n") for name in chosen.values()) == pytest.approx(500, abs=60)
    assert all(first(other, replicas[::-1], session) == name for session, name in chosen.items()), "in every router"


def test_when_a_replica_goes_only_its_own_sessions_move() -> None:
    made = choice(0.0, old=4, new=0)
    before = {f"s{n}": first(made, ["o0", "o1", "o2", "o3"], f"s{n}") for n in range(400)}
    after = {session: first(made, ["o0", "o1", "o3"], session) for session in before}
    assert all(after[s] == name for s, name in before.items() if name != "o2")


def test_a_new_rollout_does_not_try_on_the_same_sessions() -> None:
    made, later = choice(0.1), ReleaseChoice()
    later.learn(
        {"o0": Standing(OLD, True, Split(2, "newer", 0.1)), "n0": Standing("newer", True, Split(2, "newer", 0.1))}
    )
    sessions = [f"s{n}" for n in range(1000)]
    tried = {s for s in sessions if first(made, ["o0", "n0"], s) == "n0"}
    tried_later = {s for s in sessions if first(later, ["o0", "n0"], s) == "n0"}
    assert len(tried & tried_later) < len(tried) / 2


def test_one_that_takes_none_is_asked_only_when_nobody_else_is_there() -> None:
    made = ReleaseChoice()
    split = Split(1, NEW, 0.5)
    made.learn({"o0": Standing(OLD, False, split), "n0": Standing(NEW, True, split), "x": None})
    for session in (None, "s"):
        assert all(first(made, ["o0", "n0", "x"], session) == "n0" for _ in range(10))
    assert made.rank(["o0"], None) == ["o0"]
    assert made.rank(["o0", "x"], "s") == ["x", "o0"]
    assert sorted(made.rank(["o0", "n0", "x"], None)) == ["n0", "o0", "x"], "all of them, in some order"


def test_without_a_replica_of_the_wanted_release_the_other_answers() -> None:
    made = choice(1.0, old=2, new=0)
    assert first(made, ["o0", "o1"]) in {"o0", "o1"}
    assert first(made, ["o0", "o1"], "s") in {"o0", "o1"}


def test_the_newest_split_counts_whoever_tells_it() -> None:
    made = ReleaseChoice()
    made.learn({"o0": Standing(OLD, True, Split(7, NEW, 0.0)), "n0": Standing(NEW, True, Split(6, NEW, 1.0))})
    assert {first(made, ["o0", "n0"]) for _ in range(10)} == {"o0"}


def test_a_standing_survives_the_way_through_the_controller() -> None:
    standing = Standing(NEW, True, Split(3, NEW, 0.25))
    assert Standing.from_stats({"engine": 1, **standing.to_stats()}) == standing
    assert Standing.from_stats({}) is None


def together(share: float) -> dict[str, Standing | None]:
    told = standings(share, old=2, new=2)
    return {name: replace(standing, work=Work()) for name, standing in told.items() if standing is not None}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3333, 0.5, 1.0])
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=40, max_size=100))
def test_affinity_leaves_the_shares_exact(share: float, topics: list[int]) -> None:
    made = ReleaseChoice()
    made.learn(together(share))
    chosen = [made.choose(["o0", "o1", "n0", "n1"], None, lambda t=t: Subject((t,)))[0][0] for t in topics]
    assert abs(sum(name.startswith("n") for name in chosen) - share * len(topics)) <= 1


def test_a_session_stays_where_it_is_whatever_it_is_about() -> None:
    made = ReleaseChoice()
    made.learn(together(0.5))
    replicas = ["o0", "o1", "n0", "n1"]
    chosen = {made.choose(replicas, "s", lambda n=n: Subject((n,)))[0][0] for n in range(50)}
    assert len(chosen) == 1
    assert chosen == {first(choice(0.5, new=2), replicas, "s")}, "as without affinity"


def test_a_subject_is_read_only_where_it_matters() -> None:
    def read() -> Subject | None:
        raise AssertionError("nobody needs it")

    made = choice(0.0, old=1, new=0)
    assert made.choose(["o0"], None, read) == (["o0"], "alone")
    assert choice(0.0).choose(["o0", "o1"], None, read)[1] == "turn"
    made.learn(together(0.0))
    assert made.choose(["o0", "o1"], "s", read)[1] == "session"
    assert made.choose(["o0", "o1"], None, lambda: Subject((1,)))[1] == "load"


def test_one_that_tells_no_work_is_of_a_release_without_affinity_or_older() -> None:
    standing = Standing(NEW, True, Split(), Work(3, 9))
    assert Standing.from_stats(standing.to_stats()) == standing
    older = Standing(NEW, True, Split()).to_stats()
    del older["rag_release"]["work"]
    assert Standing.from_stats(older) == Standing(NEW, True, Split())


def test_words_choose_among_three_replicas_and_more_and_a_key_among_two() -> None:
    subjects = {"words": Subject((7,)), "key": Subject((7,), given=True)}
    for kind, count, together in (("words", 2, False), ("words", 3, True), ("key", 2, True)):
        made, names = ReleaseChoice(), [f"r{n}" for n in range(count)]
        told = {name: Standing(OLD, True, Split(), Work()) for name in names}
        made.learn(told)
        went = [made.choose(names, None, lambda kind=kind: subjects[kind])[0][0]]
        # Reported as done, so that only what is known of the subject counts; and once nobody reports at all.
        made.learn(dict.fromkeys(names))
        for turn in range(1, 5):
            made.learn({name: Standing(OLD, True, Split(), Work(0, 10 * turn)) for name in names})
            went.append(made.choose(names, None, lambda kind=kind: subjects[kind])[0][0])
        assert (Counter(went).most_common(1)[0][1] >= 4) is together, (kind, count, went)
