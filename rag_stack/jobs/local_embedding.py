"""Embeds in threads of this process: for the HTTP ingest, small builds and tests."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Final

from rag_stack.index.embeddings import input_keys
from rag_stack.jobs.embedding import Embedded, KnownKeys, Model, Vectors
from rag_stack.jobs.lazy_embedder import LazyEmbedder

_BATCH: Final = 32


class LocalEmbedding:
    """Threads with a torch thread each, instead of one call with many.

    24-32 passages a second against 12-24 (16-18 with one of one; 155 tokens, two busy cores), since nobody spins at a
    barrier when another process takes a core.
    """

    def __init__(self, model: Model, *, workers: int = 1) -> None:
        self.model = model
        self._workers = workers

    def prepare(self) -> None:
        """Begin to load an embedder that is loaded when it is needed."""
        if isinstance(self.model, LazyEmbedder):
            self.model.prepare()

    def embed(self, inputs: Sequence[str], *, known: KnownKeys | None = None) -> Iterator[Embedded]:  # noqa: ARG002
        """Embed in batches of similar length, which wastes little on padding; longest first, so that the last is short.

        What was begun ends when the caller stops early or fails; nothing else is begun.
        """
        if not inputs:
            return
        order = sorted(inputs, key=len, reverse=True)
        # What is little is shared by all threads.
        size = max(1, min(_BATCH, -(-len(order) // self._workers)))
        batches = iter([order[first : first + size] for first in range(0, len(order), size)])
        with ThreadPoolExecutor(self._workers, thread_name_prefix="embed") as pool:
            # Little more than what runs: all that is done and not yet taken is lost when this process is killed.
            running = {pool.submit(self._embed, batch) for batch in islice(batches, self._workers + 1)}
            try:
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    running |= {pool.submit(self._embed, batch) for batch in islice(batches, len(done))}
                    for future in done:
                        batch, vectors = future.result()
                        yield Embedded(input_keys(batch), vectors)
            finally:
                pool.shutdown(cancel_futures=True)

    def _embed(self, batch: list[str]) -> tuple[list[str], Vectors]:
        return batch, self.model.encode(batch, batch_size=_BATCH)
