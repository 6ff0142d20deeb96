"""The words of an index version: BM25 weights as bm25s keeps them, mapped from their files and read by posting list.

data, indices, indptr  the weights, a column a token (compressed sparse columns), rows in ascending order
vocab, params          bm25s' own files, so that `bm25s.BM25.load` opens the directory as it is
tokens.arrow           the tokens in the order of their numbers, which is alphabetical: found by bisection, not loaded
"""

import json
import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_stack.errors import IndexVersionError
from rag_stack.index.format import LEXICAL_PARAMS_FILE, LEXICAL_TOKENS_FILE, Lexical
from rag_stack.index.passages import open_table

if TYPE_CHECKING:
    from bm25s import BM25

Rows = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

TOKENS_SCHEMA: Final = pa.schema([("token", pa.large_string())])
_TRIED_TOKENS: Final = 8
# bm25s' own pattern of a word.
_WORD: Final = re.compile(r"(?u)\b\w\w+\b")
# Numbers of tokens that are kept in memory: what is asked for again and again is not looked for again and again.
_KNOWN_TOKENS: Final = 16_384
# Weights are added in 32 bits.
_SLACK: Final = 1.001


class Tokens(Protocol):
    """Texts as numbers: `ids` a list a text, `vocab` from token to number."""

    ids: list[list[int]]
    vocab: dict[str, int]


def tokenize(texts: Sequence[str], settings: Lexical) -> Tokens:
    """The tokens of texts, in their order, by bm25s' tokenizer and Snowball's stemmer. Safe in several threads."""
    # Imported where it is used: bm25s imports numba, and that takes a second.
    import bm25s
    import Stemmer

    # A stemmer is not to be shared between threads, and takes microseconds to make.
    stemmer = Stemmer.Stemmer(settings.stemmer) if settings.stemmer else None
    tokens: Tokens = bm25s.tokenize(
        list(texts),
        lower=settings.lower_case,
        stopwords=settings.stop_words or [],
        stemmer=stemmer,
        return_ids=True,
        show_progress=False,
    )
    return tokens


def tokens_of(text: str, settings: Lexical) -> list[str]:
    """What `tokenize` makes of one text, in a fifth of the time: it makes progress bars and numbers for it too."""
    import Stemmer

    stop_words = _stop_words(settings.stop_words)
    words = _WORD.findall(text.lower() if settings.lower_case else text)
    kept = [word for word in words if word not in stop_words]
    return Stemmer.Stemmer(settings.stemmer).stemWords(kept) if settings.stemmer else kept


@cache
def _stop_words(language: str | None) -> frozenset[str]:
    from bm25s.tokenization import _infer_stopwords

    return frozenset(_infer_stopwords(language or []))


@dataclass(frozen=True, slots=True)
class LexicalScores:
    """What a query's words weigh in each passage: float32 [passages], 0 where none is there or the row is forbidden.

    `limit` is what a passage would have at most, with all words of the query in it as often as one likes.
    """

    weights: Weights
    limit: float

    def best(self, k: int) -> Rows:
        """The k rows that weigh most, most first, equal ones in the order of rows; fewer where no more weigh at all."""
        rows = np.flatnonzero(self.weights)
        if len(rows) > k:
            least = np.partition(self.weights[rows], len(rows) - k)[len(rows) - k]
            rows = rows[self.weights[rows] >= least]
        best: Rows = rows[np.lexsort((rows, -self.weights[rows]))][:k]
        return best

    def shares(self, rows: Rows) -> Weights:
        """The weights of some rows as a share of the limit, 0..1."""
        return self.weights[rows] / np.float32(self.limit) if self.limit > 0 else np.zeros(len(rows), np.float32)


