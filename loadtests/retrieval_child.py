"""One library in a process of its own, for loadtests.retrieval: builds or loads an index, then answers.

It is given the arm as JSON, the file of vectors and a folder for indexes. It writes a line of JSON when the index is
ready, and then one for each line it reads: `{"queries": "tune" or "test", "effort": [...], "batch": 1}`.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from loadtests.retrieval_data import AT, Vectors, recall_of
from loadtests.retrieval_figures import mapped_bytes, own_bytes

Rows = npt.NDArray[np.int64]
# Vectors [n, d] -> rows [n, AT].
Search = Callable[[Vectors], Rows]
# A search with an effort set, and the index's file.
Opened = tuple[Callable[[Sequence[int]], Search], Path]

_BUILD_THREADS: Final = 2
_MODULES: Final = {
    "ours": ("rag_stack.index.reader",),
    "faiss": ("faiss",),
    "hnswlib": ("hnswlib",),
    "usearch": ("usearch.index",),
}


def main() -> None:
    """Serve until the input ends."""
    arm, vectors, folder = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    with np.load(vectors) as file:
        problem = {name: file[name] for name in file.files}
    kept = folder / f"{vectors.stem}-{arm['key']}"
    built = kept.with_name(kept.name + ".json")
    if not built.is_file():
        kept.mkdir(parents=True, exist_ok=True)
        started, cpu = time.perf_counter(), time.process_time()
        _build(arm, kept, problem)
        took = {"build_s": time.perf_counter() - started, "build_cpu_s": time.process_time() - cpu}
        built.write_text(json.dumps(took), encoding="utf-8")
        # What building took is still held: the index is opened by a process that has built nothing.
        os.execv(sys.executable, [sys.executable, "-m", "loadtests.retrieval_child", *sys.argv[1:]])
    # Code is not counted: the index alone is.
    for module in _MODULES[arm["library"]]:
        importlib.import_module(module)
    before = own_bytes(_rollup())
    set_effort, path = _open(arm, kept, problem["base"].shape[1])
    print(json.dumps({**json.loads(built.read_text(encoding="utf-8")), "file_bytes": path.stat().st_size}), flush=True)
    memory: dict[str, float] = {}
    for line in sys.stdin:
        answer, rows, truth = _answer(json.loads(line), set_effort, problem)
        if not memory:
            # After some searches, and before this program makes sets of what they have found.
            memory = {"own_bytes": own_bytes(_rollup()) - before, "mapped_bytes": mapped_bytes(_smaps(), path)}
        print(json.dumps({**answer, "recall": recall_of(rows, truth), **memory}), flush=True)


def _answer(
    asked: dict[str, Any],
    set_effort: Callable[[Sequence[int]], Search],
    problem: dict[str, Any],
) -> tuple[dict[str, float], Rows, Rows]:
    search = set_effort(asked["effort"])
    queries, batch = problem[asked["queries"]], int(asked.get("batch", 1))
    search(queries[:batch])
    started, cpu = time.perf_counter(), time.process_time()
    rows = [search(queries[first : first + batch]) for first in range(0, len(queries), batch)]
    cpu, took = time.process_time() - cpu, time.perf_counter() - started
    times = {"cpu_us": cpu / len(queries) * 1e6, "wall_us": took / len(queries) * 1e6}
    return times, np.concatenate(rows), problem[asked["queries"] + "_nearest"]


def _rollup() -> str:
    return Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")


def _smaps() -> str:
    return Path("/proc/self/smaps").read_text(encoding="utf-8")


def _build(arm: dict[str, Any], kept: Path, problem: dict[str, Any]) -> None:
    base = problem["base"]
    match arm["library"]:
        case "ours":
            _build_ours(arm, kept, base, problem["tune"])
        case "faiss":
            import faiss

            faiss.omp_set_num_threads(_BUILD_THREADS)
            index = faiss.index_factory(base.shape[1], arm["recipe"], faiss.METRIC_INNER_PRODUCT)
            index.train(base)
            index.add(base)
            faiss.write_index(index, str(kept / "index"))
        case "hnswlib":
            import hnswlib

            graph = hnswlib.Index("ip", base.shape[1])
            graph.init_index(len(base), M=arm["links"], ef_construction=arm["effort"])
            graph.add_items(base, num_threads=_BUILD_THREADS)
            graph.save_index(str(kept / "index"))
        case "usearch":
            from usearch.index import Index

            options = {"connectivity": arm["links"], "expansion_add": arm["effort"]}
            near = Index(ndim=base.shape[1], metric="ip", dtype="f32", **options)
            near.add(np.arange(len(base)), base, threads=_BUILD_THREADS)
            near.save(str(kept / "index"))


def _build_ours(arm: dict[str, Any], kept: Path, base: Vectors, tune: Vectors) -> None:
    from rag_stack.index.builder import IndexWriter
    from rag_stack.index.documents import Document
    from rag_stack.index.format import EmbedderRef
    from rag_stack.types import Passage

    passages = [Passage(f"d-{row}", "d", "x", "", "", 0, 1) for row in range(len(base))]
    with IndexWriter(kept, dimension=base.shape[1]) as writer:
        writer.add(Document("d", "x", "", ""), passages, base)
        metadata = writer.finish(
            embedder=EmbedderRef(name="given", digest="sha256:0"),
            memory_budget_bytes=arm["budget_bytes"],
            queries=tune,
        )
    (kept / "metadata.json").write_text(json.dumps(metadata.to_json()), encoding="utf-8")


def _open(arm: dict[str, Any], kept: Path, dimension: int) -> Opened:
    match arm["library"]:
        case "ours":
            return _open_ours(kept), kept / "index.faiss"
        case "faiss":
            return _open_faiss(kept / "index"), kept / "index"
        case "hnswlib":
            import hnswlib

            graph = hnswlib.Index("ip", dimension)
            graph.load_index(str(kept / "index"))
            graph.set_num_threads(1)

            def graph_search(effort: Sequence[int]) -> Search:
                graph.set_ef(max(effort[0], AT))
                return lambda vectors: graph.knn_query(vectors, AT)[0].astype(np.int64)

            return graph_search, kept / "index"
        case _:
            from usearch.index import Index

            near = Index.restore(str(kept / "index"))

            def near_search(effort: Sequence[int]) -> Search:
                near.expansion_search = max(effort[0], AT)
                return lambda vectors: _keys(near.search(vectors, AT, threads=1).keys)

            return near_search, kept / "index"


def _keys(keys: npt.NDArray[np.uint64]) -> Rows:
    return keys.astype(np.int64).reshape(-1, AT)


def _open_ours(kept: Path) -> Callable[[Sequence[int]], Search]:
    """As a replica searches: the index version as a whole, with the effort that it was built with, or a larger one."""
    from rag_stack.artifacts.manifest import Manifest
    from rag_stack.index.reader import IndexVersion, set_search_threads
    from rag_stack.index.tuning import apply

    set_search_threads(1)
    metadata = json.loads((kept / "metadata.json").read_text(encoding="utf-8"))
    # Digests of its files, which take buffers, are not asked for.
    manifest = Manifest(kind="indexes", name="given", version="v1", files=(), metadata=metadata)
    version = IndexVersion.open(kept, manifest, embedder_digest=None)
    version.prefault()
    built = dict(part.split("=") for part in metadata["search_parameters"].split(","))

    def search(effort: Sequence[int]) -> Search:
        nprobe = int(built["nprobe"]) + (effort[0] if effort else 0)
        # The file says what a version searches with; here it is asked for more.
        apply(version._index, f"nprobe={nprobe}")
        return lambda vectors: version.search(vectors, AT)[1]

    return search


def _open_faiss(path: Path) -> Callable[[Sequence[int]], Search]:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(path))
    inner = faiss.downcast_index(index.base_index) if isinstance(index, faiss.IndexRefine) else index

    def search(effort: Sequence[int]) -> Search:
        if isinstance(inner, faiss.IndexHNSW):
            inner.hnsw.efSearch = effort[0]
        else:
            inner.nprobe, index.k_factor = min(effort[0], inner.nlist), effort[1]
        return lambda vectors: index.search(vectors, AT)[1]

    return search


if __name__ == "__main__":
    main()
