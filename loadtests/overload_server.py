"""One replica's layer around the scripted engine, behind a uvicorn of its own: what `loadtests.overload` asks.

`python -m loadtests.overload_server RELEASE.json SCRIPT.json` prints its URL once it listens, and serves until it is
terminated. Serve, its router and HAProxy are not in the way: what is measured is who the layer lets in.
"""

import asyncio
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from loadtests.scripted_engine import Script, ScriptedEngine
from rag_stack.api.admission import Admission
from rag_stack.api.health import Readiness
from rag_stack.api.traffic import Traffic
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.pinned import pin
from rag_stack.serving.opening import build_layer, fetch_model, open_retrieval
from rag_stack.serving.replica import limits
from rag_stack.timeline import Timeline


def build(release: Release, script: Script) -> ASGIApp:
    """The app, as a replica puts it together."""
    recorder = MemoryRecorder()
    tiers = open_tiers(release.artifacts, recorder)
    pinned = pin(release, tiers)
    timeline = Timeline()
    model = fetch_model(tiers, pinned.release.model, timeline=timeline)
    retrieval = open_retrieval(pinned, tiers, timeline=timeline, recorder=recorder, fetch_beside=lambda _: None)
    layer = build_layer(pinned, retrieval, model_directory=model.path, readiness=_ready, recorder=recorder)
    admission = Admission(limits(release, slots=script.slots), recorder=recorder)
    traffic = Traffic(ttft_target_s=release.scaling.ttft_target_s, admission=admission)
    engine = ScriptedEngine(script, model=release.model.name).app()
    return traffic.around(replace(layer, admission=admission).around(engine))


async def _ready() -> Readiness:
    return Readiness(ready=True)


def main(release: Path, script: Path) -> None:
    """Serve until terminated."""
    app = build(
        Release.model_validate_json(release.read_text(encoding="utf-8")),
        Script.from_json(json.loads(script.read_text(encoding="utf-8"))),
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