class LexicalIndex:
    """BM25 over an index version's passages. Searches may run in several threads at once."""

    def __init__(self, bm25: "BM25", tokens: pa.ChunkedArray, settings: Lexical, *, path: Path) -> None:
        self._bm25 = bm25
        self._tokens = tokens
        # Around the tokens and not around a method: nothing that is mapped may hold itself in memory.
        self._number = lru_cache(maxsize=_KNOWN_TOKENS)(partial(_place, tokens))
        self._path = path
        self.settings = settings
        self.passages = int(bm25.scores["num_docs"])

    @classmethod
    def open(cls, path: Path, settings: Lexical, *, passages: int) -> "LexicalIndex":
        """Map the files of a directory. Raises IndexVersionError when one is truncated or they do not belong together.

        Takes milliseconds at any size, but for the second in which a process imports bm25s for the first time.
        """
        try:
            _check_params(path / Path(LEXICAL_PARAMS_FILE).name, settings)
            bm25 = _mapped_class().load(path, mmap=True, load_vocab=False, show_progress=False)
        except (OSError, ValueError, TypeError, KeyError, EOFError) as exc:
            raise IndexVersionError(
                f"cannot read {str(path)!r} as a bm25s index: {exc}; it is truncated or not an index version's: "
                "delete the cached copy, or build the index again"
            ) from exc
        # The same memory without memmap's class, which takes a microsecond for each slice.
        bm25.scores |= {name: bm25.scores[name].view(np.ndarray) for name in ("data", "indices", "indptr")}
        tokens = open_table(path / Path(LEXICAL_TOKENS_FILE).name, schema=TOKENS_SCHEMA).column("token")
        _check(path, bm25, tokens=len(tokens), passages=passages)
        return cls(bm25, tokens, settings, path=path)

    def scores(self, query: str, *, allowed: Mask | None = None) -> LexicalScores:
        """What the words of a query weigh in each passage. Reads only the lists of the query's own words.

        `allowed` is bool [passages]: the rows that may be found. Raises IndexVersionError for a list that is damaged.
        """
        found = [self._number(token) for token in tokens_of(query, self.settings)]
        known = [number for number in found if number is not None]
        limit = sum(self._rarity(number) for number in found)
        if not known:
            return LexicalScores(np.zeros(self.passages, np.float32), limit)
        try:
            weights = self._bm25.get_scores_from_ids(known, weight_mask=allowed)
        except IndexError as exc:
            raise self._damaged("names passages that are not there") from exc
        return LexicalScores(weights, limit)

    def try_out(self) -> None:
        """Read a few posting lists, and ask a query. Raises IndexVersionError when what comes makes no sense."""
        indptr = self._bm25.scores["indptr"]
        if len(indptr) > 1 and (np.diff(indptr) <= 0).any():
            raise self._damaged("has lists that end before they begin")
        numbers = np.linspace(0, len(self._tokens) - 1, _TRIED_TOKENS).astype(int) if len(self._tokens) else ()
        for number in numbers:
            begin, end = int(indptr[number]), int(indptr[number + 1])
            rows, weights = (self._bm25.scores[name][begin:end] for name in ("indices", "data"))
            if rows.min() < 0 or rows.max() >= self.passages or (np.diff(rows) <= 0).any():
                raise self._damaged("names passages that are not there, or out of their order")
            if not (np.isfinite(weights) & (weights > 0)).all():
                raise self._damaged("has weights that are none")
        try:
            shares = self.scores(" ".join(self._tokens[int(number)].as_py() for number in numbers))
            sane = bool((shares.weights >= 0).all() and shares.weights.max(initial=0.0) <= shares.limit * _SLACK)
        except (TypeError, ValueError, AttributeError) as exc:
            raise self._damaged(f"answers no query: {type(exc).__name__}: {exc}") from exc
        if not sane:
            raise self._damaged("gives passages more weight than they can have")

    def _rarity(self, number: int | None) -> float:
        """A token's inverse document frequency, as Lucene has it: its weight in a passage is less, however often."""
        indptr = self._bm25.scores["indptr"]
        documents = 0 if number is None else int(indptr[number + 1] - indptr[number])
        return inverse_document_frequency(documents, self.passages)

    def _damaged(self, what: str) -> IndexVersionError:
        return IndexVersionError(
            f"{str(self._path)!r} opens, but {what}; it is damaged: `rag-stack cache verify` tells whether the cached "
            "copy is, else build the index again"
        )


