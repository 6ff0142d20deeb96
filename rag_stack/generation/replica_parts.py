"""What a replica of a release will hold, by the manifests: sizes, before anything is fetched or loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.tiers import Tiers
from rag_stack.config import QUERY_CACHE_BYTES, ArtifactChoice, Release
from rag_stack.errors import ArtifactError, IndexVersionError
from rag_stack.generation.kv_settings import TokenBytes, token_bytes
from rag_stack.index.reader import copied_bytes

_CONFIG: Final = "config.json"
_ONNX: Final = "onnx/model.onnx"
_NUMBER_BYTES: Final[Mapping[str, int]] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class IndexPart:
    """An index version: what a process copies of it, and what it maps."""

    name: str
    copied_bytes: int
    mapped_bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """Bytes of everything. `context_bytes` is the cache that one whole context takes; 0 where that is not known."""

    embedder: str
    embedder_bytes: int
    weight_bytes: int
    weight_source: str
    token_bytes: TokenBytes
    context_bytes: int = 0
    indexes: tuple[IndexPart, ...] = ()
    reranker: str = ""
    reranker_bytes: int = 0
    query_cache_bytes: int = 0


def replica_parts(release: Release, tiers: Tiers, *, compute: str | None = None) -> ReplicaParts:
    """By the manifests and the model's config.json. Blocking. Raises ArtifactError.

    `compute` is what the engine computes in where the release names no `dtype` ("float32" on a CPU without bfloat16).
    """
    model = _resolve(tiers, release.model)
    embedder = _resolve(tiers, release.embedder)
    reranker = release.reranker
    config = model_config(model, tiers)
    dtype = _dtype(release.engine, compute)
    kept = token_bytes(config, release.engine, compute_bytes=_NUMBER_BYTES.get(dtype or ""))
    size, source = _weights(model, config, release.engine, dtype)
    return ReplicaParts(
        embedder=release.embedder.name,
        embedder_bytes=_loaded(embedder),
        weight_bytes=size,
        weight_source=source,
        token_bytes=kept,
        context_bytes=(kept.value or 0) * _context(config, release.engine),
        indexes=_indexes(release, tiers),
        reranker=reranker.name if reranker else "",
        reranker_bytes=_loaded(_resolve(tiers, reranker)) if reranker else 0,
        query_cache_bytes=QUERY_CACHE_BYTES if release.retrieval.query_cache else 0,
    )


def model_config(model: Manifest, tiers: Tiers) -> Mapping[str, Any]:
    """A model's config.json, from this node or the object store; empty where it has none that can be read."""
    if not any(entry.path == _CONFIG for entry in model.files):
        return {}
    try:
        here = tiers.cache.find(model)
        data = (here / _CONFIG).read_bytes() if here else tiers.catalog.store.read_bytes(f"{model.ref}/{_CONFIG}")
        found = json.loads(data)
    except (OSError, ValueError, ArtifactError):
        return {}
    return found if isinstance(found, dict) else {}


def _resolve(tiers: Tiers, choice: ArtifactChoice) -> Manifest:
    return tiers.resolve("models", choice.name, choice.version, digest=choice.digest)


def _indexes(release: Release, tiers: Tiers) -> tuple[IndexPart, ...]:
    """Each version once: stores may share one."""
    manifests = [tiers.resolve("indexes", s.index, s.version, digest=s.digest) for s in release.stores]
    return tuple(_index(manifest) for manifest in {each.digest: each for each in manifests}.values())


def _index(manifest: Manifest) -> IndexPart:
    try:
        copied = copied_bytes(manifest)
    except IndexVersionError:  # what is wrong with it is said where it is opened
        copied = 0
    return IndexPart(manifest.name, copied, manifest.size_bytes - copied)


def _loaded(manifest: Manifest) -> int:
    """Of a model that is there in two forms, the one that is loaded."""
    onnx = [entry.size_bytes for entry in manifest.files if entry.path == _ONNX]
    return onnx[0] if onnx else manifest.size_bytes


def _weights(
    model: Manifest, config: Mapping[str, Any], engine: Mapping[str, Any], dtype: str | None
) -> tuple[int, str]:
    """As they lie in memory: in another precision than their files where the engine computes in one."""
    size = sum(entry.size_bytes for entry in model.files if entry.path.endswith(".safetensors"))
    filed = str(config.get("dtype") or config.get("torch_dtype") or "")
    before, after = _NUMBER_BYTES.get(filed), _NUMBER_BYTES.get(dtype or "")
    quantized = engine.get("quantization") or config.get("quantization_config")
    if before is None or after is None or before == after or quantized:
        return size, "its manifest"
    return size * after // before, f"its manifest, {filed} as {dtype}"


def _dtype(engine: Mapping[str, Any], compute: str | None) -> str | None:
    named = str(engine.get("dtype", "auto"))
    aliases = {"half": "float16", "float": "float32"}
    return compute if named == "auto" else aliases.get(named, named)


def _context(config: Mapping[str, Any], engine: Mapping[str, Any]) -> int:
    """Tokens of the longest request; 0 where nothing tells."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    told = engine.get("max_model_len") or (text or {}).get("max_position_embeddings")
    return told if isinstance(told, int) and told > 0 else 0
