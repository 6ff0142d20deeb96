"""What an artifact is: its address, its files with the digests of their chunks, and what they mean."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from rag_stack.artifacts.chunk import CHUNK_BYTES, Chunk, chunk_digests
from rag_stack.artifacts.local_file import translated
from rag_stack.config import describe, is_name
from rag_stack.errors import ArtifactCorruptError, ArtifactError, ArtifactOutdatedError

ArtifactKind: TypeAlias = Literal["models", "indexes", "releases"]
KINDS: Final = get_args(ArtifactKind)

SCHEMA_VERSION: Final = 2
MANIFEST_NAME: Final = "manifest.json"
POINTER_NAME: Final = "PROMOTED"
ROLLOUT_NAME: Final = "ROLLOUT"
# What lies beside the versions of a name, and can be none.
RESERVED_NAMES: Final = (POINTER_NAME, ROLLOUT_NAME)
# A chunk is held in memory while it moves.
_MAX_CHUNK_BYTES: Final = 256 * 1024 * 1024


def _posix_relative(path: str) -> str:
    pure = PurePosixPath(path)
    if PurePosixPath(path).parts[:1] == (MANIFEST_NAME,):
        raise ValueError(f"{MANIFEST_NAME!r} is the name of the manifest itself")
    if path in ("", ".") or pure.is_absolute() or ".." in pure.parts or pure.as_posix() != path:
        raise ValueError(f"{path!r} is not a plain relative path inside the artifact")
    if any(part.startswith(".") for part in pure.parts):
        raise ValueError(f"{path!r} has a name with a leading dot, and those are never published")
    if "\0" in path:
        raise ValueError(f"{path!r} holds a NUL character")
    return path


ChunkDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """The address of one artifact. Raises ArtifactError for a kind, name or version that cannot be one."""

    kind: ArtifactKind
    name: str
    version: str

    def __post_init__(self) -> None:
        check_address(self.kind, self.name)
        if not is_name(self.version) or self.version in RESERVED_NAMES:
            raise ArtifactError(_wrong_name("version", self.version))

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its path relative to the artifact (posix), its size, and the BLAKE3 of each of its chunks as hex."""

    path: Annotated[str, AfterValidator(_posix_relative)]
    size_bytes: Annotated[int, Field(strict=True, ge=0)]
    chunks: tuple[ChunkDigest, ...]

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """An artifact's files and what they mean. `metadata` is JSON; `parent` is the version it was made from.

    A chunk is `chunk_bytes` long, except for a file's last. It is what moves, and what is verified, on its own.
    """

    kind: ArtifactKind
    name: str
    version: str
    files: tuple[FileEntry, ...]
    metadata: Mapping[str, Any]
    parent: str | None = None
    chunk_bytes: Annotated[int, Field(strict=True, ge=1, le=_MAX_CHUNK_BYTES)] = CHUNK_BYTES
    schema_version: int = SCHEMA_VERSION

    __pydantic_config__ = ConfigDict(extra="forbid")

    @property
    def ref(self) -> ArtifactRef:
        """The artifact's address."""
        return ArtifactRef(self.kind, self.name, self.version)

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the canonical bytes: it pins every file and all metadata."""
        return f"sha256:{hashlib.sha256(self.to_bytes()).hexdigest()}"

    @property
    def size_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(entry.size_bytes for entry in self.files)

    @property
    def hex(self) -> str:
        """The digest without its algorithm: the artifact's name in a node's cache."""
        return self.digest.removeprefix("sha256:")

    def chunks(self) -> tuple[Chunk, ...]:
        """Every chunk of every file, in the files' order; a chunk's `index` is its place here."""
        found: list[Chunk] = []
        for entry in self.files:
            for number, digest in enumerate(entry.chunks):
                offset = number * self.chunk_bytes
                size = min(self.chunk_bytes, entry.size_bytes - offset)
                found.append(Chunk(len(found), entry.path, offset, size, digest))
        return tuple(found)

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, UTF-8. Raises ArtifactError when the metadata is not JSON."""
        return canonical_json({**asdict(self), "metadata": self.metadata})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Parse and check a manifest. Raises ArtifactCorruptError for anything that `to_bytes` would not write.

        Raises ArtifactOutdatedError for what an older release has written.
        """
        document = parse_json_object(data, what="manifest")
        _check_schema(document.get("schema_version"))
        try:
            manifest = _MANIFEST.validate_python(document)
            _ = manifest.ref
        except ValidationError as exc:
            raise ArtifactCorruptError(f"manifest is not valid: {describe(exc)}; publish the artifact again") from exc
        except ArtifactError as exc:
            raise ArtifactCorruptError(f"manifest is not valid: {exc}; publish the artifact again") from exc
        paths = [entry.path for entry in manifest.files]
        if not paths or len(paths) != len(set(paths)):
            raise ArtifactCorruptError(f"manifest must list each of its files once, got {paths}")
        for entry in manifest.files:
            expected = math.ceil(entry.size_bytes / manifest.chunk_bytes)
            if len(entry.chunks) != expected:
                raise ArtifactCorruptError(
                    f"manifest has {len(entry.chunks)} digests for {entry.path!r}, its {entry.size_bytes} bytes are "
                    f"{expected} chunks; publish the artifact again"
                )
        return manifest


_MANIFEST: Final = TypeAdapter(Manifest)


def _check_schema(version: object) -> None:
    if version == SCHEMA_VERSION:
        return
    found = f"manifest has schema version {version!r}, this release reads {SCHEMA_VERSION}"
    if type(version) is int and 1 <= version < SCHEMA_VERSION:
        raise ArtifactOutdatedError(
            f"{found}: it was published by an older rag_stack; publish and promote it again, with `rag-stack model "
            "import` or `rag-stack index build`"
        )
    raise ArtifactCorruptError(f"{found}; upgrade rag_stack or publish the artifact again")


def check_address(kind: str, name: str) -> None:
    """Raise ArtifactError unless `kind` and `name` can address artifacts."""
    if kind not in KINDS:
        raise ArtifactError(f"artifact kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not is_name(name):
        raise ArtifactError(_wrong_name("name", name))


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """The one encoding of a JSON object that digests are taken over. Raises ArtifactError when it is not JSON."""
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as exc:
        raise ArtifactError(f"artifact metadata must be JSON (no NaN, no objects): {exc}") from exc


def parse_json_object(data: bytes, *, what: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ArtifactCorruptError, naming `what` was read."""
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise ArtifactCorruptError(f"{what} is not JSON ({exc}); publish or promote again") from exc
    if not isinstance(document, dict):
        raise ArtifactCorruptError(f"{what} must be a JSON object, got {type(document).__name__}")
    return document


