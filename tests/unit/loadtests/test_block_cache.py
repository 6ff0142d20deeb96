"""The simulated prefix cache, against what vLLM's code says."""

import pytest

from loadtests.block_cache import BlockCache

A, B, C, D = (list(range(n * 100, n * 100 + 4)) for n in range(4))


def test_whole_blocks_are_found_from_the_beginning() -> None:
    cache = BlockCache(blocks=20, block_tokens=4)
    assert cache.serve([*A, *B, 1, 2]) == 0
    assert cache.serve([*A, *B, 3]) == 8
    assert cache.serve([*A, *C, *B]) == 4, "B stands behind something else"
    assert cache.serve([*B, *A]) == 0


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    cache = BlockCache(blocks=20, block_tokens=4)
    cache.serve([*A, *B])
    assert cache.serve([*A, *B]) == 4


def test_an_answer_is_cached_but_for_its_last_token() -> None:
    cache = BlockCache(blocks=20, block_tokens=4)
    cache.serve(A, answer=B)
    assert cache.serve([*A, *B, 1]) == 4
    assert cache.serve([*A, *B, 1]) == 8
    cache.serve(C, answer=[*B, 9])
    assert cache.serve([*C, *B, 1]) == 8


def test_another_salt_is_another_cache() -> None:
    cache = BlockCache(blocks=20, block_tokens=4)
    cache.serve([*A, 1], salt="x")
    assert cache.serve([*A, 1], salt="y") == 0
    assert cache.serve([*A, 1], salt="x") == 4


def test_the_longest_unused_goes_first_and_an_answers_end_before_its_beginning() -> None:
    cache = BlockCache(blocks=6, block_tokens=4)
    cache.serve([*A, *B])
    cache.serve([*C])
    # Free, from the front: two that were never used, then B, A, C.
    cache.serve([*D, 1, 2, 3, 4, 5])
    assert cache.serve([*A, *B, 1]) == 4, "three were needed: B is gone, A is not"


def test_one_block_is_set_aside() -> None:
    cache = BlockCache(blocks=3, block_tokens=4)
    assert cache.serve([*A, *B]) == 0
    with pytest.raises(ValueError, match="do not fit"):
        cache.serve([*A, *B, 1])


def test_blocks_that_nothing_can_find_are_taken_first() -> None:
    cache = BlockCache(blocks=5, block_tokens=4)
    cache.serve([*A, *B, 1])
    cache.serve([*C, 1])
    assert cache.serve([*A, *B, 1]) == 8, "the half blocks went to C"
