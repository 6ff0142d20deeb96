"""What `loadtests.embedding` embeds: real questions, and SciFact where it is."""

import csv
import gzip
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

QUESTIONS: Final = Path(__file__).parent / "data" / "questions.txt"
SCIFACT: Final = Path(__file__).parents[2] / "shared" / "data" / "scifact"


@dataclass(frozen=True, slots=True)
class Judged:
    """Queries of SciFact's test split with what answers each, and passages: all that answer one, and others."""

    queries: tuple[str, ...]
    relevant: tuple[Mapping[str, int], ...]
    names: tuple[str, ...]
    passages: tuple[str, ...]


def questions() -> list[str]:
    """Questions about Python, and SciFact's claims where they are: 8 to 40 tokens."""
    asked = QUESTIONS.read_text(encoding="utf-8").splitlines()
    if SCIFACT.is_dir():
        asked += list(_queries().values())
    # Both in every part of it.
    random.Random(0).shuffle(asked)
    return asked


def judged(others: int, *, directory: Path = SCIFACT) -> Judged | None:
    """SciFact with so many passages that answer nothing; None where it is not there."""
    if not directory.is_dir():
        return None
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    with (directory / "qrels" / "test.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            relevant[row["query-id"]][row["corpus-id"]] = int(row["score"])
    wanted = {name for told in relevant.values() for name in told}
    with gzip.open(directory / "corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        corpus = {row["_id"]: f"{row['title']} {row['text']}" for row in map(json.loads, file)}
    rest = sorted(corpus.keys() - wanted)
    names = sorted(wanted) + random.Random(0).sample(rest, min(others, len(rest)))
    texts, asked = _queries(directory), sorted(relevant)
    return Judged(
        tuple(texts[each] for each in asked),
        tuple(relevant[each] for each in asked),
        tuple(names),
        tuple(corpus[name] for name in names),
    )


def long_texts(count: int) -> Sequence[str]:
    """Texts of some 200 tokens."""
    asked = QUESTIONS.read_text(encoding="utf-8").splitlines()
    return [" ".join(asked[(first + each) % len(asked)] for each in range(20)) for first in range(count)]


def _queries(directory: Path = SCIFACT) -> dict[str, str]:
    lines = (directory / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["_id"]: row["text"] for row in map(json.loads, lines)}
