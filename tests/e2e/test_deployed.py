"""The serve.yaml of each size on a real Ray, through `serve deploy`, scaled down in the way that users have."""

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.config import Release, load_release
from rag_stack.metrics import MemoryRecorder
from rag_stack.releases.rollout import Rollout
from rag_stack.serving.prefixes import ENGINE_APP, PREFIXES
from tests.ray_head import RayHead, ray_head
from tests.servers import closed_port

REPOSITORY = Path(__file__).parents[2]
KUBERAY = REPOSITORY / "deploy" / "kuberay"
START_S = 420.0
API_KEY, ADMIN_KEY = "sk-e2e-ask", "sk-e2e-admin"
# What SmolLM2 on a CPU has not: another model's own words, and a device's memory.
DEVICE_SETTINGS = ("gpu_memory_utilization", "reasoning_parser", "max_num_batched_tokens", "tensor_parallel_size")
# Which words a small model chooses depends on the processor's rounding: of these one must be quoted.
QUESTIONS = (
    "What does the with statement do in Python?",
    "When does the finally clause run?",
    "What does the for statement do in Python?",
)

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(600)]


def distinct() -> list[Any]:
    """Every serve.yaml that says something else than those before it; `dev` is what `make test` runs."""
    seen: list[Any] = []
    cases = []
    for file in [KUBERAY / "overlays" / "dev" / "serve.yaml", *sorted(KUBERAY.glob("**/serve.yaml"))]:
        document = yaml.safe_load(file.read_text())
        if document not in seen:
            seen.append(document)
            name = file.parent.name
            cases.append(pytest.param(file, id=name, marks=[] if name == "dev" else [pytest.mark.slow]))
    return cases


@pytest.fixture(scope="module")
def port() -> int:
    return closed_port()


