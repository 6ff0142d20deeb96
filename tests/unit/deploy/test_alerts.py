"""The alerts, tried by promtool: each fires for what it is for, and stays quiet beside it."""

import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus import REPOSITORY, rule_groups, tool

CASES = Path(__file__).with_name("alerts.yaml")
ALERTS = [rule for group in rule_groups() for rule in group["rules"] if "alert" in rule]
RUNBOOKS = "deploy/kuberay/runbooks"


def test_the_rules_are_prometheus_rules(tmp_path: Path) -> None:
    rules = _write_rules(tmp_path, rule_groups())
    done = _run("check", "rules", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_and_stays_quiet_as_written(tmp_path: Path) -> None:
    groups = rule_groups()
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        rule["annotations"] = {"summary": rule["annotations"]["summary"]}
    _write_rules(tmp_path, groups)
    cases = tmp_path / CASES.name
    cases.write_text(CASES.read_text())
    done = _run("test", "rules", str(cases))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    outcomes: dict[str, set[bool]] = defaultdict(set)
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        for asked in case["alert_rule_test"]:
            outcomes[asked["alertname"]].add(bool(asked["exp_alerts"]))
    assert dict(outcomes) == {alert["alert"]: {True, False} for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    runbook = Path(alert["annotations"]["runbook_url"])
    assert runbook.parent.as_posix() == RUNBOOKS
    assert (REPOSITORY / runbook).is_file()


def _write_rules(folder: Path, groups: list[dict[str, Any]]) -> Path:
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": groups}))
    return rules


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, timeout=60, check=False)
