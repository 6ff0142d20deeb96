"""The release's settings of the KV cache: vLLM's own, passed through, and checked against what the platform can do.

What there is in vLLM 0.29, all of it in `engine:`:

| setting | what |
| --- | --- |
| enable_prefix_caching, block_size, kv_cache_dtype | the cache on the device; on CPUs a block has 128 tokens |
| kv_cache_memory_bytes, num_gpu_blocks_override | its size, where it is not to follow from what is left |
| kv_offloading_size: GIB | blocks that were computed are kept in host memory too; GPUs alone |
| kv_offloading_backend: native, lmcache | who keeps them; LMCache is a server of its own, and a package |
| kv_transfer_config: {kv_connector, kv_role, ...} | a connector by name: OffloadingConnector, LMCacheMPConnector, ... |

Behind memory a file system, by OffloadingConnector's kv_connector_extra_config: {spec_name: TieringOffloadingSpec,
cpu_bytes_to_use: N, secondary_tiers: [{type: fs, root_dir: /cache/kv}]}.
"""

import difflib
import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

from rag_stack.errors import ConfigError

Platform: TypeAlias = Literal["cpu", "gpu"]

GIB: Final = 1024**3
# The size of the cache on CPUs, in whole GiB, as vLLM reads it.
KV_VARIABLE: Final = "VLLM_CPU_KVCACHE_SPACE"

# What vLLM's attention on CPUs can keep.
_CPU_DTYPES: Final = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")
_PACKAGES: Final[Mapping[str, str]] = {
    "LMCacheConnectorV1": "lmcache",
    "LMCacheMPConnector": "lmcache",
    "FlexKVConnectorV1": "flexkv",
}
# Connectors that move blocks with CUDA's copy engines, or keep them in memory that it has pinned.
_OFFLOADING: Final = frozenset({"OffloadingConnector", "SimpleCPUOffloadConnector", *_PACKAGES})
_FULL_ATTENTION: Final = "full_attention"


@dataclass(frozen=True, slots=True)
class KvNames:
    """What the installed vLLM knows by name."""

    dtypes: Collection[str]
    backends: Collection[str]
    transfer_fields: Collection[str]
    connectors: Collection[str]


@dataclass(frozen=True, slots=True)
class KvCapacity:
    """What the engine's cache holds after its start: tokens, and the blocks of so many tokens that they lie in.

    `prefixes` says whether later prompts find there what earlier ones began with.
    """

    tokens: int
    blocks: int
    block_tokens: int
    prefixes: bool = True

    def __str__(self) -> str:
        return f"{self.tokens} tokens ({self.blocks} blocks of {self.block_tokens})"


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """Bytes of one token's keys and values over all layers and workers, or None and why that is not known."""

    value: int | None
    unknown: str = ""


def vllm_kv_names() -> KvNames:
    """From vLLM itself. Imports it: seconds."""
    import dataclasses

    from vllm.config import KVTransferConfig
    from vllm.config.cache import CacheDType, KVOffloadingBackend
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    return KvNames(
        dtypes=get_args(CacheDType),
        backends=get_args(KVOffloadingBackend),
        transfer_fields=[field.name for field in dataclasses.fields(KVTransferConfig)],
        connectors=list(KVConnectorFactory._registry),
    )


def check_kv_settings(
    engine: Mapping[str, Any],
    *,
    names: KvNames,
    platform: Platform | None,
    installed: Callable[[str], bool] = lambda package: importlib.util.find_spec(package) is not None,
) -> None:
    """Raise ConfigError for a setting of the cache that vLLM does not know, or that the platform does not have.

    Without a platform, as where a release is checked for another machine, names alone are looked at.
    """
    _one_of("kv_cache_dtype", engine.get("kv_cache_dtype", "auto"), names.dtypes)
    _one_of("kv_offloading_backend", engine.get("kv_offloading_backend", "native"), names.backends)
    _check_numbers(engine)
    connectors = list(_connectors(engine, names))
    if platform is None:
        return
    if platform == "cpu":
        _check_cpu(engine, connectors)
    for setting, connector in connectors:
        package = _PACKAGES.get(connector)
        if package is not None and not installed(package):
            raise ConfigError(
                f"{setting} uses {connector}, which needs the package {package!r}, and it is not installed: install it "
                f"(`pip install {package}`), or use vLLM's own offload (`kv_offloading_size`)"
            )


