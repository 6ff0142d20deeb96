"""The request path on one page: question -> retrieve -> prompt -> (the engine) -> cite."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from rag_stack.config import RetrievalConfig
from rag_stack.metrics import CITATIONS, PROMPT_TOKENS, RETRIEVAL_MS, Recorder
from rag_stack.protocol import Filter, RankingOptions
from rag_stack.rag.citations import Citer
from rag_stack.rag.ordering import Plan, Served
from rag_stack.rag.prefill import Prefill
from rag_stack.rag.prompt import GroundedPrompt, Message, PromptBuilder
from rag_stack.retrieval.retriever import Retriever
from rag_stack.tracing.tracer import UNTRACED, Tracer
from rag_stack.types import Citation, Hit, Source, Timings


@dataclass(frozen=True, slots=True)
class Question:
    """What a request asks of the pipeline: `stores` to search for `query`, or `hits` that are given, or neither."""

    messages: tuple[Message, ...]
    query: str
    stores: tuple[str, ...] = ()
    hits: tuple[Hit, ...] = ()
    top_k: int | None = None
    filters: Filter | None = None
    ranking: RankingOptions | None = None
    max_tokens: int | None = None
    tools: str = ""
    # What else of a request its prompt begins with: requests that differ in it share no prefix.
    beside: str = ""
    # Its prefix is shared with some callers only, so the others' questions may not show in its documents' order.
    is_private: bool = False


@dataclass(frozen=True, slots=True)
class Grounding:
    """What the engine is asked, and what the answer can be checked against."""

    messages: tuple[Message, ...]
    sources: tuple[Source, ...] = ()
    index_versions: Mapping[str, str] = field(default_factory=dict)
    timings: Timings = field(default_factory=Timings)
    plan: Plan | None = None


class Pipeline:
    """Grounds questions before the engine and cites answers after it."""

    def __init__(
        self,
        retriever: Retriever,
        *,
        prompt: PromptBuilder,
        citer: Citer,
        retrieval: RetrievalConfig,
        recorder: Recorder,
        tracer: Tracer = UNTRACED,
    ) -> None:
        self._retriever = retriever
        self._prompt = prompt
        self._citer = citer
        self._defaults = retrieval
        self._recorder = recorder
        self._tracer = tracer

    async def ground(self, question: Question, *, prefill: Prefill | None = None) -> Grounding:
        """Retrieve and build the prompt. Raises NotFoundError, OverloadedError or ContextLengthError.

        `prefill` reads ahead the prompt of the documents that a rerank is about to order.
        """
        hits: Sequence[Hit] = question.hits
        # The one way to a prompt, so that a provisional one begins as the final one does.
        build = partial(
            self._prompt.build,
            question.messages,
            max_tokens=question.max_tokens,
            tools=question.tools,
            beside=question.beside,
            # A caller's own documents keep the numbers that the caller knows them by.
            as_given=bool(question.hits),
            is_private=question.is_private,
        )
        timings = Timings()
        index_versions: Mapping[str, str] = {}
        if question.stores:
            threshold = question.ranking.score_threshold if question.ranking else None
            found = await self._retriever.retrieve(
                question.query,
                stores=question.stores,
                top_k=question.top_k or self._defaults.top_k,
                filters=question.filters,
                score_threshold=self._defaults.score_threshold if threshold is None else threshold,
                ranking=self._retriever.ranking.asked(question.ranking),
                on_provisional=prefill.provisional(partial(build, is_provisional=True), self._going)
                if prefill
                else None,
            )
            hits, timings, index_versions = found.hits, found.timings, found.index_versions
        elif not hits:
            return Grounding(messages=question.messages)
        began_s, started = time.time(), time.perf_counter()
        if self._prompt.is_quick(question.messages, hits, max_tokens=question.max_tokens, tools=question.tools):
            prompt = build(hits)
        else:  # a long prompt takes its tokenizer many milliseconds: off the event loop, as below
            prompt = await asyncio.to_thread(build, hits)
        if prefill:
            prefill.settle(prompt)
        prompt_ms = (time.perf_counter() - started) * 1e3
        self._recorder.record(RETRIEVAL_MS, prompt_ms, {"stage": "prompt"})
        self._tracer.add("prompt", began_s, began_s + prompt_ms / 1e3)
        return Grounding(
            messages=prompt.messages,
            sources=prompt.sources,
            index_versions=index_versions,
            timings=replace(timings, prompt_ms=prompt_ms),
            plan=prompt.plan,
        )

    def _going(self, provisional: GroundedPrompt) -> None:
        """The engine reads it now: its cache will hold it, but nobody has asked for its documents once more."""
        self._prompt.ordering.commit(provisional.plan, ahead=True)

    def served(self, grounding: Grounding, served: Served, *, reads_cache: bool = True) -> None:
        """What the engine told of an answer: how many tokens its prompt took, and how many of them it had.

        Where it did not look (`reads_cache`), that it used none says nothing of what it has.
        """
        plan = grounding.plan
        self._prompt.ordering.observe(plan, served if reads_cache else replace(served, cached_tokens=None))
        self._recorder.record(PROMPT_TOKENS, served.prompt_tokens, {"part": "all"})
        if served.cached_tokens is not None:
            self._recorder.record(PROMPT_TOKENS, served.cached_tokens, {"part": "cached"})
        if plan is not None and reads_cache:
            self._recorder.record(PROMPT_TOKENS, plan.predicted_tokens, {"part": "predicted"})

    async def cite(self, answer: str, grounding: Grounding) -> tuple[Citation, ...]:
        """The stretches of `answer` that the grounding's sources support."""
        if not grounding.sources or not answer:
            return ()
        # Milliseconds of pure CPU: off the event loop, so that other streams keep their pace.
        began_s = time.time()
        citations = await asyncio.to_thread(self._citer.cite, answer, grounding.sources)
        self._tracer.add("cite", began_s, time.time())
        for citation in citations:
            self._recorder.record(CITATIONS, 1, {"method": citation.method})
        return citations
