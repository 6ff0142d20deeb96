"""How much memory may still be taken, from the files of a machine with cgroups v2, v1, both or none."""

from pathlib import Path

import pytest

from rag_stack.artifacts.memory import available_bytes, limit_bytes, node_bytes

GB = 1 << 30
MEMINFO = f"MemTotal: {64 * GB // 1024} kB\nMemFree: 100 kB\nMemAvailable: {32 * GB // 1024} kB\n"
V2_MOUNT = "30 29 0:26 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "34 29 0:30 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
OTHER_MOUNTS = "21 28 0:19 / /sys rw - sysfs sysfs rw\n35 29 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\nodd\n"


def _machine(root: Path, files: dict[str, str]) -> int:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return available_bytes(root=root)


def _v2(group: str, *, limit: int | str, used: int, inactive: int, high: int | str = "max") -> dict[str, str]:
    folder = f"sys/fs/cgroup/{group}"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\ninactive_file {inactive}\nactive_file 7\n",
    }


def _v1(group: str, *, limit: int, used: int, inactive: int) -> dict[str, str]:
    folder = f"sys/fs/cgroup/memory/{group}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {inactive}\n",
    }


def _process(cgroup: str, mounts: str) -> dict[str, str]:
    return {"proc/self/cgroup": cgroup, "proc/self/mountinfo": OTHER_MOUNTS + mounts}


def test_without_cgroups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert _machine(tmp_path, {}) == 32 * GB


def test_a_kernel_without_an_estimate_gives_what_is_free(tmp_path: Path) -> None:
    assert _machine(tmp_path, {"proc/meminfo": "MemTotal: 9 kB\nMemFree: 5 kB\n"}) == 5 * 1024


def test_a_v2_limit_counts_page_cache_out_of_use_as_free(tmp_path: Path) -> None:
    files = _process("0::/pod/app\n", V2_MOUNT.format(root="/"))
    files |= _v2("pod/app", limit=8 * GB, used=6 * GB, inactive=3 * GB)
    assert _machine(tmp_path, files) == 5 * GB


def test_the_tightest_level_holds_and_max_is_no_limit(tmp_path: Path) -> None:
    files = _process("0::/pod/app\n", V2_MOUNT.format(root="/"))
    files |= _v2("pod/app", limit="max", used=6 * GB, inactive=0)
    files |= _v2("pod", limit=7 * GB, used=6 * GB, inactive=0)
    assert _machine(tmp_path, files) == 1 * GB


def test_where_v2_throttles_is_a_limit_too(tmp_path: Path) -> None:
    files = _process("0::/app\n", V2_MOUNT.format(root="/"))
    files |= _v2("app", limit=8 * GB, high=5 * GB, used=2 * GB, inactive=0)
    assert _machine(tmp_path, files) == 3 * GB


def test_a_v1_limit(tmp_path: Path) -> None:
    files = _process("9:cpu:/\n4:hugetlb,memory:/app\n", V1_MOUNT.format(root="/"))
    files |= _v1("app", limit=4 * GB, used=3 * GB, inactive=GB)
    files |= _v1("", limit=9223372036854771712, used=60 * GB, inactive=0)
    assert _machine(tmp_path, files) == 2 * GB


def test_with_both_versions_the_one_that_has_memory_counts(tmp_path: Path) -> None:
    mounts = V1_MOUNT.format(root="/") + "40 29 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    files = _process("4:memory:/app\n0::/app\n", mounts) | _v1("app", limit=4 * GB, used=GB, inactive=0)
    assert _machine(tmp_path, files) == 3 * GB


@pytest.mark.parametrize(("root", "cgroup"), [("/docker/f00", "/docker/f00"), ("/../../pod", "/"), ("/", "/../other")])
def test_a_container_that_sees_only_its_part_of_the_hierarchy(tmp_path: Path, root: str, cgroup: str) -> None:
    files = _process(f"4:memory:{cgroup}\n", V1_MOUNT.format(root=root)) | _v1("", limit=2 * GB, used=GB, inactive=0)
    assert _machine(tmp_path, files) == GB


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    files = _process("0::/app\n", V2_MOUNT.format(root="/")) | _v2("app", limit=GB, used=2 * GB, inactive=0)
    assert _machine(tmp_path, files) == 0


def test_a_group_that_is_gone_is_no_limit(tmp_path: Path) -> None:
    assert _machine(tmp_path, _process("0::/gone\n", V2_MOUNT.format(root="/"))) == 32 * GB


def test_this_machine_has_some_memory() -> None:
    assert available_bytes() > 1 << 20


def test_the_limit_counts_what_is_taken_too(tmp_path: Path) -> None:
    files = _process("0::/pod/app\n", V2_MOUNT.format(root="/"))
    files |= _v2("pod/app", limit=8 * GB, used=6 * GB, inactive=3 * GB)
    _machine(tmp_path, files)
    assert limit_bytes(root=tmp_path) == 8 * GB


def test_without_cgroups_the_limit_is_the_machine(tmp_path: Path) -> None:
    _machine(tmp_path, {})
    assert limit_bytes(root=tmp_path) == 64 * GB


@pytest.mark.parametrize(
    ("allowed", "size"), [("0-1", 3), ("0,2-3", 4), ("0", 4), ("2", None), ("7", None), ("", None)]
)
def test_the_smallest_numa_node_that_may_be_used(allowed: str, size: int | None, tmp_path: Path) -> None:
    """Node 2 has CPUs alone."""
    nodes = {0: 4 * GB, 1: 3 * GB, 2: 0, 3: 5 * GB}
    for node, total in nodes.items():
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "meminfo").write_text(f"Node {node} MemTotal:  {total // 1024} kB\nNode {node} MemFree:  1 kB\n")
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text(f"Name:\tpython\nMems_allowed:\t03\nMems_allowed_list:\t{allowed}\n")
    assert node_bytes(root=tmp_path) == (None if size is None else size * GB)


def test_a_system_that_tells_of_no_numa_nodes_has_none(tmp_path: Path) -> None:
    assert node_bytes(root=tmp_path) is None
