"""`rag-stack release` as a shell sees it."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import open_store
from rag_stack.cli.main import app
from rag_stack.releases.progress import Evidence, Seen
from rag_stack.releases.rollout import Rollout
from tests.pinnable import publish_docs, publish_model

READY = Seen(replicas=1, ready=1)


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("RAG_STACK_ROOT", f"file://{tmp_path}/store")
    monkeypatch.setenv("RAG_STACK_CACHE", f"{tmp_path}/cache")
    monkeypatch.setenv("COLUMNS", "200")
    catalog = Catalog(open_store(f"file://{tmp_path}/store"))
    publish_model(catalog, tmp_path, "generator", "weights")
    publish_docs(catalog, tmp_path, "v1", embedder=publish_model(catalog, tmp_path, "words", "embedder"))
    catalog.promote(ArtifactRef("indexes", "docs", "v1"))
    return catalog


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(tmp_path: Path, **changes: Any) -> Path:
    fields = {
        "name": "demo",
        "model": {"name": "generator"},
        "embedder": {"name": "words"},
        "stores": [{"name": "docs", "index": "docs"}],
        "rollout": {"steps": [1.0], "step_s": 0},
    }
    path = tmp_path / "release.yaml"
    path.write_text(yaml.safe_dump(fields | changes))
    return path


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["release", *map(str, arguments)])


def shown(*arguments: Any) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_clusters_file_is_applied_as_its_release(tmp_path: Path, file: Path) -> None:
    """What a cluster is deployed with is what its next version is made from."""
    document = yaml.safe_load(file.read_text())
    first = shown("apply", file)
    serve = tmp_path / "serve.yaml"
    application = {"name": "engine", "import_path": "rag_stack.serving.builders:engine"}
    serve.write_text(yaml.safe_dump({"applications": [application | {"args": {"release": document}}]}))
    assert shown("apply", serve)["outcome"] == "unchanged"
    document["prompt"] = {"system": "Be brief."}
    serve.write_text(yaml.safe_dump({"applications": [application | {"args": {"release": document}}]}))
    second = shown("apply", serve)
    assert (second["outcome"], second["plan"]["old"]) == ("rollout", first["version"])


def test_nothing_is_there() -> None:
    for command in ("status", "history", "rollback"):
        result = run(command, "demo")
        assert result.exit_code == 1, command
        assert "rag-stack release apply" in result.stderr
        assert result.stderr.count("\n") == 1


def test_from_a_file_to_the_next_and_back(tmp_path: Path, file: Path) -> None:
    first = shown("apply", file, "--reason", "first")
    assert first["outcome"] == "promoted"
    assert "serves already" in run("apply", file).stdout
    prompt = write(tmp_path, prompt={"system": "Be brief."})
    lines = run("apply", prompt, "--reason", "shorter").stdout.splitlines()
    assert lines[0].endswith(f"begins to take over from {first['version']}")
    assert lines[1].split()[0] == "prompt.system"
    assert lines[1].endswith("-> Be brief.")
    row = shown("status", "demo")
    assert (row["version"], row["plan"]["state"], len(row["versions"])) == (first["version"], "canary", 2)
    assert "step 0 of 1, 0%" in run("status", "demo").stdout
    back = shown("rollback", "demo", "--reason", "too short")
    assert (back["version"], back["plan"]["state"]) == (first["version"], "rolling_back")
    assert "too short" in run("status", "demo").stdout


def test_a_second_rollout_is_refused(tmp_path: Path, file: Path) -> None:
    run("apply", file)
    run("apply", write(tmp_path, prompt={"system": "Be brief."}))
    other = write(tmp_path, prompt={"system": "Be long."})
    result = run("apply", other)
    assert (result.exit_code, "--replace" in result.stderr) == (1, True)
    assert shown("apply", other, "--replace")["outcome"] == "rollout"


def test_at_once_and_history(tmp_path: Path, catalog: Catalog, file: Path) -> None:
    first = shown("apply", file)["version"]
    second = shown("apply", write(tmp_path, prompt={"system": "Be brief."}), "--now", "--reason", "now")["version"]
    Rollout(catalog, "demo").advance(Evidence(now_s=1))
    run("rollback", "demo", "--to", first, "--reason", "no")
    Rollout(catalog, "demo").advance(Evidence(now_s=2))
    rows = shown("history", "demo")
    assert [(p["version"], p["reason"]) for p in rows["promotions"]] == [(first, "no"), (second, "now"), (first, "")]
    assert [(e["outcome"], e["new"]) for e in rows["rollouts"]] == [("rolled_back", second), ("promoted", second)]
    shown_rows = run("history", "demo").stdout
    assert "rolled back" in shown_rows
    assert shown_rows.splitlines()[0].split()[0] == "at"


@pytest.mark.parametrize(("evidence", "code"), [({"new": READY}, 0), ({"new": Seen(failed_starts=3)}, 3)])
def test_waiting_tells_by_its_exit_code(
    tmp_path: Path, catalog: Catalog, file: Path, evidence: dict[str, Seen], code: int
) -> None:
    run("apply", file)
    other = write(tmp_path, prompt={"system": "Be brief."})
    ended = threading.Event()

    def coordinate() -> None:
        rollout, now_s = Rollout(catalog, "demo"), 0.0
        while not ended.is_set():
            plan = rollout.plan()
            assert plan is not None
            now_s = plan.step_began_s
            # Whoever leaves has no replica any more.
            seen = evidence if plan.state == "canary" else {}
            rollout.advance(Evidence(now_s=now_s, **seen))
            ended.wait(0.05)

    thread = threading.Thread(target=coordinate)
    thread.start()
    try:
        result = run("apply", other, "--wait", "--wait-s", "60")
    finally:
        ended.set()
        thread.join()
    assert result.exit_code == code, result.output
    assert "is promoted" in result.stdout if code == 0 else "was rolled back: a replica" in result.stderr


def test_what_does_not_fit_together_is_one_line(tmp_path: Path, catalog: Catalog, file: Path) -> None:
    publish_model(catalog, tmp_path, "words", "another embedder")
    result = run("apply", file)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "was built with the embedder" in result.stderr
    result = run("apply", write(tmp_path, model={"name": "missing"}))
    assert "the release pins what cannot be served" in result.stderr
    assert "rag-stack model import" in result.stderr


def test_old_versions_are_collected(tmp_path: Path, file: Path) -> None:
    run("apply", file)
    kept = json.loads(run("gc", "demo", "--keep", "0", "--older-than", "0s", "--json").stdout)["kept"]
    assert "promoted" in kept[0]["reasons"]
