"""Retrieval quality: by vectors, by words, by both, and reranked, on SciFact and on Python's own documentation.

`python -m loadtests.quality` builds both indexes as `rag-stack index build` does and asks a real Retriever, whose
default ranking is a release's default. What was embedded is kept under var/, so that only the first run takes minutes.
SciFact's train claims are asked with every setting that was considered, and the table says which is best; nothing is
chosen by the test claims, which are asked with the default as it is. CPU milliseconds are of whole searches, one after
another in one thread, without a cache. `--reranker NAME` adds an arm with a published reranker.

A threshold is tried too: claims about medicine are asked of Python's documentation, which should give them no source.

Exit code 0: goals met; 1: one is missed; 3: not measured, as without SciFact or the embedder.
"""

import argparse
import asyncio
import runpy
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtests import quality_plot, report
from loadtests.quality_data import (
    Relevant,
    held_out,
    scifact_documents,
    scifact_questions,
    scifact_relevant,
)
from loadtests.quality_figures import (
    DEFAULT,
    DENSE,
    LEXICAL,
    RERANKED,
    Ranked,
    build_report,
    mean,
    ndcg,
    recall,
    reciprocal_rank,
)
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import RetrievalConfig
from rag_stack.errors import RagStackError
from rag_stack.index.documents import Document, read_documents
from rag_stack.index.format import Chunking
from rag_stack.index.reader import IndexVersion
from rag_stack.index.spec import IndexSpec
from rag_stack.jobs.build import BuildSettings, build_version
from rag_stack.jobs.local_embedding import LocalEmbedding
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.fusion import Ranking
from rag_stack.retrieval.query_cache import QueryCache
from rag_stack.retrieval.reranker import CrossEncoder
from rag_stack.retrieval.retriever import Reranker, Retriever
from rag_stack.retrieval.shelf import Shelf
from rag_stack.types import Hit

ROOT: Final = Path(__file__).parents[1]
SCIFACT: Final = ROOT.parent / "shared" / "data" / "scifact"
PYTHON_DOCS: Final = ROOT / "indexes" / "python_docs.py"
EMBEDDER: Final = "all-minilm-l6-v2"
_CORPORA: Final = ("scifact", "python-docs")
_RELEASE: Final = Ranking.of(RetrievalConfig())
# Of cosines, and of the demo release.
_THRESHOLDS: Final = {DENSE: 0.3, DEFAULT: 0.2}
_DOCUMENT_TOP_K: Final = 4
# What was considered; the first of equals is taken.
_CONSIDERED: Final = {
    "dense": replace(_RELEASE, mode="dense"),
    "lexical": replace(_RELEASE, mode="lexical"),
    **{f"share {w}": replace(_RELEASE, fusion="share", text_weight=w) for w in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)},
    **{
        f"reciprocal_rank {w}": replace(_RELEASE, fusion="reciprocal_rank", text_weight=w)
        for w in (0.3, 0.4, 0.5, 0.6, 0.7)
    },
    "duplicates 0.8": replace(_RELEASE, duplicates=0.8),
    "candidates 50": replace(_RELEASE, candidates=50),
    "candidates 200": replace(_RELEASE, candidates=200),
}

