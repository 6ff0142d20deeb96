"""The simulated prefix cache against vLLM's own cache manager, in this process and without a model."""

import random
from typing import Any

import pytest

from loadtests.ordering_prompts import Synthetic
from loadtests.ordering_simulation import numbered_hits
from loadtests.ordering_trace import TraceShape, zipf_trace
from loadtests.prompt_cache import PromptCache
from rag_stack.rag.cache_mirror import CacheShape
from rag_stack.rag.ordering import DocumentOrder, Served, Surroundings

MAX_TOKENS = 100_000


class VllmCache:
    """vLLM's scheduler's part of an answer: look up, take blocks for prompt and answer, give them back."""

    def __init__(self, *, blocks: int, block_tokens: int) -> None:
        import torch
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

        init_none_hash(sha256)
        spec = FullAttentionSpec(block_size=block_tokens, num_kv_heads=1, head_size=1, dtype=torch.float32)
        config = KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        self._manager = KVCacheManager(
            config, max_model_len=MAX_TOKENS, scheduler_block_size=block_tokens, hash_block_size=block_tokens
        )
        self._hasher = get_request_block_hasher(block_tokens, sha256)
        self._asked = 0

    def serve(self, prompt: list[int], answer: list[int], salt: str) -> int:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        self._asked += 1
        request: Any = Request(
            str(self._asked),
            prompt,
            SamplingParams(max_tokens=len(answer) or 1),
            None,
            cache_salt=salt or None,
            block_hasher=self._hasher,
        )
        blocks, cached, _ = self._manager.get_computed_blocks(request)
        assert self._manager.allocate_slots(request, len(prompt) - cached, cached, blocks) is not None
        request.num_computed_tokens = len(prompt)
        for n, token in enumerate(answer):
            request.append_output_token_ids(token)
            if n + 1 < len(answer):
                assert self._manager.allocate_slots(request, 1) is not None
                request.num_computed_tokens += 1
        self._manager.free(request)
        return int(cached)


@pytest.mark.parametrize(("blocks", "block_tokens"), [(40, 4), (25, 16), (12, 32)])
def test_random_prompts_find_the_same(blocks: int, block_tokens: int) -> None:
    draw = random.Random(blocks)
    ours, theirs = PromptCache(CacheShape(block_tokens, blocks)), VllmCache(blocks=blocks, block_tokens=block_tokens)
    room = (blocks - 1) * block_tokens
    found = 0
    for n in range(400):
        pieces = [[piece * 50 + j for j in range(20)] for piece in draw.choices(range(6), k=draw.randint(1, 6))]
        prompt = [token for piece in pieces for token in piece][: room - 20]
        answer = [10_000 + n] * draw.randint(1, 15)
        salt = draw.choice(["", "", "x"])
        cached = ours.serve(prompt, answer=answer, salt=salt)
        assert cached == theirs.serve(prompt, answer, salt), f"prompt {n}"
        found += cached
    assert found > 0


@pytest.mark.parametrize(("blocks", "block_tokens"), [(361, 128), (1000, 16)])
def test_our_order_predicts_what_vllm_has_under_eviction(blocks: int, block_tokens: int) -> None:
    theirs = VllmCache(blocks=blocks, block_tokens=block_tokens)

    class Both(PromptCache):
        def serve(self, prompt: Any, *, answer: Any = (), salt: str = "") -> int:
            cached = super().serve(prompt, answer=answer, salt=salt)
            assert theirs.serve(list(prompt), list(answer), salt) == cached
            return cached

    sizes = {n: 215 + n * 7 % 31 for n in range(300)}
    engine = Synthetic(Both(CacheShape(block_tokens, blocks)), sizes)
    hits = numbered_hits(sizes)
    number = {id(hit): n for n, hit in hits.items()}
    ordering = DocumentOrder(CacheShape(block_tokens, blocks))
    around = Surroundings(1, before_chars=220, after_chars=120)
    wrong = total = found = 0
    for ranked in zipf_trace(TraceShape(questions=250, documents=300, exponent=0.8), seed=5):
        plan = ordering.plan([hits[n] for n in ranked], around)
        ordering.commit(plan)
        tokens, cached = engine.ask(tuple(number[id(hit)] for hit in plan.hits))
        ordering.observe(plan, Served(tokens, 8, cached))
        wrong, total, found = wrong + abs(plan.predicted_tokens - cached), total + tokens, found + cached
    assert found > 0.15 * total
    assert wrong < 0.02 * total
