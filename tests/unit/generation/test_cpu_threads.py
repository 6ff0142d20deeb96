"""A small machine's cores are all vLLM's; what somebody has said about it stays."""

from pathlib import Path
from typing import Any

import pytest

from rag_stack.generation.cpu_threads import take_all_of_few_cores, usable_cores

BINDING = "VLLM_CPU_OMP_THREADS_BIND"


@pytest.mark.parametrize(
    ("cores", "engine", "given", "expected"),
    [
        ([1, 0], {}, {}, "0,1"),
        ([0, 2, 4, 6], {"tensor_parallel_size": 1}, {}, "0,2,4,6"),
        ([0], {}, {}, None),
        (range(5), {}, {}, None),
        ([], {}, {}, None),
        ([0, 1], {"tensor_parallel_size": 2}, {}, None),
        ([0, 1], {"data_parallel_size": 2}, {}, None),
        ([0, 1], {"kv_transfer_config": {"kv_connector": "any"}}, {}, None),
        ([0, 1], {}, {BINDING: "auto"}, "auto"),
        ([0, 1], {}, {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}, None),
    ],
)
def test_few_cores_are_all_taken(
    cores: list[int], engine: dict[str, Any], given: dict[str, str], expected: str | None
) -> None:
    environ = dict(given)
    take_all_of_few_cores(engine, cores=lambda: cores, on_cpu=lambda: True, environ=environ)
    assert environ.get(BINDING) == expected


def test_a_gpus_engine_is_left_alone() -> None:
    environ: dict[str, str] = {}
    take_all_of_few_cores({}, cores=lambda: [0, 1], on_cpu=lambda: False, environ=environ)
    assert environ == {}


def test_of_two_threads_of_a_core_one_counts(tmp_path: Path) -> None:
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n", encoding="ascii")
    quota = tmp_path / "cpu.max"
    assert usable_cores(tmp_path, quota, allowed=[0, 1, 2, 3]) == {0, 1}
    assert usable_cores(tmp_path, quota, allowed=[2, 3]) == {2, 3}
    assert usable_cores(tmp_path / "nothing", quota, allowed=[0, 1]) == {0, 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", {0, 1}), ("200000 100000\n", {0, 1}), ("150000 100000\n", set()), ("what", {0, 1})],
)
def test_who_may_not_use_all_of_their_time_has_none(tmp_path: Path, text: str, expected: set[int]) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text, encoding="ascii")
    assert usable_cores(tmp_path, quota, allowed=[0, 1]) == expected
