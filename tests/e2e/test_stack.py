"""What a user gets, through the official client: cited answers from real documents, real weights and a real cluster."""

import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from rag_stack.api.rag_layer import DENIED
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.client import Client
from rag_stack.config import load_release
from rag_stack.index.spec import load_spec
from rag_stack.jobs.index_build import build_index
from rag_stack.metrics import MemoryRecorder
from tests.e2e.conftest import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
MODEL = "smollm2-135m-instruct"
WITH = "What does the with statement do in Python?"
RELATED = (
    WITH,
    "What is a context manager?",
    "What does the try statement do?",
    "What is a lambda expression?",
    "What is the while statement used for?",
    "What does the for statement do?",
)
MAX_NUM_SEQS = 8  # of the release in conftest.py
SWAP_S = 30.0
FEW_TOKENS = 8  # Of an answer whose words are not looked at.
UNRELATED = "How long should pasta boil?"


@pytest.fixture(scope="module")
def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="-", timeout=120)


def ask(client: openai.OpenAI, question: str, *, max_tokens: int = 120, **options: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=max_tokens, **options)  # type: ignore


def document_of(stack: Stack, rag: dict[str, Any], citation: dict[str, Any]) -> str:
    source = next(each for each in rag["sources"] if each["number"] == citation["source"])
    return (stack.documents / source["filename"]).read_text()


def test_answers_carry_verbatim_citations(stack: Stack, client: openai.OpenAI) -> None:
    """Which words a small model chooses depends on the processor's rounding: of six questions one must be quoted."""
    with ThreadPoolExecutor(len(RELATED)) as asking:
        answers = list(asking.map(lambda question: ask(client, question), RELATED))
    cited = [answer for answer in answers if answer.rag["citations"]]
    assert cited, [answer.choices[0].message.content for answer in answers]
    for answer in cited:
        text, rag = answer.choices[0].message.content, answer.rag
        for citation in rag["citations"]:
            document = document_of(stack, rag, citation)
            assert document[citation["quote_start"] : citation["quote_end"]] == citation["quote"]
            assert text[citation["start_index"] : citation["end_index"]].strip()
        kinds = {annotation.type for annotation in answer.choices[0].message.annotations}
        assert kinds == {"url_citation", "file_citation"}


def test_every_answer_says_where_it_comes_from(client: openai.OpenAI) -> None:
    answer = ask(client, WITH, max_tokens=FEW_TOKENS)
    assert answer.rag["release"] == "e2e"
    assert answer.rag["index_version"]
    assert set(answer.rag["timings_ms"]) == {"queue", "embed", "search", "prompt"}
    assert answer.usage.prompt_tokens_details is not None


def test_a_stream_gives_the_same_answer_and_citations(client: openai.OpenAI) -> None:
    whole = ask(client, WITH)
    chunks = list(ask(client, WITH, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.annotations[0]["type"] == "source"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    last = next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason)
    assert last.rag["citations"] == whole.rag["citations"]


def test_an_unrelated_question_carries_no_citation(client: openai.OpenAI) -> None:
    answer = ask(client, UNRELATED)
    assert answer.rag["citations"] == []
    assert answer.choices[0].message.annotations == []


def test_the_five_ways_reach_a_real_engine(client: openai.OpenAI) -> None:
    tool = {"type": "file_search", "vector_store_ids": ["python"], "max_num_results": 2}
    assert len(ask(client, WITH, tools=[tool], max_tokens=FEW_TOKENS).rag["sources"]) == 2
    assert (
        ask(client, WITH, extra_body={"vector_store_ids": ["python"]}, max_tokens=FEW_TOKENS).rag["store"] == "python"
    )
    documents = [{"text": "The shed is green."}]
    given = ask(client, "What colour is the shed?", extra_body={"documents": documents}, max_tokens=FEW_TOKENS)
    assert [source["score"] for source in given.rag["sources"]] == [1.0]
    alias = client.chat.completions.create(
        model=f"{MODEL}@python", messages=[{"role": "user", "content": WITH}], max_tokens=FEW_TOKENS
    )
    assert alias.rag["store"] == "python"  # type: ignore[attr-defined]
    completion = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=8)
    assert "Paris" in completion.choices[0].text


