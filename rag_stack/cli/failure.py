"""How an expected failure looks on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from rag_stack.errors import RagStackError


@contextmanager
def one_line_failures() -> Iterator[None]:
    """Print a RagStackError as one line on stderr and exit with 1; anything else is a bug and keeps its traceback."""
    try:
        yield
    except RagStackError as exc:
        fail(exc, code=1)


def fail(error: RagStackError, *, code: int) -> NoReturn:
    """End with one line on stderr and an exit code."""
    typer.echo(f"error: {' '.join(error.message.split())}", err=True)
    raise typer.Exit(code) from error
