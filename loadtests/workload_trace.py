"""A workload as a file: who begins a conversation when, what each turn asks, and how long an answer it wants.

The same settings and seed give the same trace, and a trace gives the same requests against any server. One line of JSON
a session, after a first line that says what it was made from.
"""

import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from loadtests.closed_loop import LoadError

FORMAT: Final = 1
_TRIES: Final = 50
_PHRASE_WORDS: Final = (3, 7)
_ASKS: Final = (
    "What does the text about {title} say about {phrase}?",
    "How does {title} deal with {phrase}?",
    "In {title}, what is meant by {phrase}?",
    "Explain {phrase} as {title} has it.",
)
_FILLER: Final = "Answer for somebody who reads it for the first time and say where each statement comes from"


@dataclass(frozen=True, slots=True)
class Topic:
    """A document that is asked about."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a workload is like. Lengths are medians of log-normal distributions with the spread sigma; 0 is fixed.

    `rate` is sessions a second (Poisson) of an open loop. `zipf` is the exponent of the documents' popularity, 0 for
    none. `repeats` is the share of questions that somebody has asked before; all others are asked once.
    """

    requests: int = 200
    seconds: float = 60.0
    rate: float = 2.0
    zipf: float = 1.0
    turns: float = 1.0
    think_s: float = 1.0
    question_words: int = 12
    answer_tokens: int = 64
    spread: float = 0.4
    repeats: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One question. `document` is the place of its document among the topics; it is asked `think_s` after the last."""

    question: str
    document: int
    max_tokens: int
    think_s: float


@dataclass(frozen=True, slots=True)
class Session:
    """One conversation; `at_s` is when it begins in an open loop."""

    name: str
    at_s: float
    turns: tuple[Turn, ...]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` gave."""
        return cls(fields["name"], fields["at_s"], tuple(Turn(**turn) for turn in fields["turns"]))


def generate(shape: Shape, topics: Sequence[Topic]) -> tuple[Session, ...]:
    """Sessions in the order of their beginning, with at most `requests` turns, begun within `seconds`."""
    if not topics:
        raise LoadError("there is no document to ask about")
    draw = random.Random(shape.seed)
    # Which documents are popular is drawn too: their order in the corpus often says what they are about.
    order = draw.sample(range(len(topics)), len(topics))
    weights = [1.0 / (rank + 1) ** shape.zipf for rank in range(len(order))]
    asker = _Asker(shape, topics, draw)
    sessions: list[Session] = []
    at_s, left = 0.0, shape.requests
    while left > 0:
        at_s += draw.expovariate(shape.rate)
        if at_s >= shape.seconds:
            break
        count = min(left, _turns(shape.turns, draw))
        document = draw.choices(order, weights)[0]  # a conversation stays with its document
        turns = tuple(asker.turn(document, first=number == 0) for number in range(count))
        sessions.append(Session(f"session-{shape.seed}-{len(sessions)}", round(at_s, 6), turns))
        left -= count
    return tuple(sessions)


def write_trace(path: Path, sessions: Sequence[Session], shape: Shape) -> None:
    """Write a trace, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, "shape": asdict(shape)}) + "\n")
        for session in sessions:
            file.write(json.dumps(asdict(session), ensure_ascii=False) + "\n")
    partial.replace(path)


def read_trace(path: Path) -> tuple[Session, ...]:
    """What `write_trace` wrote. Raises LoadError for anything else."""
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        told = json.loads(head)["format"]
        if told != FORMAT:
            raise LoadError(f"{path} is a trace of format {told}, expected {FORMAT}: generate it anew")
        return tuple(Session.from_json(json.loads(line)) for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise LoadError(f"{path} is no trace of a workload: {exc!r}; write one with --write-trace") from exc


def read_topics(source: Path | None) -> tuple[Topic, ...]:
    """Documents of a folder of text files, or of a JSON Lines file with `title` and `text`; else Python's reference.

    Raises LoadError when there is none.
    """
    if source is None:
        from pydoc_data import topics

        return tuple(Topic(title, text) for title, text in sorted(topics.topics.items()))
    try:
        found = tuple(_topics(source))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise LoadError(f"cannot read documents from {source}: {exc!r}") from exc
    if not found:
        raise LoadError(f"{source} holds no documents: give a folder with *.txt, or JSON Lines with `text`")
    return found


def _topics(source: Path) -> Iterator[Topic]:
    if source.is_dir():
        for path in sorted(source.glob("*.txt")):
            yield Topic(path.stem, path.read_text(encoding="utf-8"))
        return
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Topic(str(row.get("title") or row.get("id") or row.get("_id") or "it"), row["text"])


class _Asker:
    """Makes questions, and remembers them."""

    def __init__(self, shape: Shape, topics: Sequence[Topic], draw: random.Random) -> None:
        self._shape = shape
        self._topics = topics
        self._draw = draw
        self._asked: dict[str, int] = {}

    def turn(self, document: int, *, first: bool) -> Turn:
        if self._asked and self._draw.random() < self._shape.repeats:
            question, document = self._draw.choice(list(self._asked.items()))
        else:
            question = self._new(document)
            self._asked[question] = document
        tokens = max(1, _length(self._shape.answer_tokens, self._shape.spread, self._draw))
        think_s = 0.0 if first or not self._shape.think_s else self._draw.expovariate(1.0 / self._shape.think_s)
        return Turn(question, document, tokens, round(think_s, 3))

    def _new(self, document: int) -> str:
        question = ""
        for _ in range(_TRIES):
            question = self._question(self._topics[document])
            if question not in self._asked:
                return question
        # A short document has been asked about in every way: only a number makes the next question another one.
        return f"{question} (question {len(self._asked) + 1})"

    def _question(self, topic: Topic) -> str:
        words = topic.text.split() or [topic.title]
        count = self._draw.randint(*_PHRASE_WORDS)
        start = self._draw.randrange(max(1, len(words) - count))
        asked = self._draw.choice(_ASKS).format(title=topic.title, phrase=" ".join(words[start : start + count]))
        wanted = _length(self._shape.question_words, self._shape.spread, self._draw)
        missing = max(0, wanted - len(asked.split()))
        filler = itertools.islice(itertools.cycle(_FILLER.split()), missing)
        return " ".join([asked, *filler])


def _turns(mean: float, draw: random.Random) -> int:
    """Geometric, at least one."""
    count = 1
    while draw.random() < 1.0 - 1.0 / max(1.0, mean):
        count += 1
    return count


def _length(median: int, spread: float, draw: random.Random) -> int:
    return round(median * draw.lognormvariate(0.0, spread)) if spread else median
