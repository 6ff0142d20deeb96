"""What a process that may be killed writes down as done: a line of JSON each, of which only whole ones count."""

import json
from pathlib import Path


def acknowledge(log: Path, **what: object) -> None:
    """Write a line, at once."""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(what) + "\n")


def whole_lines(log: Path) -> list[str]:
    """The lines that were written to their end; none when the process had not begun."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return text.split("\n")[:-1]
