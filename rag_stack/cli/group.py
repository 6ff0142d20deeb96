"""The root command group. Commands that need the server's packages are loaded when they are called for."""

from typing import Any

import typer
from typer.core import TyperGroup

from rag_stack.cli.failure import one_line_failures
from rag_stack.errors import EngineMissingError

_SERVER_COMMANDS = ("cache", "index", "job", "model", "plan", "release", "serve")


class RootGroup(TyperGroup):
    """Shows every command on every install; a command whose packages are not installed says which to install."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer's Context has another base in each version
        """All names, in the order of the help."""
        return [*super().list_commands(ctx), *_SERVER_COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        """The command of a name; None when there is none."""
        if cmd_name not in _SERVER_COMMANDS:
            return super().get_command(ctx, cmd_name)
        try:
            loaded = _load(cmd_name)
        except ModuleNotFoundError as exc:
            loaded = _unavailable(_missing(exc))
        command = typer.main.get_command(loaded)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the command; an expected failure is one line on stderr and exit code 1."""
        with one_line_failures():
            try:
                return super().invoke(ctx)
            except ModuleNotFoundError as exc:
                raise _missing(exc) from exc


def _load(name: str) -> typer.Typer:
    """Import a server command. Raises ModuleNotFoundError on the base install."""
    match name:
        case "cache":
            from rag_stack.cli import cache

            return cache.app
        case "index":
            from rag_stack.cli import index

            return index.app
        case "job":
            from rag_stack.cli import job

            return job.app
        case "model":
            from rag_stack.cli import model

            return model.app
        case "plan":
            from rag_stack.cli import plan

            return plan.app
        case "release":
            from rag_stack.cli import release

            return release.app
        case "serve":
            from rag_stack.cli.serve import serve

            single = typer.Typer(add_completion=False)
            single.command()(serve)
            return single
        case _:
            raise ValueError(f"{name!r} is not a server command")


def _missing(exc: ModuleNotFoundError) -> EngineMissingError:
    """What to install; a module of our own that is missing is a bug, and stays one."""
    package = (exc.name or "").partition(".")[0]
    if package == "rag_stack":
        raise exc
    return EngineMissingError(
        f"this command needs the server's packages, and {package!r} is not installed: run `make setup` in a checkout, "
        "or `pip install 'rag-stack[gpu]'` on a GPU machine"
    )


def _unavailable(error: EngineMissingError) -> typer.Typer:
    """Stands where a command would be, takes whatever arguments it would, and says what is missing."""
    single = typer.Typer(add_completion=False)

    @single.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def unavailable() -> None:
        """Needs the server's packages, which are not installed here."""
        raise error

    return single
