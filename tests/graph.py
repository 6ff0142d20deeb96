"""The graph that `rag-stack model import` adds to an embedder, made once: torch takes 10 to 25 CPU seconds for it."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rag_stack.artifacts.manifest import describe_files
from rag_stack.retrieval.embedder_export import add_graph
from rag_stack.retrieval.onnx_session import ONNX_FILE

_KEPT: Final = Path(__file__).parents[1] / "var" / "test-cache" / "graphs"


def add_kept_graph(directory: Path, progress: Callable[[str], None]) -> None:
    """As `add_graph`, from var/test-cache where it lies there: after a change to the export, delete it."""
    digest = hashlib.sha256(repr(describe_files(directory)).encode()).hexdigest()
    kept, graph = _KEPT / f"{digest}.onnx", directory / ONNX_FILE
    if kept.is_file():
        graph.parent.mkdir()
        shutil.copyfile(kept, graph)
        return
    add_graph(directory, progress)
    assert graph.is_file(), "the embedder of tests has got no graph"
    _KEPT.mkdir(parents=True, exist_ok=True)
    # Another session may be about to keep it, too.
    partial = kept.with_name(f"{kept.name}.{os.getpid()}")
    shutil.copyfile(graph, partial)
    partial.rename(kept)
