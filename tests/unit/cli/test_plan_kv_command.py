"""`rag-stack plan kv` as a shell sees it."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from typer.testing import CliRunner, Result

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.object_store import open_store
from rag_stack.cli.main import app
from tests.servers import serve

METRICS = """
vllm:prefix_cache_queries_total 1000
vllm:prefix_cache_hits_total 400
vllm:request_prefill_time_seconds_sum 0.3
vllm:request_prefill_time_seconds_count 9
vllm:cache_config_info{block_size="16",num_gpu_blocks="20"} 1
"""
CONFIG = '{"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}'
RELEASE = """
name: town
model: {name: words}
embedder: {name: words}
engine: {kv_cache_memory_bytes: 262144, block_size: 16}
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Five documents of ten blocks, asked for in turn."""
    rows = [
        {"timestamp": n * 10, "output_length": 4, "prefix": [[f"document {n % 5}", 160], [f"question {n}", 8]]}
        for n in range(50)
    ]
    path = tmp_path / "kv-host-1.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAG_STACK_ROOT", f"file://{tmp_path}/store")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(CONFIG)
    catalog = Catalog(open_store(f"file://{tmp_path}/store"))
    catalog.promote(catalog.publish(tmp_path / "model", kind="models", name="words", metadata={}).ref)
    path = tmp_path / "release.yaml"
    path.write_text(RELEASE)
    return path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["plan", "kv", *map(str, arguments)])


def test_a_trace_against_a_capacity(trace: Path) -> None:
    told = run("--trace", trace, "--capacity-tokens", 960, "--block-tokens", 16)
    assert told.exit_code == 0, told.output
    assert "different prefixes: 800 tokens, asked for again 800; the cache holds 944" in told.output
    assert "predicted hit rate 85.7%" in told.output
    assert "assumed" in told.output
    assert "keep: the cache is large enough" in told.output


def test_as_json_of_a_directory(trace: Path) -> None:
    told = run("--trace", trace.parent, "--capacity-tokens", 640, "--json", "--rate", "prefill=1000")
    found = json.loads(told.output)
    assert found["requests"] == 50
    assert [each["name"] for each in found["strategies"]] == ["none", "cpu", "disk"]
    assert found["rates"]["prefill"] == {"value": 1000.0, "basis": "given", "where": ""}
    assert found["verdict"]["choice"] == "cpu"
    assert set(found["curve"]) == {"0.5", "1", "2", "4"}
    assert (
        json.loads(run("--trace", trace, "--capacity-tokens", 640, "--json", "--cpu", "--block-tokens", 16).output)[
            "verdict"
        ]["choice"]
        == "enlarge"
    )


def test_the_release_tells_what_fits(trace: Path, release: Path) -> None:
    told = json.loads(run(release, "--trace", trace, "--json").output)
    assert told["rates"]["token_bytes"]["value"] == 2 * 2 * 64 * 2
    assert told["sizes"]["capacity_blocks"] == 262144 // 512 // 16 - 1


def test_without_a_capacity_it_says_how_to_give_one(trace: Path) -> None:
    told = run("--trace", trace)
    assert told.exit_code == 1
    assert "--capacity-tokens" in told.output


def test_metrics_alone_give_a_coarser_answer_and_with_a_trace_the_capacity(trace: Path) -> None:
    async def metrics(_: Request) -> PlainTextResponse:
        return PlainTextResponse(METRICS)

    with serve(Starlette(routes=[Route("/metrics", metrics)])) as url:
        alone = run("--from-metrics", f"{url}/metrics")
        both = json.loads(run("--from-metrics", f"{url}/metrics", "--trace", trace, "--json").output)
        wrong = run("--from-metrics", f"{url}/other")
    assert alone.exit_code == 0, alone.output
    assert "no prediction" in alone.output
    assert "hit rate 40.0%" in alone.output
    assert "trace: " in alone.output
    assert both["sizes"]["capacity_blocks"] == 19
    assert both["rates"]["prefill"]["value"] == pytest.approx(2000)
    assert wrong.exit_code == 1
    assert "404" in wrong.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --trace FILE, or --from-metrics URL"),
        (("--trace", "none.jsonl"), "cannot read the trace"),
        (("--trace", "."), "there is no trace"),
        (("--from-metrics", "http://127.0.0.1:1/metrics"), "no answer from"),
        (("--from-metrics", "nonsense"), "no answer from"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run(*arguments)
    assert told.exit_code == 1
    assert said in told.output
    assert "Traceback" not in told.output
