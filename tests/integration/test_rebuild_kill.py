"""SIGKILL at any point of a build: nothing is half published, and the next build goes on where it was."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from rag_stack.artifacts.tiers import Tiers
from tests.killed import Child, Death, Place, deaths
from tests.rebuilt import NAME, SEGMENT, build, build_there, content, embedded, spec_of, write_pages

pytestmark = pytest.mark.long

ROUNDS = pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.slow)])
PAGES = 80
PASSAGES = 3 * PAGES
# What waits for its segment, and what the threads have done and nobody has taken.
LOST = SEGMENT + 3 * 32


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    write_pages(folder, range(PAGES))
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where builds write what they publish."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def place(tmp_path: Path, temporary: Path) -> Place:
    root = tmp_path / "root"
    environment = {"TMPDIR": str(temporary)}
    return Place(f"file://{root}", root, tmp_path / "cache", watched=root, environment=environment)


@ROUNDS
def test_a_killed_build_is_gone_on_with(
    place: Place, pages: Path, tmp_path: Path, temporary: Path, rounds: int
) -> None:
    build_there(place, pages, tmp_path / "whole.log")
    size = place.size_bytes()
    whole, expected = place.tiers().catalog.resolve("indexes", NAME), content(place.tiers())
    _clear(place)
    died = resumed = 0
    work = partial(build_there, place, pages)
    for number, death in enumerate(
        deaths(partial(work, tmp_path / "measured.log"), place, rounds=rounds, grows_bytes=size, seed=rounds)
    ):
        _clear(place)
        log = tmp_path / f"round{number}.log"
        died += Child(partial(work, log), place, death).died()
        before = embedded(log)
        _check_visible(place.tiers())
        if number % 3 == 0:
            # The next one is killed too.
            died += Child(partial(work, log), place, Death(after_s=0.2)).died()
            _check_visible(place.tiers())
        report = build(place.tiers(), spec_of(pages), log)
        assert report.manifest == whole
        assert report.promoted
        assert content(place.tiers()) == expected
        assert embedded(log) <= PASSAGES + LOST * (2 if number % 3 == 0 else 1)
        # Nor is anything of the killed ones left on the disk.
        assert not [path for path in temporary.glob("rag-stack-index-*/*") if path.name != ".lock"]
        resumed += 0 < report.embedded < PASSAGES or (before >= PASSAGES and report.embedded == 0)
    assert died > rounds / 3
    assert resumed > 0


def test_a_build_that_is_killed_while_it_embeds_loses_less_than_a_segment(
    place: Place, pages: Path, tmp_path: Path
) -> None:
    """At the step of each write of a segment, counted from a build that nothing disturbs."""
    log = tmp_path / "one.log"
    steps, _ = Child(partial(build_there, place, pages, log), place, Death()).measured()
    assert embedded(log) == PASSAGES
    for step in range(1, steps, max(1, steps // 4)):
        _clear(place)
        log = tmp_path / f"step{step}.log"
        assert Child(partial(build_there, place, pages, log), place, Death(step=step)).died()
        _check_visible(place.tiers())
        build(place.tiers(), spec_of(pages), log)
        assert PASSAGES <= embedded(log) <= PASSAGES + LOST


def _clear(place: Place) -> None:
    for folder in (place.store, place.cache):
        shutil.rmtree(folder, ignore_errors=True)


def _check_visible(tiers: Tiers) -> None:
    """Whatever is listed is whole, and nothing is promoted that is not."""
    catalog = tiers.catalog
    for version in catalog.versions("indexes", NAME):
        rows, _ = content(tiers, version)
        assert len(rows) == PASSAGES
    if catalog.promoted("indexes", NAME) is not None:
        assert catalog.resolve("indexes", NAME).version in catalog.versions("indexes", NAME)
