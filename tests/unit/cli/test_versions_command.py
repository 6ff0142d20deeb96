"""`rag-stack index` after the build, as a shell sees it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rag_stack.artifacts.catalog import Catalog, promoter
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.retention import Retention
from rag_stack.cli.main import app
from tests.published import publish_index

TEXTS = {"a": "rye bread", "b": "green tea"}


@pytest.fixture(autouse=True)
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    monkeypatch.setenv("RAG_STACK_ROOT", f"file://{tmp_path}/store")
    monkeypatch.setenv("COLUMNS", "200")
    return Catalog(open_store(f"file://{tmp_path}/store"))


@pytest.fixture
def three(catalog: Catalog, tmp_path: Path) -> Catalog:
    """v1 to v3, of which v1 and v2 were promoted."""
    for number in range(1, 4):
        publish_index(catalog, tmp_path, {**TEXTS, "c": f"text {number}"}, version=f"v{number}")
    for version in ("v1", "v2"):
        catalog.promote(ArtifactRef("indexes", "docs", version))
    return catalog


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["index", *map(str, arguments)])


def shown(*arguments: Any) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_nothing_is_there() -> None:
    assert "no versions of docs" in run("versions", "docs").stdout
    assert "nothing was ever promoted as docs" in run("history", "docs").stdout
    for command in (("rollback", "docs"), ("verify", "docs"), ("promote", "docs", "v1"), ("diff", "docs", "v1")):
        result = run(*command)
        assert result.exit_code == 1, command
        assert result.stderr.count("\n") == 1


def test_versions(three: Catalog) -> None:
    rows = shown("versions", "docs")
    assert [(row["version"], row["documents"], row["promoted"]) for row in rows] == [
        ("v1", 3, False),
        ("v2", 3, True),
        ("v3", 3, False),
    ]
    lines = run("versions", "docs").stdout.splitlines()
    assert "published (UTC)" in lines[0]
    assert [line.split()[:2][-1] == "yes" for line in lines[1:]] == [False, True, False]


def test_promote_history_and_rollback(three: Catalog) -> None:
    promoted = shown("promote", "docs", "v3", "--reason", "[newer] documents", "--expected", "v2")
    assert (promoted["version"], promoted["previous"], promoted["number"]) == ("v3", "v2", 3)
    assert run("promote", "docs", "v1", "--expected", "v2").exit_code == 1
    back = run("rollback", "docs", "--reason", "worse")
    assert back.stdout == "indexes/docs/v2 is promoted, before it v1  (rollback to 2, number 4)\n"
    assert run("rollback", "docs", "--to", "v3").exit_code == 1
    assert run("rollback", "docs", "--to", "v1").exit_code == 0
    rows = shown("history", "docs")
    assert [(row["number"], row["version"], row["restores"], row["reason"]) for row in rows] == [
        (5, "v1", 1, ""),
        (4, "v2", 2, "worse"),
        (3, "v3", None, "[newer] documents"),
        (2, "v2", None, ""),
        (1, "v1", None, ""),
    ]
    assert rows[0]["by"] == promoter()
    lines = run("history", "docs", "--last", 3).stdout.splitlines()
    assert len(lines) == 4
    assert "rollback to 2" in lines[2]
    assert "[newer] documents" in lines[3]


def test_diff_is_against_the_promoted_version(three: Catalog) -> None:
    difference = shown("diff", "docs", "v3")
    assert (difference["from"], difference["to"]) == ("v3", "v2")
    assert difference["documents"]["changed_names"] == ["c.txt"]
    lines = run("diff", "docs", "v1", "v3", "--names", 0).stdout.splitlines()
    assert lines[0] == "from indexes/docs/v1 to indexes/docs/v3"
    assert "0 added, 0 removed, 1 changed, 2 unchanged" in lines[1]
    assert lines[-1] == "~ and 1 more"


def test_verify(three: Catalog, tmp_path: Path) -> None:
    assert run("verify", "docs").stdout.startswith("ok  indexes/docs/v2  ")
    assert shown("verify", "docs", "v1")["ref"] == "indexes/docs/v1"
    with (tmp_path / "store/indexes/docs/v1/index.faiss").open("ab") as file:
        file.write(b"x")
    result = run("verify", "docs", "v1")
    assert result.exit_code == 1
    assert "index.faiss" in result.stderr


def test_gc(three: Catalog, tmp_path: Path) -> None:
    for folder, _, names in os.walk(tmp_path / "store"):
        for name in names:
            os.utime(Path(folder) / name, (0, 0))
    assert (
        run("gc").exit_code == run("gc", "docs", "--all").exit_code == run("gc", "--all", "--older-than", "x").exit_code
    )
    foreseen = run("gc", "docs", "--dry-run")
    assert "would go indexes/docs/v3" in foreseen.stdout
    assert "kept     indexes/docs/v1" in foreseen.stdout
    assert "what a rollback goes back to; one of the 5 promoted last" in foreseen.stdout
    assert three.versions("indexes", "docs") == ["v1", "v2", "v3"]
    collected = shown("gc", "--all", "--older-than", "2h")
    assert [each["version"] for each in collected["deleted"]] == ["v3"]
    assert collected["freed_bytes"] > 0
    assert three.versions("indexes", "docs") == ["v1", "v2"]
    result = CliRunner().invoke(app, ["model", "gc", "--all", "--json"])
    assert json.loads(result.stdout) == {"dry_run": False, "deleted": [], "kept": [], "freed_bytes": 0}


def test_unpin(three: Catalog) -> None:
    retention = Retention(three)
    retention.pin("town", [ArtifactRef("indexes", "docs", version) for version in ("v3", "v1")])
    retention.pin("city", [])
    assert run("unpin", "twon").stdout == "the release 'twon' pins nothing; those that do are city, town\n"
    assert run("unpin", "town").stdout.splitlines()[1:] == ["indexes/docs/v1", "indexes/docs/v3"]
    assert [hold.owner for hold in retention.pins()] == ["city"]
    assert shown("unpin", "town") == {"release": "town", "unpinned": []}
    three.store.put_bytes("pins/city.json", b"{}")
    damaged = run("unpin", "city")
    assert (damaged.exit_code, damaged.stdout) == (0, "its damaged pin is removed\n")
    assert retention.pins() == []
    assert run("unpin", "no/name").exit_code == 1


def test_the_index_of_a_store_made_over_http_is_not_moved_by_hand(three: Catalog) -> None:
    three.promote(ArtifactRef("indexes", "docs", "v3"))
    three.store.put_bytes("stores/docs/store.json", b"{}")
    for command in (("promote", "docs", "v1", "--force"), ("rollback", "docs")):
        result = run(*command)
        assert result.exit_code == 1
        assert "belongs to a store made over HTTP; change its files instead" in result.stderr
        assert result.stderr.count("\n") == 1
    pointer = three.promoted("indexes", "docs")
    assert pointer is not None
    assert pointer.version == "v3"


def test_there_is_no_way_back_to_what_cannot_be_read(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_text("of an older format")
    old = catalog.publish(tmp_path / "old", kind="indexes", name="docs", metadata={"format_version": 1})
    new = publish_index(catalog, tmp_path, TEXTS, version="v2")
    for each in (old, new):
        catalog.promote(each.ref)
    result = run("rollback", "docs")
    assert result.exit_code == 1
    assert "has index format 1, this release reads 2" in result.stderr
    pointer = catalog.promoted("indexes", "docs")
    assert pointer is not None
    assert pointer.version == "v2"
