"""The pure parts of the ordering benchmark: traces, orders, the oracle, and figures."""

import itertools
from collections import Counter

import pytest

from loadtests.closed_loop import Answer
from loadtests.ordering import same_questions
from loadtests.ordering_engine import Asked
from loadtests.ordering_figures import ARMS, Measured, build_report, draw, lines, no_share_cost, simulator_error
from loadtests.ordering_orders import bound, our_order, popular_order, reading_order, smallest_tree
from loadtests.ordering_prompts import Synthetic
from loadtests.ordering_simulation import AROUND, best_order, microseconds, numbered_hits, saved_tokens
from loadtests.ordering_trace import TraceShape, unshared_trace, zipf_trace
from loadtests.prompt_cache import PromptCache
from rag_stack.rag.cache_mirror import CacheShape
from rag_stack.rag.ordering import DocumentOrder

SHAPE = TraceShape(questions=60, documents=30)
CACHE = CacheShape(16, 2000)
SIZES = {n: 100 + n for n in range(SHAPE.documents)}


def test_a_trace_is_the_same_for_a_seed_and_popular_as_zipf_says() -> None:
    trace = zipf_trace(SHAPE, seed=1)
    assert trace == zipf_trace(SHAPE, seed=1) != zipf_trace(SHAPE, seed=2)
    assert all(len(set(ranked)) == 4 for ranked in trace)
    uses = [count for _, count in Counter(itertools.chain(*trace)).most_common()]
    assert uses[0] > 3 * uses[len(uses) // 2]


def test_a_trace_that_shares_nothing() -> None:
    documents = list(itertools.chain(*unshared_trace(SHAPE)))
    assert len(documents) == len(set(documents)) == 240


def test_every_order_is_one_of_the_same_documents_and_the_oracle_is_best() -> None:
    trace = zipf_trace(SHAPE, seed=3)
    engine = Synthetic(PromptCache(CACHE), SIZES)
    ours = our_order(trace, numbered_hits(SIZES), DocumentOrder(CACHE), around=AROUND, ask=engine.ask)
    orders = [list(trace), reading_order(trace), popular_order(trace), smallest_tree(trace), ours]
    best = best_order(trace, orders, SIZES, CACHE, tries=20)
    for order in (*orders, best):
        assert [sorted(each) for each in order] == [sorted(ranked) for ranked in trace]
    saved = [sum(saved_tokens(order, SIZES, CACHE)) for order in (*orders, best)]
    assert max(saved) == saved[-1]
    assert saved[4] > 1.5 * saved[0], "ours over score order"
    most = bound(trace, SIZES, before=55, whole=lambda tokens: tokens - tokens % 16)
    assert saved[-1] <= most


def test_the_smallest_tree_puts_in_front_what_most_share() -> None:
    assert smallest_tree([(1, 2), (3, 1), (2, 1)]) == [(1, 2), (1, 3), (1, 2)]


def test_a_choice_can_be_timed() -> None:
    timed = microseconds(200, requests=3)
    assert timed["nodes"] == 16_384
    assert timed["choice_us"] > 0


def _asked(
    arm: str, question: int, ttft_ms: float, *, cached: int = 0, simulated: int = 0, prompt: int = 1000
) -> Asked:
    answer = Answer(question, ttft_ms, ttft_ms + 1, prompt, cached, 8, "x")
    return Asked(arm, 0, question, answer, simulated, cached)


def _measured(times: dict[str, float]) -> Measured:
    return Measured(
        rounds=1,
        warm=1,
        asked=[
            _asked(arm, n, 1e6 if n == 0 else times[arm], cached=128, simulated=100) for arm in ARMS for n in range(3)
        ],
        unshared=[_asked(f"unshared {arm}", 0, 100.0 + n) for n, arm in enumerate(("score", "ours"))],
        microseconds={4: {"choice_us": 20.0, "observe_us": 5.0, "nodes": 9.0}},
        peer_us=300.0,
        sweep=[{"exponent": 1.0, "block_tokens": 16, "bound": 0.6} | dict.fromkeys(ARMS, 0.5)],
        supported={"rank": [True, False], "unranked": [True, True]},
    )


def test_goals_compare_medians_without_the_warm_up() -> None:
    measured = _measured({"score": 300, "reading": 250, "contextpilot": 220, "ours": 200, "oracle": 180})
    result = build_report(measured)
    values = {key: goal.value for key, goal in result.goals.items()}
    assert values == pytest.approx(
        {
            "ordering.ttft_gain": 1.5,
            "ordering.oracle_share": 0.9,
            "ordering.vs_contextpilot": 1.1,
            "ordering.no_share_cost": 1.01,
            "ordering.us_per_request": 20.0,
            "ordering.answers_delta": 0.5,
        }
    )
    assert not result.goals["ordering.oracle_share"].met
    assert result.arms["all"]["simulator_error"] == pytest.approx(0.028)
    assert any("simulator off by 2.80%" in line for line in lines(measured, result))
    assert draw(measured).axes


def test_without_pairs_there_is_no_cost() -> None:
    assert no_share_cost([_asked("unshared ours", 0, 1.0)]) is None
    assert simulator_error([_asked("ours", 0, 1.0, cached=64, simulated=64)]) == 0


def test_arms_that_were_asked_something_else_do_not_count() -> None:
    same = [_asked(arm, 0, 1.0) for arm in ARMS]
    assert same_questions(same)
    assert not same_questions(same[1:])
    assert not same_questions([*same[1:], _asked(ARMS[0], 0, 1.0, prompt=500)])
