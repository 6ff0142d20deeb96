"""One process of `loadtests.cold_index`: does one thing with the index, says how it went as a line of JSON, and ends.

read:HOW           reads the files from the disk by plain reads, without keeping anything
ours, early, copy  opens the cold index and gives 200 answers, prefault included; with early, no search waits for that.
                   `--hold` stays then until its input ends
stream:ours, stream:faiss    answers a stream of questions, most of them about hot topics, and times each
"""

import argparse
import json
import mmap
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import faiss
import numpy as np
import pyarrow as pa

from loadtests import cold_index_data
from loadtests.backed_memory import back
from loadtests.cold_index_data import IndexData, K, Questions
from loadtests.page_cache import drop
from rag_stack.artifacts.memory import available_bytes
from rag_stack.index.format import INDEX_FILE, PASSAGES_FILE
from rag_stack.index.passages import PassageTable
from rag_stack.index.reader import IndexVersion, Prefault, Rows, Vectors, set_search_threads

Sample = dict[str, str | int | float | bool | None]
Search = Callable[[Vectors, int], tuple[Vectors, Rows]]

READERS = ("1 MiB", "8 MiB", "8 MiB x2", "direct 4 MiB")
# A request's own passages, of the K that it finds.
_SHOWN = 4
_HOT_SHARE = 0.9
_MIB = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one visit."""
    options = _parser().parse_args(arguments)
    data = cold_index_data.load(options.folder)
    set_search_threads(1)
    match options.visit.split(":"):
        case ["read", how]:
            sample = read_through(data, how)
        case ["stream", arm]:
            sample = stream(data, arm, seed=options.seed, warm_up=options.warm_up, count=options.count)
        case [arm]:
            sample = open_and_answer(data, arm, cold=not options.warm)
    print(json.dumps({**sample, "anon_bytes": _anonymous_bytes()}), flush=True)
    if options.hold:
        sys.stdin.read()
    return 0


def read_through(data: IndexData, how: str) -> Sample:
    """Read the index's files once from the disk."""
    drop(data.files)
    back(data.size_bytes, data.directory)
    wall, cpu = time.perf_counter(), time.process_time()
    for path in data.files:
        match how:
            case "1 MiB":
                _read(path, _MIB)
            case "8 MiB":
                _read(path, 8 * _MIB)
            case "8 MiB x2":
                _read_in_halves(path, 8 * _MIB)
            case _:
                _read(path, 4 * _MIB, flags=os.O_DIRECT)
    seconds = time.perf_counter() - wall
    return {"seconds": seconds, "cpu_s": time.process_time() - cpu, "size_bytes": data.size_bytes}


def open_and_answer(data: IndexData, arm: str, *, cold: bool) -> Sample:
    """From closed files to all answers, with everything that ours reads in the background."""
    if cold:
        drop(data.all_files)
        # For a copy, and the page cache that it is read through.
        back(2 * data.size_bytes, data.directory)
    wall, cpu = time.perf_counter(), time.process_time()
    index = _copy(data) if arm == "copy" else _open(data)
    opened_s = time.perf_counter() - wall
    done: list[tuple[Prefault, float]] = []

    def prefault() -> None:
        prefaulted = index.prefault(undisturbed_s=0.0) if arm == "early" else index.prefault()
        done.append((prefaulted, time.perf_counter()))

    beside = None if arm == "copy" else Thread(target=prefault)
    if beside:
        beside.start()
    right, ends, slowest_s = 0, [], 0.0
    for number in range(len(data.mixed.vectors)):
        began = time.perf_counter()
        right += _answer(index.search, index.passages, data.mixed, number)
        ends.append(time.perf_counter())
        slowest_s = max(slowest_s, ends[-1] - began)
    if beside:
        beside.join()
    seconds, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    sample: Sample = {"seconds": seconds, "cpu_s": cpu_s, "open_ms": opened_s * 1e3, "slowest_ms": slowest_s * 1e3}
    sample |= {"right": right, "asked": len(ends), "size_bytes": data.size_bytes}
    sample["first_answer_ms"] = (ends[0] - wall) * 1e3
    for prefaulted, end in done:
        sample |= {"whole": prefaulted.whole, "read_bytes": prefaulted.read_bytes, "prefault_ms": (end - wall) * 1e3}
        sample["answered_beside"] = sum(answered < end for answered in ends)
    return sample


