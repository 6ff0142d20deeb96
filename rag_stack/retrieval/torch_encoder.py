"""Texts -> unit vectors through sentence-transformers, on torch: any of its models, on any of torch's devices."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers.utils.logging import disable_progress_bar

from rag_stack.errors import ArtifactError
from rag_stack.retrieval.mapped_weights import Weights, inspect, spoil, weight_files

_COPY_SHARE: Final = 0.05


class TorchEncoder:
    """A loaded model. `encode` may run in several threads at once.

    Its weights are pages of the mapped files, so that all processes of a node share one copy; `weights` says how far.
    """

    def __init__(self, model: SentenceTransformer, tokenizer: Tokenizer, *, weights: Weights) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.weights = weights
        self.dimension = int(model.get_embedding_dimension())
        self.max_tokens = int(model.max_seq_length)

    @classmethod
    def load(cls, path: Path, *, name: str, threads: int) -> "TorchEncoder":
        """Load from a directory of local files; nothing is fetched. Blocking, about a second.

        `threads` is what torch takes for one call and holds for the whole process: more threads than free cores make
        a short query many times slower. Only safetensors are read, never a pickle, and no code of the model's is run;
        tensors that the model does not know are left out. Raises ArtifactError when the directory holds no such model,
        or lacks a tensor that its vectors depend on.
        """
        torch.set_num_threads(threads)
        disable_progress_bar()
        files = weight_files(path)
        try:
            model = SentenceTransformer(
                str(path),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
            # A copy of its own, with nothing cut: the model's tokenizer cuts at max_tokens and is busy with queries.
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            encoder = cls(model, tokenizer, weights=inspect(model, files))
        except Exception as exc:
            # These libraries raise whatever their parsers raise, down to a bare Exception.
            raise ArtifactError(f"cannot load the embedder {name!r} from {str(path)!r}: {exc}") from exc
        tokenizer.no_truncation()
        tokenizer.no_padding()
        encoder._warm_up(name)
        return encoder

    def _warm_up(self, name: str) -> None:
        """One text. The first call sets up the model's tokenizer, which several threads must not do at once.

        The library gives random numbers to what no file has, such as a pooler that the embedding does not go through.
        As NaN they show whether it does.
        """
        spoil(self.model, self.weights.absent)
        if not np.isfinite(self.encode(["warm up"])).all():
            raise ArtifactError(
                f"the files of the embedder {name!r} lack {', '.join(self.weights.absent[:3]) or 'nothing'}, and "
                "its vectors are not finite numbers: import the whole model again"
            )
        if self.weights.copied_bytes > _COPY_SHARE * self.weights.mapped_bytes:
            logging.getLogger(__name__).warning(
                "every process has its own copy of %.0f MB of the embedder %s, and shares %.0f MB: weights stored in "
                "the dtype of its config.json would all be shared",
                *(self.weights.copied_bytes / 1e6, name, self.weights.mapped_bytes / 1e6),
            )

    def move(self, device: str) -> None:
        """Onto another device, such as "cuda": a copy of its weights that no other process shares."""
        self.model.to(device)

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """Embed texts, n >= 1: float32 [n, dimension], of unit length; one over `max_tokens` is cut. Blocking."""
        # Against a bare forward pass this costs 1.2 ms of CPU for a short query (15.0 against 13.8 ms, medians of 150
        # interleaved calls, one thread, a 2-core virtual machine): cheaper than keeping our own copy of it.
        vectors = self.model.encode(
            list(texts),
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(vectors, np.float32)
