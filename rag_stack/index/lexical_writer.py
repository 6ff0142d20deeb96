"""Passages -> the lexical index of a version, in memory that does not grow with them, and in bm25s' own bytes.

bm25s keeps all tokens in memory while it indexes. Here a run of postings is sorted and written whenever it is long
enough, and the runs are merged token by token, at most 64 at once: more of them are first merged into fewer, 64 into
one. What every step reads and writes, it reads and writes in order.

The bound: a run of 2 million postings takes 12 bytes a posting while it is collected and up to 28 while it is sorted,
and 150 a token, together some 80 MB; a merge takes 64 batches of 256 tokens and a block of postings, some 20 MB. On
the disk, postings lie there twice while runs are merged into fewer. What grows with the corpus is 24 bytes a run, of
which there are 500 to a billion postings, and 24 bytes a batch of tokens in the footers of the files.
"""

import heapq
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rag_stack.index.format import (
    LEXICAL_DATA_FILE,
    LEXICAL_INDICES_FILE,
    LEXICAL_INDPTR_FILE,
    LEXICAL_PARAMS_FILE,
    LEXICAL_TOKENS_FILE,
    LEXICAL_VOCABULARY_FILE,
    Lexical,
)
from rag_stack.index.lexical import TOKENS_SCHEMA, inverse_document_frequency, params, tokenize
from rag_stack.types import Passage

Numbers = npt.NDArray[np.int32]

_RUN_POSTINGS: Final = 1 << 21
_RUN_TOKENS: Final = 1 << 17
# Each run that is open in a merge holds a batch of tokens.
_MERGED_RUNS: Final = 64
# Postings that are weighed at once.
_BLOCK_POSTINGS: Final = 1 << 16
# Passages that are tokenized at once, and characters.
_BATCH_PASSAGES: Final = 256
_BATCH_CHARACTERS: Final = 1 << 20
_TOKENS_READ: Final = 256
_TOKENS_WRITTEN: Final = 65_536
_RUN_FILES: Final = ("rows", "counts", "sizes", "tokens")


class LexicalWriter:
    """Collects passages in the order of their rows. For one thread; what it raises is OSError, or pyarrow's."""

    def __init__(self, directory: Path, settings: Lexical) -> None:
        """Work in a directory that is made here."""
        directory.mkdir()
        self._directory = directory
        self._settings = settings
        self._lengths = (directory / "lengths").open("wb")
        self._runs = _RunFiles(directory)
        self._waiting: list[str] = []
        self._characters = 0
        self._run = _Run()
        self._total = 0
        self.passages = 0

    def append(self, passages: Sequence[Passage]) -> None:
        """Add passages: their titles and texts, which is what is embedded too."""
        for passage in passages:
            text = f"{passage.title} {passage.text}" if passage.title else passage.text
            self._waiting.append(text)
            self._characters += len(text)
            if len(self._waiting) >= _BATCH_PASSAGES or self._characters >= _BATCH_CHARACTERS:
                self._tokenize()

    def complete(self, directory: Path) -> None:
        """Write the index into a directory, which is made here, and remove what it was made of."""
        self._tokenize()
        self._end_run()
        self._lengths.close()
        directory.mkdir()
        lengths = np.asarray(np.memmap(self._directory / "lengths", np.int32, "r"))
        while self._runs.count > _MERGED_RUNS:
            self._runs = self._runs.merged()
        with self._runs.read() as runs:
            _merge(runs, directory, self._settings, lengths=lengths, total=self._total)

    def close(self) -> None:
        """Close what is open; the directory is its maker's."""
        with suppress(OSError):
            self._lengths.close()
        self._runs.close()

    def _tokenize(self) -> None:
        if not self._waiting:
            return
        tokens = tokenize(self._waiting, self._settings)
        lengths = np.array([len(each) for each in tokens.ids], np.int32)
        self._lengths.write(lengths.tobytes())
        self._total += int(lengths.sum())
        self._run.add(tokens.ids, tokens.vocab, first_row=self.passages)
        self.passages += len(self._waiting)
        self._waiting, self._characters = [], 0
        if self._run.postings >= _RUN_POSTINGS or self._run.tokens >= _RUN_TOKENS:
            self._end_run()

    def _end_run(self) -> None:
        if self._run.postings:
            self._runs.append(self._run)
            self._run = _Run()


class _Run:
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


