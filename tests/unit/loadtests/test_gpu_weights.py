"""What can be had of it without a GPU: the plain copy, and that it says so."""

from pathlib import Path

import pytest
import torch

from loadtests.gpu_weights import NO_GPU, main
from loadtests.weights_copy import copied


def test_every_byte_is_copied_whatever_the_pieces(tmp_path: Path) -> None:
    for number, size in enumerate((1, 4096, 10_001)):
        (tmp_path / f"{number}.safetensors").write_bytes(bytes(size))
    (tmp_path / "config.json").write_text("{}")
    assert copied(tmp_path, torch.device("cpu"), piece_bytes=4096) == 1 + 4096 + 10_001


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == NO_GPU
    assert capsys.readouterr().out.count("\n") == 1
