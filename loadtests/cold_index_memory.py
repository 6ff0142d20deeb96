"""Starts the processes of `loadtests.cold_index`, alone, four at a time, or in a memory cgroup, and looks into them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loadtests.cold_index_cgroup import MemoryGroup
from loadtests.cold_index_data import IndexData
from loadtests.process_tree import inherited_environment
from rag_stack.artifacts.residency import resident_bytes

PROCESSES = 4
_TIMEOUT_S = 600


class VisitError(Exception):
    """A process of the benchmark ended without its result."""


def visit(name: str, folder: Path, *flags: str, group: MemoryGroup | None = None) -> dict[str, Any]:
    """Run one process to its end. Raises VisitError."""
    enter: Callable[[], None] | None = None
    if group is not None:
        into = group

        def enter() -> None:
            into.add(os.getpid())

    # In the new process before it runs anything, so that all it touches counts in the group.
    done = subprocess.run(
        _command(name, folder, *flags),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env=inherited_environment(),
        preexec_fn=enter,
    )
    return _result(name, done.stdout, done.stderr, status=done.returncode)


def four_at_once(arm: str, folder: Path, data: IndexData) -> dict[str, Any]:
    """What four processes that serve the same index take together. Raises VisitError.

    memory_bytes   the proportional set sizes of all four; of the mapped index, all that is in the page cache and not
                   only the pages that a process has touched so far
    unique_bytes   what each has to itself, on average
    """
    with ExitStack() as stack:
        children = [stack.enter_context(_Held(arm, folder)) for _ in range(PROCESSES)]
        results = [child.result() for child in children]
        sizes = [_sizes(child.pid, data.all_files) for child in children]
        cached = sum(map(resident_bytes, data.files)) if arm == "ours" else 0
    memory = sum(size["Pss"] - size["Pss of the index"] for size in sizes) + cached
    unique = sum(size["Private_Clean"] + size["Private_Dirty"] for size in sizes) / len(sizes)
    right, asked = sum(result["right"] for result in results), sum(result["asked"] for result in results)
    return {"memory_bytes": memory, "unique_bytes": unique, "right": right, "asked": asked}


class _Held:
    """A process that has given its answers and stays, until the block ends."""

    def __init__(self, arm: str, folder: Path) -> None:
        self._arm = arm
        self._process = subprocess.Popen(
            _command(arm, folder, "--warm", "--hold"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=inherited_environment(),
        )
        self.pid = self._process.pid

    def __enter__(self) -> "_Held":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=_TIMEOUT_S)

    def result(self) -> dict[str, Any]:
        """What it said. Blocks until then."""
        line = self._process.stdout.readline() if self._process.stdout else ""
        return _result(self._arm, line, "", status=self._process.poll() or 0)


def _command(name: str, folder: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "loadtests.cold_index_visit", name, str(folder), *flags]


def _result(name: str, output: str, errors: str, *, status: int) -> dict[str, Any]:
    if status != 0 or not output.strip():
        why = "it was killed for the memory it took" if status == -9 else errors.strip()[-2000:] or "it said nothing"
        raise VisitError(f"{name} ended with status {status}: {why}")
    return dict(json.loads(output.splitlines()[-1]))


def _sizes(pid: int, index_files: Sequence[Path]) -> dict[str, int]:
    """The sums of a process's smaps by field, in bytes, and of the index's mappings alone."""
    paths = {str(path.resolve()) for path in index_files}
    sizes: dict[str, int] = {"Pss of the index": 0}
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        name, _, rest = line.partition(":")
        if not rest.endswith(" kB"):
            # A mapping's first line ends in its path; the flags of the one before have none.
            ours = line.split(maxsplit=5)[-1] in paths if "-" in line.split(" ")[0] else ours
            continue
        amount = 1024 * int(rest.split()[0])
        sizes[name] = sizes.get(name, 0) + amount
        if name == "Pss" and ours:
            sizes["Pss of the index"] += amount
    return sizes
