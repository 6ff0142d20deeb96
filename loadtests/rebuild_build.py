"""One build of `loadtests.rebuild`, as a process: `python -m loadtests.rebuild_build '{...}'` prints a line of JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from loadtests.rebuild_embedder import CheapLoad, TimedLoad, rate_of
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig
from rag_stack.index.spec import load_spec
from rag_stack.jobs.embedding import Progress
from rag_stack.jobs.index_build import Load, build_index, embedder_load
from rag_stack.metrics import MemoryRecorder


def main(wanted: dict[str, Any]) -> dict[str, Any]:
    """Build what is wanted: root, cache, spec, engine, workers; `times` is where an embedder notes when it works."""
    spec = load_spec(Path(wanted["spec"]))
    tiers = open_tiers(ArtifactsConfig(root=wanted["root"], cache=Path(wanted["cache"])), MemoryRecorder())
    load: Load | None = None
    if spec.embedder.name == "cheap":
        load = CheapLoad()
    elif wanted.get("times"):
        load = TimedLoad(embedder_load(spec, tiers=tiers), Path(wanted["times"]))
    last = [0.0]

    def note(_: Progress) -> None:
        last[0] = time.monotonic()

    report = build_index(
        spec,
        tiers=tiers,
        engine=wanted["engine"],
        workers=wanted["workers"],
        progress=note,
        load=load,
        batch=wanted.get("batch"),
    )
    found: dict[str, Any] = {
        "version": report.manifest.version,
        "documents": report.documents,
        "passages": report.passages,
        "embedded": report.embedded,
        "seconds": report.seconds,
    }
    if wanted.get("times"):
        found["rate"], found["processes"] = rate_of(Path(wanted["times"]), until=last[0])
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
