"""A question and its passages -> how well each answers it, with a cross-encoder in ONNX from a local directory."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from rag_stack.artifacts.manifest import Manifest
from rag_stack.errors import ArtifactError
from rag_stack.retrieval.onnx_session import OnnxModel
from rag_stack.types import Passage

Scores = npt.NDArray[np.float32]
Stopped = Callable[[], bool]

TASK: Final = "rerank"
TOKENIZER: Final = "tokenizer.json"
MODEL: Final = "onnx/model.onnx"
# Where neither the tokenizer nor the caller says otherwise.
_MAX_TOKENS: Final = 512
# More than any text has: what is longer is not even looked at, however long a caller's document is.
_CHARS_PER_TOKEN: Final = 64


class CrossEncoder:
    """A loaded cross-encoder: reads query and passage together. What `retriever.Reranker` asks for."""

    def __init__(self, model: OnnxModel, *, name: str, digest: str, max_tokens: int) -> None:
        self.name = name
        self.digest = digest
        self.max_tokens = max_tokens
        self._model = model
        self._tokenizer = model.tokenizer
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")

    @classmethod
    def load(cls, path: Path, *, name: str, digest: str, threads: int, max_tokens: int | None = None) -> "CrossEncoder":
        """Load from a directory of local files. Blocking, less than a second.

        A pair has at most `max_tokens` tokens, by default what the tokenizer was trained for. Raises ArtifactError when
        the directory holds no such model, or one that gives anything but a number a pair.
        """
        model = OnnxModel.load(path, threads=threads)
        reranker = cls(model, name=name, digest=digest, max_tokens=max_tokens or _trained_tokens(path))
        reranker._try_out()
        return reranker

    def scores(self, query: str, passages: Sequence[Passage], *, stopped: Stopped | None = None) -> Scores:
        """Float32 [n], 0..1, higher is better. A passage is read with its title in front, as the embedder read it."""
        texts = [f"{each.title} {each.text}" if each.title else each.text for each in passages]
        return self.text_scores(query, texts, stopped=stopped)

    def text_scores(self, query: str, texts: Sequence[str], *, stopped: Stopped | None = None) -> Scores:
        """Float32 [n], 0..1: the logistic function of the model's output. Blocking.

        Raises concurrent.futures.CancelledError once `stopped` is true, which is looked at before each pair.
        """
        if not texts:
            return np.zeros(0, np.float32)
        # One pair at a time: 20 of 60 to 160 words took 1.0 CPU seconds so, 1.1 in fours and 1.4 in sixteens
        # (MiniLM-L-12 in INT8, one thread). And an INT8 model rounds by what else is in its batch: 0.92 became 0.94.
        logits = np.array([self._logit(pair) for pair in self._pairs(query, texts, stopped)])
        scores: Scores = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
        return scores

    def _pairs(self, query: str, texts: Sequence[str], stopped: Stopped | None = None) -> Iterator[Encoding]:
        """Each text beside the query. Of a pair that is too long, the longer of the two loses its end."""
        most = self.max_tokens * _CHARS_PER_TOKEN
        for text in texts:
            if stopped is not None and stopped():
                raise CancelledError("nobody waits for this rerank any more")
            yield self._tokenizer.encode(query[:most], text[:most])

    def _logit(self, pair: Encoding) -> float:
        found = np.asarray(self._model.run([pair]))
        if found.size != 1 or not np.isfinite(found).all():
            what = f"an array of {found.shape}" if found.size != 1 else "what is no finite number"
            raise ArtifactError(
                f"the reranker {self.name!r} gives {what} for a pair, expected one number: import a cross-encoder that "
                "has one label"
            )
        return float(found.reshape(-1)[0])

    def _try_out(self) -> None:
        """One pair: the first call sets up the session, and shows whether this is a cross-encoder at all."""
        try:
            self.text_scores("warm up", ["a passage"])
        except ArtifactError:
            raise
        except Exception as exc:
            # The runtime raises whatever its kernels raise.
            raise ArtifactError(f"the reranker {self.name!r} does not run: {exc}") from exc


def check_reranker(manifest: Manifest) -> None:
    """Raise ArtifactError for a model that is not a reranker's, by its manifest."""
    paths = {entry.path for entry in manifest.files}
    if manifest.metadata.get("task") != TASK or not {TOKENIZER, MODEL} <= paths:
        raise ArtifactError(
            f"{str(manifest.ref)!r} is no reranker: it is for {manifest.metadata.get('task')!r}; a release's "
            f"`reranker:` names a cross-encoder, with {TOKENIZER} and {MODEL}, published by `rag-stack model import`"
        )


def _trained_tokens(path: Path) -> int:
    """Tokens of a pair, as the tokenizer's file says that the model was trained."""
    try:
        truncation = json.loads((path / TOKENIZER).read_text(encoding="utf-8")).get("truncation") or {}
        return int(truncation.get("max_length") or _MAX_TOKENS)
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        raise ArtifactError(f"{str(path / TOKENIZER)!r} is no tokenizer ({exc}): import the model again") from exc
