"""The SDK and the command line on the base install, where none of the server's packages are there."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "ray", "faiss", "vllm", "numpy", "pyarrow", "sentence_transformers", "transformers", "starlette")
# Imports of the extras, and what comes with them, fail as if they were not installed.
BASE_INSTALL = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from rag_stack.cli.main import app
app({arguments!r})
"""


def absent_modules() -> set[str]:
    """The import names of the server's extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {requirement.split("[")[0].split("=")[0].split(">")[0] for requirement in extras["server"]}
    return {name.replace("-", "_") for name in names} | {"yaml", "torch", "faiss", "vllm", "tokenizers"}


def run_on_base_install(*arguments: str) -> "subprocess.CompletedProcess[str]":
    program = BASE_INSTALL.format(absent=absent_modules(), arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_importing_the_client_brings_nothing_heavy() -> None:
    program = f"import rag_stack.client, sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_every_command_is_shown() -> None:
    done = run_on_base_install("--help")
    assert done.returncode == 0, done.stderr
    for name in ("ask", "search", "key", "version", "index", "model", "serve"):
        assert f"│ {name} " in done.stdout


@pytest.mark.parametrize("arguments", [("version",), ("key",), ("ask", "--help"), ("search", "--help")])
def test_commands_of_the_base_install_work(arguments: tuple[str, ...]) -> None:
    done = run_on_base_install(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [("serve", "release.yaml"), ("index", "build", "x"), ("model", "ls", "--json")])
def test_commands_of_the_server_say_what_to_install(arguments: tuple[str, ...]) -> None:
    done = run_on_base_install(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: this command needs the server's packages")
    assert "make setup" in done.stderr
    assert "rag-stack[gpu]" in done.stderr
