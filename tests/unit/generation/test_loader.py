"""Where in its file each tensor ends: what the loader waits for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("vllm")

from rag_stack.generation.loader import tensor_ends


def test_the_last_tensor_ends_with_its_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"model-{number}.safetensors" for number in (1, 2)]
    for number, path in enumerate(paths):
        tensors = {f"{number}.{name}": torch.full((size,), 1.0) for name, size in (("a", 3), ("b", 5))}
        save_file(tensors, path, metadata={"format": "pt"})
    ends = tensor_ends(paths)
    assert set(ends) == {"0.a", "0.b", "1.a", "1.b"}
    for number, path in enumerate(paths):
        own = [end for name, (found, end) in ends.items() if found == path and name.startswith(str(number))]
        assert len(own) == 2
        assert max(own) == path.stat().st_size


@pytest.mark.parametrize("header", [b"", b"no header at all", b"[1]", b'{"a": 1}', b'{"a": {"data_offsets": [1]}}'])
def test_a_file_without_a_header_is_left_to_the_loader(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert tensor_ends([tmp_path / "model.safetensors"]) == {}


@pytest.mark.parametrize("start", [b"", b"\xff" * 8])
def test_a_size_that_none_can_have_is_not_read(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(start)
    assert tensor_ends([tmp_path / "model.safetensors"]) == {}
