"""Whether answers are worse when documents do not stand by rank: claims of SciFact, with four abstracts each.

The abstracts are those that BM25 finds first, of which one at least is a relevant one. In one arm they stand by rank,
in the other in an order that has nothing to do with it, as the order of a cache has not, and a line tells the rank. The
answers are greedy. Counted are those that have a citation of a relevant abstract, by our own citer.
"""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtests.arms import RunningArm
from loadtests.ordering_prompts import CONTEXT_TOKENS, Arranged, Prompts
from rag_stack.rag.citations import Citer
from rag_stack.rag.ordering import FixedOrder, Ordering
from rag_stack.rag.prompt import PromptBuilder
from rag_stack.types import Hit, Passage

SCIFACT = Path(__file__).parents[2] / "shared" / "data" / "scifact"
PER_CLAIM, ANSWER_TOKENS = 4, 48
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim, the abstracts found for it, best first, and which of them are relevant."""

    text: str
    hits: tuple[Hit, ...]
    relevant: frozenset[str]


def load_claims(folder: Path, *, claims: int) -> list[Claim]:
    """Test claims of which BM25 finds a relevant abstract among the first. [] where SciFact is not there."""
    corpus_file = folder / "corpus.jsonl.gz"
    if not corpus_file.is_file():
        return []
    import bm25s

    corpus = [json.loads(line) for line in gzip.decompress(corpus_file.read_bytes()).splitlines()]
    texts = {each["_id"]: each["text"] for each in _rows(folder / "queries.jsonl")}
    relevant: dict[str, set[str]] = defaultdict(set)
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        if int(score) > 0:
            relevant[query].add(document)
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([f"{each['title']} {each['text']}" for each in corpus], show_progress=False), show_progress=False
    )
    found = []
    for query in sorted(relevant, key=int):
        rows, _ = index.retrieve(bm25s.tokenize(texts[query], show_progress=False), k=PER_CLAIM, show_progress=False)
        hits = tuple(_hit(corpus[int(row)]) for row in rows[0])
        if any(hit.passage.document_id in relevant[query] for hit in hits):
            found.append(Claim(texts[query], hits, frozenset(relevant[query])))
    random.Random(0).shuffle(found)
    return found[:claims]


def supported(claims: Sequence[Claim], running: RunningArm, prompts: Prompts, *, model: str) -> dict[str, list[bool]]:
    """For each arm and claim, whether the answer cites a relevant abstract. Blocking."""
    told: dict[str, list[bool]] = {"rank": [], "unranked": []}
    draw = random.Random(1)
    citer = Citer()
    for claim in claims:
        numbers = list(range(len(claim.hits)))
        while numbers == sorted(numbers):
            draw.shuffle(numbers)
        orders: Mapping[str, Ordering] = {
            "rank": FixedOrder("rank"),
            "unranked": Arranged(tuple(numbers), dict(enumerate(claim.hits))),
        }
        for arm, ordering in orders.items():
            builder = PromptBuilder(prompts.system, CONTEXT_TOKENS, ANSWER_TOKENS, prompts, ordering=ordering)
            asked = [{"role": "user", "content": f"Is it true that: {claim.text}"}]
            prompt = builder.build(asked, claim.hits, max_tokens=ANSWER_TOKENS)
            answer = _answer(running.url, model, [dict(message) for message in prompt.messages])
            cited = {citation.source for citation in citer.cite(answer, prompt.sources)}
            sources = [source for source in prompt.sources if source.number in cited]
            told[arm].append(any(source.hit.passage.document_id in claim.relevant for source in sources))
    return told


def _answer(url: str, model: str, messages: Sequence[Mapping[str, object]]) -> str:
    body = {"model": model, "messages": list(messages), "temperature": 0, "max_tokens": ANSWER_TOKENS}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=_TIMEOUT_S)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["message"]["content"])


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _hit(row: Mapping[str, str]) -> Hit:
    text = row["text"]
    return Hit(Passage(row["_id"], row["_id"], text, row["title"], "", 0, len(text)), 0.5)
