"""How often an overlap citation is right: hand-labelled answers of a real model, split by question into dev and test.

loadtests/data/README.md says how the answers were made and labelled. Thresholds are chosen on dev; goals are of test.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from loadtests import report
from loadtests.report import Goal, Report, Value
from rag_stack.rag.citations import Citer
from rag_stack.types import Citation, Hit, Passage, Source

DATA = Path(__file__).parent / "data" / "citations.jsonl"
PASSAGES = DATA.with_name("citations_passages.jsonl")
ROUNDS = 7
SPLITS = ("dev", "test")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of an answer, `answer[start:end]`, and the numbers of the sources that state it."""

    start: int
    end: int
    supported_by: frozenset[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """A labelled answer; `related` is false where the passages cannot hold what was asked."""

    split: str
    related: bool
    text: str
    sources: tuple[Source, ...]
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """What was found on one split: `right` of `cited` citations, `found` of `supported` sentences."""

    answers: int
    sentences: int
    cited: int
    right: int
    supported: int
    found: int
    unrelated: int
    unrelated_cited: int

    @property
    def precision(self) -> float | None:
        """The share of citations that are right, or None where there is none."""
        return self.right / self.cited if self.cited else None

    @property
    def recall(self) -> float | None:
        """The share of supported sentences that got a right citation."""
        return self.found / self.supported if self.supported else None

    @property
    def false_on_unrelated(self) -> float | None:
        """The share of sentences of unrelated answers that got a citation."""
        return self.unrelated_cited / self.unrelated if self.unrelated else None


def load(path: Path, passages: Path = PASSAGES) -> list[Answer]:
    """Read the labelled answers; each names its passages by their lines in another file, from 0."""
    shared = _rows(passages)
    return [_answer(row, [shared[n] for n in row["passages"]]) for row in _rows(path)]


def measure(answers: Sequence[Answer], cited: Sequence[tuple[Citation, ...]]) -> Counts:
    """Hold the overlap citations of each answer against its labels."""
    sentences = [(a, s, c) for a, cs in zip(answers, cited, strict=True) for s in a.sentences for c in [_of(s, cs)]]
    right = [[c for c in cs if c.source in s.supported_by and _is_verbatim(c, a)] for a, s, cs in sentences]
    unrelated = [cs for a, _, cs in sentences if not a.related]
    return Counts(
        answers=len(answers),
        sentences=len(sentences),
        cited=sum(len(cs) for _, _, cs in sentences),
        right=sum(map(len, right)),
        supported=sum(bool(s.supported_by) for _, s, _ in sentences),
        found=sum(map(bool, right)),
        unrelated=len(unrelated),
        unrelated_cited=sum(map(bool, unrelated)),
    )


def main() -> int:
    """Measure, print, write, and return the exit code."""
    answers = load(DATA)
    citer = Citer()
    samples: list[dict[str, Value]] = []
    outcomes: dict[str, list[Counts]] = {split: [] for split in SPLITS}
    for number in range(ROUNDS):
        for split in SPLITS if number % 2 == 0 else reversed(SPLITS):
            part = [answer for answer in answers if answer.split == split]
            sample, counts = _round(citer, part)
            samples.append({"round": number, "arm": split, **sample})
            outcomes[split].append(counts)
    agree = all(len(set(counts)) == 1 for counts in outcomes.values())
    found = {split: outcomes[split][0] for split in SPLITS}
    result = _report(found, samples)
    _print(found, result)
    report.write(result, _figure(found))
    return report.exit_code(result, arms_agree=agree)


def _round(citer: Citer, answers: Sequence[Answer]) -> tuple[dict[str, Value], Counts]:
    """One pass over a split: medians over its answers of what one took, and what was found."""
    wall, cpu, cited = [], [], []
    for answer in answers:
        started, started_cpu = time.perf_counter(), time.process_time()
        cited.append(citer.cite(answer.text, answer.sources))
        cpu.append((time.process_time() - started_cpu) * 1e3)
        wall.append((time.perf_counter() - started) * 1e3)
    sample: dict[str, Value] = {
        "wall_ms": statistics.median(wall),
        "cpu_ms": statistics.median(cpu),
        "wall_ms_max": max(wall),
    }
    return sample, measure(answers, cited)


def _report(counts: dict[str, Counts], samples: list[dict[str, Value]]) -> Report:
    arms: dict[str, dict[str, Value | Sequence[float]]] = {}
    for split, found in counts.items():
        times = {key: report.column(samples, arm=split, key=key) for key in ("wall_ms", "cpu_ms", "wall_ms_max")}
        arms[split] = {
            "answers": found.answers,
            "sentences": found.sentences,
            "supported": found.supported,
            "citations": found.cited,
            "right": found.right,
            "precision": found.precision,
            "precision_95": report.wilson_interval(found.right, found.cited),
            "recall": found.recall,
            "recall_95": report.wilson_interval(found.found, found.supported),
            "unrelated_sentences": found.unrelated,
            "false_on_unrelated": found.false_on_unrelated,
            "false_on_unrelated_95": report.wilson_interval(found.unrelated_cited, found.unrelated),
            **{key: statistics.median(values) for key, values in times.items()},
        }
    test = counts["test"]
    goals = {
        "citations.precision": Goal(test.precision, ">= 0.9"),
        "citations.false_on_unrelated": Goal(test.false_on_unrelated, "<= 0.02"),
    }
    return Report(name="citations", machine=report.machine(), rounds=ROUNDS, samples=samples, arms=arms, goals=goals)


def _print(counts: dict[str, Counts], result: Report) -> None:
    table = Table("figure", title="Overlap citations, held against hand labels (95 % Wilson intervals)")
    for split in counts:
        table.add_column(split, justify="right", no_wrap=True)
    arms = [result.arms[split] for split in counts]
    table.add_row("answers / sentences", *(f"{found.answers} / {found.sentences}" for found in counts.values()))
    table.add_row("precision of citations", *(_share(c.right, c.cited) for c in counts.values()))
    table.add_row("recall of supported sentences", *(_share(c.found, c.supported) for c in counts.values()))
    table.add_row("unrelated, cited all the same", *(_share(c.unrelated_cited, c.unrelated) for c in counts.values()))
    table.add_row("wall ms an answer, median", *(f"{arm['wall_ms']:.2f}" for arm in arms))
    table.add_row("wall ms an answer, slowest", *(f"{arm['wall_ms_max']:.2f}" for arm in arms))
    table.add_row("CPU ms an answer, median", *(f"{arm['cpu_ms']:.2f}" for arm in arms))
    console = Console()
    console.print(table)
    for line in report.goal_lines(result):
        console.print(line, highlight=False)


def _figure(counts: dict[str, Counts]) -> Figure:
    """Three shares a split, with their intervals."""
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for offset, (split, found) in zip((-0.17, 0.17), counts.items(), strict=True):
        shares = ((found.right, found.cited), (found.found, found.supported), (found.unrelated_cited, found.unrelated))
        values = [successes / trials if trials else 0.0 for successes, trials in shares]
        bounds = [report.wilson_interval(*share) for share in shares]
        below = [max(0.0, value - low) for value, (low, _) in zip(values, bounds, strict=True)]
        above = [max(0.0, high - value) for value, (_, high) in zip(values, bounds, strict=True)]
        places = [place + offset for place in range(3)]
        axes.bar(
            places, values, width=0.3, yerr=(below, above), capsize=4, label=f"{split} ({found.sentences} sentences)"
        )
        for place, (successes, trials), (_, high) in zip(places, shares, bounds, strict=True):
            note = axes.annotate(
                f"{successes}/{trials}", (place, high), (0, 4), textcoords="offset points", ha="center"
            )
            note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})  # the goal's line may cross it
    axes.hlines(0.9, -0.4, 0.4, colors="black", linestyles="dashed", label="goal (of test)")
    axes.hlines(0.02, 1.6, 2.4, colors="black", linestyles="dashed")
    names = ["precision\n(citations)", "recall\n(supported sentences)", "unrelated, cited all the same\n(sentences)"]
    axes.set_xticks(range(3), names)
    axes.set_ylim(0, 1.12)
    axes.set_ylabel("share, with 95 % Wilson interval")
    axes.set_title("Overlap citations held against hand labels")
    axes.legend(loc="upper right")
    return figure


