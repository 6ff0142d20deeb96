"""Texts -> unit vectors, with a sentence-transformers model from a local directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rag_stack.errors import ArtifactError
from rag_stack.retrieval.mapped_weights import Weights, weight_files
from rag_stack.retrieval.onnx_encoder import OnnxEncoder
from rag_stack.retrieval.onnx_session import ONNX_FILE

Vectors = npt.NDArray[np.float32]

_MODULES: Final = "modules.json"


class Encoder(Protocol):
    """What computes the vectors: OnnxEncoder, or TorchEncoder. Its tokenizer neither cuts nor pads."""

    tokenizer: Tokenizer
    weights: Weights
    dimension: int
    max_tokens: int

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Vectors:
        """Embed texts, n >= 1: float32 [n, dimension], of unit length; one over `max_tokens` is cut. Blocking."""
        ...


class Embedder:
    """A loaded embedder. `encode` may run in several threads at once.

    `weights` says how far its weights are pages of the mapped files, of which all processes of a node share one copy.
    """

    def __init__(self, encoder: Encoder, *, name: str, digest: str, path: Path) -> None:
        self._encoder = encoder
        self._path = path
        self.tokenizer = encoder.tokenizer
        self.name = name
        self.digest = digest
        self.dimension = encoder.dimension
        self.max_tokens = encoder.max_tokens

    @classmethod
    def load(cls, path: Path, *, name: str, digest: str, threads: int) -> "Embedder":
        """Load from a directory of local files; nothing is fetched. Blocking, about a second.

        With the graph that `rag-stack model import` has made, in ONNX Runtime: half of the CPU a query or less, and
        without the import of torch. Else on torch. `threads` is for one call, and more than there are free cores make a
        short query many times slower. Only safetensors are read, never a pickle, and no code of the model's is run.
        Raises ArtifactError when the directory holds no such model, or lacks a tensor that its vectors depend on.
        """
        if not (path / _MODULES).is_file():
            raise ArtifactError(
                f"{str(path)!r} is no embedder: it has no {_MODULES}; import a sentence-transformers model, with "
                "safetensors and a tokenizer.json"
            )
        # Raises for pickled weights, whoever would read them.
        weight_files(path)
        return cls(_encoder(path, name=name, threads=threads), name=name, digest=digest, path=path)

    @property
    def weights(self) -> Weights:
        """Which of the weights are shared."""
        return self._encoder.weights

    def move(self, device: str) -> None:
        """Onto another device, such as "cuda", on torch: a copy of its weights that no other process shares."""
        # Imports torch, some seconds.
        from rag_stack.retrieval.torch_encoder import TorchEncoder

        encoder = self._encoder
        if not isinstance(encoder, TorchEncoder):
            encoder = TorchEncoder.load(self._path, name=self.name, threads=1)
        encoder.move(device)
        self._encoder = encoder

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Vectors:
        """Embed texts: float32 [n, dimension], of unit length; a text over `max_tokens` is cut. Blocking."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        return self._encoder.encode(texts, batch_size=batch_size)


def _encoder(path: Path, *, name: str, threads: int) -> Encoder:
    if (path / ONNX_FILE).is_file() and (encoder := OnnxEncoder.load(path, name=name, threads=threads)):
        return encoder
    # Imports torch, some seconds.
    from rag_stack.retrieval.torch_encoder import TorchEncoder

    return TorchEncoder.load(path, name=name, threads=threads)
