"""What follows from the size of the workers, and what contradicts it."""

from typing import Any

import pytest

from rag_stack.config import Release
from rag_stack.errors import ConfigError
from rag_stack.serving.app import actor_share, hardware
from rag_stack.serving.size import WorkerSize, placed, quantity, sized, worker_size
from rag_stack.serving.wake.runtime import engine_environment, platform, standby_name

GIB = 1024**3


def release(**changes: Any) -> Release:
    return Release.model_validate({"name": "r", "model": {"name": "m"}, "embedder": {"name": "e"}, **changes})


@pytest.mark.parametrize(
    ("text", "number"),
    [("8", 8), ("500m", 0.5), ("2.5", 2.5), ("64Gi", 64 * GIB), ("512Mi", GIB / 2), ("64G", 64e9), ("1Ti", 1024 * GIB)],
)
def test_kubernetes_quantities(text: str, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "Gi", "64GB", "64 Gi", "-1", "1e3Gi"])
def test_what_kubernetes_would_refuse(text: str) -> None:
    with pytest.raises(ValueError, match="quantity"):
        quantity(text)


def test_the_environment_of_a_pod() -> None:
    environ = {
        "RAG_STACK_WORKER_CPUS": "7500m",
        "RAG_STACK_WORKER_MEMORY": "64Gi",
        "RAG_STACK_WORKER_GPUS": "4",
        "RAG_STACK_MIN_REPLICAS": "0",
        "RAG_STACK_MAX_REPLICAS": "3",
    }
    assert worker_size(environ) == WorkerSize(8, 64 * GIB, 4, 0, 3)


@pytest.mark.parametrize(
    ("name", "text"),
    [("RAG_STACK_WORKER_MEMORY", "64GB"), ("RAG_STACK_WORKER_GPUS", "all"), ("RAG_STACK_MAX_REPLICAS", "-1")],
)
def test_what_is_no_size_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*{text}"):
        worker_size({name: text})


def test_without_a_size_a_release_stays_as_it_is() -> None:
    given = release(engine={"tensor_parallel_size": 2}, scaling={"min_replicas": 0}, engine_env={"A": "b"})
    assert sized(given, worker_size({})) == given
    assert placed(given, WorkerSize()) is None


def test_all_gpus_of_a_worker_work_on_one_replica() -> None:
    size = WorkerSize(cpus=32, gpus=4, memory_bytes=256 * GIB)
    several = sized(release(), size)
    assert several.engine == {"tensor_parallel_size": 4}
    assert several.engine_env == {}
    assert placed(several, size) == {
        "bundles": [{"GPU": 1, "CPU": 31.0}, {"GPU": 1}, {"GPU": 1}, {"GPU": 1}],
        "strategy": "STRICT_PACK",
    }
    one = sized(release(), WorkerSize(gpus=1))
    assert one.engine == {}, "one is vLLM's default, and another version's content"


def test_pipelines_count_too() -> None:
    engine = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert sized(release(engine=engine), WorkerSize(gpus=4)).engine == engine


@pytest.mark.parametrize(("gpus", "parallel"), [(4, 2), (1, 2), (2, 1)])
def test_another_parallelism_than_the_workers_have_is_refused_with_both_numbers(gpus: int, parallel: int) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size {parallel}.*RAG_STACK_WORKER_GPUS {gpus}"):
        sized(release(engine={"tensor_parallel_size": parallel}), WorkerSize(gpus=gpus))


def test_a_cpus_kv_cache_follows_from_what_a_replica_holds_and_not_from_the_size_alone() -> None:
    size = WorkerSize(cpus=4, gpus=0, memory_bytes=16 * GIB)
    assert sized(release(), size).engine_env == {}
    assert placed(release(), size) == {"bundles": [{"CPU": 3.0}], "strategy": "STRICT_PACK"}


def test_a_kv_cache_that_the_release_gives_stays_if_it_fits() -> None:
    size = WorkerSize(gpus=0, memory_bytes=16 * GIB)
    given = {"VLLM_CPU_KVCACHE_SPACE": "2"}
    assert sized(release(engine_env=given), size).engine_env == given
    assert sized(release(engine={"kv_cache_memory_bytes": GIB}), size).engine_env == {}
    with pytest.raises(ConfigError, match=r"16 GiB.*RAG_STACK_WORKER_MEMORY 16 GiB"):
        sized(release(engine_env={"VLLM_CPU_KVCACHE_SPACE": "16"}), size)


