"""Every command tells how it is used."""

from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from rag_stack.cli.main import app


def _commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        found += _commands(command.get_command(None, name), (*path, name))
    return found


@pytest.mark.parametrize("path", _commands(get_command(app)), ids=" ".join)
def test_help(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output
