"""A deterministic embedder that needs no weights: texts that share words are near."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

_WORD = re.compile(r"\w+")


class WordEmbedder:
    """Hashes words into a vector: what `rag_stack.retrieval.embedder.Embedder` is to indexes and searches."""

    def __init__(self, *, dimension: int = 1024, max_tokens: int = 256) -> None:
        self.name = "words"
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.digest = "sha256:" + hashlib.sha256(f"words-{dimension}".encode()).hexdigest()
        self.tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = Split(Regex(r"\s+"), "removed")

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> npt.NDArray[np.float32]:
        """Float32 [n, dimension], of unit length."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(text.lower()) or [""]:
                vectors[row, self._bucket(word)] += 1.0
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if len(texts) else vectors

    def _bucket(self, word: str) -> int:
        return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % self.dimension
