"""The official client in its three generations against a running server, each in a fresh virtual environment.

`python -m loadtests.clients --url http://127.0.0.1:8000` installs openai 1.x, 2.x and 3.x from the package index, one
after another, and runs the same script under each: create a store, upload 200 files (Python's documentation), poll,
search with filters, change attributes, get a cited answer. Exit code 0 when all of them pass.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

VERSIONS = ("openai>=1.109,<2", "openai>=2,<3", "openai>=3,<4")
_REPOSITORY = Path(__file__).parents[1]
_LIMIT_S = 1800


@dataclass(frozen=True, slots=True)
class Passed:
    """What the script told of one version; `problem` is empty when it went through."""

    wanted: str
    facts: dict[str, Any]
    problem: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Install, run, print, and return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="rag-stack-clients-") as name:
        folder = Path(name)
        documents = options.documents or _exported(folder / "documents", count=options.files)
        results = []
        for number, wanted in enumerate(options.versions or VERSIONS):
            python = _installed(folder / f"venv-{number}", wanted)
            passed = run(python, wanted, url=options.url, key=options.key, documents=documents, count=options.files)
            results.append(passed)
            console.print(told(results[-1]), highlight=False, markup=False, soft_wrap=True)
    return 0 if all(not each.problem for each in results) else 1


def run(python: Path, wanted: str, *, url: str, key: str, documents: Path, count: int) -> Passed:
    """The script under one interpreter."""
    script = Path(__file__).with_name("clients_script.py")
    command = [str(python), str(script), f"{url.rstrip('/')}/v1", key, str(documents), str(count)]
    # Nothing of this environment's packages, which are of another version.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return Passed(wanted, {}, f"not done after {_LIMIT_S} s")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return Passed(wanted, {}, lines[-1] if lines else f"exit code {done.returncode}")
    return Passed(wanted, json.loads(done.stdout.strip().splitlines()[-1]))


def told(result: Passed) -> str:
    """One line for people."""
    if result.problem:
        return f"FAILED  {result.wanted}: {result.problem[:2000]}"
    facts = result.facts
    return (
        f"passed  openai {facts['openai']}: {facts['files']} files in {facts['ingest_s']} s, "
        f"searches and changes {facts['search_s']} s, an answer with {facts['sources']} sources {facts['answer_s']} s"
    )


def _installed(directory: Path, wanted: str) -> Path:
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", wanted], check=True)
    return python


def _exported(folder: Path, *, count: int) -> Path:
    """Python's documentation; the largest files are halved until there are enough."""
    export = [sys.executable, str(_REPOSITORY / "indexes" / "python_docs.py"), str(folder)]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    while len(found := list(folder.glob("*.txt"))) < count:
        largest = max(found, key=lambda path: path.stat().st_size)
        lines = largest.read_text(encoding="utf-8").splitlines(keepends=True)
        for part, half in (("a", lines[: len(lines) // 2]), ("b", lines[len(lines) // 2 :])):
            largest.with_name(f"{largest.stem}-{part}.txt").write_text("".join(half), encoding="utf-8")
        largest.unlink()
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="a running server, without /v1")
    parser.add_argument("--key", default=os.environ.get("RAG_STACK_API_KEY", "none"))
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--documents", type=Path, help="a folder of text files (default: Python's documentation)")
    parser.add_argument("--versions", nargs="*", help=f"what pip is asked for (default: {' '.join(VERSIONS)})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
