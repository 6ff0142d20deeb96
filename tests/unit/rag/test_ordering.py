"""The order of documents: a permutation, the same for the same past, bounded, and as the engine evicts."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_stack.errors import ConfigError
from rag_stack.rag.cache_mirror import CacheShape
from rag_stack.rag.ordering import DocumentOrder, FixedOrder, Plan, Served, Surroundings, document_order
from rag_stack.types import Hit, Passage

BLOCK = 16
AROUND = Surroundings(key=1, before_chars=BLOCK * 4, after_chars=40)
CHARS = 400


def _hit(n: int) -> Hit:
    text = f"{n} " + "x" * CHARS
    return Hit(Passage(str(n), str(n), text, "", "", 0, len(text)), 1.0 / (n + 1))


def _numbers(plan: Plan) -> list[int]:
    return [int(hit.passage.passage_id) for hit in plan.hits]


def _ask(ordering: DocumentOrder, *numbers: int, around: Surroundings = AROUND, cached: int | None = None) -> Plan:
    """One question, from its plan to its answer; the engine counts four characters a token."""
    plan = ordering.plan([_hit(n) for n in numbers], around)
    ordering.commit(plan)
    tokens = (around.before_chars + sum(plan.chars) + around.after_chars) // 4
    ordering.observe(plan, Served(tokens, 8, plan.predicted_tokens if cached is None else cached))
    return plan


def _order(blocks: int | None = None, **limits: int) -> DocumentOrder:
    return DocumentOrder(CacheShape(BLOCK, blocks), **limits)


def test_without_a_past_the_order_is_the_rank() -> None:
    plan = _ask(_order(), 3, 1, 2)
    assert _numbers(plan) == [3, 1, 2]
    assert plan.predicted_tokens == 0


def test_what_is_cached_goes_in_front() -> None:
    ordering = _order()
    _ask(ordering, 5, 2)
    plan = _ask(ordering, 1, 2, 3, 5)
    assert _numbers(plan) == [5, 2, 1, 3]
    tokens = (AROUND.before_chars + sum(plan.chars[:2])) // 4
    assert plan.predicted_tokens == tokens - tokens % BLOCK


def test_the_longest_way_wins() -> None:
    ordering = _order()
    _ask(ordering, 1, 9)
    _ask(ordering, 2, 3, 4)
    assert _numbers(_ask(ordering, 1, 4, 3, 2))[:3] == [2, 3, 4]


def test_behind_what_is_cached_come_those_asked_for_most() -> None:
    ordering = _order()
    _ask(ordering, 7, 1)
    _ask(ordering, 8, 1)
    assert _numbers(_ask(ordering, 2, 1, 3)) == [1, 2, 3], "7 and 8 stood in front of 1, and nobody has them now"


def test_another_beginning_shares_nothing() -> None:
    ordering = _order()
    _ask(ordering, 1, 2)
    other = Surroundings(key=2, before_chars=64)
    assert _ask(ordering, 2, 1, around=other).predicted_tokens == 0


def test_behind_a_conversation_of_ones_own_the_order_is_the_rank() -> None:
    ordering = _order()
    for _ in range(3):
        _ask(ordering, 1)
    turns = Surroundings(key=2, before_chars=400, is_conversation=True)
    assert _numbers(_ask(ordering, 2, 1, around=turns)) == [2, 1]
    again = _ask(ordering, 3, 1, 2, around=turns)
    assert _numbers(again) == [2, 1, 3], "the same turn again finds its documents"
    assert again.predicted_tokens > 0


def test_what_is_read_ahead_is_cached_but_asked_for_once() -> None:
    ordering, other = _order(), Surroundings(key=2)
    for _ in range(3):
        ordering.commit(ordering.plan([_hit(1)], AROUND), ahead=True)
    assert ordering.plan([_hit(1)], AROUND).predicted_tokens > 0
    assert ordering.sizes()["passages"] == 0
    _ask(ordering, 2)
    assert _numbers(ordering.plan([_hit(1), _hit(2)], other)) == [2, 1]


def test_a_private_order_shows_nothing_of_others_and_others_nothing_of_it() -> None:
    ordering = _order()
    private, also_private = (Surroundings(key=n, before_chars=BLOCK * 4, is_private=True) for n in (2, 3))
    for _ in range(3):
        _ask(ordering, 1)
        _ask(ordering, 5, around=private)
    assert _numbers(ordering.plan([_hit(2), _hit(1)], private)) == [2, 1]
    assert _numbers(ordering.plan([_hit(2), _hit(5)], also_private)) == [2, 5]
    assert _numbers(ordering.plan([_hit(2), _hit(5)], AROUND)) == [2, 5]
    again = _ask(ordering, 2, 1, 5, around=private)
    assert _numbers(again) == [5, 2, 1], "its own it finds again"
    assert again.predicted_tokens > CHARS // 5, "and knows how long they are"


def test_the_same_text_twice_keeps_its_rank() -> None:
    ordering = _order()
    hits = [_hit(2), _hit(1), _hit(2)]
    plan = ordering.plan(hits, AROUND)
    ordering.commit(plan)
    ordering.observe(plan, Served(300, 8, 0))
    assert plan.hits == tuple(hits)


def test_what_the_cache_has_no_room_for_is_forgotten() -> None:
    document_blocks = CHARS // 4 // BLOCK + 1
    ordering = _order(blocks=6 * document_blocks)
    _ask(ordering, 1, 2)
    for n in range(10, 30):
        _ask(ordering, n)
    assert _ask(ordering, 2, 1).predicted_tokens <= BLOCK * 4
    assert ordering.sizes()["blocks"] < 6 * document_blocks


def test_prompts_without_documents_take_their_room_too() -> None:
    ordering = _order(blocks=100)
    _ask(ordering, 1)
    ordering.observe(None, Served(2000, 50, 0))
    assert ordering.plan([_hit(1)], AROUND).predicted_tokens == 0


def test_an_engine_that_had_nothing_has_nothing_older_either() -> None:
    ordering = _order()
    _ask(ordering, 1)
    _ask(ordering, 2)
    _ask(ordering, 3)
    _ask(ordering, 2, cached=0)
    assert ordering.plan([_hit(1)], AROUND).predicted_tokens <= BLOCK, "1 is older than 2"
    assert ordering.plan([_hit(3)], AROUND).predicted_tokens > CHARS // 5, "3 is younger"
    assert ordering.plan([_hit(2)], AROUND).predicted_tokens > CHARS // 5, "and 2 has been computed again"


def test_a_prompt_that_is_not_answered_yet_proves_nothing() -> None:
    ordering = _order()
    _ask(ordering, 1)
    under_way = ordering.plan([_hit(2)], AROUND)
    ordering.commit(under_way)
    beside = ordering.plan([_hit(2)], AROUND)
    assert beside.predicted_tokens > CHARS // 5, "shared already"
    ordering.commit(beside)
    # The engine had not computed it yet, but what stands before the documents.
    ordering.observe(beside, Served(130, 8, BLOCK))
    assert ordering.plan([_hit(1)], AROUND).predicted_tokens > CHARS // 5


def test_token_counts_follow_what_the_engine_counts() -> None:
    ordering = _order()
    for _ in range(30):
        for numbers in ((1, 2), (2, 3), (1, 3)):
            plan = ordering.plan([_hit(n) for n in numbers], AROUND)
            ordering.commit(plan)
            # Three times as many tokens as the first estimate.
            chars = AROUND.before_chars + AROUND.after_chars + sum(plan.chars)
            ordering.observe(plan, Served(chars * 3 // 4, 8, None))
    predicted = ordering.plan([_hit(1), _hit(2)], AROUND).predicted_tokens
    assert predicted == pytest.approx((AROUND.before_chars + 2 * (CHARS + 50)) * 3 / 4, rel=0.1)


_QUESTIONS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True), min_size=1, max_size=25)


@settings(deadline=None, max_examples=60)
@given(questions=_QUESTIONS, blocks=st.one_of(st.none(), st.integers(2, 200)), cached=st.integers(0, 700))
def test_any_past_gives_a_permutation_and_the_same_again(
    questions: list[list[int]], blocks: int | None, cached: int
) -> None:
    told = []
    for _ in range(2):
        ordering = _order(blocks=blocks, max_nodes=20, max_passages=8)
        told.append([_numbers(_ask(ordering, *numbers, cached=cached)) for numbers in questions])
        sizes = ordering.sizes()
        assert sizes["nodes"] <= 20
        assert sizes["passages"] <= 8
        assert 0 <= sizes["blocks"] < (blocks or 10**6)
    assert told[0] == told[1]
    assert [sorted(order) for order in told[0]] == [sorted(numbers) for numbers in questions]


@settings(deadline=None, max_examples=60)
@given(questions=_QUESTIONS)
def test_a_plan_changes_nothing(questions: list[list[int]]) -> None:
    ordering, other = _order(), _order()
    for numbers in questions:
        ordering.plan([_hit(n) for n in reversed(numbers)], AROUND)
        assert _ask(ordering, *numbers) == _ask(other, *numbers)


def test_many_ask_at_once() -> None:
    ordering = _order(blocks=200, max_nodes=100, max_passages=10)
    failed: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            for n in range(200):
                numbers = {(seed * n + m * m) % 17 for m in range(4)}
                assert sorted(_numbers(_ask(ordering, *numbers, cached=n % 300))) == sorted(numbers)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert ordering.sizes()["nodes"] <= 100


def test_without_a_prefix_cache_rank_is_the_order() -> None:
    assert isinstance(document_order("cached", None), FixedOrder)
    assert isinstance(document_order("cached", CacheShape()), DocumentOrder)
    assert _numbers(document_order("rank", CacheShape()).plan([_hit(2), _hit(1)], AROUND)) == [2, 1]
    assert _numbers(document_order("reading", CacheShape()).plan([_hit(2), _hit(1)], AROUND)) == [1, 2]


@pytest.mark.parametrize(("block_tokens", "blocks"), [(0, 10), (16, 0)])
def test_a_cache_of_nothing_is_refused(block_tokens: int, blocks: int) -> None:
    with pytest.raises(ConfigError, match="at least one block"):
        CacheShape(block_tokens, blocks)
