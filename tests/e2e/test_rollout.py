"""Releases change and go back on a real Ray under load: nobody is refused, every answer is of an allowed release."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(1800)
def test_a_change_is_promoted_and_a_bad_one_goes_back_without_a_failed_request(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "loadtests.rollout", "--quick", "--replicas", "1", "--rate", "2", "--posts", "200"]
    done = subprocess.run(
        [*program, "--folder", str(tmp_path), "--results", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    goals = json.loads((tmp_path / "rollout.json").read_text())["goals"]
    assert {name: goal["value"] for name, goal in goals.items() if name != "rollout.canary_share_error_points"} == {
        "rollout.failed": 0,
        "rollout.rolled_back": 1,
        "rollout.wrong_release": 0,
        "rollout.moved_too_often": 0,
    }
