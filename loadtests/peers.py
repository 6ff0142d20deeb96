"""Ours beside Haystack with Hayhooks and LlamaIndex: what each adds to an answer of the same engine.

`python -m loadtests.peers` asks all of them the same questions about the same documents, over HTTP, for streams. The
engine is scripted: it answers at once, in 64 chunks, so that what is measured is what stands around it.

What is the same for all: the documents (SciFact's abstracts where they are at hand, each one document), their vectors,
the embedder's weights and its one thread, FAISS, exact search of the vectors, `top_k`, the engine, no access log, no
telemetry. Each peer runs in an environment of its own, as its own guides set it up: Haystack's text embedder, FAISS
retriever, prompt builder and chat generator behind `hayhooks run`; LlamaIndex's query engine behind a FastAPI app that
adds nothing. Both once with their blocking and once with their asynchronous interface, and the better one counts. Ours
is a replica's layer, with keys, admission, metrics and citations on.

Ours searches by vectors and words, as a release does by default, and its nDCG is that recipe's; peers search by
vectors, as their guides have it. Its query cache is off: peers embed and search each question anew, and all are asked
the same questions more than once. What it remembers of passages, to cite them, stays on.

What is taken out: the CPU time of the threads that embed, as each process meters it while it answers, and the engine.
So how each embeds is not compared here (see `loadtests.embedding`): ours in ONNX Runtime, by the graph that `rag-stack
model import` makes, peers with sentence-transformers on torch, from the weights beside that graph. The peers' engine is
another process, and is not counted; ours is in the serving process, as a replica has vLLM's front end, and is asked
there by itself after each visit, without HTTP: what it took is `engine_cpu_ms`, some 1 ms. What sending the 64 chunks
to the client takes is in every figure. CPU time is that of all processes of a system. All systems run at once, one is
asked at a time, and they change places every round.

SciFact is looked for in ../shared/data; without it, Python's documentation is asked about, and nDCG is not measured.

Exit code 0: goals met; 1: one is missed; 2: the systems did not do the same work; 3: one did not start.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
from rich.console import Console

from loadtests import peers_plot, report
from loadtests.closed_loop import LoadError, in_turn
from loadtests.peer_environment import PeerError
from loadtests.peers_arms import ARMS, Arm, ArmName, ArmStarter
from loadtests.peers_data import REPOSITORY, SCIFACT, Corpus, documents_in, openings_of, prepare
from loadtests.peers_figures import CUT, Sources, Visit, agree, build_report
from loadtests.streamed import Streamed
from rag_stack.errors import RagStackError

_TIMEOUT = httpx.Timeout(120.0)
_THREADS = 1  # the meter of the embedding sees one thread a call
_WARM_UP = 4
_SETTLE_S = 0.3  # what a system still does when its answer is out belongs to the answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    if options.quick:
        options.rounds, options.questions = 1, min(options.questions, 16)
    os.environ["OMP_NUM_THREADS"] = str(_THREADS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the systems that it started end with it
    visits: list[Visit] = []
    sources: list[Sources] = []
    try:
        prepared = prepare(
            options.folder, scifact=options.scifact, top_k=options.top_k, threads=_THREADS, tell=console.log
        )
        corpus = prepared.corpus
        if not corpus.relevant:
            console.log("SciFact is not at hand: nDCG is not measured")
        start = ArmStarter(prepared, options.top_k, options.chunks, _THREADS)
        with contextlib.ExitStack() as running:
            engine = running.enter_context(start("engine"))
            arms = [engine, *(running.enter_context(start(name, engine_url=engine.url)) for name in options.arms)]
            for arm in arms:
                _warm_up(arm, corpus)
                if arm is not engine:
                    sources.append(_sources(arm, corpus, options))
                    console.log(f"{arm.name} is ready")
            for number in range(options.rounds):
                visits += _round(arms, corpus, options, number=number, tell=console.log)
                report.write(
                    build_report(visits, sources, corpus.relevant), peers_plot.draw(visits), directory=options.results
                )
    except (LoadError, PeerError, RagStackError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result, problems = build_report(visits, sources, corpus.relevant), agree(visits, sources, top_k=options.top_k)
    for arm, summary in result.arms.items():
        Console().print(f"{arm}: {_told(summary)}", highlight=False, markup=False, soft_wrap=True)
    for line in report.goal_lines(result):
        Console().print(line, highlight=False)
    for problem in problems:
        console.print(problem, style="red", markup=False)
    return report.exit_code(result, arms_agree=not problems)


def _round(
    arms: Sequence[Arm],
    corpus: Corpus,
    options: argparse.Namespace,
    *,
    number: int,
    tell: Callable[[str], None],
) -> list[Visit]:
    """Every arm at every concurrency, one after another, in an order that changes."""
    shift = number % len(arms)
    texts = list(corpus.questions.values())
    # Other questions each round, the same ones for all arms.
    first = number * options.questions % len(texts)
    asked = (texts + texts)[first : first + options.questions]
    visits = []
    for concurrency in options.concurrency:
        for arm in [*arms[shift:], *arms[:shift]]:
            visits.append(_visit(arm, asked, concurrency=concurrency, number=number, chunks=options.chunks))
            told = visits[-1]
            tell(
                f"round {number + 1}, {concurrency} at once: {arm.name} {told.orchestration_ms:.1f} ms of CPU an "
                f"answer, embedding {told.embedding_cpu_s * 1e3 / told.answers:.1f}"
            )
    return visits


def _visit(arm: Arm, questions: Sequence[str], *, concurrency: int, number: int, chunks: int) -> Visit:
    embedded_s, cpu_s, began_s = arm.embedding()[0], arm.tree.cpu_seconds(), time.perf_counter()
    answers = asyncio.run(_answers(arm, questions, concurrency=concurrency))
    seconds = time.perf_counter() - began_s
    time.sleep(_SETTLE_S)
    cpu_s = arm.tree.cpu_seconds() - cpu_s
    return Visit(
        round=number,
        arm=arm.name,
        concurrency=concurrency,
        answers=len(answers),
        whole=sum(not each.problem and len(each.text_ms) == chunks for each in answers),
        cpu_s=cpu_s,
        embedding_cpu_s=arm.embedding()[0] - embedded_s,
        seconds=seconds,
        latencies_ms=tuple(each.total_ms for each in answers),
        ttft_ms=tuple(each.ttft_ms or each.total_ms for each in answers),
        engine_cpu_s=arm.engine_ms() * len(answers) / 1e3,
    )


async def _answers(arm: Arm, questions: Sequence[str], *, concurrency: int) -> list[Streamed]:
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(base_url=arm.url, timeout=_TIMEOUT, limits=limits) as client:

        async def answered(question: int) -> Streamed:
            return await arm.ask(client, questions[question])

        return await in_turn(len(questions), answered, concurrency=concurrency)


def _warm_up(arm: Arm, corpus: Corpus) -> None:
    for each in asyncio.run(_answers(arm, list(corpus.questions.values())[:_WARM_UP], concurrency=2)):
        if each.problem:
            raise LoadError(f"{arm.name} did not answer: {each.problem}, status {each.status}: {each.detail}")


def _sources(arm: Arm, corpus: Corpus, options: argparse.Namespace) -> Sources:
    """What the arm finds, and what of it reaches the engine, one question at a time."""
    judged = [query for query in corpus.questions if query in corpus.relevant][: options.judged]
    found = arm.retrieved([corpus.questions[query] for query in judged], top_k=CUT)
    openings = openings_of(corpus.documents)
    sample = list(corpus.questions)[: options.sample]
    expected = arm.retrieved([corpus.questions[query] for query in sample], top_k=options.top_k)
    in_prompt = {}
    for query in sample:
        asyncio.run(_answers(arm, [corpus.questions[query]], concurrency=1))
        in_prompt[query] = documents_in(_text(arm.newest_prompt()), openings)
    return Sources(
        arm.name,
        dict(zip(judged, found, strict=True)),
        in_prompt,
        {query: frozenset(ids) & openings.keys() for query, ids in zip(sample, expected, strict=True)},
    )


def _text(prompt: str) -> str:
    return "\n".join(message["content"] for message in json.loads(prompt))


def _told(summary: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in summary.items() if isinstance(value, float))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., object] = parser.add_argument
    names: tuple[ArmName, ...] = ARMS
    add("--rounds", type=int, choices=range(1, 101), metavar="N", default=6, help="visits of each arm a concurrency")
    add("--questions", type=int, default=40, help="of one visit")
    add("--quick", action="store_true", help="one round of 16 questions")
    add("--concurrency", type=int, nargs="+", default=[1, 4])
    add("--arms", nargs="+", choices=names, default=list(names))
    add("--top-k", type=int, default=4, help="documents in a prompt")
    add("--chunks", type=int, default=64, help="of an answer")
    add("--judged", type=int, default=1_000_000, help="questions that nDCG is taken over; all of the test split")
    add("--sample", type=int, default=8, help="questions whose prompts are looked into")
    add("--scifact", type=Path, default=SCIFACT)
    add("--folder", type=Path, default=REPOSITORY / "var" / "loadtests" / "peers", help="what is prepared once")
    add("--results", type=Path, default=report.RESULTS, help="where peers.json and peers.png go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
