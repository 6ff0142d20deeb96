"""The runbooks: every `rag-stack` line is one that the command line takes, every alert and every link is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from rag_stack.cli.main import app

RUNBOOKS = Path(__file__).parents[3] / "deploy" / "kuberay" / "runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
ALERTS = {
    "RagStackColdStartSlow",
    "RagStackLoadSlow",
    "RagStackTtftHigh",
    "RagStackKvPressure",
    "RagStackIndexStale",
    "RagStackGateFailed",
    "RagStackCacheThrash",
    "RagStackQueueGrows",
    "RagStackIndexLagging",
    "RagStackEngineDown",
}
_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(rag-stack [^`]+)`")
# Before a command of ours on its line: nothing, an environment, or what runs it in a pod.
_BEFORE = re.compile(r"run|--|[A-Z_]+=.*")


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `rag-stack` command in a page."""
    lines = [line for block in _BLOCK.findall(text) for line in block.splitlines()]
    for line in (*lines, *_INLINE.findall(text)):
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word == "rag-stack" and (place == 0 or _BEFORE.fullmatch(words[place - 1])):
                yield words[place + 1 :]


def parse(arguments: list[str]) -> None:
    """Have the command line take apart a command, and run nothing. Raises a UsageError, or SystemExit for --help."""
    command: Any = get_command(app)
    name, parent, left = "rag-stack", None, list(arguments)
    while isinstance(command, TyperGroup):
        parent = command.make_context(name, left, parent=parent)
        name, command, left = command.resolve_command(parent, [*parent._protected_args, *parent.args])
    command.make_context(name, list(left), parent=parent)


ALL = [(page, arguments) for page in PAGES for arguments in commands(page.read_text())]


@pytest.mark.parametrize(
    ("page", "arguments"), ALL, ids=[f"{page.stem}: {' '.join(arguments)}" for page, arguments in ALL]
)
def test_the_command_line_takes_it(page: Path, arguments: list[str]) -> None:
    if arguments[-1] == "--help":
        arguments = arguments[:-1]
    parse(arguments)


@pytest.mark.parametrize(
    "line",
    ["drill restore --verfy", "backup pint", "drill rollback", "release apply --wait", "node-loss", "cache gc x"],
)
def test_what_is_no_command_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|unexpected|unknown|got"):
        parse(shlex.split(line))


def test_no_command_is_missed() -> None:
    told = sum(len(re.findall(r"^ *(?:run |[A-Z_]+=\S+ )?rag-stack ", p.read_text(), re.MULTILINE)) for p in PAGES)
    assert len(ALL) >= told > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_has_its_parts_and_its_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (RUNBOOKS / link).exists(), link
    assert set(re.findall(r"RagStack[A-Z]\w+", text)) <= ALERTS
    if page.stem != "README":
        for part in ("**When.**", "## Verify", "## Go back"):
            assert part in text, part
        assert f"({page.name})" in (RUNBOOKS / "README.md").read_text()


def test_every_alert_leads_to_a_runbook() -> None:
    index = (RUNBOOKS / "README.md").read_text()
    told = set(re.findall(r"RagStack[A-Z]\w+", index))
    assert told == ALERTS
    for row in (line for line in index.splitlines() if "RagStack" in line and ".md)" in line):
        (page,) = re.findall(r"\]\(([^)]+)\)", row)
        for alert in re.findall(r"RagStack[A-Z]\w+", row):
            assert alert in (RUNBOOKS / page).read_text(), f"{alert} in {page}"
