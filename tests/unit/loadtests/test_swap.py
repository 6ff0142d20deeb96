"""What the figures of `loadtests.swap` are made of."""

import argparse

from loadtests.swap import Run, Window, build_report, draw, quantile, stale
from loadtests.swap_load import Asked


def run(*answers: Asked) -> Run:
    windows = (Window("steady", "", 0.0, 10.0, 1.0), Window("promote", "v1", 10.0, 20.0, 2.0, served_s=5.0))
    return Run(windows, answers)


def search(began_s: float, version: str, *, seconds: float = 0.01, problem: str = "", mixed: bool = False) -> Asked:
    return Asked("search", began_s, seconds, version, problem, mixed)


OPTIONS = argparse.Namespace(rows=10, rate=1.0)


def test_latency_with_a_swap_is_set_against_that_without() -> None:
    steady = [search(0.1 * n, "v0") for n in range(100)]
    swapped = [search(10 + 0.1 * n, "v0" if n < 50 else "v1", seconds=0.02) for n in range(100)]
    report = build_report(run(*steady, *swapped), OPTIONS)
    assert report.goals["swap.p50_ratio"].value == 2.0
    assert not report.goals["swap.p50_ratio"].met
    assert report.goals["swap.failed"].met
    assert report.goals["swap.mixed"].met
    assert report.arms["promote"]["served_s"] == 5.0
    assert report.arms["steady"]["cpu_ms_a_request"] == 10.0


def test_what_failed_or_was_mixed_is_counted_wherever_it_was_asked() -> None:
    bad = [search(25.0, "", problem="500"), search(26.0, "v1", mixed=True)]
    report = build_report(run(search(1.0, "v0"), search(11.0, "v0"), *bad), OPTIONS)
    assert (report.goals["swap.failed"].value, report.goals["swap.mixed"].value) == (1, 1)


def test_an_old_version_after_the_new_one_is_stale() -> None:
    assert stale(run(search(14.9, "v0"), search(15.5, "v1"), search(16.0, "v0"))) == 1


def test_the_picture_shows_the_answers() -> None:
    figure = draw(run(search(1.0, "v0"), search(11.0, "v1")))
    assert len(figure.axes[0].lines[0].get_xdata()) == 2  # type: ignore[arg-type]


def test_quantiles_are_by_nearest_rank() -> None:
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.99)] == [1.0, 3.0, 4.0]
    assert quantile([], 0.5) != quantile([], 0.5)
