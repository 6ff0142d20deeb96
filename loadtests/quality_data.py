"""What `loadtests.quality` asks: SciFact as it is published, and questions whose passage is known in Python's docs.

SciFact has claims, and abstracts that support or refute them; its train and test claims are judged by people.

Of the documentation that comes with Python, the first sentence of a docstring is the question, and what is left of that
docstring is what must be found; the sentence is taken out of the text. So question and passage have the same author and
much the same words, which is kind to a search by words, and no other passage counts, however well it answers. The first
figure says which of two rankings is better and not how good an answer is.
"""

import csv
import gzip
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rag_stack.index.documents import Document

Relevant = Mapping[str, Mapping[str, int]]

_MIN_WORDS: Final = 5
_MIN_REST: Final = 120
_ENTRY: Final = re.compile(r"^[A-Za-z_][\w.]*(\(.*\))?$")


@dataclass(frozen=True, slots=True)
class Known:
    """A question, the document that holds its answer, and the character where that begins."""

    question: str
    document_id: str
    place: int


def scifact_documents(data: Path) -> Iterator[Document]:
    """The abstracts, a document each."""
    with gzip.open(data / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield Document(row["_id"], row["text"], row["title"], "")


def scifact_questions(data: Path) -> dict[str, str]:
    """All claims, by id."""
    lines = (data / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["_id"]: row["text"] for row in map(json.loads, lines)}


def scifact_relevant(data: Path, split: str) -> Relevant:
    """By claim of a split: the abstracts that are about it."""
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    with (data / "qrels" / f"{split}.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            relevant[row["query-id"]][row["corpus-id"]] = int(row["score"])
    return dict(relevant)


def held_out(documents: Sequence[Document], *, count: int) -> tuple[list[Document], list[Known]]:
    """The documents without the sentences that are asked, and `count` questions at most: the same ones every time."""
    sentences = Counter(sentence for document in documents for _, sentence in _entries(document.text))
    left, known = [], []
    for document in documents:
        text, places = _without(document.text, sentences)
        left.append(Document(document.document_id, text, document.title, document.uri, document.attributes))
        known += [Known(question, document.document_id, place) for question, place in places]
    known.sort(key=lambda each: hashlib.sha256(each.question.encode()).hexdigest())
    return left, known[:count]


def _without(text: str, sentences: Mapping[str, int]) -> tuple[str, list[tuple[str, int]]]:
    """A text without the sentences that are asked, and where in what is left the rest of each docstring begins."""
    asked = {line: sentence for line, sentence in _entries(text) if sentences[sentence] == 1}
    kept: list[str] = []
    found: list[tuple[str, int]] = []
    length = 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        if number in asked:
            found.append((asked[number], length))
            continue
        kept.append(line)
        length += len(line)
    whole = "".join(kept)
    return whole, [(question, place + len(whole[place:]) - len(whole[place:].lstrip())) for question, place in found]


def _entries(text: str) -> Iterator[tuple[int, str]]:
    """The first lines of docstrings that are one whole sentence with enough after it: line number and sentence."""
    lines = text.splitlines()
    for number in range(1, len(lines)):
        sentence = lines[number].strip()
        if not (lines[number].startswith("    ") and _ENTRY.match(lines[number - 1]) and sentence.endswith(".")):
            continue
        rest = 0
        for line in lines[number + 1 :]:
            if line and not line.startswith("    "):
                break
            rest += len(line.strip())
        if len(sentence.split()) >= _MIN_WORDS and rest >= _MIN_REST:
            yield number, sentence
