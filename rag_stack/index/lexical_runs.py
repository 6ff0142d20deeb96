"""Postings on the disk while a lexical index is made: sorted runs of them, read together as they are merged."""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_stack.index.lexical import TOKENS_SCHEMA

Numbers = npt.NDArray[np.int32]

# Each run that is open in a merge holds a batch of tokens.
_MERGED_RUNS: Final = 64
_TOKENS_READ: Final = 256
_TOKENS_WRITTEN: Final = 65_536
_RUN_FILES: Final = ("rows", "counts", "sizes", "tokens")


class Run:
    """The postings of consecutive passages: token, row, and how often."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._pieces: list[tuple[Numbers, Numbers, Numbers]] = []
        self.postings = 0

    @property
    def tokens(self) -> int:
        """How many different ones there are."""
        return len(self._numbers)

    def add(self, ids: list[list[int]], vocab: dict[str, int], *, first_row: int) -> None:
        """Some passages as bm25s' tokenizer gives them."""
        own = np.zeros(len(vocab), np.int64)
        for token, number in vocab.items():
            own[number] = self._numbers.setdefault(token, len(self._numbers))
        rows = np.repeat(np.arange(first_row, first_row + len(ids)), [len(each) for each in ids])
        numbers = own[np.fromiter((number for each in ids for number in each), np.int64, len(rows))]
        pairs, counts = np.unique(numbers << 32 | rows, return_counts=True)
        self._pieces.append(tuple(each.astype(np.int32) for each in (pairs >> 32, pairs & 0xFFFFFFFF, counts)))
        self.postings += len(pairs)

    def sort(self) -> tuple[list[str], npt.NDArray[np.int64], Iterator[Numbers]]:
        """Its tokens, how many rows each has, and by token, then by row: the rows, and then how often.

        It is empty afterwards: what was read is not held.
        """
        names = sorted(self._numbers)
        rank = np.zeros(len(names), np.int64)
        rank[[self._numbers[name] for name in names]] = np.arange(len(names))
        tokens, rows, counts = (list(each) for each in zip(*self._pieces, strict=True))
        self._numbers, self._pieces, self.postings = {}, [], 0
        keys = np.empty(sum(map(len, tokens)), np.int64)
        sizes = np.zeros(len(names), np.int64)
        first = 0
        for piece in _taken(tokens):
            ranks = rank[piece]
            sizes += np.bincount(ranks, minlength=len(names))
            # Sorted with their places, in place: an order by rank that keeps that of rows.
            keys[first : first + len(piece)] = ranks << 32 | np.arange(first, first + len(piece))
            first += len(piece)
        keys.sort()
        keys &= 0xFFFFFFFF
        return names, sizes, (_joined(each, len(keys))[keys] for each in (rows, counts))


