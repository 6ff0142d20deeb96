"""Vectors that were computed once: immutable segments on the object store, looked up by what was embedded.

    embeddings/<index name>/<fingerprint>/<digest of the segment>.arrow     key: 16 bytes, vector: float32[d]

A key is the BLAKE3 of an embedder's input. A segment is named by its content, so that several processes write side by
side without a word to each other, and damage shows. Builds write one every few seconds while they embed: the same
files make a rebuild incremental and let a build that was killed go on.

In memory a vector costs 25 bytes: its key, its place, and whether this build used it. Vectors are read from mapped
files, in place where the object store is a local directory, from copies in a scratch directory otherwise.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from rag_stack.artifacts.local_file import translated
from rag_stack.artifacts.manifest import canonical_json
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.errors import ArtifactNotFoundError, IndexVersionError
from rag_stack.index.format import Chunking

Vectors = npt.NDArray[np.float32]
# Of dtype S16. numpy's strings end at NULs, so an item may come out shorter; whole arrays keep every byte.
Keys = npt.NDArray[np.bytes_]

PREFIX: Final = "embeddings"
KEY_BYTES: Final = 16
_SUFFIX: Final = ".arrow"
_NAME_HEX: Final = 32
# What a killed build embeds again, at most.
FLUSH_ROWS: Final = 4096
FLUSH_S: Final = 20.0
# What a compaction writes, and when it is worth its reading and writing.
_SEGMENT_ROWS: Final = 65_536
_MAX_SMALL_SEGMENTS: Final = 32
_MAX_DEAD_SHARE: Final = 0.5
_COPY_BYTES: Final = 4 << 20


@dataclass(slots=True)
class _Segment:
    """An open segment: its mapped record batches, and which of its vectors this build has used."""

    name: str
    batches: list[tuple[Keys, Vectors]]
    used: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.used)


@dataclass(frozen=True, slots=True)
class _Table:
    """Sorted keys and where each vector is: the number of its batch and its row in it, 32 bits each."""

    keys: Keys
    places: npt.NDArray[np.uint64]

    def find(self, keys: Keys) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.uint64]]:
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return self.keys[at] == keys, self.places[at]


def input_keys(inputs: Sequence[str]) -> Keys:
    """The keys of texts, as an array of 16-byte strings."""
    joined = b"".join(blake3(text.encode("utf-8")).digest(length=KEY_BYTES) for text in inputs)
    return np.frombuffer(joined, dtype=f"S{KEY_BYTES}")


def fingerprint(*, embedder_digest: str, chunking: Chunking | None, dimension: int) -> str:
    """Which vectors may be reused: those of the same embedder for the same way to cut, as 16 hex digits."""
    content = {
        "embedder": embedder_digest,
        "chunking": chunking.model_dump(mode="json") if chunking else None,
        "dimension": dimension,
    }
    return str(blake3(canonical_json(content)).hexdigest(length=8))


class EmbeddingStore:
    """The vectors of one index name and fingerprint. One thread of one process uses it; many processes may have one."""

    def __init__(self, store: ObjectStore, *, name: str, fingerprint: str, dimension: int, scratch: Path) -> None:
        """Open every segment that is there; `scratch` is a directory for copies that the caller removes. Blocking.

        A segment that is broken or cut short is named in `broken` and in a warning, and its vectors count as unknown.
        """
        self.prefix = f"{PREFIX}/{name}/{fingerprint}"
        self.dimension = dimension
        self.broken: list[str] = []
        self.embedded = 0
        self._store = store
        self._scratch = scratch
        self._segments: list[_Segment] = []
        # Of all segments, by the numbers in the tables' places: the batch, its segment, its first row there.
        self._batches: list[tuple[Vectors, _Segment, int]] = []
        self._tables: list[_Table] = []
        self._pending: dict[bytes, npt.NDArray[np.float32]] = {}
        self._flushed_at = time.monotonic()
        for listed in store.list_names(self.prefix):
            if listed.endswith(_SUFFIX):
                self._open_listed(listed.removesuffix(_SUFFIX))

    def __len__(self) -> int:
        """How many vectors are known."""
        return sum(len(table.keys) for table in self._tables) + len(self._pending)

    @property
    def segments(self) -> int:
        """How many segments are open."""
        return len(self._segments)

    def keys(self) -> Keys:
        """All keys that are stored, sorted: 16 bytes a vector."""
        if not self._tables:
            return np.empty(0, f"S{KEY_BYTES}")
        return np.sort(np.concatenate([table.keys for table in self._tables]))

    def missing(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which of the keys have no vector yet."""
        missing = np.ones(len(keys), np.bool_)
        for table in self._tables:
            missing &= ~table.find(keys)[0]
        if self._pending:
            for row in np.flatnonzero(missing):
                missing[row] = bytes(keys[row]) not in self._pending
        return missing

    def vectors(self, keys: Keys) -> Vectors:
        """The vectors of known keys: float32 [keys, d]. Raises KeyError for an unknown one."""
        vectors = np.empty((len(keys), self.dimension), np.float32)
        left = np.ones(len(keys), np.bool_)
        for table in self._tables:
            found, places = table.find(keys)
            found &= left
            left &= ~found
            self._read(np.flatnonzero(found), places, into=vectors)
        for row in np.flatnonzero(left):
            vectors[row] = self._pending[bytes(keys[row])]
        return vectors

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Keep new vectors, and write a segment when there are many or the last is some time ago. Blocking.

        Keys that are known are left out. Raises IndexVersionError for a vector that is not finite, ArtifactError when
        the segment cannot be written.
        """
        if vectors.shape != (len(keys), self.dimension):
            raise ValueError(f"{len(keys)} keys need {self.dimension} dimensions, got vectors {list(vectors.shape)}")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise IndexVersionError(
                f"the embedder gave {int((~finite).sum())} of {len(keys)} vectors that are not finite numbers; nothing "
                "of them is kept: check the embedder's files, or import it again"
            )
        for row in np.flatnonzero(self.missing(keys)):
            key = bytes(keys[row])
            self.embedded += key not in self._pending
            self._pending[key] = np.array(vectors[row], np.float32)
        if len(self._pending) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a segment. Blocking. Raises ArtifactError."""
        if self._pending:
            rows = sorted(self._pending.items())
            keys = np.array([key for key, _ in rows], f"S{KEY_BYTES}")
            batch = self._batch(keys, np.stack([vector for _, vector in rows]))
            self._open_written(self._write(iter([batch])), used=True)
            self._pending.clear()
        self._flushed_at = time.monotonic()

    def compact(self) -> bool:
        """Rewrite the vectors that this build used as few segments, when it is worth it; whether it was.

        The new ones are written first and the old ones deleted after, so that nothing is lost at any point. A build
        that runs meanwhile has the old ones open, or finds them gone and embeds again; what it writes stays. Blocking.
        """
        self.flush()
        total = sum(map(len, self._segments))
        live = sum(int(segment.used.sum()) for segment in self._segments)
        small = sum(len(segment) < _SEGMENT_ROWS // 2 for segment in self._segments)
        dead = total - live
        if not live or (small <= _MAX_SMALL_SEGMENTS and dead <= max(_MAX_DEAD_SHARE * total, FLUSH_ROWS)):
            return False
        old = self._segments
        # A full one without dead vectors stays as it is.
        kept = [each for each in old if len(each) >= _SEGMENT_ROWS and each.used.all()]
        gone = [each for each in old if each not in kept]
        written = [self._write(batches)[0] for batches in self._live_batches(gone)]
        for segment in gone:
            if segment.name not in written:
                self._store.delete(f"{self.prefix}/{segment.name}{_SUFFIX}")
        return True

    def _live_batches(self, segments: Sequence[_Segment]) -> Iterator[Iterator[pa.RecordBatch]]:
        """The used vectors of segments, as the batches of one new segment after another."""
        pieces: list[pa.RecordBatch] = []
        rows = 0
        for segment in segments:
            first = 0
            for keys, vectors in segment.batches:
                used = segment.used[first : first + len(keys)]
                first += len(keys)
                if used.any():
                    pieces.append(self._batch(keys[used], vectors[used]))
                    rows += len(pieces[-1])
                if rows >= _SEGMENT_ROWS:
                    yield iter(pieces)
                    pieces, rows = [], 0
        if pieces:
            yield iter(pieces)

    def _batch(self, keys: Keys, vectors: Vectors) -> pa.RecordBatch:
        key_column = pa.Array.from_buffers(pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys.tobytes())])
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        vector_column = pa.FixedSizeListArray.from_arrays(flat, self.dimension)
        return pa.record_batch([key_column, vector_column], schema=_schema(self.dimension))

    def _write(self, batches: Iterator[pa.RecordBatch]) -> tuple[str, Path]:
        """Store a segment; its name, and its copy in the scratch directory."""
        partial = self._scratch / "segment.partial"
        with translated("write", partial):
            with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, _schema(self.dimension)) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            name = _content_name(partial)
            path = partial.replace(self._scratch / f"{name}{_SUFFIX}")
        self._store.upload(path, f"{self.prefix}/{name}{_SUFFIX}")
        return name, path

    def _open_listed(self, name: str) -> None:
        key = f"{self.prefix}/{name}{_SUFFIX}"
        try:
            path = self._store.local_path(key) or self._fetched(name, key)
            if _content_name(path) != name:
                raise ValueError("its content is not that of its name")
            self._register(name, path, used=False)
        except (ArtifactNotFoundError, FileNotFoundError):
            # Another build's compaction has just replaced it.
            return
        except (pa.ArrowException, OSError, ValueError) as exc:
            self.broken.append(name)
            logging.getLogger(__name__).warning(
                "%s/%s is broken (%s): its vectors are embedded again; delete it", self._store.url, key, exc
            )

    def _open_written(self, written: tuple[str, Path], *, used: bool) -> None:
        name, path = written
        local = self._store.local_path(f"{self.prefix}/{name}{_SUFFIX}")
        self._register(name, local or path, used=used)
        if local is not None:
            path.unlink()

    def _fetched(self, name: str, key: str) -> Path:
        path = self._scratch / f"{name}{_SUFFIX}"
        with self._store.open(key) as source, translated("write", path), path.open("wb") as target:
            while piece := source.read(_COPY_BYTES):
                target.write(piece)
        return path

    def _register(self, name: str, path: Path, *, used: bool) -> None:
        """Map a segment and put its keys into the table. Raises ValueError, ArrowInvalid or OSError."""
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if reader.schema != _schema(self.dimension):
            raise ValueError(f"its columns are {reader.schema}, expected {_schema(self.dimension)}")
        batches = [self._arrays(reader.get_batch(number)) for number in range(reader.num_record_batches)]
        segment = _Segment(name, batches, np.full(sum(len(keys) for keys, _ in batches), used, np.bool_))
        tables, first = [], 0
        for keys, vectors in batches:
            number = np.uint64(len(self._batches)) << np.uint64(32)
            self._batches.append((vectors, segment, first))
            first += len(keys)
            tables.append(_sorted(keys, number | np.arange(len(keys), dtype=np.uint64)))
        self._segments.append(segment)
        for table in tables:
            self._insert(table)

    def _insert(self, table: _Table) -> None:
        """Merge tables of like size, so that there are few of them and each key moves only a few times."""
        if not len(table.keys):
            return
        self._tables.append(table)
        while len(self._tables) > 1 and len(self._tables[-2].keys) < 2 * len(self._tables[-1].keys):
            last, other = self._tables.pop(), self._tables.pop()
            merged = np.concatenate([other.keys, last.keys]), np.concatenate([other.places, last.places])
            self._tables.append(_sorted(*merged))

    def _arrays(self, batch: pa.RecordBatch) -> tuple[Keys, Vectors]:
        """A batch's columns in place."""
        keys, vectors = batch.column(0), batch.column(1).flatten()
        if batch.column(0).null_count or batch.column(1).null_count or batch.num_columns != 2:
            raise ValueError("it holds nulls")
        start = keys.offset * KEY_BYTES
        data: Any = memoryview(keys.buffers()[1])[start : start + len(keys) * KEY_BYTES]
        return (
            np.frombuffer(data, dtype=f"S{KEY_BYTES}"),
            vectors.to_numpy(zero_copy_only=True).reshape(len(keys), self.dimension),
        )

    def _read(self, rows: npt.NDArray[np.intp], places: npt.NDArray[np.uint64], *, into: Vectors) -> None:
        """Copy vectors, batch by batch, and mark them as used."""
        if not len(rows):
            return
        numbers = (places[rows] >> np.uint64(32)).astype(np.int64)
        offsets = (places[rows] & np.uint64(0xFFFFFFFF)).astype(np.int64)
        for number in np.unique(numbers):
            here = numbers == number
            vectors, segment, first = self._batches[number]
            into[rows[here]] = vectors[offsets[here]]
            segment.used[first + offsets[here]] = True


def _sorted(keys: Keys, places: npt.NDArray[np.uint64]) -> _Table:
    order = np.argsort(keys, kind="stable")
    return _Table(keys[order], places[order])


def _schema(dimension: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("key", pa.binary(KEY_BYTES), nullable=False),
            pa.field("vector", pa.list_(pa.field("item", pa.float32()), dimension), nullable=False),
        ]
    )


def _content_name(path: Path) -> str:
    """The digest of a file, read in pieces: a map of a file that another process cuts short would end this one."""
    digest = blake3()
    with path.open("rb") as file:
        while piece := file.read(_COPY_BYTES):
            digest.update(piece)
    return str(digest.hexdigest()[:_NAME_HEX])
