"""When a prompt is read ahead, how far, and when no more."""

import pytest

from rag_stack.rag.payoff import Payoff, Reading


def seen(*, left_s: float, ttft_s: float, requests: int = 8) -> Payoff:
    payoff = Payoff(least_share=0.1)
    for _ in range(requests):
        payoff.retrieved(left_s)
        payoff.began(ttft_s=ttft_s, rest_s=ttft_s, ahead=False)
    return payoff


def depths(payoff: Payoff, asked: int = 32) -> list[int]:
    return [payoff.depth(4) for _ in range(asked)]


def test_nothing_is_read_before_enough_was_seen() -> None:
    assert depths(Payoff(least_share=0.1)) == [0] * 32
    assert depths(seen(left_s=1.0, ttft_s=2.0, requests=3)) == [0] * 32


@pytest.mark.parametrize(("left_s", "reads"), [(0.09, False), (0.11, True)])
def test_a_fast_rest_of_the_retrieval_is_left_alone(left_s: float, reads: bool) -> None:
    assert any(depths(seen(left_s=left_s, ttft_s=1.0))) is reads


def test_one_request_in_sixteen_is_measured_without() -> None:
    assert depths(seen(left_s=1.0, ttft_s=2.0)).count(0) == 2


def test_it_stops_when_first_tokens_come_no_sooner_and_tries_again_seldom() -> None:
    payoff = seen(left_s=1.0, ttft_s=2.0)
    for _ in range(4):
        payoff.began(ttft_s=2.0, rest_s=2.0, ahead=True)
    assert [depth for depth in depths(payoff) if depth] == [4, 4]
    for _ in range(32):
        payoff.began(ttft_s=1.0, rest_s=1.0, ahead=True)
    assert depths(payoff).count(0) == 2


def test_it_is_read_as_far_as_documents_mostly_stay() -> None:
    payoff = seen(left_s=1.0, ttft_s=2.0)
    for kept in (4, 2, 2, 1, 2, 3):
        payoff.read(Reading(4, kept))
    assert payoff.likely(4) == 2
    found = depths(payoff)
    # One in sixteen looks whether more would stay by now.
    assert (found.count(2), found.count(4), found.count(0)) == (28, 2, 2)


def test_where_not_even_the_first_document_stays_it_is_tried_seldom() -> None:
    payoff = seen(left_s=1.0, ttft_s=2.0)
    for _ in range(6):
        payoff.read(Reading(4, 0))
    assert [depth for depth in depths(payoff) if depth] == [4, 4]


def test_a_few_shallow_readings_say_nothing_of_the_deeper_ones() -> None:
    payoff = seen(left_s=1.0, ttft_s=2.0)
    for _ in range(6):
        payoff.read(Reading(1, 1))
    assert payoff.likely(4) == 4