def test_control_routes_answer(stack: Stack, client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {MODEL, f"{MODEL}@python"}
    assert [store.id for store in client.vector_stores.list()] == ["python"]
    hits = client.vector_stores.search("python", query="context manager", max_num_results=3).data
    assert len(hits) == 3
    assert hits[0].score >= hits[1].score >= hits[2].score
    assert httpx.get(f"{stack.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{stack.url}/ready").json()["status"] == "ready"


@pytest.mark.parametrize("path", [*sorted(path for path in DENIED if "{" not in path), "/v1/embeddings", "/-/routes-x"])
def test_what_is_not_on_the_list_is_an_openai_shaped_404(stack: Stack, path: str) -> None:
    for method in ("GET", "POST"):
        response = httpx.request(method, stack.url + path, json={} if method == "POST" else None)
        assert response.status_code == 404, (method, path, response.text)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert "," not in response.headers["x-request-id"]


def test_errors_are_openai_shaped_through_the_cluster(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hi"}])
    assert unknown.value.code == "not_found"
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.search("nowhere", query="Hi")
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, "word " * 6000)
    assert long.value.code == "context_length_exceeded"


def test_our_client_and_command_line_agree(stack: Stack) -> None:
    with Client(base_url=f"{stack.url}/v1") as ours:
        answer = ours.ask(WITH, max_tokens=40)
        stream = ours.stream(WITH, max_tokens=40)
        assert "".join(stream) == answer.text == stream.answer.text
        assert ours.search("with statement", store="python").hits
    rag_stack = str(Path(sys.executable).with_name("rag-stack"))
    command = [rag_stack, "ask", WITH, "--max-tokens", "40", "--base-url", f"{stack.url}/v1", "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert printed["text"] == answer.text


def test_a_recorded_answer_is_reproduced(stack: Stack, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": WITH}]
    asked = {"model": MODEL, "messages": messages, "max_tokens": 40, "temperature": 0, "include": ["rag.replay"]}
    reply = httpx.post(f"{stack.url}/v1/chat/completions", json=asked, timeout=120)
    file = tmp_path / "answer.json"
    file.write_text(reply.text)
    version = reply.json()["rag"]["release_version"]
    assert reply.headers["x-rag-release"] == f"e2e@{version}"
    rag_stack = str(Path(sys.executable).with_name("rag-stack"))
    command = [rag_stack, "replay", str(file), "--server", stack.url]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, version in done.stdout) == (0, True), done.stdout + done.stderr


def test_closed_clients_abort_their_generations(client: openai.OpenAI) -> None:
    """Eight streams fill the engine for two minutes; once they are closed, a ninth request does not wait for them."""
    endless = {"ignore_eos": True, "min_tokens": 2000}
    for _ in range(MAX_NUM_SEQS):
        stream = client.completions.create(
            model=MODEL, prompt="Tell me", max_tokens=2000, stream=True, extra_body=endless
        )
        next(iter(stream))
        stream.close()
    started = time.monotonic()
    client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=1)
    assert time.monotonic() - started < 30


def test_start_and_retrieval_are_metrics(stack: Stack) -> None:
    assert _appears(stack, "ray_rag_stack_cold_start_seconds", 'stage="worker: load weights"')
    assert _appears(stack, "ray_rag_stack_retrieval_milliseconds_count", 'stage="embed"')
    assert _appears(stack, "ray_rag_stack_artifact_load_bytes_total", 'kind="indexes"')
    assert _appears(stack, "ray_rag_stack_artifact_load_gb_per_second_count", 'source="read_ahead"')


def test_the_model_tells_how_its_start_went(stack: Stack, client: openai.OpenAI) -> None:
    """The stages of four processes add up to the whole, and next to nothing of it is unnamed."""
    load: dict[str, Any] = client.models.retrieve(MODEL).load  # type: ignore[attr-defined]
    for whole in (load, load["command"]):
        waited = sum(stage["critical_seconds"] for stage in whole["stages"])
        assert waited + whole["unnamed_seconds"] == pytest.approx(whole["seconds"], abs=0.001)
        assert whole["seconds"] == pytest.approx(whole["ready_at"] - whole["started_at"], abs=0.001)
        assert whole["unnamed_seconds"] / whole["seconds"] < 0.05
    stages = {(stage["process"], stage["name"]): stage for stage in load["stages"]}
    weights = stages["worker", "load weights"]
    assert weights["source"] == "read_ahead"
    assert weights["size_bytes"] > 200_000_000
    assert {process for process, _ in stages} == {"replica", "fork server", "engine core", "worker"}
    # The engine's processes were forked: no import of theirs, but that of the fork server, beside the replica's own.
    assert ("worker", "import vLLM") not in stages
    assert stages["worker", "fork"]["seconds"] < stages["fork server", "import vLLM"]["seconds"]
    assert stages["fork server", "import vLLM"]["beside"]
    assert load["stages"][0]["name"] == "start Ray worker"
    assert load["stages"][-1]["name"] == "first token"
    assert stages["replica", "open python"]["beside"]


def test_the_stages_metrics_add_up_to_the_start_that_the_model_tells(stack: Stack, client: openai.OpenAI) -> None:
    load: dict[str, Any] = client.models.retrieve(MODEL).load  # type: ignore[attr-defined]
    assert _appears(stack, "ray_rag_stack_cold_start_seconds", 'stage="replica: first token"')
    lines = httpx.get(stack.metrics_url, timeout=30).text.splitlines()
    values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("ray_rag_stack_cold_start_seconds{")]
    assert sum(values) == pytest.approx(load["seconds"], abs=0.01)