def stream(data: IndexData, arm: str, *, seed: int, warm_up: int, count: int) -> Sample:
    """Ask `count` questions one after another, nine of ten about hot topics, after `warm_up` like them.

    Ours is an open index version after its prefault; faiss is the mapped index without us.
    """
    drop(data.all_files)
    available = available_bytes()
    whole: bool | None = None
    if arm == "ours":
        index = _open(data)
        whole = index.prefault().whole
        search: Search = index.search
    else:
        search = faiss.read_index(str(data.directory / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC).search
    passages = PassageTable.open(data.directory / PASSAGES_FILE)
    rng = np.random.default_rng(seed)
    hot: list[float] = []
    cold: list[float] = []
    right = waits = 0
    for turn in range(-warm_up, count):
        if turn == 0:
            waits = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        asked, latencies = (data.hot, hot) if rng.random() < _HOT_SHARE else (data.cold, cold)
        number = int(rng.integers(len(asked.vectors)))
        began = time.perf_counter()
        right += _answer(search, passages, asked, number)
        if turn >= 0:
            latencies.append((time.perf_counter() - began) * 1e3)
    waits = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - waits
    told: Sample = {"right": right, "asked": warm_up + count, "whole": whole, "available_bytes": available}
    return {**told, "major_faults": waits, **_quantiles("hot", hot), **_quantiles("cold", cold)}


def _answer(search: Search, passages: PassageTable, asked: Questions, number: int) -> bool:
    """Search, and get the passages that a prompt would show. Whether they are the right ones."""
    _, rows = search(asked.vectors[number : number + 1], K)
    shown = [passages.get(int(row)).passage_id for row in rows[0][:_SHOWN]]
    expected = asked.rows[number]
    right = [f"-{row}" for row in expected[:_SHOWN]]
    return bool((rows[0] == expected).all()) and all(map(str.endswith, shown, right))


def _open(data: IndexData) -> IndexVersion:
    return IndexVersion.open(data.directory, data.manifest, embedder_digest=None)


def _copy(data: IndexData) -> IndexVersion:
    """The same in this process's own memory."""
    index = faiss.read_index(str(data.directory / INDEX_FILE))
    with pa.OSFile(str(data.directory / PASSAGES_FILE)) as file:
        passages = PassageTable(pa.ipc.open_file(file).read_all())
    return IndexVersion(index, passages, data.manifest, path=data.directory)


def _read(path: Path, size: int, *, flags: int = 0) -> None:
    # Aligned to a page, as O_DIRECT wants it.
    with mmap.mmap(-1, size) as buffer:
        fd = os.open(path, os.O_RDONLY | flags)
        try:
            while os.readv(fd, [buffer]):
                pass
        finally:
            os.close(fd)


def _read_in_halves(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    half = -(-path.stat().st_size // 2)

    def read(begin: int) -> None:
        with mmap.mmap(-1, size) as buffer:
            for offset in range(begin, begin + half, size):
                os.preadv(fd, [buffer], offset)

    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(read, (0, half)))
    finally:
        os.close(fd)


def _quantiles(name: str, latencies: Iterable[float]) -> Sample:
    values = np.asarray(list(latencies))
    return {f"{name}_p50_ms": float(np.quantile(values, 0.5)), f"{name}_p99_ms": float(np.quantile(values, 0.99))}


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.cold_index_visit", description=__doc__)
    add = parser.add_argument
    add("visit")
    add("folder", type=Path)
    add("--warm", action="store_true", help="leave the page cache as it is")
    add("--hold", action="store_true", help="stay until standard input ends")
    add("--seed", type=int, default=0)
    add("--warm-up", type=int, default=3000)
    add("--count", type=int, default=6000)
    return parser


if __name__ == "__main__":
    sys.exit(main())