Tell = Callable[[str], None]
Name = Callable[[Hit], str]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Questions by id, what is relevant to each, and by what name a hit counts."""

    name: str
    questions: Mapping[str, str]
    relevant: Relevant
    name_of: Name


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, ask, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        result = measure(options, tell=console.log)
    except (RagStackError, OSError, ImportError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    report.write(result, quality_plot.draw(result), directory=options.results)
    show(result)
    return report.exit_code(result)


def measure(options: argparse.Namespace, *, tell: Tell) -> report.Report:
    """All arms on both corpora. Raises OSError where SciFact is not there."""
    if not (options.data / "corpus.jsonl.gz").is_file():
        raise FileNotFoundError(f"SciFact in BEIR's layout is not at {options.data}; name its folder with --data")
    published = Tiers(Catalog(open_store(options.root)), NodeCache(options.work / "cache"), MemoryRecorder())
    local = published.ensure_local(published.catalog.resolve("models", EMBEDDER))
    embedder = Embedder.load(local.path, name=EMBEDDER, digest=local.manifest.digest, threads=1)
    reranker = load_reranker(published, options.reranker) if options.reranker else None
    own = Tiers(
        Catalog(open_store(f"file://{(options.work / 'root').absolute()}")),
        NodeCache(options.work / "cache"),
        MemoryRecorder(),
    )
    limit = 60 if options.quick else None
    tell("building the index of SciFact")
    scifact = _build(own, embedder, "scifact", scifact_documents(options.data), chunking=None, workers=options.workers)
    tell("building the index of Python's documentation")
    documents, known = held_out(python_documents(options.work / "python-docs"), count=limit or 400)
    python = _build(own, embedder, "python-docs", documents, chunking=Chunking(), workers=options.workers)
    shelf = Shelf()
    shelf.add("scifact", scifact)
    shelf.add("python-docs", python)
    claims = scifact_questions(options.data)
    corpora = [
        _scifact(options.data, "test", claims, limit),
        Corpus(
            "python-docs",
            {str(n): each.question for n, each in enumerate(known)},
            {str(n): _holding(python, each.document_id, each.place) for n, each in enumerate(known)},
            lambda hit: hit.passage.passage_id,
        ),
    ]
    with _retriever(embedder, shelf, cache=True) as remembering:
        train = _tried(remembering, _scifact(options.data, "train", claims, limit), tell)
        threshold = _threshold(remembering, corpora, tell)
    best = max(train, key=lambda name: train[name])
    tell(f"best on the train split: {best} ({train[best]:.4f}); the default is {_RELEASE}")
    ranked: list[Ranked] = []
    with _retriever(embedder, shelf, reranker=reranker) as retriever:
        for corpus in corpora:
            for arm, ranking in _arms(reranker).items():
                tell(f"{corpus.name}: {arm}")
                ranked += _asked(retriever, corpus, arm, ranking)
    facts: dict[str, report.Value] = {"embedder": EMBEDDER, "default": str(_RELEASE), "best_on_train": best}
    return build_report(ranked, corpus="scifact", train=train, threshold=threshold, facts=facts)


def load_reranker(tiers: Tiers, name: str) -> CrossEncoder:
    """A published reranker."""
    local = tiers.ensure_local(tiers.catalog.resolve("models", name))
    return CrossEncoder.load(local.path, name=name, digest=local.manifest.digest, threads=1)


def python_documents(folder: Path) -> list[Document]:
    """The documentation that comes with this Python, as the demo's index has it."""
    if not (folder / "documents.jsonl").is_file():
        runpy.run_path(str(PYTHON_DOCS), run_name="python_docs")["export"](folder)
    spec = {
        "name": "python-docs",
        "source": {"folder": folder, "include": ["*.txt"], "metadata": "documents.jsonl"},
        "embedder": {"name": EMBEDDER},
    }
    return list(read_documents(IndexSpec.model_validate(spec)).documents)


def _arms(reranker: Reranker | None) -> dict[str, Ranking]:
    arms = {
        DENSE: replace(_RELEASE, mode="dense", rerank=False),
        LEXICAL: replace(_RELEASE, mode="lexical", rerank=False),
        "reciprocal rank": replace(_RELEASE, fusion="reciprocal_rank", text_weight=0.5, rerank=False),
        DEFAULT: replace(_RELEASE, rerank=False),
    }
    return arms if reranker is None else {**arms, RERANKED: _RELEASE}


def _scifact(data: Path, split: str, claims: Mapping[str, str], limit: int | None) -> Corpus:
    relevant = scifact_relevant(data, split)
    ids = sorted(relevant)[:limit]
    return Corpus("scifact", {each: claims[each] for each in ids}, relevant, lambda hit: hit.passage.document_id)


def _build(
    tiers: Tiers,
    embedder: Embedder,
    name: str,
    documents: Iterable[Document],
    *,
    chunking: Chunking | None,
    workers: int,
) -> IndexVersion:
    settings = BuildSettings(chunking=chunking, on_error="fail", by="loadtests.quality")
    embedding = LocalEmbedding(embedder, workers=workers)
    manifest = build_version(documents, name=name, embedding=embedding, settings=settings, tiers=tiers).manifest
    return IndexVersion.open(tiers.ensure_local(manifest).path, manifest, embedder_digest=embedder.digest)


def _holding(index: IndexVersion, document_id: str, place: int) -> dict[str, int]:
    """The passages of a document that hold a character; passages overlap, so they may be two."""
    passages = index.passages.document(document_id)
    return {each.passage_id: 1 for each in passages if each.start <= place < each.end}


@contextmanager
def _retriever(
    embedder: Embedder, shelf: Shelf, *, cache: bool = False, reranker: Reranker | None = None
) -> Iterator[Retriever]:
    recorder = MemoryRecorder()
    kept = QueryCache(recorder, entries=5000) if cache else None
    retriever = Retriever(
        embedder, shelf, threads=1, queue=8, recorder=recorder, ranking=_RELEASE, reranker=reranker, cache=kept
    )
    try:
        yield retriever
    finally:
        retriever.close()


