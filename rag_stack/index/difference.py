"""What two versions of an index differ in: documents by their digests, and what the manifests say."""

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.stored_files import stored_files
from rag_stack.index.format import DOCUMENTS_FILE, DOCUMENTS_SCHEMA, IndexMetadata
from rag_stack.index.passages import open_table

EXAMPLES: Final = 100
# Documents that are held in memory at once, about 300 bytes each; the tables themselves are mapped.
_HELD_DOCUMENTS: Final = 250_000
_BATCH_ROWS: Final = 65_536
# What is told on its own, or belongs to the documents.
_NOT_A_SETTING: Final = frozenset({"documents", "passages", "skipped", "skipped_documents"})


@dataclass(frozen=True, slots=True)
class Documents:
    """How many documents were added, removed, changed (other content, same id) and left as they were.

    The names (file name, else id) are the first so many of each, in no order that means anything.
    """

    added: int
    removed: int
    changed: int
    unchanged: int
    added_names: tuple[str, ...]
    removed_names: tuple[str, ...]
    changed_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """What it takes to come from the version `before` to the version `after`."""

    before: Manifest
    after: Manifest
    documents: Documents

    @property
    def settings(self) -> dict[str, tuple[Any, Any]]:
        """What the two manifests say differently: embedder, recipe, chunking, gates and the like."""
        old, new = self.before.metadata, self.after.metadata
        names = sorted({*old, *new} - _NOT_A_SETTING)
        return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}

    def to_json(self) -> dict[str, Any]:
        """For scripts and over HTTP."""
        found = self.documents
        return {
            "name": self.after.name,
            "from": self.before.version,
            "to": self.after.version,
            "documents": {
                "from": self.before.metadata.get("documents"),
                "to": self.after.metadata.get("documents"),
                "added": found.added,
                "removed": found.removed,
                "changed": found.changed,
                "unchanged": found.unchanged,
                "added_names": list(found.added_names),
                "removed_names": list(found.removed_names),
                "changed_names": list(found.changed_names),
            },
            "passages": {"from": self.before.metadata.get("passages"), "to": self.after.metadata.get("passages")},
            "size_bytes": {"from": self.before.size_bytes, "to": self.after.size_bytes},
            "settings": {name: {"from": old, "to": new} for name, (old, new) in self.settings.items()},
        }


def compare(catalog: Catalog, before: Manifest, after: Manifest, *, examples: int = EXAMPLES) -> Difference:
    """Compare two published versions; of each only its table of documents is read. Blocking.

    Raises ArtifactCorruptError when a byte is not the published one, IndexVersionError for a version of another format.
    """
    for manifest in (before, after):
        IndexMetadata.of(manifest)
    with ExitStack() as held:
        old, new = (
            held.enter_context(stored_files(catalog, manifest, only=[DOCUMENTS_FILE])) / DOCUMENTS_FILE
            for manifest in (before, after)
        )
        return Difference(before, after, compare_documents(old, new, examples=examples))


def compare_documents(
    before: Path, after: Path, *, examples: int = EXAMPLES, held_documents: int = _HELD_DOCUMENTS
) -> Documents:
    """Join two tables of documents by their ids.

    A pass holds the ids of one part of the hashes, so that memory is bounded however many documents there are; there
    are as many passes as that takes.
    """
    tables = [open_table(path, schema=DOCUMENTS_SCHEMA) for path in (before, after)]
    parts = max(1, math.ceil(tables[0].num_rows / held_documents))
    counts = {"added": 0, "removed": 0, "changed": 0, "unchanged": 0}
    names: dict[str, list[str]] = {kind: [] for kind in counts}

    def count(kind: str, name: str) -> None:
        counts[kind] += 1
        if len(names[kind]) < examples and kind != "unchanged":
            names[kind].append(name)

    for part in range(parts):
        old = {key: (digest, name) for key, digest, name in _rows(tables[0], part, parts)}
        for key, digest, name in _rows(tables[1], part, parts):
            known = old.pop(key, None)
            if known is None:
                count("added", name)
            else:
                count("unchanged" if known[0] == digest else "changed", name)
        for _, name in old.values():
            count("removed", name)
    return Documents(
        **counts,
        added_names=tuple(names["added"]),
        removed_names=tuple(names["removed"]),
        changed_names=tuple(names["changed"]),
    )


def _rows(table: pa.Table, part: int, parts: int) -> Iterator[tuple[str, str, str]]:
    """Id, digest and name of the documents in one part of the hashes."""
    chosen = table.select(["document_id", "digest", "filename"])
    for batch in chosen.to_batches(max_chunksize=_BATCH_ROWS):
        for key, digest, name in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if parts == 1 or zlib.crc32(key.encode("utf-8", "surrogatepass")) % parts == part:
                yield key, digest, name or key


def short(value: object) -> str:
    """A setting's value for people: an embedder by its name, gates by how many passed, the rest as it is."""
    match value:
        case {"name": str(name), "digest": str(digest)}:
            return f"{name} ({digest.removeprefix('sha256:')[:12]})"
        case [{"passed": _}, *_]:
            passed = sum(isinstance(gate, Mapping) and gate.get("passed") is True for gate in value)
            return f"{passed} of {len(value)} passed"
        case Mapping():
            return ", ".join(f"{key} {each}" for key, each in value.items())
        case None:
            return "none"
        case _:
            return str(value)
