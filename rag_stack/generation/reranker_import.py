"""A cross-encoder from elsewhere as what a reranker's artifact holds: `tokenizer.json` and `onnx/model.onnx`."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.local_file import translated
from rag_stack.artifacts.manifest import Manifest
from rag_stack.errors import ArtifactError

TASK: Final = "rerank"
_TOKENIZER: Final = "tokenizer.json"
_MODEL: Final = "onnx/model.onnx"
# Where people put it.
_PLACES: Final = (_MODEL, "model.onnx")
_INPUTS: Final = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_ARCHITECTURE: Final = "ForSequenceClassification"
_MAX_TOKENS: Final = 512


def is_reranker(source: Path) -> bool:
    """Whether a directory is a cross-encoder's: by its architecture, else by an ONNX file and no other model in it."""
    if not source.is_dir() or (source / "modules.json").is_file():
        return False
    if (source / "config.json").is_file():
        return any(name.endswith(_ARCHITECTURE) for name in _architectures(source))
    return (source / _TOKENIZER).is_file() and _onnx(source) is not None


def import_reranker(source: Path, *, catalog: Catalog, name: str, progress: Callable[[str], None]) -> Manifest:
    """Publish a cross-encoder; one in safetensors is converted. Blocking.

    Raises ArtifactError, naming the file, for what is no cross-encoder with one label, or does not run.
    """
    if not (source / _TOKENIZER).is_file():
        raise ArtifactError(f"{str(source)!r} holds no {_TOKENIZER}, which a reranker needs: export a fast tokenizer")
    with tempfile.TemporaryDirectory(prefix="rag-stack-import-") as staging:
        directory = Path(staging)
        (directory / "onnx").mkdir()
        model, given = directory / _MODEL, _onnx(source)
        if given is not None:
            model.symlink_to(given.absolute())
        else:
            progress(f"converting {source.name} to ONNX (once; half a minute or so)")
            export_cross_encoder(source, model)
        for file in (_TOKENIZER, "config.json"):
            if (source / file).is_file():
                (directory / file).symlink_to((source / file).absolute())
        metadata = {"format": "onnx", "task": TASK, "max_tokens": _try_out(directory, source=source)}
        progress(f"publishing {source.name}, which has been tried out")
        return catalog.publish(directory, kind="models", name=name, metadata=metadata)


def _try_out(directory: Path, *, source: Path) -> int:
    """Score one pair; returns the tokens that a pair may have. What loads here loads in a replica."""
    import onnxruntime

    try:
        tokenizer = Tokenizer.from_file(str(directory / _TOKENIZER))
        session = onnxruntime.InferenceSession(str(directory / _MODEL), providers=["CPUExecutionProvider"])
        names = {each.name for each in session.get_inputs()}
        limit = int((tokenizer.truncation or {}).get("max_length") or _MAX_TOKENS)
        tokenizer.no_padding()
        pair = tokenizer.encode("which bread?", "rye bread with caraway")
        values = {"input_ids": pair.ids, "attention_mask": pair.attention_mask, "token_type_ids": pair.type_ids}
        found = session.run(None, {key: np.array([values[key]], np.int64) for key in names & _INPUTS})[0]
    except Exception as exc:
        # Parsers and kernels raise whatever they raise.
        raise ArtifactError(f"{str(source)!r} is no reranker that runs: {exc}") from exc
    if names - _INPUTS or np.asarray(found).size != 1 or not np.isfinite(found).all():
        raise ArtifactError(
            f"{str(source)!r} is no reranker: its ONNX model takes {', '.join(sorted(names))} and gives an array of "
            f"{np.asarray(found).shape} for a pair; expected one finite number from {', '.join(sorted(_INPUTS))}"
        )
    return limit


def _onnx(source: Path) -> Path | None:
    return next((source / place for place in _PLACES if (source / place).is_file()), None)


def _architectures(source: Path) -> list[str]:
    """As config.json names them; whoever reads the rest of it says what is wrong with it."""
    try:
        with translated("read", source / "config.json"):
            config: Any = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return []
    names = config.get("architectures") if isinstance(config, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list) else []
