"""The encoder alone, for `loadtests.rebuild`: `python -m loadtests.rebuild_bare MODEL INPUTS` reads a list of texts.

Each process has one thread, its part of the inputs and all the time to load before all begin at once. Each sorts its
part by length, as sentence-transformers does. Prints a line of JSON: inputs a second until the last is done.
"""

import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

_BATCH = 32
_TIMEOUT_S = 600.0
# What Ray gives its workers: other load on the machine takes as much from both.
_NICENESS = 15


def _encode(model: Path, inputs: list[str], ready: Barrier, told: Connection) -> None:
    from rag_stack.retrieval.embedder import Embedder

    os.nice(max(0, _NICENESS - os.nice(0)))
    embedder = Embedder.load(model, name="bare", digest="sha256:" + "00" * 32, threads=1)
    ready.wait(_TIMEOUT_S)
    began, cpu = time.monotonic(), time.process_time()
    embedder.encode(inputs, batch_size=_BATCH)
    told.send((began, time.monotonic(), time.process_time() - cpu))


def main(model: Path, inputs: list[str], processes: int) -> dict[str, float]:
    """Encode, and say how fast that was."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    # By length and in turn, so that both halves are as long.
    ordered = sorted(inputs, key=len, reverse=True)
    arms = [
        context.Process(target=_encode, args=(model, ordered[number::processes], ready, told))
        for number, (_, told) in enumerate(pipes)
    ]
    for arm in arms:
        arm.start()
    times = [heard.recv() for heard, _ in pipes]
    for arm in arms:
        arm.join()
    seconds = max(end for _, end, _ in times) - min(began for began, _, _ in times)
    return {"rate": len(inputs) / seconds, "seconds": seconds, "cpu_s": sum(cpu for _, _, cpu in times)}


if __name__ == "__main__":
    texts = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    print(json.dumps(main(Path(sys.argv[1]), texts, int(sys.argv[3]))))
