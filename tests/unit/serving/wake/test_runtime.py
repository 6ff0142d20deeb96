"""How Ray is told to start a release's replicas: with a fork server of their own, from a standby, or neither."""

import os
from typing import Any

from rag_stack.config import ArtifactChoice, Release, WakeConfig
from rag_stack.generation.fork_start import FORK, LAUNCH
from rag_stack.generation.launcher import PYTHON, STANDBY
from rag_stack.serving.size import WorkerSize
from rag_stack.serving.wake.runtime import engine_environment, platform, replica_runtime, standby_name


def release(**more: Any) -> Release:
    return Release(name="town", model=ArtifactChoice(name="llm"), embedder=ArtifactChoice(name="embed"), **more)


def test_on_a_cpu_engine_processes_are_forked() -> None:
    assert platform() == "cpu"
    assert engine_environment(release())[FORK] == "cpu"
    assert FORK not in engine_environment(release(wake=WakeConfig(fork=False)))


def test_on_gpus_they_are_when_it_is_asked_for() -> None:
    size = WorkerSize(gpus=1)
    assert FORK not in engine_environment(release(), size)
    assert engine_environment(release(wake=WakeConfig(fork=True)), size)[FORK] == "gpu"


def test_the_release_has_the_last_word() -> None:
    assert engine_environment(release(engine_env={"HF_HUB_OFFLINE": "0", FORK: ""}))["HF_HUB_OFFLINE"] == "0"


def test_without_a_standby_ray_starts_python() -> None:
    runtime = replica_runtime(release())
    assert set(runtime) == {"env_vars"}
    assert STANDBY not in runtime["env_vars"]


def test_with_a_standby_ray_starts_what_asks_it() -> None:
    asked = release(wake=WakeConfig(standby=True))
    runtime = replica_runtime(asked)
    assert runtime["py_executable"] == str(LAUNCH)
    assert os.access(LAUNCH, os.X_OK)
    assert runtime["env_vars"][STANDBY].replace("{node}", "abc") == standby_name("abc", asked)
    assert PYTHON in runtime["env_vars"]
    # An abstract socket's name has 107 bytes at most, and a node's id 56.
    assert len(standby_name("n" * 56, asked)) <= 106


def test_releases_share_a_standby_while_their_processes_have_one_environment() -> None:
    one, other = release(), release(engine_env={"VLLM_CPU_KVCACHE_SPACE": "2"})
    assert standby_name("abc", one) == standby_name("abc", one.model_copy(update={"name": "other"}))
    assert standby_name("abc", one) != standby_name("abc", other)
