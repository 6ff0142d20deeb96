"""Replicas end on a real Ray, with a scripted engine: running answers finish, or are told; nothing stays pinned."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.drained_on_ray import LONG

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 420


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw; one Ray for all of it."""
    command = [sys.executable, "-m", "tests.integration.drained_on_ray", str(tmp_path_factory.mktemp("drained"))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_S, cwd=REPOSITORY, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT_S + 30)]


def whole(stream: dict[str, Any]) -> bool:
    return stream["done"] and stream["words"] >= LONG and not stream["errors"] and not stream["failure"]


def test_running_streams_survive_a_scale_down(seen: dict[str, Any]) -> None:
    assert all(whole(stream) for stream in seen["scale_down"]["streams"])


@pytest.mark.parametrize("how", ["stuck", "dead"])
def test_a_lost_engine_is_told_to_all_who_wait_for_it_and_replaced(seen: dict[str, Any], how: str) -> None:
    lost = seen[how]
    assert len(lost["stream"]["errors"]) == 1, "the stream ends with an error frame"
    assert not lost["stream"]["failure"], "and is not broken off"
    assert lost["whole"]["status"] >= 500
    assert set(lost["whole"]["body"]["error"]) == {"message", "type", "param", "code"}
    assert lost["replaced"]


def test_an_answer_under_way_is_finished_when_the_server_is_terminated(seen: dict[str, Any]) -> None:
    assert whole(seen["terminated"]["stream"])


def test_nothing_stays_pinned(seen: dict[str, Any]) -> None:
    assert seen["held_before"]["held"] > 0
    assert seen["held_after"]["held"] == 0
