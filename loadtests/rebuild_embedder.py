"""Embedders for `loadtests.rebuild`: one that costs next to nothing, and one that notes when it works."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from rag_stack.jobs.embedding import Model
from rag_stack.jobs.index_build import EmbedderLoad

Vectors = npt.NDArray[np.float32]


class CheapEmbedder:
    """A vector that follows from the text's digest alone, within microseconds."""

    name = "cheap"
    max_tokens = 256

    def __init__(self, dimension: int = 32) -> None:
        self.dimension = dimension
        self.digest = "sha256:" + hashlib.sha256(f"cheap-{dimension}".encode()).hexdigest()
        self.tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = Split(Regex(r"\s+"), "removed")

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Vectors:  # noqa: ARG002
        """Float32 [n, dimension], of unit length."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        drawn = b"".join(hashlib.shake_128(text.encode()).digest(self.dimension) for text in texts)
        vectors = np.frombuffer(drawn, np.int8).reshape(len(texts), self.dimension).astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


@dataclass(frozen=True, slots=True)
class CheapLoad:
    """Loads it, anywhere."""

    def __call__(self, device: str = "cpu") -> Model:  # noqa: ARG002
        """At once."""
        return CheapEmbedder()


class TimedEmbedder:
    """An embedder that writes a line for each call into a file of its process: begin, end (monotonic), inputs."""

    def __init__(self, model: Model, directory: Path) -> None:
        self.name, self.digest = model.name, model.digest
        self.dimension, self.max_tokens, self.tokenizer = model.dimension, model.max_tokens, model.tokenizer
        self._model = model
        self._log = directory / f"{os.getpid()}.times"

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Vectors:
        """As the embedder does."""
        began = time.monotonic()
        vectors = self._model.encode(texts, batch_size=batch_size)
        if texts:
            with self._log.open("a") as file:
                file.write(f"{began} {time.monotonic()} {len(texts)}\n")
        return vectors


@dataclass(frozen=True, slots=True)
class TimedLoad:
    """Loads one; the build's own process does not embed with it, and gets it without torch."""

    load: EmbedderLoad
    directory: Path

    def __call__(self, device: str = "cpu") -> Model:
        """Blocking."""
        return TimedEmbedder(self.load(device), self.directory)


def rate_of(directory: Path, *, until: float) -> tuple[float, int]:
    """Inputs a second from when all processes had begun until a time, and how many processes there were.

    A call that began before counts with the part of it that lies in this time.
    """
    logs = [[tuple(map(float, line.split())) for line in path.read_text().splitlines()] for path in directory.iterdir()]
    started = max(log[0][0] for log in logs)
    calls = [call for log in logs for call in log]
    inputs = sum(n * (end - max(begin, started)) / (end - begin) for begin, end, n in calls if end > started)
    return inputs / (until - started), len(logs)
