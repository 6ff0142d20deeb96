"""`rag-stack index gc` and `rag-stack model gc`: delete the versions that nobody needs."""

import json
from typing import Annotated

import typer

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import ArtifactKind
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.retention import KEEP, Collected, Retention, Verdict, seconds_of
from rag_stack.cli.artifact import AsJson, Root, artifacts_config
from rag_stack.cli.failure import one_line_failures
from rag_stack.errors import InvalidRequestError


def add_gc(app: typer.Typer, kind: ArtifactKind) -> None:
    """Give a command group its `gc`."""

    @app.command("gc")
    def gc_command(
        name: Annotated[str | None, typer.Argument(help="Whose versions.")] = None,
        root: Root = None,
        *,
        everything: Annotated[bool, typer.Option("--all", help="Of all names.")] = False,
        keep: Annotated[int, typer.Option("--keep", min=0, help="How many of the versions promoted last stay.")] = KEEP,
        older_than: Annotated[
            str, typer.Option("--older-than", help="Only what is older: 45m, 12h, 7d (at least 1h).")
        ] = "7d",
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Delete versions that nobody needs, and what killed publishers left.

        What is promoted, what a rollback goes back to, and what a release pins or a running server uses always stays.
        """
        with one_line_failures():
            if (name is None) != everything:
                raise InvalidRequestError("give either a name or --all")
            retention = Retention(Catalog(open_store(artifacts_config(root).root)))
            collected = retention.collect(kind, name, keep=keep, older_than_s=seconds_of(older_than), dry_run=dry_run)
        if as_json:
            typer.echo(json.dumps(collected.to_json()))
        else:
            _print(collected)


def _print(collected: Collected) -> None:
    for each in collected.kept:
        typer.echo(f"kept     {_told(each)}  {'; '.join(each.reasons)}")
    done = "would go" if collected.dry_run else "deleted "
    for each in collected.deleted:
        typer.echo(f"{done} {_told(each)}")
    verb = "would free" if collected.dry_run else "freed"
    typer.echo(f"{verb} {collected.freed_bytes:,} bytes, {len(collected.deleted)} of {len(collected.verdicts)}")


def _told(verdict: Verdict) -> str:
    return f"{verdict.ref}{'' if verdict.published else ' (not published)'}  {verdict.size_bytes:,} bytes"