class _RunFiles:
    """All runs one after another in four files, whatever their number: a process may not have many files open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        *arrays, tokens = _RUN_FILES
        self._rows, self._counts, self._sizes = ((directory / name).open("wb") for name in arrays)
        self._tokens = _TokenFile(directory / tokens, batch=_TOKENS_READ)
        # Of each run: its first posting, its first token, and its first batch of tokens.
        self._begins: list[tuple[int, int, int]] = []
        self._postings = self._names = 0

    def append(self, run: _Run) -> None:
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

    def merged(self) -> "_RunFiles":
        """Fewer runs, each made of consecutive ones, in files of their own; these are closed and removed."""
        directory = self._directory / "merged"
        directory.mkdir()
        fewer = _RunFiles(directory)
        try:
            with self.read() as runs:
                for first in range(0, self.count, _MERGED_RUNS):
                    fewer._append_merged(runs, range(first, min(first + _MERGED_RUNS, self.count)))
        except BaseException:
            fewer.close()
            raise
        for name in _RUN_FILES:
            (self._directory / name).unlink()
        return fewer

    def _append_merged(self, runs: "_MappedRuns", numbers: range) -> None:
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
    def count(self) -> int:
        """How many runs there are."""
        return len(self._begins)

    @contextmanager
    def read(self) -> Iterator["_MappedRuns"]:
        """All of them, mapped. Nothing can be written any more."""
        for file in (self._rows, self._counts, self._sizes):
            file.close()
        self._tokens.close()
        with pa.memory_map(str(self._directory / "tokens")) as file:
            yield _MappedRuns(self._directory, pa.ipc.open_file(file), self._begins, postings=self._postings)

    def close(self) -> None:
        """Close what is open."""
        with suppress(OSError, pa.ArrowException), ExitStack() as files:
            for file in (self._rows, self._counts, self._sizes, self._tokens):
                files.callback(file.close)


class _MappedRuns:
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


def _merge(runs: _MappedRuns, directory: Path, settings: Lexical, *, lengths: Numbers, total: int) -> None:
    """All postings of a token together, token by token, with bm25s' arithmetic in bm25s' precision."""
    import bm25s

    passages = len(lengths)
    average = np.float64(total / passages) if passages else np.float64(0)
    postings = runs.postings
    sizes = (directory / Path(LEXICAL_INDPTR_FILE).name).with_suffix(".sizes")
    with ExitStack() as held:
        data = held.enter_context(_array_file(directory / Path(LEXICAL_DATA_FILE).name, np.float32, postings))
        indices = held.enter_context(_array_file(directory / Path(LEXICAL_INDICES_FILE).name, np.int32, postings))
        ends = held.enter_context(sizes.open("wb"))
        tokens = held.enter_context(_TokenFile(directory / Path(LEXICAL_TOKENS_FILE).name))
        vocabulary = held.enter_context((directory / Path(LEXICAL_VOCABULARY_FILE).name).open("w", encoding="utf-8"))
        weighed = _Weighed(runs, settings, lengths=lengths, average=average, data=data, indices=indices)
        number = end = 0
        for token, places in groupby(runs.lists(), key=lambda place: place[0]):
            spans = [(begin, stop) for _, _, begin, stop in places]
            often_in = sum(stop - begin for begin, stop in spans)
            weighed.append(spans, np.float32(inverse_document_frequency(often_in, passages)))
            end += often_in
            ends.write(end.to_bytes(8, "little"))
            tokens.append(token)
            vocabulary.write(f"{'{' if number == 0 else ','}{json.dumps(token, ensure_ascii=False)}:{number}")
            number += 1
        weighed.flush()
        # The token of texts that have none, as bm25s has it, after all others.
        vocabulary.write(f'{"{" if number == 0 else ","}"":{number}}}')
    with (
        sizes.open("rb") as written,
        _array_file(directory / Path(LEXICAL_INDPTR_FILE).name, np.int64, number + 1) as file,
    ):
        file.write(bytes(8))
        while piece := written.read(1 << 20):
            file.write(piece)
    sizes.unlink()
    text = params(settings, passages=passages, version=bm25s.__version__)
    (directory / Path(LEXICAL_PARAMS_FILE).name).write_text(text, encoding="utf-8")


class _Weighed:
    """Postings as they come, weighed and written a block at a time: most tokens have few, and some nearly all."""

    def __init__(
        self,
        runs: _MappedRuns,
        settings: Lexical,
        *,
        lengths: Numbers,
        average: np.float64,
        data: IO[bytes],
        indices: IO[bytes],
    ) -> None:
        self._runs = runs
        self._settings = settings
        self._lengths = lengths
        self._average = average
        self._data = data
        self._indices = indices
        self._spans: list[tuple[int, int]] = []
        self._rarities: list[np.float32] = []
        self._waiting = 0

    def append(self, spans: Sequence[tuple[int, int]], rarity: np.float32) -> None:
        """Add the postings of a token, in places one after another."""
        for begin, end in spans:
            while begin < end:
                stop = min(end, begin + _BLOCK_POSTINGS - self._waiting)
                self._spans.append((begin, stop))
                self._rarities.append(rarity)
                self._waiting += stop - begin
                begin = stop
                if self._waiting >= _BLOCK_POSTINGS:
                    self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._spans:
            return
        rows = np.concatenate([self._runs.rows[begin:stop] for begin, stop in self._spans])
        counts = np.concatenate([self._runs.counts[begin:stop] for begin, stop in self._spans]).astype(np.float32)
        rarity = np.repeat(np.array(self._rarities), [stop - begin for begin, stop in self._spans])
        # As in bm25s, so that the last bit is the same: this is its `lucene`.
        b = self._settings.b
        spread = self._settings.k1 * ((1 - b) + b * self._lengths[rows] / self._average)
        self._data.write((rarity * (counts / (spread + counts))).astype(np.float32).tobytes())
        self._indices.write(rows.tobytes())
        self._spans, self._rarities, self._waiting = [], [], 0


class _TokenFile:
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


def _array_file(path: Path, dtype: type[np.generic], length: int) -> IO[bytes]:
    """A file that begins as `np.save` begins an array of so many values."""
    # Its functions have no types.
    npy: Any = np.lib.format
    file = path.open("wb")
    try:
        header = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
        npy.write_array_header_1_0(file, header)
    except BaseException:
        file.close()
        raise
    return file
