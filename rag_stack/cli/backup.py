"""`rag-stack backup`: points to which everything that is promoted can be brought back."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.node_cache import NodeCache
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.point import Point, PointCanary, Points
from rag_stack.artifacts.retention import seconds_of
from rag_stack.cli.artifact import AsJson, Cache, Root, artifacts_config
from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.output import printable
from rag_stack.config import load_deployed_release
from rag_stack.errors import ArtifactCorruptError, InvalidRequestError
from rag_stack.index.spec import load_spec
from rag_stack.recovery.backup import Taken, take
from rag_stack.recovery.questions import of_release, of_spec

app = typer.Typer(help="Points that a restore goes back to.", no_args_is_help=True, add_completion=False)

PointName = Annotated[str, typer.Argument(metavar="POINT", help="A point's name, as `backup ls` shows it.")]


@app.command("point")
def point_command(
    root: Root = None,
    cache: Cache = None,
    *,
    label: Annotated[str, typer.Option("--label", help="What it is for, such as a ticket or a schedule's name.")] = "",
    release: Annotated[
        list[Path] | None,
        typer.Option("--release", help="A release file whose canary questions the point keeps, beside the rollouts'."),
    ] = None,
    spec: Annotated[
        list[Path] | None, typer.Option("--spec", help="An index spec whose canary questions the point keeps.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take a point: what is promoted at one moment, by digest, kept from `gc` until the point is removed.

    With a node's cache, what is in that is on its disk when this returns, so that a snapshot of the volume holds whole
    artifacts. A point is an object below the root and no copy of it: snapshot or replicate the root after it.
    """
    with one_line_failures():
        canaries = [each for file in release or [] for each in _questions(file)]
        canaries += [each for file in spec or [] for each in of_spec(load_spec(file))]
        node_cache = None if cache is None else NodeCache(cache)
        taken = take(_catalog(root), cache=node_cache, label=label, canaries=canaries)
    if as_json:
        typer.echo(json.dumps({**_row(taken.point), "cached": taken.cached, "attempts": taken.attempts}))
    else:
        _print_taken(taken)


@app.command("ls")
def ls_command(root: Root = None, *, as_json: AsJson = False) -> None:
    """List the points, oldest first. Exit code 1 when one is damaged: then `gc` deletes nothing."""
    with one_line_failures():
        points = Points(_catalog(root).store)
        rows, damaged = [], []
        for name in points.names():
            try:
                rows.append(_row(points.get(name)))
            except ArtifactCorruptError as exc:
                damaged.append(exc.message)
    for message in damaged:
        typer.echo(f"error: {message}", err=True)
    if as_json:
        typer.echo(json.dumps(rows))
    elif rows:
        Console().print(_table(rows), markup=False)
    elif not damaged:
        typer.echo("no points; take one with `rag-stack backup point`")
    raise typer.Exit(int(bool(damaged)))


@app.command("show")
def show_command(name: PointName, root: Root = None, *, as_json: AsJson = False) -> None:
    """What a point names: promoted versions, artifacts, stores and uploads, canary questions."""
    with one_line_failures():
        point = Points(_catalog(root).store).get(name)
    if as_json:
        typer.echo(point.to_bytes().decode())
    else:
        _print_point(point)


@app.command("rm")
def rm_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[POINT]...", help="Which points.")] = None,
    root: Root = None,
    *,
    older_than: Annotated[
        str | None, typer.Option("--older-than", help="All that are older: 12h, 30d; the newest always stays.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="With --older-than: only those of this label.")] = None,
    as_json: AsJson = False,
) -> None:
    """Remove points, damaged ones too, and let go of what they keep from `gc`."""
    with one_line_failures():
        if bool(names) == (older_than is not None):
            raise InvalidRequestError("give either points or --older-than")
        if label is not None and older_than is None:
            raise InvalidRequestError("--label goes with --older-than")
        store = _catalog(root).store
        points = Points(store)
        if older_than is not None:
            before = store.now() - timedelta(seconds=seconds_of(older_than))
            names = [name for name in points.names()[:-1] if _is_old(points, name, before=before, label=label)]
        for name in names or []:
            points.delete(name)
            if not as_json:
                typer.echo(f"removed {name}")
    if as_json:
        typer.echo(json.dumps({"removed": names or []}))


def _is_old(points: Points, name: str, *, before: datetime, label: str | None) -> bool:
    """Of one that is damaged nobody knows: it is told, and stays."""
    try:
        point = points.get(name)
    except ArtifactCorruptError as exc:
        typer.echo(f"left: {exc.message}", err=True)
        return False
    return point.at < before and label in (None, point.label)


def _catalog(root: str | None) -> Catalog:
    return Catalog(open_store(artifacts_config(root).root))


def _questions(file: Path) -> tuple[PointCanary, ...]:
    release = load_deployed_release(file)
    return of_release(release, release.rollout.canaries)


def _row(point: Point) -> dict[str, Any]:
    return {
        "name": point.name,
        "taken_at": point.taken_at,
        "by": point.by,
        "label": point.label,
        "promoted": len(point.pointers),
        "artifacts": len(point.artifacts),
        "files": point.files,
        "size_bytes": point.size_bytes,
        "canaries": len(point.canaries),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("point", no_wrap=True)
    for column in ("promoted", "artifacts", "canaries", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("by", overflow="fold")
    table.add_column("label", overflow="fold")
    for row in rows:
        counts = (str(row[key]) for key in ("promoted", "artifacts", "canaries"))
        table.add_row(row["name"], *counts, f"{row['size_bytes']:,}", printable(row["by"]), printable(row["label"]))
    return table


def _print_taken(taken: Taken) -> None:
    point = taken.point
    typer.echo(
        f"{point.name}  {len(point.pointers)} promoted, {len(point.artifacts)} artifacts, {point.files} files, "
        f"{point.size_bytes:,} bytes, {len(point.canaries)} canary questions"
    )
    if taken.cached is not None:
        typer.echo(f"cache: {taken.cached} of {len(point.artifacts)} artifacts are there, on the disk")
    if point.rollouts:
        typer.echo(f"note: a rollout of {', '.join(point.rollouts)} was under way; what was promoted is in the point")
    if not point.canaries:
        typer.echo("note: no canary questions; name the release's file with --release, or an index spec with --spec")


def _print_point(point: Point) -> None:
    typer.echo(f"{point.name}  taken {point.taken_at} by {printable(point.by)}  {printable(point.label)}".rstrip())
    typer.echo(f"root      {point.root}")
    for pointer in point.pointers:
        typer.echo(f"promoted  {pointer.address}/{pointer.version}  number {pointer.number}, {pointer.promoted_at}")
    for artifact in point.artifacts:
        typer.echo(
            f"artifact  {artifact.ref}  {artifact.digest[:19]}  {artifact.files} files, {artifact.size_bytes:,} bytes"
        )
    for each in point.objects:
        size = "" if each.content_bytes is None else f"  {each.content_bytes:,} bytes"
        typer.echo(f"object    {each.key}{size}")
    for canary in point.canaries:
        wanted = " or ".join(canary.expect) or "anything"
        typer.echo(f"canary    {printable(canary.question)}  in {canary.index}: {printable(wanted)}")
