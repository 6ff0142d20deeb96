"""From nothing to a first token: a bare vLLM of a release's settings, against which a wake of the whole stack counts.

`loadtests.wake` and `loadtests.waterfall` time it in the same run as what they compare with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.arms import ArmStarter
from loadtests.closed_loop import ask_all, request_body
from loadtests.plain_app import model_directory
from rag_stack.config import Release

_QUESTION = ({"role": "user", "content": "What is a context manager?"},)
_TOKENS = 8


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One start. `seconds` go from the start of the command to the first token that a client has."""

    seconds: float
    answer_sha256: str
    cpu_s: float


def first_question(model: str) -> dict[str, Any]:
    """What every arm is asked first: greedy, and without a search, so that all give the same answer."""
    return {**request_body(model, _QUESTION, max_tokens=_TOKENS, salt="start"), "rag_retrieval": "none"}


def start_bare(release_path: Path, release: Release, *, logs: Path) -> FirstToken:
    """Start `python -m vllm.entrypoints.openai.api_server`, ask, and stop it. Blocking. Raises LoadError."""
    starter = ArmStarter(release_path, release, model_directory(release), logs)
    with starter("bare") as server:
        return ask_first(server.url, release.model.name, since_s=server.start_s, cpu_s=server.cpu_seconds())


def ask_first(url: str, model: str, *, since_s: float = 0.0, cpu_s: float = 0.0) -> FirstToken:
    """Ask a server that has taken `since_s` to start so far, or that starts only now. Blocking. Raises LoadError."""
    body: Mapping[str, Any] = first_question(model)
    (answer,) = ask_all(url, [body], concurrency=1)
    return FirstToken(since_s + answer.ttft_ms / 1000, answer.output_sha256, cpu_s)
