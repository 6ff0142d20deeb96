"""An embedder that is loaded when it first has to embed: importing torch takes longer than a small rebuild."""

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tokenizers import Tokenizer

from rag_stack.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rag_stack.jobs.embedding import Vectors
    from rag_stack.retrieval.embedder import Embedder

# What makes a vector of a text, where nothing after the pooling changes its dimension.
_MODULES: Final = ("Transformer", "Pooling", "Normalize")


class LazyEmbedder:
    """Name, tokenizer and limits of an embedder from its files; the rest once it is asked for a vector.

    `encode` may run in several threads at once.
    """

    def __init__(
        self,
        load: "Callable[[], Embedder]",
        *,
        name: str,
        digest: str,
        dimension: int,
        max_tokens: int,
        tokenizer: Tokenizer,
    ) -> None:
        self.name = name
        self.digest = digest
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.tokenizer = tokenizer
        self._load = load
        self._lock = threading.Lock()
        self._loaded: Embedder | None = None

    @classmethod
    def of(cls, path: Path, load: "Callable[[], Embedder]", *, name: str, digest: str) -> "Self | Embedder":
        """From a directory; the embedder itself where its files do not say plainly what this has to know."""
        try:
            known = _described(path)
            tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception:
            # Whatever is wrong with it, the embedder says better.
            return load()
        if known is None:
            return load()
        dimension, max_tokens = known
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(load, name=name, digest=digest, dimension=dimension, max_tokens=max_tokens, tokenizer=tokenizer)

    def prepare(self) -> None:
        """Begin to load in a thread, which the first `encode` waits for."""
        threading.Thread(target=self._try, name="load-embedder").start()

    def encode(self, texts: "Sequence[str]", *, batch_size: int = 32) -> "Vectors":
        """As the embedder does. Raises ArtifactError when it does not load, or is not what its files say."""
        return self._embedder().encode(texts, batch_size=batch_size)

    def _try(self) -> None:
        # Whoever needs it tries again, and is told.
        with suppress(Exception):
            self._embedder()

    def _embedder(self) -> "Embedder":
        with self._lock:
            if self._loaded is None:
                loaded = self._load()
                found, told = (loaded.dimension, loaded.max_tokens), (self.dimension, self.max_tokens)
                if found != told:
                    raise ArtifactError(
                        f"the embedder {self.name!r} has (dimension, max_tokens) {found}, but its configuration says "
                        f"{told}; import it again"
                    )
                self._loaded = loaded
            return self._loaded


def _described(path: Path) -> tuple[int, int] | None:
    """Dimension and max_tokens, where the files say them."""
    modules = json.loads((path / "modules.json").read_text(encoding="utf-8"))
    kinds = tuple(str(each["type"]).rpartition(".")[2] for each in modules)
    if kinds not in (_MODULES, _MODULES[:2]):
        return None
    pooling: dict[str, Any] = json.loads((path / modules[1]["path"] / "config.json").read_text(encoding="utf-8"))
    config = json.loads((path / modules[0]["path"] / "sentence_bert_config.json").read_text(encoding="utf-8"))
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    dimension, max_tokens = pooling.get("word_embedding_dimension"), config.get("max_seq_length")
    # Several ways to pool are put side by side.
    if len(modes) != 1 or type(dimension) is not int or type(max_tokens) is not int:
        return None
    return dimension, max_tokens
