"""A small machine's cores are all vLLM's; what somebody has said about it stays."""

from pathlib import Path
from typing import Any

import pytest

from rag_stack.generation.cpu_threads import physical_cores, take_all_of_few_cores

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
        ([0, 1], {}, {BINDING: "auto"}, "auto"),
    ],
)
def test_few_cores_are_all_taken(
    cores: list[int], engine: dict[str, Any], given: dict[str, str], expected: str | None
) -> None:
    environ = dict(given)
    take_all_of_few_cores(engine, cores=lambda: cores, environ=environ)
    assert environ.get(BINDING) == expected


def test_of_two_threads_of_a_core_one_counts(tmp_path: Path) -> None:
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n", encoding="ascii")
    assert physical_cores(tmp_path, allowed=[0, 1, 2, 3]) == {0, 1}
    assert physical_cores(tmp_path, allowed=[2, 3]) == {2, 3}
    assert physical_cores(tmp_path / "nothing", allowed=[0, 1]) == {0, 1}
