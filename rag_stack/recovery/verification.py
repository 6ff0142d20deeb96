"""Whether a restored root is what its point says: every artifact opened by digest, every canary question searched."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef, Manifest, parse_json_object
from rag_stack.artifacts.point import KeptArtifact, Point, PointCanary, PointedAt
from rag_stack.artifacts.stored_files import stored_files
from rag_stack.errors import ArtifactCorruptError, ArtifactError, IndexVersionError, RagStackError
from rag_stack.index.gate import ask_canary
from rag_stack.index.reader import IndexVersion
from rag_stack.index.spec import Canary
from rag_stack.releases.published import load
from rag_stack.retrieval.candidates import best_passages
from rag_stack.types import Passage

WEIGHTS: Final = ".safetensors"


class Encoder(Protocol):
    """Turns texts into unit vectors, float32 [n, dimension]."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]: ...


# A verified directory and the manifest of what is in it.
Load = Callable[[Path, Manifest], Encoder]


@dataclass(frozen=True, slots=True)
class CanaryOutcome:
    """What came of one question: `detail` says what was found and at which place, or what was not."""

    question: str
    index: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What held. `weights` are tensors named by headers that were read; `problems` are sentences."""

    seconds: float
    opened: tuple[ArtifactRef, ...]
    size_bytes: int
    weights: int
    pointers: int
    canaries: tuple[CanaryOutcome, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> int:
        """Canary questions that found what they should."""
        return sum(each.passed for each in self.canaries)


@dataclass(slots=True)
class _Opened:
    """What is open until the questions are asked."""

    indexes: dict[str, IndexVersion] = field(default_factory=dict)
    models: dict[str, tuple[Path, Manifest]] = field(default_factory=dict)
    weights: int = 0
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What is wrong with one part is told, and the others are looked at all the same."""
        try:
            yield
        except RagStackError as exc:
            self.problems.append(exc.message)


def load_embedder(directory: Path, manifest: Manifest) -> Encoder:
    """The real one, in one thread."""
    # Brings torch, some seconds: only for those who ask questions.
    from rag_stack.retrieval.embedder import Embedder

    return Embedder.load(directory, name=manifest.name, digest=manifest.digest, threads=1)


def verify(
    point: Point, root: Catalog, *, load_with: Load = load_embedder, tell: Callable[[str], None] = lambda _: None
) -> Verified:
    """Open everything that a point names from a root, by digest, and search its questions there. Blocking."""
    began_s, opened, found = time.perf_counter(), _Opened(), []
    with ExitStack() as held:
        for artifact in point.artifacts:
            tell(f"opening {artifact.ref}")
            with opened.noting():
                _open(root, artifact, opened, held)
                found.append(artifact)
        pointers = 0
        for pointed in point.pointers:
            with opened.noting():
                _check_pointer(root, pointed)
                pointers += 1
        _check_objects(root, point, opened)
        promoted = {each.name: each.version for each in point.pointers if each.kind == "indexes"}
        canaries = _search_all(point.canaries, promoted, opened, load_with, tell)
    wrong = (f"canary question {each.question!r}: {each.detail}" for each in canaries if not each.passed)
    return Verified(
        seconds=time.perf_counter() - began_s,
        opened=tuple(each.ref for each in found),
        size_bytes=sum(each.size_bytes for each in found),
        weights=opened.weights,
        pointers=pointers,
        canaries=canaries,
        problems=(*opened.problems, *wrong),
    )


def _open(root: Catalog, artifact: KeptArtifact, opened: _Opened, held: ExitStack) -> None:
    manifest = root.manifest(artifact.ref)
    if manifest.digest != artifact.digest:
        raise ArtifactCorruptError(
            f"{str(artifact.ref)!r} has digest {manifest.digest} in {root.store.url}, the point names {artifact.digest}"
        )
    directory = held.enter_context(stored_files(root, manifest))
    match artifact.kind:
        case "models":
            opened.weights += tensors(directory, manifest)
            opened.models[manifest.digest] = (directory, manifest)
            if manifest.metadata.get("task") == "rerank":
                _try_reranker(directory, manifest)
        case "indexes":
            index = IndexVersion.open(directory, manifest, embedder_digest=None)
            held.callback(index.close)
            index.try_out()
            opened.indexes[str(artifact.ref)] = index
        case "releases":
            load(root, artifact.name, artifact.version)


