"""An import's graph: of all that a model's modules do, checked, and left out with a reason where it cannot be had."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from rag_stack.retrieval import embedder_export
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.embedder_export import add_graph
from rag_stack.retrieval.onnx_encoder import OnnxEncoder
from rag_stack.retrieval.onnx_session import ONNX_FILE
from tests.tiny_embedder import DIMENSION, MAX_TOKENS, PROMPT, tiny_embedder

pytest.importorskip("onnxscript")
TEXTS = ("", "How do I open a file?", "UPPER and naïve", "many words " * 60)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As its library saves it."""
    return tiny_embedder(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def graphed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its graph."""
    directory = Path(shutil.copytree(plain, tmp_path_factory.mktemp("graphed") / "model"))
    add_graph(directory, lambda message: None)
    return directory


def test_projection_pooling_and_prompt_are_the_models_own(plain: Path, graphed: Path) -> None:
    library = SentenceTransformer(str(plain), device="cpu", local_files_only=True)
    expected = library.encode(list(TEXTS), normalize_embeddings=True, convert_to_numpy=True)
    encoder = OnnxEncoder.load(graphed, name="tiny", threads=1)
    assert encoder is not None
    assert (encoder.dimension, encoder.max_tokens) == (DIMENSION, MAX_TOKENS)
    assert encoder.tokens("file").ids == encoder.tokenizer.encode(f"{PROMPT}file").ids
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    bare = library.encode(list(TEXTS), prompt="", normalize_embeddings=True, convert_to_numpy=True)
    assert np.abs(bare - expected).max() > 1e-3, "the prompt matters here"


def test_it_is_small_and_the_same_every_time(plain: Path, graphed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    for path in plain.rglob("*"):
        if path.is_file():
            (again / path.relative_to(plain)).parent.mkdir(exist_ok=True)
            (again / path.relative_to(plain)).symlink_to(path)
    messages: list[str] = []
    add_graph(again, messages.append)
    assert "cosine >= 1.0000" in messages[-1]
    graph = (graphed / ONNX_FILE).read_bytes()
    assert graph == (again / ONNX_FILE).read_bytes()
    assert [path.name for path in (graphed / "onnx").iterdir()] == ["model.onnx"], "the weights are the safetensors"
    assert len(graph) < 200_000
    assert str(Path(sys.prefix)).encode() not in graph


def test_weights_that_the_safetensors_hold_in_another_dtype_lie_beside_the_graph(plain: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    directory = Path(shutil.copytree(plain, tmp_path / "model"))
    tensors = load_file(directory / "model.safetensors")
    save_file({name: each.half() for name, each in tensors.items()}, directory / "model.safetensors", {"format": "pt"})
    expected = Embedder.load(directory, name="t", digest="sha256:t", threads=1).encode(TEXTS)
    add_graph(directory, lambda message: None)
    assert (directory / "onnx" / "model.onnx.data").stat().st_size > 30522 * 32 * 4
    found = Embedder.load(directory, name="t", digest="sha256:t", threads=1).encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_graph_with_other_vectors_is_left_out(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path(shutil.copytree(plain, tmp_path / "model"))
    monkeypatch.setattr(embedder_export, "MIN_COSINE", 1.1)
    assert "no graph: its graph's vectors have cosine 1.0000" in _told(directory)
    assert not (directory / "onnx").exists()


def test_prompt_tokens_that_are_not_pooled_are_left_to_torch(tmp_path: Path) -> None:
    directory = tiny_embedder(tmp_path, include_prompt=False)
    assert "no graph: its vectors leave out the tokens of its prompt" in _told(directory)
    assert not (directory / "onnx").exists()


def test_a_module_that_is_not_understood_is_left_to_torch(plain: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(plain, tmp_path / "model"))
    modules = (directory / "modules.json").read_text()
    (directory / "modules.json").write_text(
        modules[: modules.rindex("]")]
        + """, {"idx": 3, "name": "3",
        "path": "3_Dropout", "type": "sentence_transformers.sentence_transformer.modules.Dropout"}]"""
    )
    (directory / "3_Dropout").mkdir()
    (directory / "3_Dropout" / "config.json").write_text('{"dropout": 0.1}')
    assert "no graph: its module Dropout is none of" in _told(directory)


def test_what_the_library_does_to_a_text_beyond_its_tokenizer_is_left_to_torch(plain: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(plain, tmp_path / "model"))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((directory / "sentence_bert_config.json").read_text())
    (directory / "sentence_bert_config.json").write_text(json.dumps({**config, "do_lower_case": True}))
    assert "no graph: its tokenizer.json does not give the tokens that torch gets of" in _told(directory)


def test_without_the_exporter_the_import_goes_on_and_says_what_to_install(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(plain, tmp_path / "model"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "no graph: import of onnxscript halted" in (told := _told(directory))
    assert "`pip install onnxscript` and import it again" in told
    assert not (directory / "onnx").exists()


def _told(directory: Path) -> str:
    messages: list[str] = []
    add_graph(directory, messages.append)
    return messages[-1]
