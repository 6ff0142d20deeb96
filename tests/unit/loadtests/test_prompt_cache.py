"""What the benchmark's cache adds to the simulated one: tokens, salts, and vLLM's block that is set aside."""

import pytest

from loadtests.prompt_cache import PromptCache
from rag_stack.rag.cache_mirror import CacheShape

A, B = list(range(4)), list(range(100, 104))


def test_another_salt_is_another_cache() -> None:
    cache = PromptCache(CacheShape(block_tokens=4, blocks=20))
    cache.serve([*A, 1], salt="x")
    assert cache.serve([*A, 1], salt="y") == 0
    assert cache.serve([*A, 1], salt="x") == 4


def test_an_answer_is_found_but_for_its_last_token() -> None:
    cache = PromptCache(CacheShape(block_tokens=4, blocks=20))
    cache.serve(A, answer=B)
    assert cache.serve([*A, *B, 1]) == 4
    assert cache.serve([*A, *B, 1]) == 8


def test_one_block_is_set_aside() -> None:
    cache = PromptCache(CacheShape(block_tokens=4, blocks=3))
    assert cache.serve([*A, *B]) == 0
    with pytest.raises(ValueError, match="do not fit"):
        cache.serve([*A, *B, 1])
    with pytest.raises(ValueError, match="two blocks"):
        PromptCache(CacheShape())
