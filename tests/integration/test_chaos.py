"""A short seeded run of faults on a real cluster, and the head's loss on a store that outlives it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
_LIMIT_S = 1150


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    return done.stdout


def test_a_minute_and_a_half_of_faults_breaks_no_rule(tmp_path: Path) -> None:
    log = tmp_path / "chaos.jsonl"
    told = _run("loadtests.chaos", "--minutes", "1.4", "--seed", "7", "--log", str(log), "--results", str(tmp_path))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line for line in lines if line["what"] == "violation"] == [], told[-4000:]
    assert sum(1 for line in lines if line["what"] == "struck") >= 6, told[-4000:]


def test_clients_do_not_miss_a_head_that_is_away_and_comes_back_with_its_state() -> None:
    told = _run("loadtests.head_loss", "--away-s", "10")
    assert "gave_up={}" in told, told[-4000:]
    assert "whole_again_s=None" not in told, told[-4000:]
