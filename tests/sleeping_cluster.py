"""A program: a real Ray Serve with a scripted engine that sleeps. Told what to do by lines on stdin, answers as JSON.

A process of its own, since Serve reads its environment when it is imported.

    python -m tests.sleeping_cluster DIRECTORY MAX_REPLICAS START_S IDLE_S
"""

import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from loadtests.local_cluster import LocalCluster, started
from loadtests.scripted_engine import Script
from loadtests.swap_data import EMBEDDER, INDEX, MODEL, publish_models, publish_versions
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving.environment import free_port
from tests.graph import add_kept_graph

STORE = "guide"


@dataclass
class Seen:
    """The engine's replicas as Serve tells them: the most at once, and how often they became more than none."""

    now: int = 0
    peak: int = 0
    wakes: int = 0

    def take(self, count: int) -> None:
        self.wakes += count > 0 and self.now == 0
        self.now = count
        self.peak = max(self.peak, count)


def main(directory: Path, max_replicas: int, start_s: float, idle_s: float) -> None:
    """Publish, start, and do what is asked until stdin ends."""
    # What Ray or one of its processes prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    release = _release(directory, max_replicas, idle_s)
    tiers = open_tiers(release.artifacts, MemoryRecorder())
    if tiers.catalog.promoted("indexes", INDEX) is None:  # or all is there from another run
        embedder = publish_models(tiers.catalog, generator=True, tell=lambda _: None, add_to_embedder=add_kept_graph)
        publish_versions(tiers.catalog, directory / "built", ["one"], embedder=embedder, rows=2000)
        tiers.catalog.promote(ArtifactRef("indexes", INDEX, "one"))
    script = Script(start_s=start_s, slots=16, token_s=0.01, max_tokens=8)
    with started(release, directory, script=script, num_cpus=max(2, max_replicas)) as cluster:
        seen, over = Seen(), threading.Event()
        watcher = threading.Thread(target=_watch, args=(seen, over), daemon=True)
        watcher.start()
        _tell(answers, {"url": cluster.url, "model": MODEL, "store": STORE})
        try:
            for line in sys.stdin:
                _tell(answers, _do(line.split(), cluster, seen))
        finally:
            over.set()
            watcher.join()


def _do(words: list[str], cluster: LocalCluster, seen: Seen) -> dict[str, object]:
    match words:
        case ["seen"]:
            return {"now": seen.now, "peak": seen.peak, "wakes": seen.wakes}
        case ["forget"]:
            seen.peak, seen.wakes = seen.now, 0
            return {}
        case ["kill", title, count]:
            killed = _pids(title)[: int(count)]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            return {"killed": killed}
        case ["pids", title]:
            return {"pids": _pids(title)}
        case other:
            raise ValueError(f"no command {other} of {cluster.url}")


def _pids(title: str) -> list[int]:
    """The processes of this cluster whose command line holds `title`."""
    own = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and title.encode() in (entry / "cmdline").read_bytes():
                found += [int(entry.name)] if own in (entry / "environ").read_bytes().split(b"\0") else []
        except OSError:  # it has ended, or is not ours
            continue
    return sorted(found)


def _watch(seen: Seen, over: threading.Event) -> None:
    from rag_stack.serving.prefixes import ENGINE_APP
    from rag_stack.serving.wake.watch import ask_serve

    while not over.wait(0.1):
        told = ask_serve(ENGINE_APP)
        seen.take(told.running + told.starting)


def _release(directory: Path, max_replicas: int, idle_s: float) -> Release:
    return Release.model_validate(
        {
            "name": "sleeper",
            "artifacts": {"root": f"file://{directory}/store", "cache": str(directory / "cache0")},
            "model": {"name": MODEL},
            "embedder": {"name": EMBEDDER},
            "stores": [{"name": STORE, "index": INDEX}],
            "server": {"port": free_port()},
            "engine": {"max_model_len": 2048},
            "scaling": {"min_replicas": 0, "max_replicas": max_replicas, "idle_s": idle_s, "down_after_s": idle_s},
            "wake": {"heartbeat_s": 1.0, "hold_requests": 100, "hold_s": 600},
        }
    )


def _tell(answers: TextIO, fields: dict[str, object]) -> None:
    answers.write(f"{json.dumps(fields)}\n")
    answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