def describe_files(directory: Path) -> tuple[FileEntry, ...]:
    """Every file below a directory, sorted by path. Links are followed, names with a leading dot skipped.

    Raises ArtifactError when there is none, or one that cannot be published.
    """
    with translated("read", directory):
        entries = [
            FileEntry(path=_published_path(path, directory), size_bytes=size_bytes, chunks=digests)
            for path in _walk(directory)
            for size_bytes, digests in [chunk_digests(path)]
        ]
    if not entries:
        raise ArtifactError(f"{str(directory)!r} holds no files to publish (names with a leading dot do not count)")
    return tuple(sorted(entries, key=lambda entry: entry.path))


def _walk(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as scan:
        children = [child for child in scan if not child.name.startswith(".")]
    for child in children:
        path = Path(child.path)
        if child.is_file():
            yield path
        elif not child.is_dir():
            raise ArtifactError(f"{child.path!r} is neither a file nor a directory (a broken link?); remove it")
        elif directory.resolve().is_relative_to(path.resolve()):
            raise ArtifactError(f"{child.path!r} is a link to a directory that holds it; remove it")
        else:
            yield from _walk(path)


def _published_path(path: Path, directory: Path) -> str:
    relative = path.relative_to(directory).as_posix()
    try:
        relative.encode("utf-8")
        return _posix_relative(relative)
    except UnicodeEncodeError as exc:
        raise ArtifactError(f"the file name {os.fsencode(relative)!r} is not UTF-8; rename it") from exc
    except ValueError as exc:
        raise ArtifactError(f"{str(path)!r} cannot be published: {exc}; rename it") from exc


def _wrong_name(what: str, text: str) -> str:
    return (
        f"artifact {what} {text!r} must be 1 to 128 letters, digits, '.', '_' or '-', begin with a letter or digit, "
        f"and not be {' or '.join(map(repr, RESERVED_NAMES))}"
    )
