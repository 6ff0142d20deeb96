"""Gives an embedder that is imported its graph, so that it embeds on a CPU without torch; checked against torch."""

import shutil
import tempfile
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from rag_stack.errors import ArtifactError
from rag_stack.retrieval.onnx_encoder import OnnxEncoder, TextSettings, tokens
from rag_stack.retrieval.onnx_session import INPUTS, ONNX_FILE

if TYPE_CHECKING:
    from rag_stack.retrieval.torch_encoder import TorchEncoder

MIN_COSINE: Final = 0.999
# Modules of sentence-transformers of which a graph holds all that they do.
_UNDERSTOOD: Final = frozenset({"Transformer", "Pooling", "Dense", "LayerNorm", "Normalize"})
_LIBRARY: Final = "sentence_transformers."
_OUTPUT: Final = "sentence_embedding"
_SENTENCE: Final = "Déjà vu: the Second file, opened at 10:30, is NOT the first one (see 日本語, naïve, 5µm)."
# From nothing to more than any model takes at once.
_SAMPLES: Final = (
    "",
    "file",
    "  How do I open a file?\n",
    "0-dimensional biomaterials lack inductive properties.",
    _SENTENCE,
    _SENTENCE * 6,
    " ".join(f"{n} words" for n in range(6000)),
)


class _CannotExportError(Exception):
    """Why an embedder gets no graph."""


def add_graph(directory: Path, progress: Callable[[str], None]) -> None:
    """Write onnx/model.onnx into an embedder's directory, or say why its vectors are left to torch. Blocking: 30 s.

    Raises ArtifactError only for an embedder that torch cannot load either.
    """
    progress("making a graph that embeds without torch (half a minute)")
    try:
        cosine = _export(directory)
    except (_CannotExportError, ImportError) as exc:
        shutil.rmtree((directory / ONNX_FILE).parent, ignore_errors=True)
        missing = "; `pip install onnxscript` and import it again" if isinstance(exc, ImportError) else ""
        progress(f"no graph: {exc}{missing}. It is imported without: it embeds on torch, with twice the CPU a query")
        return
    progress(f"the graph gives the vectors that torch gives (cosine >= {cosine:.6f})")


def _export(directory: Path) -> float:
    """The lowest cosine to torch. Raises ImportError and _CannotExportError."""
    import onnxscript  # noqa: F401  torch's exporter asks for it late, and less plainly

    from rag_stack.retrieval.onnx_export import by_position, export_graph
    from rag_stack.retrieval.torch_encoder import TorchEncoder

    encoder = TorchEncoder.load(directory, name=directory.name, threads=1)
    settings = _settings(encoder)
    _check_tokens(encoder, settings)
    expected = encoder.encode(_SAMPLES)
    features = encoder.model.preprocess([_SENTENCE])
    inputs = list(takewhile(features.__contains__, INPUTS))
    model: Any = encoder.model
    try:
        # The attention that is a few plain products, which the runtime fuses; and what it computes in.
        model[0].model.set_attn_implementation("eager")
        module = by_position(model, lambda tensors: model(tensors)[_OUTPUT]).float()
        export_graph(module, directory, inputs=inputs, output=_OUTPUT, metadata=settings.to_metadata())
    except ImportError:
        raise
    except Exception as exc:
        # The exporter follows the model's own code, and raises whatever that comes to.
        raise _CannotExportError(f"torch cannot export it ({_first_line(exc.__cause__ or exc)})") from exc
    return _verify(directory, expected)


def _settings(encoder: "TorchEncoder") -> TextSettings:
    """What goes with the graph. Raises _CannotExportError for a model whose modules do more than a graph can hold."""
    model = encoder.model
    for module in model:
        kind = type(module)
        if kind.__name__ not in _UNDERSTOOD or not kind.__module__.startswith(_LIBRARY):
            raise _CannotExportError(f"its module {kind.__name__} is none of {', '.join(sorted(_UNDERSTOOD))}")
    prompt = model.prompts.get(model.default_prompt_name) or "" if model.default_prompt_name else ""
    if prompt and not all(getattr(module, "include_prompt", True) for module in model):
        raise _CannotExportError("its vectors leave out the tokens of its prompt")
    return TextSettings(encoder.dimension, encoder.max_tokens, prompt)


def _check_tokens(encoder: "TorchEncoder", settings: TextSettings) -> None:
    """Raise _CannotExportError when the library makes more of a text than its tokenizer.json says."""
    for text in _SAMPLES:
        seen = encoder.model.preprocess([settings.prompt + text])["input_ids"][0].tolist()
        if tokens(encoder.tokenizer, text, settings).ids != seen:
            raise _CannotExportError(f"its tokenizer.json does not give the tokens that torch gets of {text[:40]!r}")


def _verify(directory: Path, expected: np.ndarray) -> float:
    """Compare the vectors of the samples. Raises _CannotExportError."""
    with tempfile.TemporaryDirectory(prefix="rag-stack-graph-") as copied:
        # Weights may be links here, which the runtime does not follow.
        model = Path(shutil.copytree(directory, Path(copied) / "model"))
        try:
            graph = OnnxEncoder.load(model, name=directory.name, threads=1)
        except ArtifactError as exc:
            raise _CannotExportError(exc.message) from exc
        if graph is None:
            raise _CannotExportError("its graph has lost its metadata")
        cosine = float(np.min(np.sum(graph.encode(_SAMPLES) * expected, axis=1)))
    if not cosine >= MIN_COSINE:
        raise _CannotExportError(f"its graph's vectors have cosine {cosine:.4f} to torch's, expected >= {MIN_COSINE}")
    return cosine


def _first_line(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {(str(exc).strip().splitlines() or [''])[0][:200]}"
