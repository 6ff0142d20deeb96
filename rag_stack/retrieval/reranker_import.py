"""A cross-encoder from elsewhere as a reranker's files: given as ONNX it is taken, in safetensors it is exported."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from rag_stack.errors import ArtifactError
from rag_stack.retrieval.onnx_session import INPUTS, ONNX_FILE
from rag_stack.retrieval.reranker import TOKENIZER, CrossEncoder

_GIVEN: Final = (ONNX_FILE, Path("model.onnx"))
# A graph may differ from torch by so much of a score, 0..1.
_MOST_OFF: Final = 0.001
_QUERY: Final = "Which bread has caraway seeds?"
_TEXTS: Final = (
    "The bakery sells rye bread with caraway seeds.",
    "The harbour of Alden freezes in January.",
    "caraway " * 2000,
    "",
)


def make_reranker(source: Path, directory: Path, progress: Callable[[str], None]) -> int:
    """Fill an empty directory with a reranker that has been tried out; returns the tokens of its longest pair.

    Blocking: an export takes half a minute. Raises ArtifactError for what is no cross-encoder with one label.
    """
    if not (source / TOKENIZER).is_file():
        raise ArtifactError(f"{str(source)!r} holds no {TOKENIZER}, which a reranker needs: export a fast tokenizer")
    for name in (TOKENIZER, "config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    given = next((source / place for place in _GIVEN if (source / place).is_file()), None)
    if given is not None:
        (directory / ONNX_FILE).parent.mkdir()
        (directory / ONNX_FILE).symlink_to(given.absolute())
        return _load(directory, source).max_tokens
    progress("making a graph that reranks without torch (half a minute)")
    try:
        return _exported(source, directory)
    except ImportError as exc:
        raise ArtifactError(f"{str(source)!r} needs an export, and that {exc.name}: `pip install {exc.name}`") from exc


def _load(directory: Path, source: Path) -> CrossEncoder:
    try:
        return CrossEncoder.load(directory, name=source.name, digest="", threads=1)
    except ArtifactError as exc:
        raise ArtifactError(f"{str(source)!r} is no reranker that runs: {exc.message}") from exc


def _exported(source: Path, directory: Path) -> int:
    import onnxscript  # noqa: F401  torch's exporter asks for it late, and less plainly

    from rag_stack.retrieval.onnx_export import by_position, export_graph

    # The graph refers to them where they are, so they are part of the artifact.
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise ArtifactError(f"{str(source)!r} holds neither {ONNX_FILE} nor safetensors; convert or download them")
    for path in weights:
        shutil.copyfile(path, directory / path.name)
    try:
        model, inputs = _torch_model(source)
        module = by_position(model, lambda tensors: model(**tensors).logits)
        export_graph(module, directory, inputs=inputs, output="logits", metadata={})
    except (ArtifactError, ImportError):
        raise
    except Exception as exc:
        # The exporter follows the model's own code, and raises whatever that comes to.
        raise ArtifactError(f"torch cannot export {str(source)!r}: {type(exc).__name__}: {exc}"[:500]) from exc
    reranker = _load(directory, source)
    _compare(reranker, model, source)
    return reranker.max_tokens


def _torch_model(source: Path) -> tuple[Any, list[str]]:
    """The model in torch, and which tensors it takes. Raises ArtifactError for more labels than one."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        str(source), use_safetensors=True, attn_implementation="eager", dtype=torch.float32, **local
    ).eval()
    if model.config.num_labels != 1:
        raise ArtifactError(
            f"{str(source)!r} has {model.config.num_labels} labels, expected one: it is a classifier, no reranker"
        )
    takes = AutoTokenizer.from_pretrained(str(source), **local).model_input_names
    return model, [name for name in INPUTS if name in takes]


def _compare(reranker: CrossEncoder, model: Any, source: Path) -> None:  # noqa: ANN401
    """Raise ArtifactError where the graph scores otherwise than torch."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
    expected = []
    for text in _TEXTS:
        # As the other side cuts a pair, so that their tokens are compared too.
        pair = tokenizer(_QUERY, text, truncation="longest_first", max_length=reranker.max_tokens, return_tensors="pt")
        with torch.no_grad():
            expected.append(float(torch.sigmoid(model(**pair).logits.reshape(-1)[0])))
    off = float(np.abs(reranker.text_scores(_QUERY, _TEXTS) - np.array(expected)).max())
    if not off <= _MOST_OFF:
        raise ArtifactError(f"the graph of {str(source)!r} is {off:.4f} off what torch gives, expected <= {_MOST_OFF}")