def _share(successes: int, trials: int) -> str:
    if not trials:
        return "none"
    low, high = report.wilson_interval(successes, trials)
    return f"{successes / trials:.2f} = {successes}/{trials} ({low:.2f}-{high:.2f})"


def _of(sentence: Sentence, citations: Sequence[Citation]) -> list[Citation]:
    """The overlap citations of a sentence: those whose stretch of the answer touches it."""
    return [
        citation
        for citation in citations
        if citation.method == "overlap"
        and citation.answer_start < sentence.end
        and sentence.start < citation.answer_end
    ]


def _is_verbatim(citation: Citation, answer: Answer) -> bool:
    passage = next(source.hit.passage for source in answer.sources if source.number == citation.source)
    start, end = citation.quote_start - passage.start, citation.quote_end - passage.start
    return 0 <= start < end <= len(passage.text) and passage.text[start:end] == citation.quote


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _answer(row: Mapping[str, Any], passages: Sequence[Mapping[str, str]]) -> Answer:
    sources = []
    for number, passage in enumerate(passages, 1):
        text, title = passage["text"], passage["title"]
        found = Passage(
            passage_id=str(number), document_id=title, text=text, title=title, uri="", start=1000, end=1000 + len(text)
        )
        sources.append(Source(number=number, hit=Hit(passage=found, score=1.0)))
    sentences = [Sentence(s["start"], s["end"], frozenset(s["supported_by"])) for s in row["sentences"]]
    return Answer(row["split"], row["related"], row["answer"], tuple(sources), tuple(sentences))


if __name__ == "__main__":
    sys.exit(main())
