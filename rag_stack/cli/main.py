"""`rag-stack`: ask and search a server from the base install; build, import and serve with the server's extras."""

import typer

from rag_stack import __version__
from rag_stack.cli.ask import ask
from rag_stack.cli.group import RootGroup
from rag_stack.cli.key import key
from rag_stack.cli.replay import replay
from rag_stack.cli.search import search

app = typer.Typer(
    name="rag-stack",
    cls=RootGroup,
    help="Cited answers from your own documents, on machines that you own.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback with local variables would show keys and documents.
    pretty_exceptions_show_locals=False,
)

app.command()(ask)
app.command()(search)
app.command()(replay)
app.command()(key)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
