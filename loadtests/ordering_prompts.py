"""A trace's prompts: real passages of the demo's index in our own prompt, under the model's chat template."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from loadtests.ordering_orders import Order
from loadtests.ordering_trace import Ranked
from loadtests.prompt_cache import PromptCache
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import MemoryRecorder
from rag_stack.rag.ordering import Ordering, Plan, Surroundings
from rag_stack.rag.prompt import Message, PromptBuilder, render_documents
from rag_stack.types import Hit, Passage, Source

PASSAGE_TOKENS = 230
CONTEXT_TOKENS = 8192
# Of a prompt beside its documents, as the synthetic prompts of a simulation have it: about what the real ones have.
BEFORE_TOKENS, AFTER_TOKENS, ANSWER_TOKENS = 55, 30, 8

Tokens: TypeAlias = Callable[[Sequence[Message]], list[int]]


class Arranged:
    """An order that was decided elsewhere: hits are put as `order` numbers them."""

    def __init__(self, order: Order, hits: Mapping[int, Hit]) -> None:
        self._hits = tuple(hits[n] for n in order)

    def plan(self, hits: Sequence[Hit], around: Surroundings) -> Plan:
        """As it was decided, for these hits or fewer of them."""
        kept = {id(hit) for hit in hits}
        return Plan(tuple(hit for hit in self._hits if id(hit) in kept), around)

    def commit(self, plan: Plan) -> None:
        """Nothing to remember."""

    def observe(self, plan: Plan | None, served: object) -> None:
        """Nothing to learn."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Makes the prompts of one release's model."""

    hits: Mapping[int, Hit]
    sizes: Mapping[int, int]
    system: str
    tokens: Tokens

    def build(self, ranked: Ranked, question: int, ordering: Ordering) -> tuple[list[dict[str, Any]], Plan]:
        """The messages of a question, and the order that it got."""
        builder = PromptBuilder(
            system=self.system, context_tokens=CONTEXT_TOKENS, reserve_tokens=64, tokenizer=self, ordering=ordering
        )
        hits = [self.hits[n] for n in ranked]
        asked = f"Question {question}: what is said of {hits[0].passage.title}?"
        prompt = builder.build([{"role": "user", "content": asked}], hits, max_tokens=64)
        return [dict(message) for message in prompt.messages], prompt.plan

    def count(self, messages: Sequence[Message]) -> int:
        """As PromptBuilder's tokenizer."""
        return len(self.tokens(messages))

    def count_text(self, text: str) -> int:
        """As PromptBuilder's tokenizer: as many as there are bytes, which is never too few."""
        return len(text.encode())


def tokenizer_of(directory: Path) -> Tokens:
    """A model's tokens of messages, with the marker that asks for the answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)

    def tokens(messages: Sequence[Message]) -> list[int]:
        chat = [dict(message) for message in messages]
        return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])

    return tokens


def open_prompts(release: Release, model_directory: Path, *, documents: int) -> Prompts:
    """With the passages of the release's first store that take about PASSAGE_TOKENS each."""
    tiers = open_tiers(release.artifacts, MemoryRecorder())
    local = tiers.ensure_local(tiers.catalog.resolve("indexes", release.stores[0].index))
    index = IndexVersion.open(local.path, local.manifest, embedder_digest=None)
    try:
        passages = [index.passages.get(row) for row in range(len(index.passages))]
    finally:
        index.close()
    tokens = tokenizer_of(model_directory)
    empty = len(tokens([{"role": "user", "content": ""}]))
    size = {passage.passage_id: _block_tokens(passage, tokens) - empty for passage in passages}
    nearest = sorted(passages, key=lambda passage: abs(size[passage.passage_id] - PASSAGE_TOKENS))[:documents]
    nearest.sort(key=lambda passage: passage.passage_id)
    return Prompts(
        hits={n: Hit(passage, 0.5) for n, passage in enumerate(nearest)},
        sizes={n: size[passage.passage_id] for n, passage in enumerate(nearest)},
        system=release.prompt.system,
        tokens=tokens,
    )


@dataclass(slots=True)
class Synthetic:
    """A simulated engine that is asked prompts made of numbers: as long as real ones, and shared as they would be."""

    cache: PromptCache
    sizes: Mapping[int, int]
    asked: int = 0

    def ask(self, order: Order) -> tuple[int, int]:
        """Tokens of the prompt with documents in this order, and how many of them were there."""
        self.asked += 1
        prompt = list(range(-BEFORE_TOKENS, 0))
        for document in order:
            prompt.extend(range(document * 4096, document * 4096 + self.sizes[document]))
        unique = 10**9 + self.asked * 1024
        prompt.extend(range(unique, unique + AFTER_TOKENS))
        answer = range(unique + 512, unique + 512 + ANSWER_TOKENS)
        return len(prompt), self.cache.serve(prompt, answer=answer)


def _block_tokens(passage: Passage, tokens: Tokens) -> int:
    text = render_documents([Source(1, Hit(passage, 0.5))])
    text = text.removeprefix("<documents>").removesuffix("</documents>")
    return len(tokens([{"role": "user", "content": text}]))
