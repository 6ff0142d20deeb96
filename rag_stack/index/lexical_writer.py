"""Passages -> the lexical index of a version, in memory that does not grow with them, and in bm25s' own bytes.

bm25s keeps all tokens in memory while it indexes. Here a run of postings is sorted and written whenever it is long
enough, and the runs are merged token by token, at most 64 at once: more of them are first merged into fewer, 64 into
one. What every step reads and writes, it reads and writes in order.

The bound: a run of 2 million postings takes 12 bytes a posting while it is collected and up to 28 while it is sorted,
and 150 a token, together some 80 MB; a merge takes 64 batches of 256 tokens and a block of postings, some 20 MB. On
the disk, postings lie there twice while runs are merged into fewer. What grows with the corpus is 24 bytes a run, of
which there are 500 to a billion postings, and 24 bytes a batch of tokens in the footers of the files.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from rag_stack.index.format import (
    LEXICAL_DATA_FILE,
    LEXICAL_INDICES_FILE,
    LEXICAL_INDPTR_FILE,
    LEXICAL_PARAMS_FILE,
    LEXICAL_TOKENS_FILE,
    LEXICAL_VOCABULARY_FILE,
    Lexical,
)
from rag_stack.index.lexical import inverse_document_frequency, params, tokenize
from rag_stack.index.lexical_runs import MappedRuns, Numbers, Run, RunFiles, TokenFile
from rag_stack.types import Passage

_RUN_POSTINGS: Final = 1 << 21
_RUN_TOKENS: Final = 1 << 17
# Postings that are weighed at once.
_BLOCK_POSTINGS: Final = 1 << 16
# Passages that are tokenized at once, and characters.
_BATCH_PASSAGES: Final = 256
_BATCH_CHARACTERS: Final = 1 << 20


class LexicalWriter:
    """Collects passages in the order of their rows. For one thread; what it raises is OSError, or pyarrow's."""

    def __init__(self, directory: Path, settings: Lexical) -> None:
        """Work in a directory that is made here."""
        directory.mkdir()
        self._directory = directory
        self._settings = settings
        self._lengths = (directory / "lengths").open("wb")
        self._runs = RunFiles(directory)
        self._waiting: list[str] = []
        self._characters = 0
        self._run = Run()
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
        while self._runs.many:
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
            self._run = Run()


def _merge(runs: MappedRuns, directory: Path, settings: Lexical, *, lengths: Numbers, total: int) -> None:
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
        tokens = held.enter_context(TokenFile(directory / Path(LEXICAL_TOKENS_FILE).name))
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
        runs: MappedRuns,
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