def test_replicas_follow_from_the_size() -> None:
    scaled = sized(release(scaling={"idle_s": 60}), WorkerSize(min_replicas=0, max_replicas=4)).scaling
    assert (scaled.min_replicas, scaled.max_replicas, scaled.idle_s) == (0, 4, 60)
    same = {"min_replicas": 0, "max_replicas": 4}
    assert sized(release(scaling=same), WorkerSize(min_replicas=0, max_replicas=4)).scaling.max_replicas == 4


def test_other_replicas_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"scaling\.max_replicas 8.*RAG_STACK_MAX_REPLICAS 4"):
        sized(release(scaling={"max_replicas": 8}), WorkerSize(max_replicas=4))
    with pytest.raises(ConfigError, match="min_replicas 4 is over max_replicas 2"):
        sized(release(), WorkerSize(min_replicas=4, max_replicas=2))


def test_what_is_sized_may_be_sized_again() -> None:
    size = WorkerSize(cpus=4, gpus=0, memory_bytes=16 * GIB, min_replicas=1, max_replicas=2)
    once = sized(release(), size)
    assert sized(once, size) == once


def test_a_replicas_processes_are_made_for_the_workers_and_not_for_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder runs on the head, and the standbys' keeper in the control group; both may have read other values."""
    monkeypatch.setenv("RAG_STACK_WORKER_GPUS", "8")
    monkeypatch.setenv("RAG_STACK_MAX_REPLICAS", "4")
    assert platform(WorkerSize(gpus=1)) == "gpu"
    size = WorkerSize(gpus=0, memory_bytes=10 * GIB, max_replicas=2)
    assert platform(size) == "cpu"
    given = release(scaling={"max_replicas": 2})
    assert "VLLM_CPU_KVCACHE_SPACE" not in engine_environment(given, size)
    assert standby_name("n", given, size) == standby_name("n", given, WorkerSize(gpus=0, memory_bytes=20 * GIB))
    assert standby_name("n", given, size) != standby_name("n", given, WorkerSize(gpus=1))


@pytest.mark.parametrize(("gpus", "kind"), [(0, "cpu"), (2, "gpu")])
def test_ray_serve_llm_takes_the_placement(gpus: int, kind: str) -> None:
    """What it makes of it: all of one worker, and the replica's own CPU in the first bundle."""
    from ray.llm._internal.serve.core.server.llm_server import _merge_replica_actor_and_child_actor_bundles
    from ray.serve.llm import LLMConfig

    size = WorkerSize(cpus=8, gpus=gpus)
    chosen = sized(release(), size)
    config = LLMConfig(
        model_loading_config={"model_id": "m"}, engine_kwargs=chosen.engine, **hardware(chosen, size)
    ).get_engine_config()
    assert config.accelerator_config.kind == kind
    assert config.placement_strategy == "STRICT_PACK"
    bundles = _merge_replica_actor_and_child_actor_bundles(config.placement_bundles, {"CPU": 1, "GPU": 0})
    assert sum(each.get("CPU", 0) for each in bundles) == 8
    assert sum(each.get("GPU", 0) for each in bundles) == gpus


def test_a_replica_that_searches_on_a_gpu_shares_its_first_workers() -> None:
    from ray.llm._internal.serve.core.server.llm_server import _merge_replica_actor_and_child_actor_bundles
    from ray.serve.llm import LLMConfig

    size = WorkerSize(cpus=32, gpus=2, memory_bytes=256 * GIB)
    chosen = sized(release(gpu_index={"enabled": True}), size)
    place = placed(chosen, size)
    assert place is not None
    assert place["bundles"] == [{"GPU": 0.9, "CPU": 31.0}, {"GPU": 1}]
    assert actor_share(chosen, size) == {"ray_actor_options": {"num_gpus": 0.1}}
    config = LLMConfig(
        model_loading_config={"model_id": "m"}, engine_kwargs=chosen.engine, **hardware(chosen, size)
    ).get_engine_config()
    bundles = _merge_replica_actor_and_child_actor_bundles(config.placement_bundles, {"CPU": 1, "GPU": 0.1})
    assert [each["GPU"] for each in bundles] == [1.0, 1], "whole devices, both"
    assert config._detect_fractional_gpu_from_pg(place) == 0.9, "what each worker asks for"


def test_without_an_index_there_or_without_gpus_the_actor_takes_none() -> None:
    assert actor_share(release(), WorkerSize(gpus=1)) == {}
    on_cpus = WorkerSize(cpus=4, gpus=0)
    assert actor_share(release(gpu_index={"enabled": True}), on_cpus) == {}
    assert placed(release(gpu_index={"enabled": True}), on_cpus) == placed(release(), on_cpus)