def _place(tokens: pa.ChunkedArray, token: str) -> int | None:
    """The number of a token; None for one that no passage has."""
    place = bisect_left(range(len(tokens)), token, key=lambda number: tokens[number].as_py())
    return place if place < len(tokens) and tokens[place].as_py() == token else None


def inverse_document_frequency(documents: int, of: int) -> float:
    """log(1 + (N - n + 0.5) / (n + 0.5)), Lucene's and bm25s' `lucene`."""
    return math.log(1 + (of - documents + 0.5) / (documents + 0.5))


def _mapped_class() -> type["BM25"]:
    from bm25s import BM25

    class Mapped(BM25):  # type: ignore[misc]
        """bm25s with another way to add up: where numba is used it replaces the same method.

        A posting list has a row once, so that plain indexing adds it, 40 times faster than `np.add.at` with its 32-bit
        numbers: 100,000 postings in 1.5 ms and not in 62.
        """

        @staticmethod
        def _compute_relevance_from_scores(
            data: npt.NDArray[Any],
            indptr: npt.NDArray[Any],
            indices: npt.NDArray[Any],
            num_docs: int,
            query_tokens_ids: npt.NDArray[Any],
            dtype: np.dtype[Any],
        ) -> npt.NDArray[Any]:
            scores = np.zeros(num_docs, dtype)
            for number in query_tokens_ids.tolist():
                begin, end = indptr[number], indptr[number + 1]
                scores[indices[begin:end]] += data[begin:end]
            return scores

    return Mapped


def _check_params(path: Path, settings: Lexical) -> None:
    """bm25s takes whatever it reads, and fails when it is asked."""
    found = json.loads(path.read_text(encoding="utf-8"))
    passages = found.get("num_docs") if isinstance(found, dict) else None
    if not isinstance(found, dict) or type(passages) is not int:
        raise IndexVersionError(
            f"{str(path)!r} holds no number of passages, got {passages!r}: build the index again with "
            "`rag-stack index build`"
        )
    expected = json.loads(params(settings, passages=passages, version=found.get("version", "")))
    # By their text: to Python 1, 1.0 and True are equal.
    wrong = [
        f"{key}={json.dumps(found.get(key))} where {json.dumps(expected.get(key))} was expected"
        for key in sorted(found.keys() | expected.keys())
        if json.dumps(found.get(key)) != json.dumps(expected.get(key))
    ]
    if wrong:
        raise IndexVersionError(
            f"{str(path)!r} holds {', '.join(wrong)}; it was not written for the settings of this index: build the "
            "index again with `rag-stack index build`"
        )


def _check(path: Path, bm25: "BM25", *, tokens: int, passages: int) -> None:
    """The files must tell the same story."""
    data, indices, indptr = (bm25.scores[name] for name in ("data", "indices", "indptr"))
    facts = (
        ("passages", bm25.scores["num_docs"], passages),
        ("token lists", len(indptr) - 1, tokens),
        ("weights", len(data), int(indptr[-1])),
        ("rows", len(indices), int(indptr[-1])),
    )
    for what, found, expected in facts:
        if found != expected:
            raise IndexVersionError(
                f"{str(path)!r} holds {found} {what}, expected {expected}; its files do not belong together: build the "
                "index again with `rag-stack index build`"
            )
    kinds = (data.dtype, indices.dtype, indptr.dtype)
    if kinds != (np.float32, np.int32, np.int64):
        raise IndexVersionError(f"{str(path)!r} holds {[str(each) for each in kinds]}: build the index again")


def params(settings: Lexical, *, passages: int, version: str) -> str:
    """bm25s' `params.index.json`."""
    return json.dumps(
        {
            "k1": settings.k1,
            "b": settings.b,
            "delta": 0.5,
            "method": "lucene",
            "idf_method": "lucene",
            "dtype": "float32",
            "int_dtype": "int32",
            "num_docs": passages,
            "version": version,
            "backend": "numpy",
        },
        indent=4,
    )