def _tried(retriever: Retriever, corpus: Corpus, tell: Tell) -> dict[str, float]:
    """Mean nDCG@10 of every setting that was considered."""
    found = {}
    for name, ranking in _CONSIDERED.items():
        hits = [_search(retriever, corpus, question, top_k=10, ranking=ranking) for question in corpus.questions]
        found[name] = mean(
            [
                ndcg([corpus.name_of(hit) for hit in own], corpus.relevant[question])
                for question, own in zip(corpus.questions, hits, strict=True)
            ]
        )
        tell(f"train: {name} {found[name]:.4f}")
    return found


def _asked(retriever: Retriever, corpus: Corpus, arm: str, ranking: Ranking) -> Iterator[Ranked]:
    """Every question twice: for its first 10, which are timed, and for its first 100."""
    for question, relevant in ((each, corpus.relevant[each]) for each in corpus.questions):
        began_s = time.process_time()
        first = [corpus.name_of(hit) for hit in _search(retriever, corpus, question, top_k=10, ranking=ranking)]
        cpu_ms = (time.process_time() - began_s) * 1e3
        # A reranker looks at its own few, and orders the rest no better.
        further = replace(ranking, rerank=False)
        hundred = [corpus.name_of(hit) for hit in _search(retriever, corpus, question, top_k=100, ranking=further)]
        yield Ranked(
            corpus=corpus.name,
            arm=arm,
            question=question,
            ndcg=ndcg(first, relevant),
            recall_10=recall(first, relevant, at=10),
            recall_100=recall(hundred, relevant, at=100),
            reciprocal=reciprocal_rank(first, relevant),
            cpu_ms=cpu_ms,
        )


def _threshold(retriever: Retriever, corpora: Sequence[Corpus], tell: Tell) -> dict[str, dict[str, report.Value]]:
    """With a threshold: who keeps a source, of those who ask about it and of those who do not."""
    scifact, python = corpora
    tell(f"thresholds of {_THRESHOLDS}")
    found: dict[str, dict[str, report.Value]] = {}
    for name, ranking in {DENSE: replace(_RELEASE, mode="dense"), DEFAULT: _RELEASE}.items():
        figures: dict[str, report.Value] = {}
        for what, questions in (("about_it", python), ("about_something_else", scifact)):
            kept = [
                bool(
                    _search(
                        retriever, python, text, top_k=_DOCUMENT_TOP_K, ranking=ranking, threshold=_THRESHOLDS[name]
                    )
                )
                for text in questions.questions.values()
            ]
            figures[f"{what}_with_sources"] = round(mean([float(each) for each in kept]), 4)
        found[name] = figures
    return found


def _search(
    retriever: Retriever, corpus: Corpus, question: str, *, top_k: int, ranking: Ranking, threshold: float = 0.0
) -> tuple[Hit, ...]:
    search = retriever.retrieve(
        corpus.questions.get(question, question),
        stores=[corpus.name],
        top_k=top_k,
        ranking=ranking,
        score_threshold=threshold,
    )
    return asyncio.run(_awaited(search))


async def _awaited(search: Any) -> tuple[Hit, ...]:  # noqa: ANN401 - a coroutine
    found = await search
    hits: tuple[Hit, ...] = found.hits
    return hits


def show(result: report.Report) -> None:
    """Print the table and the goals."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a file or a pipe has no width to keep to
    table = Table(title="means; CPU ms: median of a whole search")
    keys = ("questions", "ndcg_10", "recall_10", "recall_100", "mrr_10", "cpu_ms")
    table.add_column("arm", no_wrap=True)
    for key in keys:
        table.add_column(key, justify="right")
    for arm, figures in result.arms.items():
        if "ndcg_10" in figures:
            table.add_row(arm, *(str(figures.get(key, "")) for key in keys))
        else:
            console.print(f"{arm}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), highlight=False)
    console.print(table)
    gain = result.arms["gain"]
    console.print(f"gain of the default over vectors: {gain['ndcg_10']} (95 %: {gain['low']} to {gain['high']})")
    for line in report.goal_lines(result):
        console.print(line, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=SCIFACT, help="SciFact in BEIR's layout")
    parser.add_argument("--root", default="file://./var/artifacts", help="where the embedder is published")
    parser.add_argument("--work", type=Path, default=ROOT / "var" / "loadtests" / "quality", help="kept between runs")
    parser.add_argument("--reranker", help="the name of a published reranker")
    parser.add_argument("--workers", type=int, default=2, help="threads that embed")
    parser.add_argument("--quick", action="store_true", help="60 questions of each kind")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
