"""The systems that `loadtests.peers` compares, each a process tree of its own: how it is started, asked, looked into.

`haystack` and `llamaindex` are there twice: with their blocking and with their asynchronous interface. `engine` is the
scripted engine alone, which all but ours ask over HTTP; ours has it in its process, as a replica has vLLM's front end.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx

from loadtests import streamed
from loadtests.arms import wait_until_ready
from loadtests.closed_loop import LoadError
from loadtests.peer_environment import peer_python
from loadtests.peers_data import KEY, REPOSITORY, STORE, Prepared
from loadtests.process_tree import ProcessTree, inherited_environment
from loadtests.swap_data import MODEL
from rag_stack.serving.environment import free_port, offline_environment

ArmName = Literal["ours", "haystack", "haystack-async", "llamaindex", "llamaindex-async", "engine"]
PEERS: Final[tuple[ArmName, ...]] = ("haystack", "haystack-async", "llamaindex", "llamaindex-async")
ARMS: Final[tuple[ArmName, ...]] = ("ours", *PEERS)
START_TIMEOUT_S: Final = 300.0
_TIMEOUT: Final = httpx.Timeout(300.0)
_HEADERS: Final = {"authorization": f"Bearer {KEY}"}


@dataclass(frozen=True, slots=True)
class Arm:
    """A system that runs."""

    name: ArmName
    url: str
    tree: ProcessTree
    engine_url: str
    max_tokens: int

    @property
    def asks(self) -> tuple[str, str]:
        """The path of its chat endpoint, and what the model is called there."""
        if self.name.startswith("haystack"):
            return "/v1/chat/completions", "answers"
        return "/v1/chat/completions", MODEL

    async def ask(self, client: httpx.AsyncClient, question: str) -> streamed.Streamed:
        """One streamed answer."""
        path, model = self.asks
        messages = [{"role": "user", "content": question}]
        body = {"model": model, "messages": messages, "max_tokens": self.max_tokens, "stream": True}
        return await streamed.ask(client, body, path=path, headers=_HEADERS)

    def embedding(self) -> tuple[float, int]:
        """CPU seconds of the embedder in the serving process so far, and its calls. Blocking."""
        if self.name == "engine":
            return 0.0, 0
        if self.name.startswith("haystack"):
            told = self._post("/answers/run", {"questions": [], "top_k": 1})["result"]
        else:
            told = httpx.get(f"{self.url}/embedding", timeout=_TIMEOUT).json()
        return float(told["cpu_s"]), int(told["calls"])

    def engine_ms(self) -> float:
        """CPU milliseconds of the engine for an answer, where it is in the serving process. Blocking."""
        if self.name != "ours":
            return 0.0
        return float(httpx.get(f"{self.url}/engine", timeout=_TIMEOUT).json()["cpu_ms"])

    def retrieved(self, questions: Sequence[str], *, top_k: int) -> list[list[str]]:
        """The documents that the system finds for each question, best first. Blocking."""
        match self.name:
            case "ours":
                return [self._searched(question, top_k) for question in questions]
            case "haystack" | "haystack-async":
                asked = {"questions": list(questions), "top_k": top_k}
                return list(self._post("/answers/run", asked)["result"]["documents"])
            case "llamaindex" | "llamaindex-async":
                return list(self._post("/retrieve", {"questions": list(questions), "top_k": top_k})["documents"])
        return []

    def newest_prompt(self) -> str:
        """What the engine was asked last."""
        url = self.url if self.name in ("ours", "engine") else self.engine_url
        prompts = httpx.get(f"{url}/prompts", timeout=_TIMEOUT).json()
        return prompts[-1] if prompts else ""

    def _searched(self, question: str, top_k: int) -> list[str]:
        asked = {"query": question, "max_num_results": top_k}
        return [hit["file_id"] for hit in self._post(f"/v1/vector_stores/{STORE}/search", asked)["data"]]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(self.url + path, json=body, headers=_HEADERS, timeout=_TIMEOUT)
        if answer.status_code != 200:
            raise LoadError(f"{self.name} answered {answer.status_code} on {path}: {answer.text[:500]}")
        return dict(answer.json())


@dataclass(frozen=True, slots=True)
class ArmStarter:
    """Starts systems; their output goes to the folder `logs` of the prepared data."""

    prepared: Prepared
    top_k: int
    max_tokens: int
    threads: int

    @contextlib.contextmanager
    def __call__(self, name: ArmName, *, engine_url: str = "") -> Iterator[Arm]:
        """The system, ready; all its processes are gone afterwards. Raises LoadError when it does not start."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = self.prepared.release.parent / "logs" / f"{name}.log"
        tree = ProcessTree(self._command(name, port), environment=self._environment(name, engine_url), log=log)
        try:
            wait_until_ready(url + self._ready_path(name), tree, timeout_s=START_TIMEOUT_S)
            yield Arm(name, url, tree, engine_url, self.max_tokens)
        finally:
            tree.stop(grace_s=5.0)

    def _command(self, name: ArmName, port: int) -> list[str]:
        end = ["--port", str(port)]
        match name:
            case "engine":
                told = ["--max-tokens", str(self.max_tokens)]
                return [sys.executable, "-m", "loadtests.scripted_engine", *told, *end]
            case "ours":
                told = ["--release", str(self.prepared.release), "--max-tokens", str(self.max_tokens)]
                return [sys.executable, "-m", "loadtests.peers_ours", *told, *end]
            case "haystack" | "haystack-async":
                program = peer_python("haystack").with_name("hayhooks")
                folder = str(REPOSITORY / "loadtests" / "peers_haystack")
                return [
                    *(str(program), "run", "--host", "127.0.0.1", *end, "--pipelines-dir", folder),
                    *("--without-tracing", "--without-monitoring"),
                ]
            case _:
                return [str(peer_python("llamaindex")), "-m", "loadtests.peers_llamaindex", *end]

    def _environment(self, name: ArmName, engine_url: str) -> dict[str, str]:
        """Threads as we have them, nothing that calls home, no line a request."""
        return {
            **inherited_environment(),
            **offline_environment(),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HAYSTACK_TELEMETRY_ENABLED": "False",
            "HAYHOOKS_LOG_LEVEL": "WARNING",
            "PEER_ENGINE": f"{engine_url}/v1",
            "PEER_DOCUMENTS": str(self.prepared.documents),
            "PEER_VECTORS": str(self.prepared.vectors),
            "PEER_EMBEDDER": str(self.prepared.embedder),
            "PEER_TOP_K": str(self.top_k),
            "PEER_MAX_TOKENS": str(self.max_tokens),
            "PEER_ASYNC": "1" if name.endswith("-async") else "0",
        }

    def _ready_path(self, name: ArmName) -> str:
        if name.startswith("haystack"):
            return "/status"
        return "/ready" if name == "ours" else "/health"
