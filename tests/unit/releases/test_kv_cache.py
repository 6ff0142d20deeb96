"""The rules of vLLM's prefix cache, one at a time; tests/integration/test_kv_cache.py holds them against vLLM."""

from rag_stack.releases.kv_cache import BlockCache, OffloadTier

BLOCK = 4


def served(cache: BlockCache, number: int, keys: list[int], *, tokens: int | None = None) -> int | None:
    """Asked, answered with one token, and gone: the blocks that were found."""
    found = cache.admit(number, keys, prompt_tokens=len(keys) * BLOCK + 1 if tokens is None else tokens)
    if found is not None:
        cache.finish(number, output_tokens=1)
    return found


def test_a_prefix_is_found_up_to_where_it_differs() -> None:
    cache = BlockCache(10, BLOCK)
    assert served(cache, 0, [1, 2, 3]) == 0
    assert served(cache, 1, [1, 2, 9]) == 2
    assert served(cache, 2, [7, 2, 3]) == 0, "what follows another beginning is another block"


def test_the_last_token_is_always_computed() -> None:
    cache = BlockCache(10, BLOCK)
    served(cache, 0, [1, 2], tokens=8)
    assert served(cache, 1, [1, 2], tokens=8) == 1, "a prompt of whole blocks computes its last one"
    assert served(cache, 2, [1, 2], tokens=9) == 2


def test_the_longest_unused_goes_first_and_a_prefix_after_what_follows_it() -> None:
    cache = BlockCache(6, BLOCK)
    served(cache, 0, [1, 2])
    served(cache, 1, [5, 6])
    served(cache, 2, [8, 9])  # has taken two of the first one's three: the one without content, and its last
    assert cache.found([1, 2], prompt_tokens=9) == 1
    assert cache.found([5, 6], prompt_tokens=9) == 2


def test_blocks_in_use_are_not_taken() -> None:
    cache = BlockCache(4, BLOCK)
    assert cache.admit(0, [1, 2], prompt_tokens=9) == 0
    assert cache.admit(1, [5, 6], prompt_tokens=9) is None
    assert cache.admit(2, [1], prompt_tokens=5) == 1, "shared with the one that runs"
    cache.finish(0, output_tokens=1)
    cache.finish(2, output_tokens=1)
    assert cache.admit(1, [5, 6], prompt_tokens=9) == 0


def test_an_answer_can_be_found_too_but_for_its_last_token() -> None:
    cache = BlockCache(10, BLOCK)
    cache.admit(0, [1], prompt_tokens=6)
    cache.finish(0, output_tokens=3, keys=[2])  # 6 + 2 computed: two whole blocks
    assert cache.found([1, 2], prompt_tokens=9) == 2
    other = BlockCache(10, BLOCK)
    other.admit(0, [1], prompt_tokens=6)
    other.finish(0, output_tokens=2)
    assert other.found([1, 2], prompt_tokens=9) == 1


def test_a_tier_keeps_what_was_used_last() -> None:
    tier = OffloadTier(3)
    tier.store([1, 2])
    tier.store([5, 6])
    assert tier.found([1, 2]) == 1, "the end of the older prompt went"
    assert tier.found([5, 6, 7]) == 2
    endless = OffloadTier(None)
    endless.store(list(range(1000)))
    assert endless.found(list(range(1000))) == 1000
