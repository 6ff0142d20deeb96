"""The program's own parts over a small problem, with the host in the device's place; and without a GPU."""

import faiss
import numpy as np
import pytest

from loadtests.gpu_retrieval import NO_GPU, arms_of, lost_recall, main, measured, summarised
from loadtests.retrieval_data import problem
from tests.host_device import HostDevice
from tests.vectors import clustered


def test_every_arm_finds_on_the_device_what_it_finds_on_the_host() -> None:
    vectors = clustered(3_040, 16, spread=1.5)
    given = problem("x", vectors[:3_000], vectors[3_000:])
    free = iter([900, 500] * 4)
    arms = list(arms_of(given, HostDevice(), lambda: next(free)))
    assert [arm.name for arm in arms] == ["flat", "ivf", "cagra", "hot_lists"]
    sizes = {arm.name: arm.planned_bytes for arm in arms}
    assert sizes["hot_lists"] < sizes["ivf"] < sizes["cagra"]
    figures = summarised(measured(given, arms, 2), arms)
    assert lost_recall(figures, arms) == 0
    assert figures["cagra on the device"]["taken_bytes"] == 400
    assert figures["flat on the device"]["recall_32"] == 1
    assert np.isfinite([each["wall_us_1"] for each in figures.values()]).all()


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPUs")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == NO_GPU
    assert capsys.readouterr().out.count("\n") == 1
