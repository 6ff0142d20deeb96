"""How an expected failure looks on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rag_stack.errors import RagStackError


@contextmanager
def one_line_failures() -> Iterator[None]:
    """Print a RagStackError as one line on stderr and exit with 1; anything else is a bug and keeps its traceback."""
    try:
        yield
    except RagStackError as exc:
        typer.echo(f"error: {' '.join(exc.message.split())}", err=True)
        raise typer.Exit(1) from exc
