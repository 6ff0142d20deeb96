"""Time to first token by the order of documents on a real vLLM: score, reading, ours, ContextPilot's, an oracle's.

`python -m loadtests.ordering` starts the demo's model in a bare vLLM and asks a Zipf trace (see ordering_trace.py) in
every order: four passages of the demo's index of about 230 tokens each, one question at a time, greedy, and each visit
of an arm with a `cache_salt` of its own, which is as good as an empty cache. Arms take turns, and their order turns by
one a round. The first questions of a visit fill the cache and are not counted. All arms get the same prompt, our own,
with the line that tells the rank. Then:

* the oracle knows the whole trace (ordering_orders.py says how, and what it cannot promise);
* a trace that shares nothing is asked in our order and by score, in turn;
* SciFact's claims are answered with documents by rank and in another order (ordering_quality.py), where they are there;
* the simulated cache is compared with the engine's, and takes the orders through other exponents and block sizes;
* a choice's CPU time is measured with a full tree.

Exit code 0: goals met; 1: one is missed; 2: the arms were not asked the same; 3: not measured.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
from rich.console import Console

from loadtests import ordering_figures, report
from loadtests.arms import ArmStarter
from loadtests.closed_loop import LoadError
from loadtests.ordering_engine import Asked, Engine, Orders, cache_shape
from loadtests.ordering_figures import ARMS, Measured
from loadtests.ordering_orders import our_order, reading_order
from loadtests.ordering_prompts import Prompts, Synthetic, open_prompts
from loadtests.ordering_quality import SCIFACT, load_claims, supported
from loadtests.ordering_simulation import AROUND, best_order, microseconds, numbered_hits, peer_orders, sweep
from loadtests.ordering_trace import Ranked, TraceShape, unshared_trace, zipf_trace
from loadtests.peer_environment import PeerError
from loadtests.plain_app import model_directory
from loadtests.prompt_cache import PromptCache
from rag_stack.config import Release, load_release
from rag_stack.errors import RagStackError
from rag_stack.rag.cache_mirror import CacheShape
from rag_stack.rag.ordering import DocumentOrder, FixedOrder, Ordering

EXPONENTS = (0.6, 0.8, 1.0, 1.2, 1.4)
DOCUMENT_COUNTS = (4, 8, 20)
_UNSHARED_ROUND = 1000
Tell = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        measured = measure(options, tell=console.log)
    except (LoadError, PeerError, RagStackError, httpx.HTTPError, subprocess.CalledProcessError) as exc:
        console.print(f"not measured: {exc}", style="red", markup=False)
        return 3
    result = ordering_figures.build_report(measured)
    report.write(result, ordering_figures.draw(measured), directory=options.results)
    for line in (*ordering_figures.lines(measured, result), *report.goal_lines(result)):
        print(line)
    agree = same_questions(measured.asked)
    if not agree:
        print("the arms were not asked the same questions, so no figure counts")
    return report.exit_code(result, arms_agree=agree)


def measure(options: argparse.Namespace, *, tell: Tell) -> Measured:
    """All of it. Raises LoadError, PeerError or a RagStackError."""
    shape = TraceShape(questions=options.questions, documents=options.documents, exponent=options.exponent)
    if not 0 <= options.warm < options.questions:
        raise LoadError(f"--warm must be less than the {options.questions} questions, got {options.warm}")
    tell("choosing in a full tree")
    timed = {n: microseconds(n) for n in DOCUMENT_COUNTS}
    tell("simulating")
    caches = [CacheShape(128, 1 + 46_080 // 128), CacheShape(16, 1 + 46_080 // 16)]
    swept = sweep(shape, EXPONENTS, caches, seeds=options.seeds)
    traces = [zipf_trace(shape, seed=100 + n) for n in range(options.rounds)]
    peers = peer_orders(traces)
    release = with_cache(load_release(options.release), gib=options.kv_gib, cores=options.cores)
    directory = model_directory(release)
    prompts = open_prompts(release, directory, documents=max(shape.documents, 4 * options.unshared))
    start = ArmStarter(options.release, release, directory, logs=options.logs)
    asked: list[Asked] = []
    tell("starting vLLM")
    with start("bare") as running:
        engine = Engine(running, model=release.model.name, shape=cache_shape(running.url))
        tell(f"vLLM holds {engine.shape.blocks} blocks of {engine.shape.block_tokens} tokens")
        for n, trace in enumerate(traces):
            decided = decide(trace, peers[n][0], prompts, engine.shape, tries=options.tries)
            asked += run_round(engine, trace, decided, prompts, number=n, tell=tell)
        unshared = ask_unshared(engine, prompts, questions=options.unshared)
        claims = load_claims(options.scifact, claims=options.claims)
        tell(f"asking {len(claims)} claims of SciFact, twice")
        found = supported(claims, running, prompts, model=release.model.name) if claims else {}
    return Measured(
        rounds=options.rounds,
        warm=options.warm,
        asked=asked,
        unshared=unshared,
        microseconds=timed,
        peer_us=statistics.median(us for _, each in peers for us in each),
        sweep=swept,
        supported=found,
    )


def decide(
    trace: Sequence[Ranked], peer: Sequence[Ranked], prompts: Prompts, shape: CacheShape, *, tries: int
) -> Mapping[str, Orders]:
    """What each arm sends. Ours alone decides while it is asked; the oracle starts from what it would do, too."""
    simulated = Synthetic(PromptCache(shape), prompts.sizes)
    hits = numbered_hits(prompts.sizes)
    ours = our_order(trace, hits, DocumentOrder(shape), around=AROUND, ask=simulated.ask)
    known = [list(trace), reading_order(trace), list(peer), ours]
    return {
        "score": list(trace),
        "reading": reading_order(trace),
        "contextpilot": list(peer),
        "ours": DocumentOrder(shape),
        "oracle": best_order(trace, known, prompts.sizes, shape, tries=tries),
    }


def run_round(
    engine: Engine, trace: Sequence[Ranked], decided: Mapping[str, Orders], prompts: Prompts, *, number: int, tell: Tell
) -> list[Asked]:
    """One visit of every arm. Raises LoadError."""
    asked: list[Asked] = []
    turn = number % len(ARMS)
    for arm in (*ARMS[turn:], *ARMS[:turn]):
        visit = engine.visit(trace, decided[arm], prompts, arm=arm, round_number=number)
        tell(f"round {number + 1}: {arm}, median {statistics.median(each.answer.ttft_ms for each in visit):.0f} ms")
        asked += visit
    return asked


def ask_unshared(engine: Engine, prompts: Prompts, *, questions: int) -> list[Asked]:
    """Questions that share no document, by score and in our order, in turn."""
    asked = []
    ours = DocumentOrder(engine.shape)
    for n, ranked in enumerate(unshared_trace(TraceShape(questions=questions))):
        pair: list[tuple[str, Ordering]] = [("unshared score", FixedOrder("rank")), ("unshared ours", ours)]
        for arm, ordering in pair if n % 2 else reversed(pair):
            asked.append(engine.ask(ranked, n, ordering, prompts, arm=arm, round_number=_UNSHARED_ROUND))
    return asked


def same_questions(asked: Sequence[Asked]) -> bool:
    """Whether the arms' prompts have the same sizes: documents in another order make a line of rank more, or none."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for each in asked:
        sizes.setdefault((each.round, each.question), []).append(each.answer.prompt_tokens)
    return all(len(each) == len(ARMS) and max(each) - min(each) <= 40 for each in sizes.values())


