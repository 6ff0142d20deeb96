"""The simulated cache against vLLM's own, on random traffic: each request finds the same blocks."""

import random
from typing import Any

import pytest

from rag_stack.releases.kv_cache import BlockCache
from rag_stack.releases.kv_trace import KvChains

BLOCK = 16


class Vllm:
    """VLLM's KVCacheManager, driven as its scheduler does: a lookup, slots for the prompt, slots token by token."""

    def __init__(self, blocks: int) -> None:
        import torch
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

        init_none_hash(sha256)
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        # One more than may be used: vLLM keeps block 0 for itself.
        config = KVCacheConfig(blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
        self._manager = KVCacheManager(
            config, max_model_len=8192, scheduler_block_size=BLOCK, hash_block_size=BLOCK, enable_caching=True
        )
        self._hasher = get_request_block_hasher(BLOCK, sha256)
        self._running: dict[int, Any] = {}

    def admit(self, number: int, tokens: list[int]) -> int | None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        request = Request(str(number), tokens, SamplingParams(max_tokens=99), None, block_hasher=self._hasher)
        blocks, found, _ = self._manager.get_computed_blocks(request)
        if self._manager.allocate_slots(request, len(tokens) - found, found, blocks) is None:
            return None
        request.num_computed_tokens = len(tokens)
        self._running[number] = request
        return found // BLOCK

    def generate(self, number: int, token: int, *, last: bool) -> None:
        """One more token; the last one is not computed."""
        request = self._running[number]
        request.append_output_token_ids(token)
        if not last:
            assert self._manager.allocate_slots(request, 1) is not None
            request.num_computed_tokens += 1

    def finish(self, number: int) -> None:
        self._manager.free(self._running.pop(number))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("blocks", [40, 120, 400])
def test_one_after_the_other(seed: int, blocks: int) -> None:
    assert _compare(seed, blocks, at_once=1) > 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("blocks", [90, 160])
def test_several_at_once(seed: int, blocks: int) -> None:
    assert _compare(seed, blocks, at_once=3) > 0


def _compare(seed: int, blocks: int, *, at_once: int) -> int:
    """Drive both by the same questions about documents, with follow-ups that repeat answers; the blocks found."""
    rng = random.Random(seed)
    documents = [[rng.randrange(1000) for _ in range(rng.randrange(20, 120))] for _ in range(12)]
    theirs, ours, chains = Vllm(blocks), BlockCache(blocks, BLOCK), KvChains(BLOCK)
    histories: list[list[int]] = []
    running: list[tuple[int, list[int], list[int]]] = []
    total = 0

    def end() -> None:
        number, prompt, answer = running.pop(0)
        for n, token in enumerate(answer):
            theirs.generate(number, token, last=n == len(answer) - 1)
        theirs.finish(number)
        whole = chains.keys(_segments([*prompt, *answer[:-1]]))
        ours.finish(number, output_tokens=len(answer), keys=whole[len(prompt) // BLOCK :])
        histories.append([*prompt, *answer])

    for number in range(120):
        prompt = _prompt(rng, documents, histories)
        keys = chains.keys(_segments(prompt))
        while (found := theirs.admit(number, prompt)) is None:
            assert ours.admit(number, keys, prompt_tokens=len(prompt)) is None
            end()
        assert ours.admit(number, keys, prompt_tokens=len(prompt)) == found, f"request {number} of seed {seed}"
        total += found
        running.append((number, prompt, [rng.randrange(1000) for _ in range(rng.randrange(1, 40))]))
        while len(running) >= at_once:
            end()
    return total


def _prompt(rng: random.Random, documents: list[list[int]], histories: list[list[int]]) -> list[int]:
    if histories and rng.random() < 0.3:
        before = rng.choice(histories[-5:])
        if len(before) < 400:
            return [*before, *(rng.randrange(1000) for _ in range(rng.randrange(0, 30)))]
    chosen = [documents[min(int(rng.paretovariate(1.0)) - 1, 11)] for _ in range(rng.randrange(1, 4))]
    return [*range(20), *(token for document in chosen for token in document), *range(rng.randrange(0, 20))]


def _segments(tokens: list[int]) -> list[tuple[str | int, int]]:
    return [(token, 1) for token in tokens]
