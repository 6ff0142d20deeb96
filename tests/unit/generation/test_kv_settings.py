"""Settings of the cache: names, what a platform has, packages; and what a token takes, or that it is not known."""

from types import SimpleNamespace
from typing import Any

import pytest

from rag_stack.errors import ConfigError
from rag_stack.generation.kv_settings import KvNames, check_kv_settings, kv_capacity, token_bytes, vllm_kv_names

NAMES = KvNames(
    dtypes=("auto", "fp8", "bfloat16", "nvfp4"),
    backends=("native", "lmcache"),
    transfer_fields=("kv_connector", "kv_role", "kv_connector_extra_config", "kv_connector_module_path"),
    connectors=("OffloadingConnector", "LMCacheMPConnector", "MultiConnector", "NixlConnector"),
)
OFFLOAD = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
FS = {
    "spec_name": "TieringOffloadingSpec",
    "cpu_bytes_to_use": 1,
    "secondary_tiers": [{"type": "fs", "root_dir": "/x"}],
}
LLAMA = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}


def check(engine: dict[str, Any], *, platform: Any = "gpu", installed: bool = False) -> None:
    check_kv_settings(engine, names=NAMES, platform=platform, installed=lambda _: installed)


@pytest.mark.parametrize(
    "engine",
    [
        {},
        {"enable_prefix_caching": False, "block_size": 32, "kv_cache_dtype": "fp8"},
        {"kv_offloading_size": 8.5},
        {"kv_transfer_config": OFFLOAD},
        {"kv_transfer_config": {**OFFLOAD, "kv_connector_extra_config": FS}},
        {"kv_offloading_size": 1, "kv_transfer_config": {"kv_role": "kv_both"}},
        {"kv_transfer_config": {"kv_connector": "Mine", "kv_connector_module_path": "my.own", "kv_role": "kv_both"}},
    ],
)
def test_what_a_gpu_can(engine: dict[str, Any]) -> None:
    check(engine)
    check(engine, platform=None)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kv_offloading_size": 8}, "between a GPU and the host"),
        ({"kv_transfer_config": OFFLOAD}, "kv_transfer_config offloads.*OffloadingConnector.*runs on CPUs"),
        ({"kv_offloading_size": 8, "kv_offloading_backend": "lmcache"}, "LMCacheMPConnector.*runs on CPUs"),
        ({"kv_cache_dtype": "nvfp4"}, "on CPUs"),
    ],
)
def test_what_cpus_cannot(engine: dict[str, Any], said: str) -> None:
    check(engine, installed=True)
    check(engine, platform=None)
    with pytest.raises(ConfigError, match=said):
        check(engine, platform="cpu")


