"""What happens to running answers when replicas end, on a real Ray with a scripted engine. Prints what was seen: JSON.

Run as a program, since Ray must not have been imported before its environment is set: DIRECTORY is the first argument.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from loadtests.local_cluster import LocalCluster, ask, started
from loadtests.scripted_engine import Script
from loadtests.swap_data import publish_models
from rag_stack.artifacts.pin import is_pinned
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.serving.environment import free_port
from tests.graph import add_kept_graph

# Only its tokenizer is read: the engine is scripted.
MODEL = "all-minilm-l6-v2"
STUCK_S = 3.0
LONG = 160
SCRIPT = Script(slots=4, prefill_s=0.01, token_s=0.05)


def release_in(directory: Path) -> Release:
    return Release.model_validate(
        {
            "name": "drained",
            "artifacts": {"root": f"file://{directory}/store", "cache": str(directory / "cache")},
            "model": {"name": MODEL},
            "embedder": {"name": MODEL},
            "engine": {"max_model_len": 2048},
            "server": {"port": free_port()},
            "scaling": {"min_replicas": 2, "max_replicas": 2, "ttft_target_s": 30.0},
            "drain": {"limit_s": 30.0, "stuck_s": STUCK_S},
        }
    )


@dataclass
class Stream:
    """A streamed answer as it comes."""

    url: str
    tokens: int
    began: threading.Event = field(default_factory=threading.Event)
    frames: list[str] = field(default_factory=list)
    failure: str = ""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": self.tokens}
        body["stream"] = True
        try:
            with httpx.stream(
                "POST", f"{self.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60
            ) as r:
                for line in r.iter_lines():
                    if line.startswith("data: "):
                        self.frames.append(line[6:])
                        self.began.set()
        except httpx.HTTPError as exc:
            self.failure = repr(exc)

    def end(self) -> dict[str, Any]:
        """How it ended: whole, with an error frame, or broken off."""
        self._thread.join()
        errors = [frame for frame in self.frames if frame.startswith('{"error"')]
        words = sum('"content"' in frame for frame in self.frames)
        return {"words": words, "done": self.frames[-1:] == ["[DONE]"], "errors": errors, "failure": self.failure}


def streams(cluster: LocalCluster, number: int) -> list[Stream]:
    made = [Stream(cluster.url, LONG) for _ in range(number)]
    assert all(each.began.wait(30) for each in made)
    return made


def wait_for(what: Callable[[], bool], *, limit_s: float = 90.0) -> float:
    """Seconds until it is so."""
    began_s = time.monotonic()
    while not what():
        assert time.monotonic() - began_s < limit_s, "it never was"
        time.sleep(0.1)
    return round(time.monotonic() - began_s, 2)


def running() -> int:
    from ray import serve

    return serve.status().applications["engine"].deployments["ScriptedServer"].replica_states.get("RUNNING", 0)


def answers(cluster: LocalCluster) -> bool:
    try:
        return ask(cluster.url, "hello", model=MODEL, timeout_s=5).status_code == 200
    except httpx.HTTPError:
        return False


def scale_down(cluster: LocalCluster) -> dict[str, Any]:
    """Two replicas become one, in a new deployment of the application, while each streams."""
    from ray import serve

    from loadtests.scripted_server import scripted_target

    made = streams(cluster, 4)
    one = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}
    serve.run_many([scripted_target(cluster.pinned, SCRIPT, options=one)], wait_for_applications_running=False)
    return {"streams": [each.end() for each in made], "to_one_s": wait_for(lambda: running() == 1)}


def lose(cluster: LocalCluster, switch: str) -> dict[str, Any]:
    """The one replica's engine hangs or dies in the middle of a stream, and of an answer that goes out as a whole."""
    from ray import serve

    handle = serve.get_app_handle("engine")
    stream, whole = streams(cluster, 1)[0], []
    asking = threading.Thread(target=lambda: whole.append(ask(cluster.url, "hello", model=MODEL, max_tokens=LONG)))
    asking.start()
    time.sleep(0.3)
    pid, began_s = handle.turn.remote(switch).result(), time.monotonic()
    told = stream.end()
    told_s = round(time.monotonic() - began_s, 2)
    asking.join()
    replaced_s = wait_for(lambda: answers(cluster)) + told_s
    after = handle.turn.remote("unstick").result()
    body = {"status": whole[0].status_code, "body": whole[0].json(), "retry_after": whole[0].headers.get("retry-after")}
    return {"stream": told, "told_s": told_s, "whole": body, "answers_s": replaced_s, "replaced": after != pid}


def terminate(cluster: LocalCluster) -> dict[str, Any]:
    """What `rag-stack serve` does on SIGTERM, while an answer streams."""
    from rag_stack.serving.startup import drain

    stream, began_s = streams(cluster, 1)[0], time.monotonic()
    drain(cluster.pinned.release.drain.limit_s)
    return {"drained_s": round(time.monotonic() - began_s, 2), "stream": stream.end()}


def pins(directory: Path) -> dict[str, int]:
    """Pins on the disk, and those that a process holds."""
    files = [path for path in directory.glob("cache*/**/*") if path.is_file() and "pin" in str(path.parent)]
    return {"files": len(files), "held": sum(map(is_pinned, files))}


def main(directory: Path) -> None:
    release = release_in(directory)
    publish_models(
        open_tiers(release.artifacts, MemoryRecorder()).catalog,
        generator=False,
        tell=lambda _: None,
        add_to_embedder=add_kept_graph,
    )
    seen: dict[str, Any] = {}
    steps: dict[str, Callable[[LocalCluster], dict[str, Any]]] = {
        "scale_down": scale_down,
        "stuck": lambda cluster: lose(cluster, "stick"),
        "dead": lambda cluster: lose(cluster, "die"),
        "terminated": terminate,
    }
    with started(release, directory, script=SCRIPT, nodes=1, num_cpus=4) as cluster:
        wait_for(lambda: answers(cluster))
        seen["held_before"] = pins(directory)
        for name, step in steps.items():
            seen[name] = step(cluster)
            print(name, json.dumps(seen[name]), file=sys.stderr, flush=True)
    seen["held_after"] = pins(directory)
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
