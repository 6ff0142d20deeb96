"""Texts -> unit vectors in ONNX Runtime: from the graph that the import of a model made of all its modules."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from rag_stack.errors import ArtifactError
from rag_stack.retrieval.mapped_weights import Weights, mapped_bytes, stored_bytes, weight_files
from rag_stack.retrieval.onnx_session import OnnxModel

_PREFIX: Final = "rag_stack."
_TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class TextSettings:
    """What a graph does not hold of a model: how a text becomes tokens, and what comes out. Kept in its metadata.

    prompt      stands before every text
    max_tokens  special tokens included; a longer text is cut at its end
    """

    dimension: int
    max_tokens: int
    prompt: str = ""

    def to_metadata(self) -> dict[str, str]:
        """For a graph's metadata, which is text."""
        return {
            f"{_PREFIX}dimension": str(self.dimension),
            f"{_PREFIX}max_tokens": str(self.max_tokens),
            f"{_PREFIX}prompt": self.prompt,
        }

    @classmethod
    def of(cls, model: OnnxModel) -> Self | None:
        """What the import wrote; None for a graph of another origin, whose output may be anything."""
        try:
            return cls(
                int(model.metadata[f"{_PREFIX}dimension"]),
                int(model.metadata[f"{_PREFIX}max_tokens"]),
                model.metadata[f"{_PREFIX}prompt"],
            )
        except (KeyError, ValueError):
            return None


class OnnxEncoder:
    """A loaded model. `encode` may run in several threads at once; a text's vector depends on that text alone.

    `weights` says what of it all processes of a node share: what is looked up, and not what is multiplied by.
    """

    def __init__(self, model: OnnxModel, settings: TextSettings, *, weights: Weights) -> None:
        self._model = model
        self.tokenizer = model.tokenizer
        self.prompt = settings.prompt
        self._room = settings.max_tokens - model.tokenizer.num_special_tokens_to_add(is_pair=False)
        self.weights = weights
        self.dimension = settings.dimension
        self.max_tokens = settings.max_tokens

    @classmethod
    def load(cls, path: Path, *, name: str, threads: int) -> Self | None:
        """Load from a directory of local files; None when its graph is not of this project's making. Blocking.

        `threads` work for all calls together. Raises ArtifactError for a graph that does not load, lacks its weights
        or gives no finite numbers.
        """
        files = weight_files(path)
        before = mapped_bytes(files)
        model = OnnxModel.load(path, threads=threads)
        settings = TextSettings.of(model)
        if settings is None:
            return None
        mapped, stored = mapped_bytes(files) - before, stored_bytes(files)
        encoder = cls(model, settings, weights=Weights(min(mapped, stored), max(0, stored - mapped), ()))
        encoder._warm_up(name)
        return encoder

    def _warm_up(self, name: str) -> None:
        try:
            vector = self.encode(["warm up"])
        except Exception as exc:
            # ONNX Runtime has classes of its own for what goes wrong in a graph.
            raise ArtifactError(f"the graph of the embedder {name!r} fails: {exc}; import the model again") from exc
        if vector.shape != (1, self.dimension) or not np.isfinite(vector).all():
            raise ArtifactError(
                f"the graph of the embedder {name!r} gives {vector.shape} values, expected {self.dimension} finite "
                "numbers: import the model again"
            )

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> npt.NDArray[np.float32]:  # noqa: ARG002
        """Embed texts, n >= 1: float32 [n, dimension], of unit length; one over `max_tokens` is cut. Blocking."""
        vectors = self._model.run([self.tokens(text) for text in texts])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
        unit: npt.NDArray[np.float32] = vectors / np.maximum(lengths, np.float32(_TINY))
        return unit

    def tokens(self, text: str) -> Encoding:
        """What the model sees of a text."""
        # Not by the tokenizer's own setting: a tokenizer with one cannot count the tokens of what is not cut.
        encoding = self.tokenizer.encode(self.prompt + text, add_special_tokens=False)
        encoding.truncate(self._room)
        return self.tokenizer.post_process(encoding)