def _try_reranker(directory: Path, manifest: Manifest) -> None:
    """Score a pair, as a replica does at its start. Raises ArtifactError."""
    # Brings ONNX Runtime, for those alone who have one.
    from rag_stack.retrieval.reranker import CrossEncoder

    CrossEncoder.load(directory, name=manifest.name, digest=manifest.digest, threads=1)


def tensors(directory: Path, manifest: Manifest) -> int:
    """How many tensors the headers of a model's weights name. Raises ArtifactCorruptError for a file that has none."""
    count = 0
    for entry in manifest.files:
        if not entry.path.endswith(WEIGHTS):
            continue
        try:
            with safe_open(str(directory / entry.path), framework="numpy") as weights:
                count += len(list(weights.keys()))
        except (SafetensorError, OSError) as exc:
            raise ArtifactCorruptError(
                f"file {entry.path!r} of {str(manifest.ref)!r} is what was published, and not safetensors ({exc}); "
                "import the model again"
            ) from exc
    return count


def _check_pointer(root: Catalog, pointed: PointedAt) -> None:
    expected = pointed.pointer_state(url=f"the point's {pointed.address}")
    found, _ = root.state(pointed.kind, pointed.name)
    if found != expected:
        now = found.pointer.version if found.pointer else "nothing"
        raise ArtifactError(
            f"{pointed.address} has {now} promoted in {root.store.url}, the point says {pointed.version} as promotion "
            f"{pointed.number}"
        )


def _check_objects(root: Catalog, point: Point, opened: _Opened) -> None:
    for each in point.objects:
        with opened.noting():
            found = parse_json_object(root.store.read_bytes(each.key), what=f"{root.store.url}/{each.key}")
            if found != each.document:
                raise ArtifactCorruptError(f"{root.store.url}/{each.key} is not what the point says")


def _search_all(
    canaries: Sequence[PointCanary],
    promoted: Mapping[str, str],
    opened: _Opened,
    load_with: Load,
    tell: Callable[[str], None],
) -> tuple[CanaryOutcome, ...]:
    encoders: dict[str, Encoder] = {}
    outcomes = []
    for canary in canaries:
        tell(f"asking {canary.question!r}")
        try:
            passed, detail = _search(canary, promoted, opened, encoders, load_with)
        except RagStackError as exc:
            passed, detail = False, exc.message
        outcomes.append(CanaryOutcome(canary.question, canary.index, passed, detail))
    return tuple(outcomes)


def _search(
    canary: PointCanary,
    promoted: Mapping[str, str],
    opened: _Opened,
    encoders: dict[str, Encoder],
    load_with: Load,
) -> tuple[bool, str]:
    version = canary.version or promoted.get(canary.index)
    index = opened.indexes.get(f"indexes/{canary.index}/{version}")
    if index is None:
        raise IndexVersionError(f"its index {canary.index!r} is not open, in the version {version!r}")
    digest = index.embedder_digest
    if digest not in opened.models:
        raise IndexVersionError(
            f"the embedder of {canary.index!r} ({digest}) is not in the point, so nobody can search"
        )
    if digest not in encoders:
        encoders[digest] = load_with(*opened.models[digest])
    encoder = encoders[digest]

    def search(question: str, k: int) -> list[Passage]:
        return best_passages(index, question, encoder.encode([question]), k)

    if not canary.expect:
        found = search(canary.question, canary.top_k)
        return bool(found), f"{len(found)} passages found, and none is named as expected"
    result = ask_canary(1, Canary(question=canary.question, expect=canary.expect, top_k=canary.top_k), search)
    return result.passed, result.detail
