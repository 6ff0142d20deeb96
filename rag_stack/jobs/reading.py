"""Reads a spec's source, file by file, here or on any node: what is cut, and how much of it is done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rag_stack.index.documents import Document, read_file
from rag_stack.index.format import Skipped
from rag_stack.index.source import SourceFile, SourceTree
from rag_stack.index.spec import IndexSpec

# A small file costs more than its bytes: a request, or a seek.
_FILE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class SourceReader:
    """A source with the spec that says how it is read. Can be pickled."""

    spec: IndexSpec
    tree: SourceTree

    def read(self, files: Sequence[SourceFile]) -> Iterator[Document | Skipped]:
        """The documents of files, in order, and what could not be read of them."""
        for file in files:
            yield from read_file(self.spec, self.tree, file)


class CountedReading:
    """All documents of a source, once, and how much of it was read so far."""

    def __init__(self, reader: SourceReader, files: Sequence[SourceFile]) -> None:
        self._reader = reader
        self._files = files
        self._total = sum(map(weight, files))
        self._done = 0

    def __iter__(self) -> Iterator[Document | Skipped]:
        for file in self._files:
            yield from self._reader.read([file])
            self._done += weight(file)

    def share(self) -> float:
        """How much of the source was read: 0..1, by bytes."""
        return self._done / self._total if self._total else 1.0


def weight(file: SourceFile) -> int:
    """What reading and cutting a file costs, in bytes."""
    return file.size_bytes + _FILE_BYTES


def grouped(files: Sequence[SourceFile], *, target_weight: int) -> Iterator[list[SourceFile]]:
    """Files in order, in groups of about one weight; a large file is a group of its own."""
    group: list[SourceFile] = []
    total = 0
    for file in files:
        if group and total + weight(file) > target_weight:
            yield group
            group, total = [], 0
        group.append(file)
        total += weight(file)
    if group:
        yield group
