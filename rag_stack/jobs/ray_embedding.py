"""Embeds on Ray Data: files -> read and cut (tasks) -> embed (an actor pool) -> back to the build, as it gets done.

The build itself is the one of `jobs.build`, in one process and in source order. It asks for the vectors of a window of
passages after the other. As soon as more is to be embedded than this process does in the time that Ray takes to start,
this runs ahead: Ray Data reads and cuts the whole source, leaves out what has a vector, and the actors get the rest.
The vectors come back in any order and go into the embedding store, where the build finds them. So nothing waits for a
slow file, and what is in flight does not depend on the size of the source: one block is one batch of the embedder.
"""

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from rag_stack.index.cutting import CutDocument, cut_document
from rag_stack.index.documents import Document
from rag_stack.index.embeddings import KEY_BYTES, Keys, input_keys
from rag_stack.index.source import SourceFile
from rag_stack.jobs.embedding import Embedded, KnownKeys, Model, by_key
from rag_stack.jobs.local_embedding import LocalEmbedding
from rag_stack.jobs.ray_session import Capacity, ray_session
from rag_stack.jobs.reading import SourceReader, grouped, weight

# Local Ray takes 15 to 20 seconds until its actors embed: as long as two cores need for some hundred passages.
WORTH_RAY: Final = 1000
# One batch of the embedder on a CPU: what an actor does last alone is short. Ray takes 8 ms of a core for a block, the
# embedder a second.
CPU_BATCH: Final = 32
GPU_BATCH: Final = 512
# So many inputs are sorted by length at once, for batches that need little padding.
_SORTED: Final = 2048
_MAX_GROUP_WEIGHT: Final = 8 << 20
# Groups of a few hundred passages: enough to sort, and so many of them that no actor is left alone with the last.
_MIN_GROUP_WEIGHT: Final = 256 << 10
_GROUPS_PER_ACTOR: Final = 16