def test_lmcache_is_a_package() -> None:
    engine = {"kv_offloading_size": 8, "kv_offloading_backend": "lmcache"}
    check(engine, installed=True)
    with pytest.raises(ConfigError, match=r"needs the package 'lmcache'.*pip install lmcache"):
        check(engine)
    both = {"connectors": [OFFLOAD, {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both"}]}
    several = {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": both}
    with pytest.raises(ConfigError, match="lmcache"):
        check({"kv_transfer_config": several})


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kv_cache_dtype": "fp9"}, "did you mean 'fp8'"),
        ({"kv_offloading_backend": "redis"}, "native"),
        ({"kv_offloading_size": 0}, "above 0"),
        ({"kv_offloading_size": "8"}, "above 0"),
        ({"block_size": 16.0}, "above 0"),
        ({"kv_transfer_config": "OffloadingConnector"}, "must be a mapping"),
        ({"kv_transfer_config": {**OFFLOAD, "kv_rol": 1}}, "did you mean 'kv_role'"),
        (
            {"kv_transfer_config": {**OFFLOAD, "kv_connector": "OfloadingConnector"}},
            "did you mean 'OffloadingConnector'",
        ),
        ({"kv_transfer_config": {"kv_connector": "OffloadingConnector"}}, "kv_role must be"),
        ({"kv_transfer_config": {"kv_role": "kv_both"}}, "names no kv_connector"),
        ({"kv_transfer_config": {**OFFLOAD, "kv_connector_extra_config": ["x"]}}, "must be a mapping"),
        (
            {
                "kv_transfer_config": {
                    **OFFLOAD,
                    "kv_connector_extra_config": {**FS, "secondary_tiers": [{"type": "fs"}]},
                }
            },
            "root_dir",
        ),
        (
            {"kv_transfer_config": {**OFFLOAD, "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec"}}},
            "cpu_bytes_to_use",
        ),
    ],
)
def test_what_is_wrong_is_named_on_every_platform(engine: dict[str, Any], said: str) -> None:
    for platform in ("cpu", "gpu", None):
        with pytest.raises(ConfigError, match=said):
            check(engine, platform=platform, installed=True)


def test_the_names_are_those_of_the_installed_vllm() -> None:
    names = vllm_kv_names()
    assert {"auto", "fp8"} <= set(names.dtypes)
    assert {"native", "lmcache"} == set(names.backends)
    assert {"kv_connector", "kv_role"} <= set(names.transfer_fields)
    assert {"OffloadingConnector", "LMCacheConnectorV1", "SimpleCPUOffloadConnector"} <= set(names.connectors)


def test_the_capacity_is_the_engines_own() -> None:
    def client(**config: Any) -> Any:
        return SimpleNamespace(vllm_config=SimpleNamespace(cache_config=SimpleNamespace(**config)))

    told = kv_capacity(client(num_gpu_blocks=10, block_size=128))
    assert told is not None
    assert str(told) == "1280 tokens (10 blocks of 128)"
    hybrid = kv_capacity(client(num_gpu_blocks=10, block_size=128, kv_cache_size_tokens=900))
    assert hybrid is not None
    assert hybrid.tokens == 900
    assert not told.prefixes
    cached = kv_capacity(client(num_gpu_blocks=10, block_size=128, enable_prefix_caching=True))
    assert cached is not None
    assert cached.prefixes
    assert kv_capacity(client(num_gpu_blocks=None, block_size=128)) is None
    assert kv_capacity(object()) is None, "an engine that is none of vLLM's"


@pytest.mark.parametrize(
    ("config", "engine", "size"),
    [
        (LLAMA, {}, 131_072),
        ({"text_config": LLAMA}, {}, 131_072),
        (LLAMA, {"kv_cache_dtype": "fp8"}, 65_536),
        (LLAMA, {"dtype": "float32"}, 262_144),
        (LLAMA, {"tensor_parallel_size": 16}, 262_144),
        ({**LLAMA, "sliding_window": 4096, "use_sliding_window": False}, {}, 131_072),
        ({**LLAMA, "layer_types": ["full_attention"] * 32}, {}, 131_072),
        ({**LLAMA, "num_key_value_heads": None, "head_dim": 64}, {}, 262_144),
    ],
)
def test_a_token_takes_two_numbers_a_layer_and_head(config: dict[str, Any], engine: dict[str, Any], size: int) -> None:
    assert token_bytes(config, engine).value == size


def test_in_what_the_engine_computes() -> None:
    assert token_bytes(LLAMA, {}, compute_bytes=4).value == 262_144


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({**LLAMA, "kv_lora_rank": 512}, "latent"),
        ({**LLAMA, "sliding_window": 4096}, "sliding window"),
        ({**LLAMA, "layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({**LLAMA, "layers_block_type": ["mamba", "attention"]}, "mamba"),
        ({**LLAMA, "num_kv_shared_layers": 10}, "num_kv_shared_layers"),
        ({**LLAMA, "model_type": "falcon"}, "falcon"),
        ({"hidden_size": 4096}, "does not tell"),
        ({}, "does not tell"),
        ({**LLAMA, "num_attention_heads": 0, "num_key_value_heads": 0}, "does not tell"),
    ],
)
def test_of_other_models_nothing_is_said(config: dict[str, Any], why: str) -> None:
    found = token_bytes(config, {})
    assert found.value is None
    assert why in found.unknown


def test_nor_of_caches_that_keep_scales_too() -> None:
    assert token_bytes(LLAMA, {"kv_cache_dtype": "int8_per_token_head"}).value is None
