"""`rag-stack backup` and what `rag-stack drill` refuses, as a shell sees them."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.point import FOLDER, Points
from rag_stack.artifacts.tiers import Tiers
from rag_stack.cli.main import app
from rag_stack.config import RolloutConfig
from rag_stack.releases.plan import RolloutStore
from tests.promoted import CANARY, fill, publish_town, release_of
from tests.s3 import damage


@pytest.fixture(autouse=True)
def tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiers:
    monkeypatch.setenv("RAG_STACK_ROOT", f"file://{tmp_path}/store")
    monkeypatch.delenv("RAG_STACK_CACHE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    tiers = fill(f"file://{tmp_path}/store", tmp_path / "work")
    # The embedder of the tests cannot be loaded from its files, so nothing can be asked here.
    plans = RolloutStore(tiers.catalog.store, "demo")
    plan = plans.read()
    assert plan is not None
    plans.move(plan, replace(plan, rollout=RolloutConfig()))
    return tiers


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def shown(*arguments: Any) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_points_life(tmp_path: Path) -> None:
    assert "no points" in run("backup", "ls").stdout
    release = tmp_path / "release.yaml"
    fields = release_of("file://any", tmp_path).model_dump(mode="json", include={"name", "model", "embedder", "stores"})
    release.write_text(yaml.safe_dump({**fields, "rollout": {"canaries": [CANARY]}}))
    spec = tmp_path / "docs.yaml"
    gates = {"canaries": [{"question": "Who sells rye bread?", "expect": ["bakery.txt"]}]}
    spec.write_text(
        yaml.safe_dump({"name": "docs", "source": {"folder": "."}, "embedder": {"name": "words"}, "gates": gates})
    )
    taken = shown(
        "backup", "point", "--release", release, "--spec", spec, "--label", "night", "--cache", tmp_path / "c"
    )
    assert (taken["promoted"], taken["artifacts"], taken["canaries"], taken["cached"]) == (4, 4, 2, 0)
    (row,) = shown("backup", "ls")
    assert (row["name"], row["label"]) == (taken["name"], "night")
    assert taken["name"] in run("backup", "ls").stdout
    assert shown("backup", "show", row["name"])["schema_version"] == 1
    text = run("backup", "show", row["name"]).stdout
    assert "promoted  indexes/docs/v2  number 2" in text
    assert "Who sells rye bread?" in text
    assert shown("backup", "rm", row["name"]) == {"removed": [row["name"]]}
    assert shown("backup", "ls") == []


def test_without_questions_it_says_how_to_name_some() -> None:
    assert "--release" in run("backup", "point").stdout


def test_old_points_go_but_the_newest_stays(tmp_path: Path) -> None:
    taken = shown("backup", "point")["name"]
    points = Points(open_store(f"file://{tmp_path}/store"))
    now, point = datetime.now(UTC), points.get(taken)
    for name, days in (("20200101T000000Z-a", 9.0), ("20200101T000000Z-b", 7.0), ("20200101T000000Z-c", 0.6)):
        points.create(replace(point, name=name, taken_at=(now - timedelta(days=days)).isoformat()))
    assert shown("backup", "rm", "--older-than", "8d") == {"removed": ["20200101T000000Z-a"]}
    assert shown("backup", "rm", "--older-than", "12h") == {
        "removed": ["20200101T000000Z-b", "20200101T000000Z-c"],
    }
    assert shown("backup", "rm", "--older-than", "0s") == {"removed": []}
    assert [row["name"] for row in shown("backup", "ls")] == [taken]


def test_old_points_of_a_label_go_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    taken = shown("backup", "point")["name"]
    store = open_store(f"file://{tmp_path}/store")
    points, old = Points(store), "2020-01-01T00:00:00+00:00"
    for letter, label in (("a", "velero"), ("b", "upgrade")):
        points.create(replace(points.get(taken), name=f"20200101T000000Z-{letter}", taken_at=old, label=label))
    store.put_bytes(f"{FOLDER}/20200101T000000Z-c.json", b"{}")
    result = run("backup", "rm", "--older-than", "8d", "--label", "velero")
    assert result.stdout.split() == ["removed", "20200101T000000Z-a"]
    assert "left: " in result.stderr
    assert "20200101T000000Z-c" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rm", "a", "--label", "velero"), "--label goes with --older-than"),
        (("show", "none"), "none.json"),
        (("rm", "none"), "no backup point 'none'"),
        (("rm", "../x"), "no backup point's name"),
        (("rm",), "either points or --older-than"),
        (("rm", "a", "--older-than", "1d"), "either points or --older-than"),
    ],
)
def test_what_is_not_there_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    result = run("backup", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert told in result.stderr


def test_a_damaged_point_is_told_and_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "store" / FOLDER).mkdir()
    (tmp_path / "store" / FOLDER / "bad.json").write_text("{")
    result = run("backup", "ls")
    assert (result.exit_code, "bad.json is not a backup point" in result.stderr) == (1, True)
    assert run("index", "gc", "docs").exit_code == 1
    assert run("backup", "rm", "bad").exit_code == 0
    assert run("index", "gc", "docs").exit_code == 0


def test_gc_says_which_point_keeps_what(tiers: Tiers, tmp_path: Path) -> None:
    name = shown("backup", "point")["name"]
    publish_town(tiers.catalog, tmp_path / "more", "v3", embedder=tiers.resolve("models", "words"))
    kept = shown("index", "gc", "docs", "--keep", "0", "--older-than", "0s")["kept"]
    assert any(f"in the backup point {name}" in reason for each in kept for reason in each["reasons"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("restore",), "take one with `rag-stack backup point`"),
        (("restore", "--point", "none"), "no backup point"),
        (("rollback", "models/words"), "no index or release"),
        (("rollback", "releases/demo"), "name a --server"),
        (("rollback", "docs", "--server", "http://127.0.0.1:9"), "--yes"),
        (("rollback", "none"), "needs two versions"),
        (("node-loss",), "either the name"),
        (("node-loss", "none"), "no release 'none' is promoted"),
    ],
)
def test_what_a_drill_refuses_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    result = run("drill", *arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    assert told in result.stderr


def test_a_restore_ends_with_a_figure_and_its_exit_code_tells(tmp_path: Path) -> None:
    shown("backup", "point")
    result = run("drill", "restore", "--verify", "--to", tmp_path / "fresh")
    assert result.exit_code == 0, result.output
    assert "opened 4/4, canaries 0/0, RPO" in result.stdout.splitlines()[-1]
    assert "not empty" in run("drill", "restore", "--to", tmp_path / "fresh").stderr
    file = tmp_path / "store/indexes/docs/v2/index.faiss"
    file.chmod(0o644)
    damage(file, offset=file.stat().st_size - 1)
    result = run("drill", "restore", "--verify", "--json")
    assert result.exit_code == 3
    assert "index.faiss" in result.stderr
    assert not json.loads(result.stdout)["ok"]


def test_a_rollback_on_a_copy_ends_with_a_figure() -> None:
    result = run("drill", "rollback", "indexes/docs", "--limit-s", "120")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("rollback of indexes/docs (on a copy, 2 processes): v2 -> v1 in")