def test_the_start_table_adds_up(stack: Stack) -> None:
    printed = "".join(stack.output)
    assert "load weights" in printed
    assert re.search(r"unnamed \(\d\.\d%\)", printed)


def test_every_route_of_the_real_engine_is_on_one_list(stack: Stack) -> None:
    program = (
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser;"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser;"
        "from vllm.entrypoints.openai.api_server import build_app;"
        "args = make_arg_parser(FlexibleArgumentParser()).parse_args([]);"
        "print('ROUTES', ' '.join(sorted(build_app(args, supported_tasks=('generate',)).openapi()['paths'])))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    paths = done.stdout.rpartition("ROUTES ")[2].split()
    ours = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/v1/responses", "/tokenize"}
    ours |= {"/detokenize", "/version"}
    assert "/v1/chat/completions" in paths
    assert set(paths) - ours - DENIED == set()


def test_a_new_index_version_is_served_within_seconds_and_a_rollback_too(stack: Stack, client: openai.OpenAI) -> None:
    """Built and promoted while the stack serves; nothing fails in between, in search or in chat."""
    before = client.vector_stores.search("python", query=WITH).index_version  # type: ignore[attr-defined]
    seen: list[str] = []
    stop, failures = threading.Event(), []

    def keep_searching() -> None:
        while not stop.is_set():
            try:
                page = client.vector_stores.search("python", query=WITH)
                seen.append(page.index_version)  # type: ignore[attr-defined]
            except openai.OpenAIError as exc:
                failures.append(exc)

    asking = threading.Thread(target=keep_searching)
    asking.start()
    try:
        document = stack.documents / "with.txt"
        document.write_text(document.read_text() + "\nA with statement may also be written in the hot swap's test.\n")
        release = load_release(stack.release)
        tiers = open_tiers(release.artifacts, MemoryRecorder())
        after = build_index(load_spec(stack.release.parent / "python.yaml"), tiers=tiers, workers=1).manifest.version
        assert after != before
        assert _serves(client, after) < SWAP_S
        httpx.post(f"{stack.url}/admin/indexes/python/rollback", json={}, timeout=60).raise_for_status()
        assert _serves(client, before) < SWAP_S
        parts = httpx.get(f"{stack.url}/ready").json()["parts"]
        assert parts["store python"] == before
    finally:
        stop.set()
        asking.join()
    assert failures == []
    assert set(seen) == {before, after}
    assert _appears(stack, "ray_rag_stack_index_swaps_total", 'outcome="flipped"')
    assert _appears(stack, "ray_rag_stack_index_swap_seconds_count", 'stage="prefault"')


def _serves(client: openai.OpenAI, version: str) -> float:
    """Seconds until search names a version, or until the limit; a chat asked after that must name it too.

    What the swap takes is timed, and not how fast an engine on shared cores writes.
    """
    began_s = time.monotonic()
    searched = ""
    while searched != version and time.monotonic() - began_s < SWAP_S:
        searched = client.vector_stores.search("python", query=WITH).index_version  # type: ignore[attr-defined]
    waited_s = time.monotonic() - began_s
    assert ask(client, WITH, max_tokens=FEW_TOKENS).rag["index_version"] == version
    return waited_s


def _appears(stack: Stack, name: str, label: str, *, limit_s: float = 60) -> bool:
    """Whether a sample of a metric with a label is seen on the Prometheus port before the limit."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        text = httpx.get(stack.metrics_url, timeout=30).text
        if any(line.startswith(name) and label in line and not line.endswith(" 0.0") for line in text.splitlines()):
            return True
    return False
