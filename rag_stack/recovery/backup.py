"""Takes a backup point: a moment that really was, protected from deletion before anybody relies on it.

    read, lease what it names, look that nothing of it is being deleted, read again

until both readings are the same. Then the point is written, which keeps what it names from then on, and the lease goes.
Killed in between, nothing is left but the lease, which runs out after 24 hours. Two at once take two points.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from rag_stack.artifacts.catalog import Catalog, promoter
from rag_stack.artifacts.manifest import ArtifactRef, Manifest
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.point import KeptArtifact, KeptObject, Point, PointCanary, PointedAt, Points
from rag_stack.artifacts.retention import PINS_KEY, Retention
from rag_stack.config import is_name
from rag_stack.errors import ArtifactCorruptError, ConflictError, InvalidRequestError
from rag_stack.recovery.questions import of_rollouts
from rag_stack.recovery.reading import Reading, read
from rag_stack.stores.files import Files

MAX_LABEL_CHARS: Final = 200
_ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class Taken:
    """A point, and how many of its artifacts the node's cache holds, on the disk; None where no cache was asked."""

    point: Point
    cached: int | None = None
    attempts: int = field(default=1, compare=False)


def take(
    catalog: Catalog, *, cache: NodeCache | None = None, label: str = "", canaries: Sequence[PointCanary] = ()
) -> Taken:
    """Take a backup point. With a node's `cache`, what is in it is on the disk when this returns. Blocking.

    Raises ArtifactCorruptError when something that is promoted is not whole, ConflictError when others promote again
    and again, and ArtifactError when there is no room: then there is no point.
    """
    if len(label) > MAX_LABEL_CHARS:
        raise InvalidRequestError(f"the label has {len(label)} characters, at most {MAX_LABEL_CHARS} are kept")
    retention, now = Retention(catalog), catalog.store.now()
    name = f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    holder = f"backup-{name}"
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            reading = read(catalog)
            manifests = _needed(catalog, reading)
            retention.lease(holder, [manifest.ref for manifest in manifests])
            # After the lease, for which a deletion looks after it has condemned: one of the two sees the other.
            retention.require([manifest.ref for manifest in manifests], holder="the backup point")
            if read(catalog).same(reading):
                point = _point(catalog, name, now, reading, manifests, label=label, canaries=canaries)
                cached = None if cache is None else _synced(cache, manifests)
                Points(catalog.store).create(point)
                return Taken(point, cached, attempt)
        raise ConflictError(
            f"something was promoted, or a store changed, during each of {_ATTEMPTS} readings of {catalog.store.url}; "
            "take the point again"
        )
    finally:
        retention.release(holder)


def _needed(catalog: Catalog, reading: Reading) -> tuple[Manifest, ...]:
    """What is promoted, what promoted releases pin, and the embedders of the indexes among it; each once."""
    found: dict[ArtifactRef, Manifest] = {}

    def need(ref: ArtifactRef) -> Manifest:
        if ref not in found:
            found[ref] = catalog.manifest(ref)
        return found[ref]

    for (kind, name), state in reading.pointers.items():
        if state.pointer is None:
            continue
        manifest = need(ArtifactRef(kind, name, state.pointer.version))
        if manifest.digest != state.pointer.digest:
            raise ArtifactCorruptError(
                f"the manifest of {str(manifest.ref)!r} has digest {manifest.digest}, but {state.pointer.digest} was "
                "promoted; it was changed after that: publish the artifact again and promote the new version"
            )
        for text in manifest.metadata.get(PINS_KEY, ()) if kind == "releases" else ():
            need(ArtifactRef(*text.split("/")))
    for manifest in [each for each in found.values() if each.kind == "indexes"]:
        embedder = _embedder(catalog, manifest, found)
        if embedder is not None:
            found.setdefault(embedder.ref, embedder)
    return tuple(found.values())


def _embedder(catalog: Catalog, index: Manifest, found: Mapping[ArtifactRef, Manifest]) -> Manifest | None:
    """The model that made an index's vectors; None when it is not published here, so that nobody can search it."""
    told = index.metadata.get("embedder")
    name, digest = (told.get("name"), told.get("digest")) if isinstance(told, dict) else (None, None)
    if not isinstance(name, str) or not is_name(name):
        return None
    known = [each for each in found.values() if (each.kind, each.name) == ("models", name)]
    others = (catalog.manifest(ArtifactRef("models", name, version)) for version in catalog.versions("models", name))
    return next((each for each in (*known, *others) if each.digest == digest), None)


def _point(
    catalog: Catalog,
    name: str,
    now: datetime,
    reading: Reading,
    manifests: Sequence[Manifest],
    *,
    label: str,
    canaries: Sequence[PointCanary],
) -> Point:
    for manifest in manifests:
        _check_whole(catalog, manifest)
    asked = dict.fromkeys((*canaries, *of_rollouts(catalog, reading)))
    return Point(
        name=name,
        taken_at=now.astimezone(UTC).isoformat(timespec="seconds"),
        by=promoter(),
        root=catalog.store.url,
        label=label,
        pointers=tuple(_pointers(reading)),
        artifacts=tuple(_kept(manifest) for manifest in manifests),
        objects=tuple(_objects(catalog, reading)),
        canaries=tuple(asked),
        rollouts=reading.rollouts,
    )


def _pointers(reading: Reading) -> Iterator[PointedAt]:
    for (kind, name), state in reading.pointers.items():
        pointer = state.pointer
        if pointer is None:
            continue
        # What was being deleted then is not part of what was promoted, and is not there after a restore.
        told: dict[str, Any] = {**pointer.to_json(), "earlier": [each.to_json() for each in pointer.earlier]}
        yield PointedAt(
            kind=kind,
            name=name,
            version=pointer.version,
            digest=pointer.digest,
            number=pointer.number,
            promoted_at=pointer.promoted_at,
            state={**told, "condemned": {}, "revision": state.revision},
        )


def _objects(catalog: Catalog, reading: Reading) -> Iterator[KeptObject]:
    """Stores made over HTTP, and all uploads, whose content never changes."""
    for key, store in reading.stores.items():
        yield KeptObject(key=key, document=store.model_dump(mode="json", exclude_defaults=True))
    for file in Files(catalog.store).all():
        # As `stores.files` writes it.
        key = f"files/{file.file_id}/file.json"
        yield KeptObject(key=key, document=file.model_dump(mode="json"), content_bytes=file.size_bytes)


def _kept(manifest: Manifest) -> KeptArtifact:
    return KeptArtifact(
        kind=manifest.kind,
        name=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        files=len(manifest.files),
        size_bytes=manifest.size_bytes,
    )


def _check_whole(catalog: Catalog, manifest: Manifest) -> None:
    """Raise ArtifactCorruptError unless every file is there with its size. Digests are the restore's."""
    sizes = {entry.key: entry.size_bytes for entry in catalog.store.entries(str(manifest.ref))}
    for file in manifest.files:
        size = sizes.get(f"{manifest.ref}/{file.path}")
        if size != file.size_bytes:
            found = "is gone" if size is None else f"has {size} bytes"
            raise ArtifactCorruptError(
                f"file {file.path!r} of {str(manifest.ref)!r} {found} in {catalog.store.url}, expected "
                f"{file.size_bytes} bytes: a point with it could not be restored; publish it again"
            )


def _synced(cache: NodeCache, manifests: Sequence[Manifest]) -> int:
    cache.wait_synced()
    return sum(cache.manifest(manifest.digest) is not None for manifest in manifests)
