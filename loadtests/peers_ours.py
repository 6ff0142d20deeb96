"""Ours, as `loadtests.peers` measures it: a replica's layer around the scripted engine, in one process, without Ray.

`python -m loadtests.peers_ours --release FILE --port 8000`. The layer is put together by the code that a replica uses:
the index is mapped and prefaulted, keys are checked, admission and traffic counts are on, answers are cited, and all
metrics go to Ray's recorder as they do in a cluster.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadtests.peers_embedding import EmbeddingMeter
from loadtests.scripted_engine import Script, ScriptedEngine
from rag_stack.api.admission import Admission
from rag_stack.api.health import Readiness
from rag_stack.api.traffic import Traffic
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import load_release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.serving.opening import build_layer, fetch_model, open_retrieval
from rag_stack.serving.ray_recorder import RayRecorder
from rag_stack.serving.replica import limits
from rag_stack.timeline import Timeline

_ENGINE_ANSWERS = 20


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    app = build(options.release, max_tokens=options.max_tokens)
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning", access_log=False)


def build(path: Path, *, max_tokens: int) -> ASGIApp:
    """The app of a release, ready. Blocking: seconds."""
    release = load_release(path)
    recorder = RayRecorder()
    tiers = open_tiers(release.artifacts, MemoryRecorder())
    pinned = pin(release, tiers)
    timeline = Timeline(process="peers")
    retrieval = open_retrieval(pinned, tiers, timeline=timeline, recorder=recorder, fetch_beside=lambda _: None)
    meter = EmbeddingMeter()
    retrieval.embedder.encode = meter.around(retrieval.embedder.encode)  # type: ignore[method-assign]
    layer = build_layer(
        pinned,
        retrieval,
        model_directory=fetch_model(tiers, pinned.release.model, timeline=timeline).path,
        readiness=_ready,
        recorder=recorder,
    )
    script = Script(prefill_s=0.0, token_s=0.0, slots=64, max_tokens=max_tokens)
    engine = ScriptedEngine(script, model=release.model.name)
    admission = Admission(limits(pinned.release), recorder=recorder)
    traffic = Traffic(ttft_target_s=release.scaling.ttft_target_s, admission=admission, recorder=recorder)
    served = traffic.around(replace(layer, admission=admission).around(engine.app()))
    return _Measured(served, engine=engine, meter=meter)


class _Measured:
    """The app, and beside it the routes by which the load test looks into the process."""

    def __init__(self, app: ASGIApp, *, engine: ScriptedEngine, meter: EmbeddingMeter) -> None:
        self._app = app
        self._engine = engine
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope.get("path"):
            case "/prompts":
                await JSONResponse(list(self._engine.prompts))(scope, receive, send)
            case "/engine":
                await JSONResponse({"cpu_ms": await _engine_ms(self._engine)})(scope, receive, send)
            case "/embedding":
                await JSONResponse(self._meter.told())(scope, receive, send)
            case _:
                await self._app(scope, receive, send)


async def _engine_ms(engine: ScriptedEngine) -> float:
    """CPU milliseconds that the engine takes for an answer in this process, asked without HTTP and without us."""
    messages = json.loads(engine.prompts[-1])
    body = json.dumps({"messages": messages, "max_tokens": engine.script.max_tokens, "stream": True}).encode()
    path = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": []}

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: Message) -> None:
        return None

    app = engine.app()
    began_s = time.thread_time()
    for _ in range(_ENGINE_ANSWERS):
        await app({**path, "asgi": {"spec_version": "2.4"}}, receive, send)
    return (time.thread_time() - began_s) * 1e3 / _ENGINE_ANSWERS


async def _ready() -> Readiness:
    return Readiness(ready=True, parts={"engine": "scripted"})


if __name__ == "__main__":
    main()
