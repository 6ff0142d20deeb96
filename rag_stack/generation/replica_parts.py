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
_WEIGHTS: Final = ".safetensors"
_INDEX: Final = "model.safetensors.index.json"
# The same weights in their family's own format, which Mistral publishes beside the shards.
_CONSOLIDATED: Final = "consolidated"
# vLLM's on CPUs; on GPUs its blocks are smaller.
_BLOCK_TOKENS: Final = 128
_NUMBER_BYTES: Final[Mapping[str, int]] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class IndexPart:
    """An index version: what a process copies of it, and what it maps."""

    name: str
    copied_bytes: int
    mapped_bytes: int


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """Bytes of everything. `context_bytes` is the least cache with which vLLM starts; 0 where that is not known."""

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
    files = _weight_bytes(model, tiers)
    size, source = _weights(files, config, release.engine, dtype)
    return ReplicaParts(
        embedder=release.embedder.name,
        embedder_bytes=_loaded(embedder),
        weight_bytes=size,
        weight_source=source,
        token_bytes=kept,
        context_bytes=(kept.value or 0) * _least_tokens(config, release.engine),
        indexes=_indexes(release, tiers),
        reranker=reranker.name if reranker else "",
        reranker_bytes=_loaded(_resolve(tiers, reranker)) if reranker else 0,
        query_cache_bytes=QUERY_CACHE_BYTES if release.retrieval.query_cache else 0,
    )


def model_config(model: Manifest, tiers: Tiers) -> Mapping[str, Any]:
    """A model's config.json, from this node or the object store; empty where it has none that can be read."""
    return _json(model, _CONFIG, tiers)


def _json(model: Manifest, name: str, tiers: Tiers) -> Mapping[str, Any]:
    if not any(entry.path == name for entry in model.files):
        return {}
    try:
        here = tiers.cache.find(model)
        data = (here / name).read_bytes() if here else tiers.catalog.store.read_bytes(f"{model.ref}/{name}")
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
    """Of a model that is there in two forms, the one that is loaded.

    A graph in ONNX reads its weights from files beside it, or from the model's own, and packs most of them into memory.
    """
    paths = {entry.path: entry.size_bytes for entry in manifest.files}
    if _ONNX not in paths:
        return manifest.size_bytes
    return sum(size for path, size in paths.items() if path.startswith(_ONNX) or _is_weights(path))


def _weight_bytes(model: Manifest, tiers: Tiers) -> int:
    """Of the files that vLLM loads: those that the index of the shards names, or the consolidated ones.

    Which of the two depends on its loader and its version; the smaller refuses nothing that would have worked.
    """
    sizes = {entry.path: entry.size_bytes for entry in model.files if _is_weights(entry.path)}
    shards = {path: size for path, size in sizes.items() if not path.startswith(_CONSOLIDATED)}
    named = _json(model, _INDEX, tiers).get("weight_map")
    if isinstance(named, dict):
        wanted = {str(path) for path in named.values()}
        shards = {path: size for path, size in sizes.items() if path in wanted} or shards
    consolidated = sum(size for path, size in sizes.items() if path.startswith(_CONSOLIDATED))
    return min(filter(None, (sum(shards.values()), consolidated)), default=0)


def _is_weights(path: str) -> bool:
    """Loaders look into no folder of a model's."""
    return path.endswith(_WEIGHTS) and "/" not in path


def _weights(size: int, config: Mapping[str, Any], engine: Mapping[str, Any], dtype: str | None) -> tuple[int, str]:
    """As they lie in memory: in another precision than their files where the engine computes in one."""
    filed = str(config.get("dtype") or config.get("torch_dtype") or "")
    # vLLM computes in 16 bits what is filed in 32, unless told otherwise.
    dtype = dtype or ("bfloat16" if filed == "float32" else None)
    before, after = _NUMBER_BYTES.get(filed), _NUMBER_BYTES.get(dtype or "")
    quantized = engine.get("quantization") or config.get("quantization_config")
    if before is None or after is None or before == after or quantized:
        return size, "its manifest"
    return size * after // before, f"its manifest, {filed} as {dtype}"


def _dtype(engine: Mapping[str, Any], compute: str | None) -> str | None:
    named = str(engine.get("dtype", "auto"))
    aliases = {"half": "float16", "float": "float32"}
    return compute if named == "auto" else aliases.get(named, named)


def _least_tokens(config: Mapping[str, Any], engine: Mapping[str, Any]) -> int:
    """Tokens of the cache that vLLM refuses to be below: the longest request's; 0 where nothing tells.

    In whole blocks, and one more, which its pool holds back (vllm/v1/core/kv_cache_utils.py).
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    told = engine.get("max_model_len") or (text or {}).get("max_position_embeddings")
    if not isinstance(told, int) or told <= 0:
        return 0
    block = engine.get("block_size")
    block = block if isinstance(block, int) and block > 0 else _BLOCK_TOKENS
    return (-(-told // block) + 1) * block
