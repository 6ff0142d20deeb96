"""Brings what a backup point names into a fresh root: every byte verified on its way, the pointers last.

So a restore that was killed has left a root in which nothing is promoted, and which the next one refuses as not empty.
What is damaged or gone is told, all of it, and the rest is restored: a part of an answer is better than none.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rag_stack.artifacts.address import archive_key, manifest_key
from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef, Manifest, canonical_json
from rag_stack.artifacts.object_store import ObjectStore
from rag_stack.artifacts.point import KeptArtifact, KeptObject, Point, PointedAt
from rag_stack.artifacts.promotion import ARCHIVE_PROMOTIONS, archived_promotions
from rag_stack.artifacts.stored_files import stored_files
from rag_stack.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    ArtifactOutdatedError,
    InvalidRequestError,
)


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore. `problems` are sentences; without any the root is what the point says."""

    seconds: float
    size_bytes: int
    artifacts: tuple[ArtifactRef, ...]
    pointers: int
    problems: tuple[str, ...]


def require_fresh(target: ObjectStore) -> None:
    """Raise InvalidRequestError unless there is nothing below a root: a restore mixes with nothing."""
    found = target.entries("")
    if found:
        raise InvalidRequestError(
            f"{target.url} is not empty (it holds {found[0].key!r}): a point is restored into a fresh root; name a "
            "folder that is empty, or that does not exist"
        )


def restore(
    source: Catalog, point: Point, target: Catalog, *, tell: Callable[[str], None] = lambda _: None
) -> Restored:
    """Restore a point from its root into a fresh one. Blocking. Raises InvalidRequestError for one that is not empty.

    Raises ArtifactError when the source does not answer or the target cannot be written.
    """
    require_fresh(target.store)
    began_s = time.perf_counter()
    problems: list[str] = []
    copied: dict[ArtifactRef, int] = {}
    for artifact in point.artifacts:
        tell(f"restoring {artifact.ref}")
        with _noted(problems):
            copied[artifact.ref] = _copy(source, artifact, target.store)
    uploads = 0
    for each in point.objects:
        with _noted(problems):
            uploads += _copy_object(source.store, each, target.store)
    pointers = 0
    for pointed in point.pointers:
        if ArtifactRef(pointed.kind, pointed.name, pointed.version) not in copied:
            continue  # why is told already
        with _noted(problems):
            _promote(source, pointed, target)
            pointers += 1
    size_bytes = sum(copied.values()) + uploads
    return Restored(time.perf_counter() - began_s, size_bytes, tuple(copied), pointers, tuple(problems))


def _copy(source: Catalog, artifact: KeptArtifact, target: ObjectStore) -> int:
    """Bring one artifact from root to root, its manifest last; returns its bytes. Blocking.

    Raises ArtifactNotFoundError, or ArtifactCorruptError that names the file that is not what was published.
    """
    manifest = source.manifest(artifact.ref)
    if manifest.digest != artifact.digest:
        raise ArtifactCorruptError(
            f"{str(artifact.ref)!r} has digest {manifest.digest} in {source.store.url}, the point names "
            f"{artifact.digest}: it was deleted and published again with other content"
        )
    copy_artifact(source, manifest, target)
    return manifest.size_bytes


def copy_artifact(source: Catalog, manifest: Manifest, target: ObjectStore) -> None:
    """Bring a version's files to another root, each chunk verified, and then its manifest. Blocking."""
    with stored_files(source, manifest) as directory:
        for entry in manifest.files:
            target.upload(directory / entry.path, f"{manifest.ref}/{entry.path}")
    target.put_bytes(manifest_key(manifest.ref), manifest.to_bytes())


def _copy_object(source: ObjectStore, kept: KeptObject, target: ObjectStore) -> int:
    """A store's state as it was, or an upload: its content first, without which its card would be a promise."""
    size = 0
    if kept.content_bytes is not None:
        key = kept.key.rpartition("/")[0] + "/content"
        with source.open(key) as stream:
            data = stream.read()
        size = len(data)
        if size != kept.content_bytes:
            raise ArtifactCorruptError(
                f"{source.url}/{key} has {size} bytes, the point names {kept.content_bytes}: the upload is damaged"
            )
        target.put_bytes(key, data)
    target.put_bytes(kept.key, canonical_json(kept.document))
    return size


def _promote(source: Catalog, pointed: PointedAt, target: Catalog) -> None:
    """Make the pointer what it was, with its number and its history."""
    state = pointed.pointer_state(url=f"the point's {pointed.address}")
    if state.pointer is None or state.pointer.version != pointed.version:
        raise ArtifactCorruptError(f"the point's {pointed.address} does not promote {pointed.version!r}")
    for number in range(1, state.pointer.archived + 1, ARCHIVE_PROMOTIONS):
        key = archive_key(pointed.kind, pointed.name, number)
        data = source.store.read_bytes(key)
        archived_promotions(data, url=f"{source.store.url}/{key}")
        target.store.put_bytes(key, data)
    target.swap(pointed.kind, pointed.name, state, expected=None)


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """What is wrong with one part of the backup does not stop the others; a target without room does."""
    try:
        yield
    except (ArtifactNotFoundError, ArtifactCorruptError, ArtifactOutdatedError) as exc:
        problems.append(exc.message)
