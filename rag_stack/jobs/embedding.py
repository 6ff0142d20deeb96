"""How inputs become vectors: what a build asks for, and what two implementations give it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rag_stack.index.embeddings import Keys, input_keys

Vectors = npt.NDArray[np.float32]
KnownKeys: TypeAlias = Callable[[], Keys]


class Model(Protocol):
    """An embedder: `rag_stack.retrieval.embedder.Embedder`, or a test's."""

    name: str
    digest: str
    dimension: int
    max_tokens: int
    tokenizer: Tokenizer

    def encode(self, texts: Sequence[str], *, batch_size: int = 32) -> Vectors:
        """Embed texts: float32 [n, dimension], of unit length. Blocking."""
        ...


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of some inputs, float32 [n, d], by their keys. `share` (0..1) of the whole source is done, if known."""

    keys: Keys
    vectors: Vectors
    share: float | None = None


class Embedding(Protocol):
    """Embeds what a build has no vectors for."""

    @property
    def model(self) -> Model:
        """The embedder, as this process has it: for its tokenizer and its limits, and for the gates' questions."""
        ...

    def prepare(self) -> None:
        """Something, probably little, will have to be embedded: get ready beside what the caller does meanwhile."""
        ...

    def embed(self, inputs: Sequence[str], *, known: KnownKeys) -> Iterator[Embedded]:
        """The vectors of distinct inputs, piece by piece in any order. Blocking.

        It may give more than it was asked for, of what the source holds further on; `known` tells what it need not.
        """
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the embedding is; `rate` in passages a second, `eta_s` in seconds.

    `total` is what there is to embed: an estimate as long as the source is not read to its end, None without one.
    """

    done: int
    total: int | None
    rate: float
    eta_s: float | None


OnProgress: TypeAlias = Callable[[Progress], None]


def by_key(inputs: Sequence[str]) -> dict[bytes, str]:
    """Distinct inputs by their keys."""
    return {bytes(key): text for key, text in zip(input_keys(inputs), inputs, strict=True)}
