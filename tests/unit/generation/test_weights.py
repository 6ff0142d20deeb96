"""Which files a model may hold, and what is read ahead of the engine."""

import os
from pathlib import Path

import pytest

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.residency import resident_bytes
from rag_stack.errors import ArtifactError
from rag_stack.generation.weights import ReadAhead, check_files, read_ahead
from rag_stack.metrics import ARTIFACT_LOAD_BYTES, MemoryRecorder
from rag_stack.timeline import Timeline
from tests.page_cache import undisturbed

SIZE = 3 * 1024 * 1024
FROM_DISK = {"kind": "models", "stage": "prefault", "source": "disk"}


def published(tmp_path: Path, *names: str) -> Manifest:
    folder = tmp_path / "model"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return Catalog(open_store(f"file://{tmp_path}/store")).publish(folder, kind="models", name="m", metadata={})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two shards that are not in the page cache."""
    for number in (1, 2):
        path = tmp_path / f"model-{number}.safetensors"
        path.write_bytes(os.urandom(SIZE))
    cool(tmp_path)
    return tmp_path


def cool(directory: Path) -> None:
    for path in directory.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(directory):
        pytest.skip("this file system keeps its files in memory")


def resident(directory: Path) -> int:
    return sum(resident_bytes(path) for path in directory.glob("*.safetensors"))


def test_what_a_model_is_made_of_is_taken(tmp_path: Path) -> None:
    check_files(published(tmp_path, "config.json", "model-1.safetensors", "tokenizer.model", "LICENSE", "merges.txt"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "modeling_llama.py", "sub/weights.pkl", "a.so", "x"])
def test_what_could_run_code_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        check_files(published(tmp_path, "config.json", "model.safetensors", name))


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no \.safetensors"):
        check_files(published(tmp_path, "config.json"))


def test_cold_weights_are_read_ahead_and_told(model: Path) -> None:
    def cold() -> tuple[ReadAhead, int]:
        cool(model)
        ahead = read_ahead(model, {})
        ahead.join()
        return ahead, resident(model)

    ahead, there = undisturbed(cold)
    assert there == ahead.read_bytes == 2 * SIZE
    timeline, recorder = Timeline(), MemoryRecorder()
    ahead.tell(timeline, recorder)
    assert [(span.size_bytes, span.source) for span in timeline.spans()] == [(2 * SIZE, "disk")]
    assert recorder.values(ARTIFACT_LOAD_BYTES, FROM_DISK) == [2 * SIZE]


def test_what_is_in_memory_already_is_not_read_and_not_told(model: Path) -> None:
    def twice() -> ReadAhead:
        read_ahead(model, {}).join()
        again = read_ahead(model, {"load_format": "safetensors"})
        again.join()
        return again

    again = undisturbed(twice)
    assert again.read_bytes == 0
    timeline = Timeline()
    again.tell(timeline, MemoryRecorder())
    assert timeline.spans() == ()


@pytest.mark.parametrize("load_format", ["dummy", "instanttensor", "sharded_state"])
def test_nothing_is_read_for_a_loader_that_would_not_find_it(model: Path, load_format: str) -> None:
    read_ahead(model, {"load_format": load_format}).join()
    assert resident(model) == 0


def test_a_file_that_goes_away_stops_nothing(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    (model / "model-1.safetensors").unlink()
    (model / "model-1.safetensors").symlink_to("nowhere")
    read_ahead(model, {}).join()
    assert "cannot read the weights ahead" in caplog.text


def test_who_waits_for_a_byte_goes_on_when_it_is_read(model: Path) -> None:
    def waited() -> int:
        cool(model)
        ahead = read_ahead(model, {})
        ahead.wait(model / "model-2.safetensors", SIZE)
        there = resident(model)
        ahead.join()
        return there

    assert undisturbed(waited) == 2 * SIZE


def test_nobody_waits_for_what_is_not_going_to_be_read(model: Path) -> None:
    ahead = read_ahead(model, {})
    ahead.stop()
    ahead.wait(model / "model-1.safetensors", SIZE + 1)
    ahead.wait(model / "another.safetensors", 1)
