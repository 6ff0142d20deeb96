"""What a build has no vectors for is embedded, window by window."""

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from rag_stack.index.cutting import CutDocument
from rag_stack.index.embeddings import EmbeddingStore, input_keys
from rag_stack.jobs.embedding import Embedding, OnProgress, Progress

Share: TypeAlias = Callable[[], float]


class Filling:
    """Sees to it that each input of a window has its vector, and tells how far that is."""

    def __init__(
        self, vectors: EmbeddingStore, embedding: Embedding, *, progress: OnProgress | None, share: Share | None
    ) -> None:
        self._vectors = vectors
        self._embedding = embedding
        self._progress = progress
        self._share = share
        self._timed = (0.0, 0)
        # With nothing known yet there is much to do, and whoever does that loads for itself.
        self._prepared = not len(vectors)

    @property
    def rate(self) -> float:
        """Inputs embedded a second, while that was what the build did; 0 when all came at once."""
        seconds, inputs = self._timed
        return inputs / seconds if seconds else 0.0

    def expect(self, cut: CutDocument) -> None:
        """Look at a document of a window that is still being cut: loading an embedder takes as long as that."""
        if not self._prepared and self._vectors.missing(input_keys(cut.inputs)).any():
            self._prepared = True
            self._embedding.prepare()

    def fill(self, window: Sequence[CutDocument], *, last: bool) -> None:
        """Embed what is missing. Blocking. Raises as the embedding does, ArtifactError when a segment is not stored."""
        inputs = [text for cut in window for text in cut.inputs]
        keys = input_keys(inputs)
        missing = {bytes(keys[row]): inputs[row] for row in np.flatnonzero(self._vectors.missing(keys))}
        wanted = self._vectors.embedded + len(missing)
        share = 1.0 if last else self._share() if self._share else None
        first: tuple[float, int] | None = None
        timed = self._timed
        for piece in self._embedding.embed(list(missing.values()), known=self._vectors.keys):
            self._vectors.add(piece.keys, piece.vectors)
            now, done = time.perf_counter(), self._vectors.embedded
            # From the first piece on: what comes before it is the start of whoever embeds.
            first = first or (now, done)
            self._timed = (timed[0] + now - first[0], timed[1] + done - first[1])
            self._tell(done, _estimate(done if piece.share else wanted, piece.share or share))

    def _tell(self, done: int, total: int | None) -> None:
        if self._progress is not None:
            total = None if total is None else max(total, done)
            rate = self.rate
            left = None if total is None else total - done
            eta_s = 0.0 if left == 0 else left / rate if left and rate else None
            self._progress(Progress(done, total, rate, eta_s))


def _estimate(done: int, share: float | None) -> int | None:
    return round(done / share) if share else None
