"""Passages -> the lexical index of a version, in memory that does not grow with them, and in bm25s' own bytes.

bm25s keeps all tokens in memory while it indexes. Here a run of postings is sorted and written whenever it is long
enough, and the runs are merged token by token: what every step reads and writes, it reads and writes in order.
"""

import heapq
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
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

# A run: 12 bytes a posting while it is collected, and about 150 a token.
_RUN_POSTINGS: Final = 1 << 20
_RUN_TOKENS: Final = 1 << 18
# Passages that are tokenized at once, and characters.
_BATCH_PASSAGES: Final = 256
_BATCH_CHARACTERS: Final = 1 << 20
_TOKENS_READ: Final = 1024
_TOKENS_WRITTEN: Final = 65_536


class LexicalWriter:
    """Collects passages in the order of their rows. For one thread; what it raises is OSError, or pyarrow's."""

    def __init__(self, directory: Path, settings: Lexical) -> None:
        """Work in a directory that is made here."""
        directory.mkdir()
        self._directory = directory
        self._settings = settings
        self._lengths = (directory / "lengths").open("wb")
        self._runs: list[Path] = []
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
        runs = [_MappedRun(path) for path in self._runs]
        lengths = np.memmap(self._directory / "lengths", np.int32, "r")
        _merge(runs, directory, self._settings, lengths=lengths, total=self._total)

    def close(self) -> None:
        """Close what is open; the directory is its maker's."""
        with suppress(OSError):
            self._lengths.close()

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
            path = self._directory / f"run-{len(self._runs)}"
            self._run.write(path)
            self._runs.append(path)
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

    def write(self, path: Path) -> None:
        """Sorted by token, then by row."""
        names = sorted(self._numbers)
        rank = np.zeros(len(names), np.int32)
        rank[[self._numbers[name] for name in names]] = np.arange(len(names))
        tokens, rows, counts = (np.concatenate(piece) for piece in zip(*self._pieces, strict=True))
        tokens = rank[tokens]
        order = np.argsort(tokens, kind="stable")
        path.mkdir()
        rows[order].tofile(path / "rows")
        counts[order].tofile(path / "counts")
        np.bincount(tokens, minlength=len(names)).astype(np.int64).tofile(path / "sizes")
        with _TokenFile(path / "tokens") as file:
            for name in names:
                file.append(name)


class _MappedRun:
    """A run as it is merged: read from the files from front to back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows, self.counts = (np.memmap(path / name, np.int32, "r") for name in ("rows", "counts"))

    def lists(self, number: int) -> Iterator[tuple[str, int, int, int]]:
        """Token, `number`, and where its postings begin and end."""
        end = 0
        sizes = np.memmap(self._path / "sizes", np.int64, "r")
        with pa.memory_map(str(self._path / "tokens")) as file:
            names = pa.ipc.open_file(file).read_all().column("token")
            for first in range(0, len(names), _TOKENS_READ):
                part = sizes[first : first + _TOKENS_READ].tolist()
                for name, size in zip(names.slice(first, _TOKENS_READ).to_pylist(), part, strict=True):
                    begin, end = end, end + size
                    yield name, number, begin, end


def _merge(runs: Sequence[_MappedRun], directory: Path, settings: Lexical, *, lengths: Numbers, total: int) -> None:
    """All postings of a token together, token by token, with bm25s' arithmetic in bm25s' precision."""
    import bm25s

    passages = len(lengths)
    average = np.float64(total / passages) if passages else np.float64(0)
    postings = sum(len(run.rows) for run in runs)
    sizes = (directory / Path(LEXICAL_INDPTR_FILE).name).with_suffix(".sizes")
    with ExitStack() as held:
        data = held.enter_context(_array_file(directory / Path(LEXICAL_DATA_FILE).name, np.float32, postings))
        indices = held.enter_context(_array_file(directory / Path(LEXICAL_INDICES_FILE).name, np.int32, postings))
        ends = held.enter_context(sizes.open("wb"))
        tokens = held.enter_context(_TokenFile(directory / Path(LEXICAL_TOKENS_FILE).name))
        vocabulary = held.enter_context((directory / Path(LEXICAL_VOCABULARY_FILE).name).open("w", encoding="utf-8"))
        merged = heapq.merge(*(run.lists(number) for number, run in enumerate(runs)))
        number = end = 0
        for token, places in groupby(merged, key=lambda place: place[0]):
            rows, counts = _postings(runs, places)
            idf = np.float32(inverse_document_frequency(len(rows), passages))
            often = counts.astype(np.float32)
            # As in bm25s, so that the last bit is the same: this is its `lucene`.
            share = often / (settings.k1 * ((1 - settings.b) + settings.b * lengths[rows] / average) + often)
            (idf * share).astype(np.float32).tofile(data)
            rows.tofile(indices)
            end += len(rows)
            ends.write(end.to_bytes(8, "little"))
            tokens.append(token)
            vocabulary.write(f"{'{' if number == 0 else ','}{json.dumps(token, ensure_ascii=False)}:{number}")
            number += 1
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


def _postings(runs: Sequence[_MappedRun], places: Iterator[tuple[str, int, int, int]]) -> tuple[Numbers, Numbers]:
    """A token's rows and counts; runs are in the order of rows, and so are their numbers."""
    pieces = []
    for _, number, begin, end in places:
        pieces.append((runs[number].rows[begin:end], runs[number].counts[begin:end]))
    rows, counts = (np.concatenate(each) for each in zip(*pieces, strict=True))
    return rows, counts


class _TokenFile:
    """Tokens as they come, in batches, in an Arrow file that can be mapped."""

    def __init__(self, path: Path) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, TOKENS_SCHEMA)
        self._waiting: list[str] = []

    def append(self, token: str) -> None:
        """Add one."""
        self._waiting.append(token)
        if len(self._waiting) >= _TOKENS_WRITTEN:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._flush()
            self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_batch(pa.RecordBatch.from_pydict({"token": self._waiting}, schema=TOKENS_SCHEMA))
            self._waiting = []


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
