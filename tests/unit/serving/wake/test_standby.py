"""A node's standby without its actor: one parked process, begun again when it dies, and the weights in memory."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactChoice, ArtifactsConfig, Release
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.onnx_session import ONNX_FILE
from rag_stack.serving.wake.standby import TORCH_ENCODER, Standby, embedder_modules
from tests.forkable import why_not
from tests.pinnable import publish_model

WEIGHTS = b"w" * 100_000
WAIT_S = 60.0


@pytest.fixture
async def standby(tmp_path: Path) -> AsyncIterator[Standby]:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(WEIGHTS)
    (model / "config.json").write_text("{}")
    artifacts = ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache")
    catalog = Catalog(open_store(artifacts.root))
    catalog.promote(catalog.publish(model, kind="models", name="llm", metadata={}).ref)
    # One that needs no torch.
    graph = tmp_path / "model-e-with" / ONNX_FILE
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"graph")
    publish_model(catalog, tmp_path, "e", "with")
    embedder = ArtifactChoice(name="e")
    release = Release(name="town", artifacts=artifacts, model=ArtifactChoice(name="llm"), embedder=embedder)
    made = Standby(f"rag-stack-test-{uuid.uuid4().hex}", release, modules=("colorsys",))
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    made.stop()


async def ready(standby: Standby, *, starts: int) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_S):
        while True:
            state = standby.state()
            if state["ready"] and state["starts"] == starts:
                return state
            await asyncio.sleep(0.05)


async def test_it_parks_a_process_and_holds_the_weights(standby: Standby) -> None:
    state = await ready(standby, starts=1)
    assert state["weights_bytes"] == len(WEIGHTS)
    assert state["memory_bytes"] == pytest.approx(psutil.Process(state["pid"]).memory_info().rss, rel=0.1)


async def test_one_that_dies_is_begun_again(standby: Standby) -> None:
    first = await ready(standby, starts=1)
    os.kill(first["pid"], signal.SIGKILL)
    second = await ready(standby, starts=2)
    assert second["pid"] != first["pid"]


async def test_it_ends_with_its_holder(standby: Standby) -> None:
    parked = psutil.Process((await ready(standby, starts=1))["pid"])
    standby.stop()
    assert not parked.is_running()


def test_torch_is_imported_for_an_embedder_without_a_graph_alone(tmp_path: Path) -> None:
    artifacts = ArtifactsConfig(root=f"file://{tmp_path}/store", cache=tmp_path / "cache")
    tiers = open_tiers(artifacts, MemoryRecorder())
    release = Release(name="r", artifacts=artifacts, model=ArtifactChoice(name="m"), embedder=ArtifactChoice(name="e"))
    assert embedder_modules(release, tiers) == (), "not published: what is wrong is said by who needs it"
    publish_model(tiers.catalog, tmp_path, "e", "without")
    assert embedder_modules(release, tiers) == (TORCH_ENCODER,)
    graph = tmp_path / "model-e-with" / ONNX_FILE
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"graph")
    publish_model(tiers.catalog, tmp_path, "e", "with")
    assert embedder_modules(release, tiers) == ()


# The rest of rag_stack's part imports vLLM: tests/integration/test_standby_imports.py.
@pytest.mark.parametrize("module", ["rag_stack.serving.opening", "rag_stack.retrieval.reranker"])
def test_what_a_replica_searches_with_leaves_a_process_that_can_be_forked(module: str) -> None:
    assert why_not(module) == "None"
