"""The figures of `loadtests.routing`, by hand where that is possible."""

import random

import pytest

from loadtests.routing_figures import summary
from loadtests.routing_policies import RoundRobin, policies
from loadtests.routing_simulator import Fleet, Replica, simulate
from loadtests.routing_trace import Asked, Trace, draw_questions

FLEET = Fleet(system_tokens=16, question_tokens=0, answer_tokens=0, block_tokens=16, cache_tokens=10_000)
TOKENS = (100, 100, 100, 100)


def test_what_shares_the_beginning_is_cached_in_whole_blocks() -> None:
    replica = Replica(FLEET, TOKENS)
    assert replica.answer((0, 1), 1, 0.0)[0] == 0
    assert replica.answer((0, 2), 2, 0.0)[0] == 112, "16 of the system and 100 of a document, in blocks of 16"
    assert replica.answer((0, 1), 3, 0.0)[0] == 208


def test_documents_are_put_in_the_order_that_is_cached_unless_told_otherwise() -> None:
    ordered, ranked = Replica(FLEET, TOKENS), Replica(Fleet(order="rank", system_tokens=16), TOKENS)
    for replica in (ordered, ranked):
        replica.answer((0, 1), 1, 0.0)
    assert ordered.hit_tokens((3, 1, 0)) == 208
    assert ranked.hit_tokens((3, 1, 0)) == 16


def test_the_end_of_what_was_asked_longest_ago_goes_first() -> None:
    replica = Replica(Fleet(cache_tokens=300, system_tokens=16, question_tokens=0, answer_tokens=0), TOKENS)
    replica.answer((0, 1), 1, 0.0)
    replica.answer((2,), 2, 0.0)
    assert replica.hit_tokens((2,)) == 112
    assert replica.hit_tokens((0, 1)) == 112, "its first document is left"


def test_a_prompt_waits_for_those_before_it() -> None:
    replica = Replica(FLEET, TOKENS)
    first, second = (replica.answer((row,), row, 1.0) for row in (0, 1))
    assert first[1] == pytest.approx(116 / 8000)
    assert second[1] == pytest.approx((116 + 100) / 8000), "of the second the system's 16 are cached"


def _trace() -> Trace:
    draw = random.Random(1)
    asked = []
    for number in range(400):
        topic = draw.randrange(20)
        text = " ".join(f"w{topic}x{draw.randrange(8)}" for _ in range(6))
        asked.append(Asked(f"{text} {number}", topic, (2 * topic, 2 * topic + 1)))
    return Trace(tuple(asked), (200,) * 40)


def test_where_no_cache_holds_all_affinity_caches_more_than_turns_and_stays_balanced() -> None:
    fleet = Fleet(replicas=4, cache_tokens=4000)
    found = {name: simulate(_trace(), policy, fleet, rate=10.0, seed=1) for name, policy in policies(ray=False).items()}
    for name in ("words", "prompt_cache_key", "documents"):
        assert found[name].cached_share > 1.3 * found["round robin"].cached_share, name
        assert found[name].balance < 1.3, name
    assert found["oracle"].ttft_s <= found["round robin"].ttft_s


def test_a_simulation_is_the_same_each_time() -> None:
    one, other = (simulate(_trace(), RoundRobin(), FLEET, rate=10.0, seed=1) for _ in range(2))
    assert (one.cached_share, one.ttft_s, one.by_replica) == (other.cached_share, other.ttft_s, other.by_replica)


def test_questions_are_popular_by_rank_and_none_is_asked_twice() -> None:
    texts = [f"The {name} holds what the other parts of it need to be found again." for name in "abcdefghij"]
    drawn = draw_questions(texts, list("ABCDEFGHIJ"), questions=200, exponent=1.5, seed=1)
    assert len({text for text, _ in drawn}) == 200
    counts = sorted(([topic for _, topic in drawn].count(row) for row in range(10)), reverse=True)
    assert counts[0] > 3 * counts[4]


def test_a_summary_has_the_medians_of_the_rounds() -> None:
    samples = [{"round": n, "arm": "a", "ttft_ms": float(n), "note": "x"} for n in (1, 2, 9)]
    assert summary(samples) == {"a": {"ttft_ms": 2.0}}