def kv_capacity(engine_client: object) -> KvCapacity | None:
    """What the engine that runs has made room for, from vLLM's own configuration; None where it does not tell."""
    config = getattr(getattr(engine_client, "vllm_config", None), "cache_config", None)
    blocks, block_tokens = (getattr(config, name, None) for name in ("num_gpu_blocks", "block_size"))
    if not isinstance(blocks, int) or not isinstance(block_tokens, int):
        return None
    # By vLLM's own count, where layers of several kinds share the blocks.
    tokens = getattr(config, "kv_cache_size_tokens", None)
    return KvCapacity(
        tokens if isinstance(tokens, int) else blocks * block_tokens,
        blocks,
        block_tokens,
        prefixes=bool(getattr(config, "enable_prefix_caching", False)),
    )


def token_bytes(
    config: Mapping[str, Any], engine: Mapping[str, Any], *, compute_bytes: int | None = None
) -> TokenBytes:
    """By the model's config.json: 2 x layers x heads of keys x head size x bytes a number.

    `compute_bytes` are those of the numbers that the engine computes in, where `engine.dtype` does not tell. Unknown
    for models whose layers do not all keep every token in the same way: a wrong number would be worse than none.
    """
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    if unlike := _unlike(text or {}):
        return TokenBytes(None, unlike)
    try:
        layers, heads = int(text["num_hidden_layers"]), int(text["num_attention_heads"])  # type: ignore[index]
        kept = int(text.get("num_key_value_heads") or heads)  # type: ignore[union-attr]
        size = int(text.get("head_dim") or int(text["hidden_size"]) // heads)  # type: ignore[union-attr,index]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return TokenBytes(None, "its config.json does not tell layers, heads and their size")
    number = _number_bytes(engine, compute_bytes)
    if number is None:
        return TokenBytes(None, f"kv_cache_dtype {engine.get('kv_cache_dtype')!r} keeps more than the numbers")
    # More workers than heads: each has one, and some the same.
    workers = int(engine.get("tensor_parallel_size") or 1)
    return TokenBytes(2 * layers * max(kept, workers) * size * number)


def _unlike(text: Mapping[str, Any]) -> str:
    """What makes a model keep less, or other things, than keys and values of every token in every layer."""
    if text.get("kv_lora_rank"):
        return "it has latent attention (MLA)"
    kinds = text.get("layer_types") or text.get("layers_block_type") or []
    others = sorted({str(kind) for kind in kinds} - {_FULL_ATTENTION, "attention"})
    if others:
        return f"it has layers of other kinds ({', '.join(others)})"
    # Families of Qwen name a window, and say whether it is used.
    if not kinds and text.get("sliding_window") and text.get("use_sliding_window", True):
        return "it has a sliding window"
    for key in (
        *("attention_chunk_size", "attn_layer_period", "block_configs", "cross_attention_layers"),
        *("full_attention_interval", "hybrid_override_pattern", "mamba_d_state", "num_kv_shared_layers"),
        *("sliding_window_pattern", "ssm_cfg", "state_size", "v_head_dim", "is_encoder_decoder"),
    ):
        if text.get(key):
            return f"its config.json has {key}"
    # One head of keys for all, under names of their own.
    if text.get("multi_query") or text.get("model_type") in ("falcon", "gpt_bigcode", "mpt", "dbrx"):
        return f"the family {text.get('model_type')!r} names its heads in another way"
    return ""


def _number_bytes(engine: Mapping[str, Any], compute_bytes: int | None) -> int | None:
    kept = str(engine.get("kv_cache_dtype") or "auto")
    if kept in ("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"):
        return 1
    if kept in ("float16", "bfloat16"):
        return 2
    if kept != "auto":
        return None
    if engine.get("dtype", "auto") in ("float32", "float"):
        return 4
    return 2 if engine.get("dtype", "auto") != "auto" else compute_bytes or 2


def _connectors(engine: Mapping[str, Any], names: KvNames) -> Iterator[tuple[str, str]]:
    """What asks for a connector, and its name."""
    size = engine.get("kv_offloading_size")
    if size is not None:
        lmcache = engine.get("kv_offloading_backend") == "lmcache"
        yield "engine.kv_offloading_size", "LMCacheMPConnector" if lmcache else "OffloadingConnector"
    config = engine.get("kv_transfer_config")
    if config is not None:
        yield from _of_config("engine.kv_transfer_config", config, names, offloads=size is not None)


def _of_config(setting: str, config: object, names: KvNames, *, offloads: bool = False) -> Iterator[tuple[str, str]]:
    if not isinstance(config, Mapping):
        raise ConfigError(f"{setting} must be a mapping, as {{kv_connector: OffloadingConnector, kv_role: kv_both}}")
    for key in config:
        _one_of(f"{setting}, the field", key, names.transfer_fields)
    connector, extra = config.get("kv_connector"), config.get("kv_connector_extra_config") or {}
    if connector is None:
        if not offloads:
            raise ConfigError(f"{setting} names no kv_connector; vLLM knows {', '.join(sorted(names.connectors))}")
        return
    if config.get("kv_connector_module_path") is None:
        _one_of(f"{setting}.kv_connector", connector, names.connectors)
    if config.get("kv_role") not in ("kv_both", "kv_producer", "kv_consumer"):
        raise ConfigError(f"{setting}.kv_role must be kv_both, kv_producer or kv_consumer (one engine alone: kv_both)")
    _check_tiers(setting, extra)
    yield setting, str(connector)
    for each in extra.get("connectors", ()) if connector == "MultiConnector" else ():
        yield from _of_config(f"{setting}.connectors", each, names)


def _check_tiers(setting: str, extra: object) -> None:
    """A file system behind memory, which has to know where, and how much memory."""
    if not isinstance(extra, Mapping):
        raise ConfigError(f"{setting}.kv_connector_extra_config must be a mapping, got {type(extra).__name__}")
    if extra.get("spec_name") != "TieringOffloadingSpec":
        return
    if not extra.get("cpu_bytes_to_use"):
        raise ConfigError(f"{setting}: TieringOffloadingSpec needs cpu_bytes_to_use, the memory before its tiers")
    for tier in extra.get("secondary_tiers") or ():
        if not isinstance(tier, Mapping) or not tier.get("type"):
            raise ConfigError(f"{setting}: each of secondary_tiers needs a type, such as fs")
        if tier["type"] == "fs" and not tier.get("root_dir"):
            raise ConfigError(f"{setting}: the tier fs needs root_dir, a directory on the disk that keeps the blocks")


def _check_numbers(engine: Mapping[str, Any]) -> None:
    for key in ("block_size", "kv_cache_memory_bytes", "num_gpu_blocks_override", "kv_offloading_size"):
        value = engine.get(key)
        kinds = (int, float) if key == "kv_offloading_size" else (int,)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) or value <= 0):
            raise ConfigError(f"engine.{key} must be a number above 0, got {value!r}")


def _check_cpu(engine: Mapping[str, Any], connectors: Collection[tuple[str, str]]) -> None:
    for setting, connector in connectors:
        if connector in _OFFLOADING:
            raise ConfigError(
                f"{setting} offloads keys and values ({connector}), which vLLM does between a GPU and the host's "
                "memory, and this release runs on CPUs, where the cache is in that memory already: leave it out, and "
                "give the cache more with engine.kv_cache_memory_bytes"
            )
    _one_of("kv_cache_dtype on CPUs", engine.get("kv_cache_dtype", "auto"), _CPU_DTYPES)


def _one_of(what: str, value: object, known: Collection[str]) -> None:
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"vLLM knows {', '.join(sorted(known))}"
    raise ConfigError(f"{what if what.startswith('engine') else f'engine.{what}'} {value!r} is not one; {hint}")