def with_cache(release: Release, *, gib: int, cores: str = "") -> Release:
    """The release with so much room for keys and values, and with answers that tell what was cached."""
    cpu = {"VLLM_CPU_KVCACHE_SPACE": str(gib), **({"VLLM_CPU_OMP_THREADS_BIND": cores} if cores else {})}
    return release.model_copy(
        update={
            "engine": {**release.engine, "enable_prompt_tokens_details": True},
            "engine_env": {**release.engine_env, **cpu},
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.ordering", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--release", type=Path, default=Path("releases/demo.yaml"))
    add("--rounds", type=int, default=1)
    add("--questions", type=int, default=160, help="of a visit")
    add("--warm", type=int, default=60, help="so many of them come first and are not counted")
    add("--documents", type=int, default=100)
    add("--exponent", type=float, default=1.2)
    add("--unshared", type=int, default=16, help="questions that share nothing, four documents each")
    add("--claims", type=int, default=24, help="of SciFact")
    add("--scifact", type=Path, default=SCIFACT)
    add("--tries", type=int, default=1000, help="of the oracle to better an order")
    add("--seeds", type=int, default=2, help="traces simulated for each exponent; 0: none")
    add("--kv-gib", type=int, default=2)
    add("--cores", default="", help="of the engine, as 0-3; default: what vLLM chooses, which spares one")
    add("--logs", type=Path, default=Path("var/loadtests"))
    add("--results", type=Path, default=report.RESULTS)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
