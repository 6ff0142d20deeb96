"""Asks an OpenAI server the questions of loadtests/data/citations_questions.jsonl and writes answers to be labelled.

It retrieves and prompts as a release does; the answer is cut where it first repeats a sentence or is cut off. What it
writes has `supported_by: null` for every sentence: a reader fills that in, before the citer runs on it.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from openai import AsyncOpenAI

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import load_release
from rag_stack.generation.tokenizer import GeneratorTokenizer
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import MemoryRecorder
from rag_stack.rag.prompt import PromptBuilder
from rag_stack.rag.sentences import Span, mask_fences, split_sentences
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.retriever import Retriever
from rag_stack.retrieval.shelf import Shelf

MAX_TOKENS = 100
CONTEXT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Collector:
    """One release's retrieval and prompt, in front of somebody's OpenAI server."""

    client: AsyncOpenAI
    model: str
    retriever: Retriever
    store: str
    top_k: int
    prompt: PromptBuilder

    async def collect(self, question: Mapping[str, Any]) -> dict[str, Any] | None:
        """One row to label, or None where nothing is left of the answer."""
        found = await self.retriever.retrieve(question["question"], stores=[self.store], top_k=self.top_k)
        asked = [{"role": "user", "content": question["question"]}]
        prompt = self.prompt.build(asked, found.hits, max_tokens=MAX_TOKENS)
        messages: Any = [dict(message) for message in prompt.messages]  # the client's own type is a union of dicts
        completion = await self.client.chat.completions.create(
            model=self.model, messages=messages, temperature=0.0, max_tokens=MAX_TOKENS
        )
        choice = completion.choices[0]
        answer = choice.message.content or ""
        spans = kept_sentences(answer, truncated=choice.finish_reason == "length")
        if not spans:
            return None
        return {
            **question,
            "answer": answer[: spans[-1][1]],
            "passages": [{"text": s.hit.passage.text, "title": s.hit.passage.title} for s in prompt.sources],
            "sentences": [{"start": start, "end": end, "supported_by": None} for start, end in spans],
        }


def kept_sentences(answer: str, *, truncated: bool) -> list[Span]:
    """The sentences up to the first one that repeats an earlier one, without a last one that was cut off."""
    spans = list(split_sentences(mask_fences(answer)))
    if truncated and spans and spans[-1][1] == len(answer.rstrip()):
        spans.pop()
    seen: set[str] = set()
    for n, (start, end) in enumerate(spans):
        plain = " ".join(answer[start:end].lower().split())
        if plain in seen:
            return spans[:n]
        seen.add(plain)
    return spans


def open_collector(args: argparse.Namespace) -> Collector:
    """Open what the release names, as it is promoted now."""
    release = load_release(args.release)
    tiers = open_tiers(release.artifacts, MemoryRecorder())
    local = tiers.ensure_local(tiers.catalog.resolve("models", release.embedder.name))
    embedder = Embedder.load(local.path, name=release.embedder.name, digest=local.manifest.digest, threads=1)
    shelf = Shelf()
    for store in release.stores:
        index = tiers.ensure_local(tiers.catalog.resolve("indexes", store.index))
        shelf.add(store.name, IndexVersion.open(index.path, index.manifest, embedder_digest=embedder.digest))
    generator = tiers.ensure_local(tiers.catalog.resolve("models", release.model.name))
    tokenizer = GeneratorTokenizer(generator.path)
    prompt = PromptBuilder(
        system=release.prompt.system,
        context_tokens=CONTEXT_TOKENS,
        reserve_tokens=MAX_TOKENS,
        tokenizer=tokenizer,
        special_tokens=tokenizer.special_tokens,
    )
    retriever = Retriever(embedder, shelf, threads=1, queue=1000, recorder=MemoryRecorder())
    client = AsyncOpenAI(base_url=args.base_url, api_key="none", timeout=600.0)
    default = release.default_store or release.stores[0].name
    return Collector(client, args.model, retriever, default, release.retrieval.top_k, prompt)


async def collect_all(
    collector: Collector, questions: Sequence[Mapping[str, Any]], out: TextIO, *, concurrency: int
) -> int:
    """Ask all questions, `concurrency` at a time; a row is written as soon as it is there. How many were written."""
    slots = asyncio.Semaphore(concurrency)

    async def ask(question: Mapping[str, Any]) -> bool:
        async with slots:
            row = await collector.collect(question)
        if row is not None:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()
        return row is not None

    return sum(await asyncio.gather(*map(ask, questions)))


def main() -> int:
    """Collect, and say how many answers there are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("questions", type=Path, help="a line each: id, split, question, related")
    parser.add_argument("out", type=Path)
    parser.add_argument("--release", type=Path, default=Path("releases/demo.yaml"))
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="a server of the bare model, no RAG")
    parser.add_argument("--model", required=True, help="its name on that server")
    parser.add_argument("--concurrency", type=int, default=5)
    args = parser.parse_args()
    questions = [json.loads(line) for line in args.questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    with args.out.open("w", encoding="utf-8") as out:
        written = asyncio.run(collect_all(open_collector(args), questions, out, concurrency=args.concurrency))
    print(f"{written} of {len(questions)} answers in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