@dataclass(frozen=True, slots=True)
class RayEmbedding:
    """Embeds a source with Ray when there is much to do, and in this process what is little.

    `load` loads the embedder in an actor, wherever that is, on a device ("cpu" or "cuda"). `batch` is how many inputs
    an actor gets at once (None: what suits its device). Ray is used when more than `worth` inputs were asked for.
    """

    local: LocalEmbedding
    reader: SourceReader
    files: Sequence[SourceFile]
    load: Callable[[str], Model]
    workers: int
    batch: int | None = None
    worth: int = WORTH_RAY
    _state: "_State" = field(default_factory=lambda: _State())

    @property
    def model(self) -> Model:
        """The embedder, as this process has it."""
        return self.local.model

    def prepare(self) -> None:
        """Begin to load the embedder here, where it is not left to the actors in any case."""
        if self.worth:
            self.local.prepare()

    def embed(self, inputs: Sequence[str], *, known: KnownKeys) -> Iterator[Embedded]:
        """The vectors of inputs; once it is worth it, those of everything else that the source holds too."""
        left = by_key(inputs)
        self._state.asked += len(left)
        if self._state.asked > self.worth and not self._state.ahead:
            self._state.ahead = True
            for piece in self._run_ahead(known()):
                for key in piece.keys:
                    left.pop(bytes(key), None)
                yield piece
        # Few, or what has changed in the source since it was read.
        yield from self.local.embed(list(left.values()))

    def _run_ahead(self, known: Keys) -> Iterator[Embedded]:
        total = sum(map(weight, self.files))
        with ray_session(workers=self.workers, known_bytes=known.nbytes) as capacity:
            done = 0
            for row in self._rows(known, capacity):
                done += row["weight"]
                if row["keys"]:
                    keys = np.frombuffer(row["keys"], dtype=f"S{KEY_BYTES}")
                    vectors = np.frombuffer(row["vectors"], np.float32).reshape(len(keys), -1)
                    yield Embedded(keys, vectors, share=min(1.0, done / total))

    def _rows(self, known: Keys, capacity: Capacity) -> Iterator[dict[str, Any]]:
        import ray
        import ray.data

        device = "cuda" if capacity.actor_gpus else "cpu"
        batch = self.batch or (GPU_BATCH if capacity.actor_gpus else CPU_BATCH)
        target = max(
            _MIN_GROUP_WEIGHT,
            min(_MAX_GROUP_WEIGHT, sum(map(weight, self.files)) // (capacity.actors * _GROUPS_PER_ACTOR)),
        )
        groups = [{"files": pickle.dumps(group)} for group in grouped(self.files, target_weight=target)]
        cut = _Cut(self.reader, self.model.tokenizer.to_str(), self.model.max_tokens, ray.put(known), batch)
        with _quiet_and_bounded(capacity):
            rows = (
                ray.data.from_items(groups, override_num_blocks=len(groups))
                .flat_map(cut, num_cpus=capacity.cut_cpus)
                .map_batches(
                    _Embed,
                    fn_constructor_args=(self.load, device),
                    batch_size=None,
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(size=capacity.actors, max_tasks_in_flight_per_actor=2),
                    num_cpus=capacity.actor_cpus,
                    num_gpus=capacity.actor_gpus,
                )
            )
            for block in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
                yield from block.to_pylist()


@dataclass(slots=True)
class _State:
    asked: int = 0
    ahead: bool = False


class _Cut:
    """A task: a group of files -> batches of inputs that have no vector. Runs on any node."""

    def __init__(self, reader: SourceReader, tokenizer: str, max_tokens: int, known: Any, batch: int) -> None:  # noqa: ANN401 - an ObjectRef
        self._reader = reader
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._known = known
        self._batch = batch

    def __call__(self, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        import ray

        files: list[SourceFile] = pickle.loads(row["files"])  # noqa: S301 - this build's own
        limits = Limits(Tokenizer.from_str(self._tokenizer), self._max_tokens)
        return batches_of(self._reader, files, limits, known=ray.get(self._known), batch=self._batch)


@dataclass(frozen=True, slots=True)
class Limits:
    """What of an embedder is needed to cut."""

    tokenizer: Tokenizer
    max_tokens: int


def batches_of(
    reader: SourceReader, files: Sequence[SourceFile], limits: Limits | Model, *, known: Keys | None, batch: int
) -> Iterator[dict[str, Any]]:
    """Cut files: `inputs` without a vector, in batches of like length, and the `weight` of the files that are done.

    `known` are the keys that have one, sorted.
    """
    waiting: dict[bytes, str] = {}
    done = 0
    for file in files:
        for found in reader.read([file]):
            if isinstance(found, Document):
                waiting |= _unknown(found, reader, limits, known)
            if len(waiting) >= _SORTED:
                yield from _sorted_batches(waiting, done, batch)
                waiting, done = {}, 0
        done += weight(file)
    yield from _sorted_batches(waiting, done, batch)


def _unknown(document: Document, reader: SourceReader, limits: Limits | Model, known: Keys | None) -> dict[bytes, str]:
    cut = cut_document(
        document, tokenizer=limits.tokenizer, max_tokens=limits.max_tokens, chunking=reader.spec.chunking
    )
    if not isinstance(cut, CutDocument):
        return {}
    keys = input_keys(cut.inputs)
    new = np.ones(len(keys), np.bool_)
    if known is not None and len(known):
        new = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] != keys
    return {bytes(keys[row]): cut.inputs[row] for row in np.flatnonzero(new)}


def _sorted_batches(waiting: Mapping[bytes, str], done: int, batch: int) -> Iterator[dict[str, Any]]:
    """Longest first; the weight goes with the first, alone where nothing is to be embedded."""
    order = sorted(waiting.values(), key=len, reverse=True)
    for first in range(0, len(order), batch):
        yield {"inputs": order[first : first + batch], "weight": done if first == 0 else 0}
    if done and not order:
        yield {"inputs": [], "weight": done}


class _Embed:
    """An actor: it has an embedder, and a core or a GPU for it."""

    def __init__(self, load: Callable[[str], Model], device: str) -> None:
        self._model = load(device)

    def __call__(self, block: pa.Table) -> pa.Table:
        rows = [self._embedded(row) for row in block.to_pylist()]
        return pa.Table.from_pylist(rows, schema=_SCHEMA)

    def _embedded(self, row: Mapping[str, Any]) -> dict[str, Any]:
        inputs: list[str] = row["inputs"]
        vectors = self._model.encode(inputs, batch_size=max(1, len(inputs)))
        keys = input_keys(inputs).tobytes()
        return {"keys": keys, "vectors": np.ascontiguousarray(vectors, np.float32).tobytes(), "weight": row["weight"]}


_SCHEMA: Final = pa.schema([("keys", pa.large_binary()), ("vectors", pa.large_binary()), ("weight", pa.int64())])


@contextmanager
def _quiet_and_bounded(capacity: Capacity) -> Iterator[None]:
    """Ray Data's settings for a block: small blocks, few of them in flight, and not a word of its own."""
    from ray.data import DataContext, ExecutionOptions, ExecutionResources

    with warnings.catch_warnings():
        # Ray's own defaults set what Ray deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        context = DataContext()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    # A row is a batch, and goes to an actor on its own.
    context.target_max_block_size = 1
    context.target_min_block_size = 0
    # Our own errors, with what to do, and not Ray's about them.
    context.raise_original_map_exception = True
    context.execution_options = ExecutionOptions(
        # The build puts vectors in order by their keys: no block waits for another.
        preserve_order=False,
        resource_limits=ExecutionResources(object_store_memory=capacity.object_store_bytes),
    )
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)
