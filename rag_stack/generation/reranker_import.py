"""Which directories hold a cross-encoder, and how one is published as a reranker."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.local_file import translated
from rag_stack.artifacts.manifest import Manifest

TASK: Final = "rerank"
# Where people put the ONNX model.
ONNX_PLACES: Final = ("onnx/model.onnx", "model.onnx")
_ARCHITECTURE: Final = "ForSequenceClassification"

# Makes a reranker's files of a directory (the first) in an empty one, and returns how many tokens a pair may have.
Making: TypeAlias = Callable[[Path, Path, Callable[[str], None]], int]


def is_reranker(source: Path) -> bool:
    """Whether a directory is a cross-encoder's: by its architecture, else by an ONNX file and no other model in it."""
    if not source.is_dir() or (source / "modules.json").is_file():
        return False
    if (source / "config.json").is_file():
        return any(name.endswith(_ARCHITECTURE) for name in _architectures(source))
    graph = (source / "tokenizer.json").is_file() and any((source / place).is_file() for place in ONNX_PLACES)
    return graph and not any(source.glob("*.safetensors"))


def import_reranker(
    source: Path, *, catalog: Catalog, name: str, progress: Callable[[str], None], make: Making
) -> Manifest:
    """Publish a cross-encoder as `make` makes it. Blocking. Raises ArtifactError for what is none, or does not run."""
    with tempfile.TemporaryDirectory(prefix="rag-stack-import-") as staging:
        tokens = make(source, Path(staging), progress)
        progress(f"publishing {source.name}, which has been tried out")
        metadata = {"format": "onnx", "task": TASK, "max_tokens": tokens}
        return catalog.publish(Path(staging), kind="models", name=name, metadata=metadata)


def _architectures(source: Path) -> list[str]:
    """As config.json names them; whoever reads the rest of it says what is wrong with it."""
    try:
        with translated("read", source / "config.json"):
            config: Any = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return []
    names = config.get("architectures") if isinstance(config, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) else []