@pytest.fixture(scope="module")
def head(release_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """One for all: a worker of the CPU image and the control group in one node."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "keys").mkdir()
    (folder / "keys" / "api").write_text(f"{API_KEY}\n")
    (folder / "keys" / "admin").write_text(f"{ADMIN_KEY}\n")
    artifacts = load_release(release_file).artifacts
    environ = {
        "RAG_STACK_ROOT": artifacts.root,
        "RAG_STACK_CACHE": str(artifacts.cache),
        "RAG_STACK_KEYS_DIRECTORY": str(folder / "keys"),
        # Of which the KV cache gets a part: this Ray's object store is that of the whole machine.
        "RAG_STACK_WORKER_CPUS": "2",
        "RAG_STACK_WORKER_MEMORY": "6Gi",
        "RAG_STACK_WORKER_GPUS": "0",
    }
    with ray_head(folder / "log", environ=environ, num_cpus=2, resources={"control": 100}) as head:
        yield head


@pytest.mark.parametrize("file", distinct())
def test_it_answers_with_citations(file: Path, release_file: Path, head: RayHead, port: int, tmp_path: Path) -> None:
    # A release of its own: what was rolled out of the same name would go before the file.
    name = f"serve-config-{file.parent.name}"
    config = scaled_down(yaml.safe_load(file.read_text()), load_release(release_file), name=name, port=port)
    release = config["applications"][0]["args"]["release"]
    forget(name, release_file)
    assert head.deploy(rendered(file.parent, config, tmp_path), limit_s=START_S) == {ENGINE_APP, *PREFIXES}
    url = f"http://127.0.0.1:{port}"
    wait_ready(url)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, timeout=120.0)
    _asks_for_a_key(url)
    assert release["model"]["name"] in [model.id for model in client.models.list()]
    hits = client.vector_stores.search(vector_store_id=release["default_store"], query=QUESTIONS[0])
    assert hits.data
    told = []
    for question in QUESTIONS:
        answer = ask(client, release["model"]["name"], question)
        assert answer.rag["sources"]
        told.append(answer.choices[0].message.content)
        if answer.rag["citations"]:
            break
    else:
        pytest.fail(f"no answer has a citation: {told}")
    _is_what_the_file_seeded(release, client, url, release_file)


def ask(client: openai.OpenAI, model: str, question: str) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=96)


def scaled_down(config: dict[str, Any], small: Release, *, name: str, port: int) -> dict[str, Any]:
    """The same applications with a model, an embedder and an index that this machine has."""
    config = copy.deepcopy(config)
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    release = config["applications"][0]["args"]["release"]
    release["name"] = name
    release["model"] = {"name": small.model.name}
    release["embedder"] = {"name": small.embedder.name}
    release["stores"] = [{**store, "index": small.stores[0].index} for store in release["stores"]]
    kept = {key: value for key, value in release["engine"].items() if key not in DEVICE_SETTINGS}
    release["engine"] = {**kept, **small.engine}
    # The aliases of the file are one object here, so all applications have it.
    assert all(app["args"]["release"] == release for app in config["applications"])
    return config


def rendered(overlay: Path, config: dict[str, Any], folder: Path) -> Path:
    """The file as the operator gets it: out of the RayService of an overlay that replaces the file of this one."""
    mine = folder / "overlay"
    mine.mkdir()
    (mine / "serve.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if not (overlay / "kustomization.yaml").exists():
        return mine / "serve.yaml"
    kustomization = {
        "resources": [os.path.relpath(overlay, mine)],
        "components": [os.path.relpath(KUBERAY / "components" / "serve", mine)],
        "configMapGenerator": [{"name": "rag-stack-serve", "behavior": "replace", "files": ["serve.yaml"]}],
    }
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", mine], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    service = next(each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "RayService")
    file = folder / "rendered.yaml"
    file.write_text(service["spec"]["serveConfigV2"])
    assert yaml.safe_load(file.read_text()) == config
    return file


def forget(name: str, release_file: Path) -> None:
    """What an earlier run has rolled out would go before the file."""
    root = load_release(release_file).artifacts.root.removeprefix("file://")
    shutil.rmtree(Path(root) / "releases" / name, ignore_errors=True)


def wait_ready(url: str) -> None:
    """HAProxy has the replicas a moment after the controller has them."""
    until_s = time.monotonic() + 60.0
    while True:
        try:
            answer = httpx.get(f"{url}/ready", timeout=10.0)
            told = answer.text
            if answer.status_code == 200:
                return
        except httpx.TransportError as exc:
            told = str(exc)
        assert time.monotonic() < until_s, told
        time.sleep(0.5)


def _asks_for_a_key(url: str) -> None:
    chat = {"model": "any", "messages": [{"role": "user", "content": QUESTIONS[0]}]}
    refused = {"Authorization": "Bearer sk-another"}
    assert httpx.post(f"{url}/v1/chat/completions", json=chat, headers=refused, timeout=30.0).status_code == 401
    assert httpx.get(f"{url}/v1/models", headers=refused, timeout=30.0).status_code == 401
    for key, status in ((API_KEY, 403), (ADMIN_KEY, 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{url}/admin/releases", headers=headers, timeout=30.0).status_code == status


def _is_what_the_file_seeded(release: dict[str, Any], client: openai.OpenAI, url: str, release_file: Path) -> None:
    """All applications agree with what the first start has put into the object store."""
    catalog = open_tiers(load_release(release_file).artifacts, MemoryRecorder()).catalog
    plan = Rollout(catalog, release["name"]).plan()
    assert plan is not None
    assert (plan.state, plan.revision) == ("steady", 1), json.dumps(plan.to_json())
    path = f"{url}/v1/vector_stores/{release['default_store']}/search"
    headers = {"Authorization": f"Bearer {client.api_key}"}
    told = httpx.post(path, json={"query": QUESTIONS[0]}, headers=headers, timeout=30.0).headers
    assert plan.goal in told["x-rag-release"], told
