"""Questions as a user base asks them: documents with Zipf popularity, no question twice, answered by the real index.

What a question finds is found by the demo's own embedder and index; so a question's words and its documents go together
as loosely as they do in life. A question is made of a few words in a row of a passage, and every other one names the
document.
"""

import hashlib
import json
import os
import random
import re
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.config import Release
from rag_stack.index.reader import IndexVersion
from rag_stack.metrics import MemoryRecorder

if TYPE_CHECKING:
    from rag_stack.retrieval.embedder import Embedder

_OPENINGS = (
    "What does Python do about", "How do I use", "Why is it that", "Please explain", "When should I rely on",
    "Is it true that", "I do not understand", "What happens with", "Show me an example of", "Tell me about",
)  # fmt: skip
_SENTENCE = re.compile(r"(?<=[.!?:])\s+")
_CHARS_A_TOKEN = 4
_WORDS = (6, 12)
_MIN_WORDS = 6
_NAMED = 0.5


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: what it was made from (`topic`), and the passages that are found for it, best first."""

    text: str
    topic: int
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """Questions in the order in which they come, and the tokens of each passage."""

    asked: tuple[Asked, ...]
    tokens: tuple[int, ...]


def zipf_trace(release: Release, *, questions: int, exponent: float, seed: int, cache: Path) -> Trace:
    """Draw a trace. Blocking: embeds each question once, and keeps what they find in the folder `cache`."""
    tiers = open_tiers(release.artifacts, MemoryRecorder())
    index, manifest = _index(release, tiers)
    passages = [index.passages.get(row) for row in range(len(index.passages))]
    texts, titles = [each.text for each in passages], [each.title for each in passages]
    drawn = draw_questions(texts, titles, questions=questions, exponent=exponent, seed=seed)
    known = hashlib.sha256(json.dumps([manifest.digest, release.retrieval.top_k, drawn]).encode()).hexdigest()[:16]
    file = cache / f"routing-{known}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        rows = _search(index, _embedder(release, tiers), [text for text, _ in drawn], k=release.retrieval.top_k)
        partial = file.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, rows)
        partial.replace(file)
    found = np.load(file)
    asked = tuple(
        Asked(text, topic, tuple(int(row) for row in rows if row >= 0))
        for (text, topic), rows in zip(drawn, found, strict=True)
    )
    return Trace(asked, tuple(max(1, len(text) // _CHARS_A_TOKEN) for text in texts))


def search_ms(release: Release, trace: Trace, *, questions: int = 50) -> float:
    """What one search takes, the median: embedding and index alone, no hop. Blocking."""
    tiers = open_tiers(release.artifacts, MemoryRecorder())
    index, embedder = _index(release, tiers)[0], _embedder(release, tiers)
    times_s = []
    for asked in trace.asked[:questions]:
        began_s = time.perf_counter()
        _search(index, embedder, [asked.text], k=release.retrieval.top_k)
        times_s.append(time.perf_counter() - began_s)
    return 1e3 * statistics.median(times_s)


def draw_questions(
    texts: list[str], titles: list[str], *, questions: int, exponent: float, seed: int
) -> list[tuple[str, int]]:
    """So many questions, no two alike, with the passage that each is about; popularity falls as rank ** -exponent."""
    draw = random.Random(seed)
    ranked = [row for row, text in enumerate(texts) if any(_spans(text))]
    draw.shuffle(ranked)
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(len(ranked))))
    drawn: dict[str, int] = {}
    while len(drawn) < questions:
        topic = draw.choices(ranked, cum_weights=weights)[0]
        words = draw.choice(list(_spans(texts[topic])))
        length = draw.randint(*_WORDS)
        start = draw.randrange(max(1, len(words) - length + 1))
        named = f"{titles[topic]}: " if draw.random() < _NAMED else ""
        drawn.setdefault(f"{draw.choice(_OPENINGS)} {named}{' '.join(words[start : start + length])}?", topic)
    return list(drawn.items())


def _spans(text: str) -> Iterable[list[str]]:
    """The sentences of a passage that are long enough, as words."""
    return (words for sentence in _SENTENCE.split(text) if len(words := sentence.split()) >= _MIN_WORDS)


def _index(release: Release, tiers: Tiers) -> tuple[IndexVersion, Manifest]:
    manifest = tiers.resolve("indexes", release.stores[0].index, release.stores[0].version)
    path = tiers.ensure_local(manifest).path
    return IndexVersion.open(path, manifest, embedder_digest=None), manifest


def _embedder(release: Release, tiers: Tiers) -> "Embedder":
    manifest = tiers.resolve("models", release.embedder.name, release.embedder.version)
    path = tiers.ensure_local(manifest).path
    from rag_stack.retrieval.embedder import Embedder

    return Embedder.load(path, name=manifest.name, digest=manifest.digest, threads=1)


def _search(index: IndexVersion, embedder: "Embedder", texts: list[str], *, k: int) -> npt.NDArray[np.int64]:
    return np.asarray(index.search(embedder.encode(texts), k)[1])
