"""The sum of a replica's memory: what the cache gets, what is refused, and how that is said."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig, Release
from rag_stack.errors import ConfigError, MemoryBudgetError
from rag_stack.generation.kv_settings import GIB, TokenBytes
from rag_stack.generation.memory_budget import (
    RAY_BYTES,
    Memory,
    MemoryBudget,
    Need,
    cache_setting,
    device_budget,
    engine_share,
    host_budget,
)
from rag_stack.generation.replica_parts import IndexPart, ReplicaParts, replica_parts
from rag_stack.metrics import MemoryRecorder
from tests.pinnable import publish_docs, publish_model


def parts(*, mapped: float = 1.0, copied: float = 0.0, weights: float = 2.0, context: float = 0.25) -> ReplicaParts:
    return ReplicaParts(
        embedder="e",
        embedder_bytes=int(0.1 * GIB),
        weight_bytes=int(weights * GIB),
        weight_source="its manifest",
        token_bytes=TokenBytes(1024),
        context_bytes=int(context * GIB),
        indexes=(IndexPart("docs", int(copied * GIB), int(mapped * GIB)),),
    )


def on_cpu(
    memory: float, held: ReplicaParts, *, own: bool = True, free: float | None = None, **engine: Any
) -> MemoryBudget:
    env = engine.pop("env", {})
    given = Memory(int(memory * GIB), "told", own=own, free_bytes=None if free is None else int(free * GIB))
    return host_budget("a replica of 'r'", held, given, engine=engine, env=env, on="cpu")


def others(budget: MemoryBudget) -> int:
    return sum(need.size_bytes for need in budget.needs)


def test_the_cache_gets_what_is_left_after_index_and_embedder_and_a_reserve() -> None:
    budget = on_cpu(16, parts(mapped=3))
    assert budget.cache_bytes == int(16 * GIB * 0.9) - others(budget)
    smaller = on_cpu(16, parts(mapped=1))
    assert smaller.cache_bytes is not None
    assert budget.cache_bytes is not None
    assert smaller.cache_bytes - budget.cache_bytes == 2 * GIB
    assert cache_setting(budget, {}) == {"kv_cache_memory_bytes": budget.cache_bytes}
    assert cache_setting(budget, {"tensor_parallel_size": 2}) == {"kv_cache_memory_bytes": budget.cache_bytes // 2}
    budget.check()


def test_an_index_larger_than_the_memory_is_served_and_leaves_the_cache_its_part() -> None:
    budget = on_cpu(16, parts(mapped=200))
    budget.check()
    assert budget.cache_bytes is not None
    assert 2 * GIB < budget.cache_bytes < 4 * GIB


def test_a_machine_that_others_use_too_is_not_taken_whole() -> None:
    alone, shared = on_cpu(16, parts()), on_cpu(16, parts(), own=False, free=15)
    busy = on_cpu(16, parts(), own=False, free=6)
    assert alone.cache_bytes is not None
    assert shared.cache_bytes is not None
    assert busy.cache_bytes is not None
    assert busy.cache_bytes < shared.cache_bytes < alone.cache_bytes / 2 + GIB
    busy.check()
    on_cpu(16, parts(), own=False, free=0.1).check()


def test_what_does_not_fit_is_refused_with_the_sum() -> None:
    budget = on_cpu(4, parts(weights=3.5, copied=1.5))
    with pytest.raises(MemoryBudgetError) as refused:
        budget.check()
    text = refused.value.message
    assert text.startswith("a replica of 'r' needs ")
    assert "has 4.00 GiB (told)" in text
    lines = [line for line in text.splitlines() if " GiB  " in line and "not counted" not in line]
    summed = sum(float(line.split(" GiB  ")[0].split()[-1]) for line in lines)
    assert summed == pytest.approx(budget.needed_bytes / GIB, abs=0.05), "the lines are the sum"
    for what in ("embedder e", "index docs, copied", "engine's weights", "KV cache, at least", "give the replica more"):
        assert what in text
    assert isinstance(refused.value, ConfigError)


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        ({"env": {"VLLM_CPU_KVCACHE_SPACE": "6"}}, "engine_env.VLLM_CPU_KVCACHE_SPACE may be 4"),
        ({"kv_cache_memory_bytes": 6 * GIB}, "engine.kv_cache_memory_bytes may be worth"),
        ({"num_gpu_blocks_override": 49152}, "engine.num_gpu_blocks_override may be worth"),
    ],
)
def test_a_size_that_is_given_wins_and_is_checked(engine: dict[str, Any], what: str) -> None:
    ample = on_cpu(64, parts(), **{**engine})
    assert ample.cache_bytes == 6 * GIB
    # A number of blocks is no size to vLLM, which would ask for a share of the machine.
    blocks = {"kv_cache_memory_bytes": 6 * GIB} if "num_gpu_blocks_override" in engine else {}
    assert cache_setting(ample, engine) == blocks
    ample.check()
    with pytest.raises(MemoryBudgetError, match=what):
        on_cpu(8, parts(), **{**engine}).check()


def test_a_share_is_no_size_on_cpus() -> None:
    budget = on_cpu(16, parts(), gpu_memory_utilization=0.5)
    assert cache_setting(budget, {}) == cache_setting(on_cpu(16, parts()), {}) != {}


def test_blocks_whose_size_is_not_known_leave_vllm_a_size_that_fits() -> None:
    unknown = dataclasses.replace(parts(), token_bytes=TokenBytes(None, "latent"))
    engine = {"num_gpu_blocks_override": 49152}
    budget = on_cpu(16, unknown, **engine)
    budget.check()
    assert cache_setting(budget, engine) == cache_setting(on_cpu(16, unknown), {}) != {}


def test_blocks_beside_bytes_leave_both_as_given() -> None:
    engine = {"num_gpu_blocks_override": 1024, "kv_cache_memory_bytes": GIB}
    assert cache_setting(on_cpu(16, parts(), **engine), engine) == {}


def test_a_cache_is_at_most_half_of_the_memory_and_of_a_numa_node() -> None:
    alone = on_cpu(256, parts())
    assert alone.cache_bytes == 128 * GIB
    node = Memory(256 * GIB, "told", node_bytes=192 * GIB)
    budget = host_budget("r", parts(), node, engine={}, env={}, on="cpu")
    assert budget.cache_bytes == 96 * GIB
    budget.check()


def test_what_lives_beside_a_replica_is_counted() -> None:
    beside = (Need("Ray of this node", RAY_BYTES, "told"), Need("standby", GIB, "told"))
    memory = Memory(16 * GIB, "told")
    alone = host_budget("r", parts(), memory, engine={}, env={}, on="cpu")
    budget = host_budget("r", parts(), memory, engine={}, env={}, on="cpu", beside=beside)
    assert budget.needed_bytes - alone.needed_bytes == RAY_BYTES + GIB
    assert alone.cache_bytes is not None
    assert budget.cache_bytes is not None
    assert budget.cache_bytes < alone.cache_bytes
    assert "Ray of this node" in str(budget)


def test_a_context_that_has_no_room_is_refused_with_what_to_set() -> None:
    with pytest.raises(MemoryBudgetError, match=r"engine\.max_model_len lower"):
        on_cpu(6, parts(context=4)).check()


def test_what_is_no_number_of_gib_is_said() -> None:
    with pytest.raises(ConfigError, match="whole GiB"):
        on_cpu(16, parts(), env={"VLLM_CPU_KVCACHE_SPACE": "4.5"})


def test_beside_a_gpu_the_host_holds_no_weights_but_an_offload() -> None:
    held, memory = parts(weights=100), Memory(32 * GIB, "told")
    engine = {"kv_offloading_size": 20, "tensor_parallel_size": 2}
    budget = host_budget("r", held, memory, engine=engine, env={}, on="gpu")
    budget.check()
    assert budget.cache_bytes is None
    with pytest.raises(MemoryBudgetError, match="KV offload"):
        host_budget("r", held, memory, engine={**engine, "kv_offloading_size": 40}, env={}, on="gpu").check()


def test_a_gpu_holds_weights_an_index_and_one_context() -> None:
    gpu = Memory(80 * GIB, "one H100")
    device_budget("r", parts(weights=140), gpu, engine={"tensor_parallel_size": 2}, index_bytes=2 * GIB).check()
    with pytest.raises(MemoryBudgetError, match="index on the GPU"):
        device_budget("r", parts(weights=140), gpu, engine={"tensor_parallel_size": 2}, index_bytes=5 * GIB).check()
    with pytest.raises(MemoryBudgetError, match=r"0\.5 of 80\.00 GiB"):
        device_budget("r", parts(weights=60), gpu, engine={"gpu_memory_utilization": 0.5}).check()
    device_budget("r", parts(weights=140), gpu, engine={"quantization": "fp8"}).check()


def test_an_index_on_a_gpu_takes_its_share_from_the_engines() -> None:
    gpu = Memory(80 * GIB, "one H100")
    # vLLM's 0.92 less 8 GiB and a context of half a one, of 80.
    assert engine_share("r", gpu, engine={}, index_bytes=8 * GIB) == pytest.approx(0.813, abs=0.001)
    assert engine_share("r", gpu, engine={"gpu_memory_utilization": 0.89}, index_bytes=8 * GIB) == 0.89
    with pytest.raises(MemoryBudgetError, match=r"leaves 0\.893, and engine\.gpu_memory_utilization is 0\.9;"):
        engine_share("r", gpu, engine={"gpu_memory_utilization": 0.9}, index_bytes=8 * GIB)
    with pytest.raises(MemoryBudgetError, match="nothing would be left for the engine"):
        engine_share("r", gpu, engine={}, index_bytes=79 * GIB)


def test_with_a_given_cache_a_gpu_is_usable_whole() -> None:
    gpu = Memory(80 * GIB, "one H100")
    engine = {"gpu_memory_utilization": 0.5, "kv_cache_memory_bytes": 15 * GIB}
    device_budget("r", parts(weights=60), gpu, engine=engine).check()
    with pytest.raises(MemoryBudgetError, match=r"1 of 80\.00 GiB"):
        device_budget("r", parts(weights=60), gpu, engine={**engine, "kv_cache_memory_bytes": 21 * GIB}).check()


def test_parts_are_read_from_the_manifests(tmp_path: Path) -> None:
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())
    catalog: Catalog = tiers.catalog
    embedder = publish_model(catalog, tmp_path, "e", "embedder")
    model = tmp_path / "m"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(1000))
    (model / "config.json").write_text(
        '{"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "dtype": "bfloat16", '
        '"max_position_embeddings": 100}'
    )
    catalog.promote(catalog.publish(model, kind="models", name="m", metadata={}).ref)
    docs = publish_docs(catalog, tmp_path, "v1", embedder=embedder)
    catalog.promote(docs.ref)
    stores = [{"name": name, "index": "docs"} for name in ("one", "two")]
    release = Release.model_validate({"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}, "stores": stores})
    found = replica_parts(release, tiers)
    assert (found.weight_bytes, found.embedder_bytes) == (1000, embedder.size_bytes)
    assert found.token_bytes.value == 2 * 2 * 64 * 2
    # A block of 128 holds a context of 100 tokens, and vLLM keeps one more.
    assert found.context_bytes == 256 * 2 * 2 * 64 * 2
    assert found.indexes == (IndexPart("docs", 0, docs.size_bytes),), "two stores share one version"
    assert (found.reranker, found.reranker_bytes) == ("", 0)
    judge = publish_model(catalog, tmp_path, "judge", "reranker")
    reranked = Release.model_validate({**release.model_dump(mode="json"), "reranker": {"name": "judge"}})
    counted = replica_parts(reranked, tiers)
    assert (counted.reranker, counted.reranker_bytes) == ("judge", judge.size_bytes)
    assert "query cache, at most               " in str(on_cpu(16, found))
    alone = release.model_copy(update={"retrieval": release.retrieval.model_copy(update={"query_cache": 0})})
    assert found.query_cache_bytes == 128 << 20
    assert "query cache" not in str(on_cpu(16, replica_parts(alone, tiers)))
    wide = replica_parts(release, tiers, compute="float32")
    assert (wide.weight_bytes, wide.context_bytes) == (2000, 2 * found.context_bytes)


def test_a_model_without_a_config_has_no_known_token(tmp_path: Path) -> None:
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())
    for name in ("m", "e"):
        publish_model(tiers.catalog, tmp_path, name, name)
    release = Release.model_validate({"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}})
    found = replica_parts(release, tiers)
    assert found.token_bytes.value is None
    assert found.context_bytes == 0


def model_parts(tmp_path: Path, files: Mapping[str, int | str], **engine: Any) -> ReplicaParts:
    """Of a release whose model and embedder both have these files: of so many bytes, or of this text."""
    source = tmp_path / "source"
    for name, content in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else bytes(content))
    tiers = open_tiers(ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache"), MemoryRecorder())
    tiers.catalog.promote(tiers.catalog.publish(source, kind="models", name="m", metadata={}).ref)
    choice = {"name": "m"}
    return replica_parts(
        Release.model_validate({"name": "r", "model": choice, "embedder": choice, "engine": engine}), tiers
    )


def test_a_graphs_weights_are_counted_wherever_they_lie(tmp_path: Path) -> None:
    files = {"onnx/model.onnx": 10, "onnx/model.onnx.data": 300, "model.safetensors": 2000, "other.bin": 5000}
    assert model_parts(tmp_path, files).embedder_bytes == 2310


def test_a_model_without_a_graph_is_loaded_whole(tmp_path: Path) -> None:
    assert model_parts(tmp_path, {"model.safetensors": 2000, "tokenizer.json": 100}).embedder_bytes == 2100


SHARDS = {"model-1.safetensors": 1000, "model-2.safetensors": 500}


@pytest.mark.parametrize(
    ("files", "counted"),
    [
        (SHARDS, 1500),
        ({**SHARDS, "consolidated.safetensors": 1500}, 1500),
        ({"consolidated.safetensors": 1500}, 1500),
        ({**SHARDS, "original/model.safetensors": 1500}, 1500),
        (
            {
                **SHARDS,
                "adapter.safetensors": 700,
                "model.safetensors.index.json": json.dumps({"weight_map": {name[:7]: name for name in SHARDS}}),
            },
            1500,
        ),
        ({**SHARDS, "model.safetensors.index.json": "{"}, 1500),
        ({**SHARDS, "model.safetensors.index.json": '{"weight_map": {"a": "elsewhere.safetensors"}}'}, 1500),
        ({"config.json": '{"dtype": "float32"}', **SHARDS}, 750),
        ({"config.json": '{"dtype": "bfloat16"}', **SHARDS}, 1500),
    ],
)
def test_weights_are_counted_once_as_vllm_loads_them(
    files: Mapping[str, int | str], counted: int, tmp_path: Path
) -> None:
    assert model_parts(tmp_path, files).weight_bytes == counted


def test_what_is_filed_in_32_bits_stays_so_where_the_engine_is_told(tmp_path: Path) -> None:
    files = {"config.json": '{"dtype": "float32"}', **SHARDS}
    assert model_parts(tmp_path, files, dtype="float32").weight_bytes == 1500
