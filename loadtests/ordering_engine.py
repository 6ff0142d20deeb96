"""Visits to a real vLLM: an arm asks a whole trace, one question after another, with a prefix cache of its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import httpx

from loadtests.arms import RunningArm
from loadtests.closed_loop import Answer, LoadError, ask_all, request_body
from loadtests.ordering_orders import Order
from loadtests.ordering_prompts import ANSWER_TOKENS, Arranged, Prompts
from loadtests.ordering_trace import Ranked
from loadtests.prompt_cache import PromptCache
from rag_stack.rag.cache_mirror import CacheShape
from rag_stack.rag.ordering import DocumentOrder, Ordering, Served

# What decides an order: somebody who decided it all before, or our own, which learns as it goes.
Orders: TypeAlias = Sequence[Order] | DocumentOrder
_CACHE_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a visit. `predicted_tokens` are those that our own order expected to be cached."""

    arm: str
    round: int
    question: int
    answer: Answer
    simulated_tokens: int
    predicted_tokens: int

    def sample(self) -> dict[str, float | int | str]:
        """As a row of the report."""
        return {
            "round": self.round,
            "arm": self.arm,
            "question": self.question,
            "ttft_ms": round(self.answer.ttft_ms, 2),
            "prompt_tokens": self.answer.prompt_tokens,
            "cached_tokens": self.answer.cached_tokens,
            "simulated_tokens": self.simulated_tokens,
            "predicted_tokens": self.predicted_tokens,
        }


class Engine:
    """A running vLLM, beside which a simulated one is asked the same."""

    def __init__(self, running: RunningArm, *, model: str, shape: CacheShape) -> None:
        self.running, self.model, self.shape = running, model, shape
        self._simulated = PromptCache(shape)

    def visit(
        self, trace: Sequence[Ranked], orders: Orders, prompts: Prompts, *, arm: str, round_number: int
    ) -> list[Asked]:
        """Ask a trace. Raises LoadError."""
        asked = []
        for n, ranked in enumerate(trace):
            ordering: Ordering
            ordering = orders if isinstance(orders, DocumentOrder) else Arranged(orders[n], prompts.hits)
            asked.append(self.ask(ranked, n, ordering, prompts, arm=arm, round_number=round_number))
        return asked

    def ask(
        self, ranked: Ranked, question: int, ordering: Ordering, prompts: Prompts, *, arm: str, round_number: int
    ) -> Asked:
        """One question, whose order learns from the answer. Raises LoadError."""
        salt = f"{round_number}-{arm}"
        messages, plan = prompts.build(ranked, question, ordering)
        (answer,) = ask_all(
            self.running.url, [request_body(self.model, messages, max_tokens=ANSWER_TOKENS, salt=salt)], concurrency=1
        )
        ordering.observe(plan, Served(answer.prompt_tokens, answer.output_tokens, answer.cached_tokens))
        tokens = prompts.tokens(messages)
        if len(tokens) != answer.prompt_tokens:
            raise LoadError(f"expected a prompt of {len(tokens)} tokens, the engine counted {answer.prompt_tokens}")
        # Nobody's answer is shared: which tokens it has is all the same.
        simulated = self._simulated.serve(tokens, answer=[-1 - question] * answer.output_tokens, salt=salt)
        return Asked(arm, round_number, question, answer, simulated, plan.predicted_tokens)


def cache_shape(url: str) -> CacheShape:
    """The prefix cache that a bare vLLM says it has. Raises LoadError."""
    text = httpx.get(f"{url}/metrics", timeout=30.0).text
    found = _CACHE_INFO.search(text)
    labels: Mapping[str, Any] = dict(re.findall(r'(\w+)="([^"]*)"', found.group(1))) if found else {}
    try:
        return CacheShape(int(labels["block_size"]), int(labels["num_gpu_blocks"]))
    except (KeyError, ValueError) as exc:
        raise LoadError(f"expected vllm:cache_config_info with block_size and num_gpu_blocks, got {labels}") from exc
