"""Patterns mean what `Path.glob` means by them, without a folder to look at."""

from pathlib import Path

import pytest

from rag_stack.index.pattern import Pattern

_PATHS = (
    *("a.txt", "b.md", ".hidden.md", "sub/a.txt", "sub/deep/a.txt", "sub/deep/er/a.txt", "sub/deep/er/b.md"),
    *("other/a.txt", "sub/x[1].txt", "sub/A.TXT", "other/deep/a.txt", "deep/a.txt"),
)


@pytest.mark.parametrize(
    "text",
    [
        *("*", "*.txt", "**/*.txt", "**/*", "sub/*", "sub/**/*.txt", "**/deep/*", "**/deep/**/*.txt", "*/a.txt"),
        *("sub/*/a.txt", "**/**/a.txt", "**/er/*.md", "?.txt", "[ab].*", "**/[!a].md", "sub/x[[]1].txt", "a.txt"),
        *("./a.txt", "sub//a.txt", "**/sub/**/deep/**/a.txt", "nowhere/*", "**/*.TXT", "*/*/*/*.md"),
    ],
)
def test_they_choose_what_glob_finds(tmp_path: Path, text: str) -> None:
    for path in _PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    expected = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(text) if path.is_file()}
    pattern = Pattern.of(text)
    assert {path for path in _PATHS if pattern.matches(path)} == expected


def test_two_stars_at_the_end_are_all_below() -> None:
    pattern = Pattern.of("sub/**")
    assert [path for path in _PATHS if pattern.matches(path)] == [p for p in _PATHS if p.startswith("sub/")]
    assert all(map(Pattern.of("**").matches, _PATHS))


@pytest.mark.parametrize("text", ["", "/etc/*", "../*", "a/../b", "**.txt", "."])
def test_what_can_match_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="got"):
        Pattern.of(text)


def test_many_stars_take_no_time_to_speak_of() -> None:
    pattern = Pattern.of("/".join(["**", "a*"] * 20).removeprefix("/") + "/nope")
    assert not pattern.matches("/".join(["a"] * 400))