def _taken(pieces: list[Numbers]) -> Iterator[Numbers]:
    """Each piece, which the list does not hold any more."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()


def _joined(pieces: list[Numbers], length: int) -> Numbers:
    whole = np.empty(length, np.int32)
    first = 0
    for piece in _taken(pieces):
        whole[first : first + len(piece)] = piece
        first += len(piece)
    return whole


class RunFiles:
    """All runs one after another in four files, whatever their number: a process may not have many files open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        *arrays, tokens = _RUN_FILES
        self._rows, self._counts, self._sizes = ((directory / name).open("wb") for name in arrays)
        self._tokens = TokenFile(directory / tokens, batch=_TOKENS_READ)
        # Of each run: its first posting, its first token, and its first batch of tokens.
        self._begins: list[tuple[int, int, int]] = []
        self._postings = self._names = 0

    def append(self, run: Run) -> None:
        """Write a run."""
        self._begin()
        names, sizes, columns = run.sort()
        for file, values in zip((self._rows, self._counts), columns, strict=True):
            file.write(values.data)
        self._sizes.write(sizes.data)
        for name in names:
            self._tokens.append(name)
        self._postings += int(sizes.sum())
        self._names += len(names)

    def merged(self) -> "RunFiles":
        """Fewer runs, each made of consecutive ones, in files of their own; these are closed and removed."""
        directory = self._directory / "merged"
        directory.mkdir()
        fewer = RunFiles(directory)
        try:
            with self.read() as runs:
                count = len(self._begins)
                for first in range(0, count, _MERGED_RUNS):
                    fewer._append_merged(runs, range(first, min(first + _MERGED_RUNS, count)))
        except BaseException:
            fewer.close()
            raise
        for name in _RUN_FILES:
            (self._directory / name).unlink()
        return fewer

    def _append_merged(self, runs: "MappedRuns", numbers: range) -> None:
        self._begin()
        rows, counts = (each.view(np.uint8).data for each in (runs.rows, runs.counts))
        for token, places in groupby(runs.lists(numbers), key=lambda place: place[0]):
            size = 0
            for _, _, begin, stop in places:
                self._rows.write(rows[4 * begin : 4 * stop])
                self._counts.write(counts[4 * begin : 4 * stop])
                size += stop - begin
            self._sizes.write(size.to_bytes(8, "little"))
            self._tokens.append(token)
            self._postings += size
            self._names += 1

    def _begin(self) -> None:
        """A run begins with a batch of tokens."""
        self._tokens.flush()
        self._begins.append((self._postings, self._names, self._tokens.batches))

    @property
    def many(self) -> bool:
        """Whether there are more runs than are read together."""
        return len(self._begins) > _MERGED_RUNS

    @contextmanager
    def read(self) -> Iterator["MappedRuns"]:
        """All of them, mapped. Nothing can be written any more."""
        for file in (self._rows, self._counts, self._sizes):
            file.close()
        self._tokens.close()
        with pa.memory_map(str(self._directory / "tokens")) as file:
            yield MappedRuns(self._directory, pa.ipc.open_file(file), self._begins, postings=self._postings)

    def close(self) -> None:
        """Close what is open."""
        with suppress(OSError, pa.ArrowException), ExitStack() as files:
            for file in (self._rows, self._counts, self._sizes, self._tokens):
                files.callback(file.close)


class MappedRuns:
    """Runs as they are merged, each read from front to back."""

    def __init__(
        self,
        directory: Path,
        tokens: pa.ipc.RecordBatchFileReader,
        begins: Sequence[tuple[int, int, int]],
        *,
        postings: int,
    ) -> None:
        self._tokens = tokens
        self._begins = begins
        self.postings = postings
        if postings:
            # As plain arrays: a slice of a memmap takes ten times as long.
            self.rows, self.counts = (
                np.asarray(np.memmap(directory / name, np.int32, "r")) for name in ("rows", "counts")
            )
            self._sizes = np.asarray(np.memmap(directory / "sizes", np.int64, "r"))

    def lists(self, numbers: range | None = None) -> Iterator[tuple[str, int, int, int]]:
        """Every token of some runs or of all, in the order of tokens, then of runs, and where its postings are."""
        return heapq.merge(*map(self._run, range(len(self._begins)) if numbers is None else numbers))

    def _run(self, number: int) -> Iterator[tuple[str, int, int, int]]:
        end, token, first_batch = self._begins[number]
        last = number + 1 == len(self._begins)
        for batch in range(first_batch, self._tokens.num_record_batches if last else self._begins[number + 1][2]):
            names = self._tokens.get_batch(batch).column(0).to_pylist()
            for name, size in zip(names, self._sizes[token : token + len(names)].tolist(), strict=True):
                begin, end = end, end + size
                yield name, number, begin, end
            token += len(names)


class TokenFile:
    """Tokens as they come, in batches, in an Arrow file that can be mapped."""

    def __init__(self, path: Path, *, batch: int = _TOKENS_WRITTEN) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, TOKENS_SCHEMA)
        self._batch = batch
        self._waiting: list[str] = []
        self.batches = 0

    def append(self, token: str) -> None:
        """Add one."""
        self._waiting.append(token)
        if len(self._waiting) >= self._batch:
            self.flush()

    def flush(self) -> None:
        """End a batch."""
        if self._waiting:
            self._writer.write_batch(pa.RecordBatch.from_pydict({"token": self._waiting}, schema=TOKENS_SCHEMA))
            self._waiting = []
            self.batches += 1

    def close(self) -> None:
        """Write what waits, and close; again does nothing."""
        if not self._file.closed:
            with self._file:
                self.flush()
                self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
