"""`rag-stack index versions|history|diff|promote|rollback|verify|unpin|gc`: the life of what was built."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.artifacts.catalog import Catalog, Expected
from rag_stack.artifacts.manifest import ArtifactRef
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.promotion import Pointer
from rag_stack.artifacts.retention import Retention
from rag_stack.cli.artifact import AsJson, Root, artifacts_config
from rag_stack.cli.collection import add_gc
from rag_stack.cli.failure import one_line_failures
from rag_stack.errors import ArtifactCorruptError
from rag_stack.index.difference import EXAMPLES, Difference, compare, short
from rag_stack.index.judgement import promote_index, rollback_index, verify
from rag_stack.index.listing import promotion_row, version_rows

app = typer.Typer(help="Index versions in the object store.", no_args_is_help=True, add_completion=False)

Name = Annotated[str, typer.Argument(help="An index.")]
Version = Annotated[str, typer.Argument(help="One of its versions.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]


@app.command("versions")
def versions_command(name: Name, root: Root = None, *, as_json: AsJson = False) -> None:
    """The published versions of an index, oldest first; the promoted one is marked."""
    with one_line_failures():
        catalog = _open(root)
        rows, problems = version_rows(catalog, name)
    for problem in problems.values():
        typer.echo(f"warning: {problem}", err=True)
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        Console().print(f"no versions of {name} in {catalog.store.url}; publish one with `rag-stack index build`")
    else:
        table = _table("version", "promoted", "published (UTC)", "documents", "passages", "embedder", "recipe", "gates")
        table.add_column("bytes", justify="right", no_wrap=True)
        for row in rows:
            gates = ", ".join(row["gates_failed"]) + " failed" if row["gates_failed"] else f"{row['gates']} passed"
            keys = ("documents", "passages", "embedder", "recipe")
            table.add_row(
                row["version"],
                "yes" if row["promoted"] else "",
                _time(row["published_at"]),
                *(str(row[key]) for key in keys),
                gates if row["gates"] else "none",
                f"{row['size_bytes']:,}",
            )
        Console().print(table)


@app.command("history")
def history_command(
    name: Name,
    root: Root = None,
    *,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many (default: all).")] = None,
    as_json: AsJson = False,
) -> None:
    """Who promoted what, when and why, the last first."""
    with one_line_failures():
        catalog = _open(root)
        rows = [promotion_row(each) for each in reversed(catalog.history("indexes", name, last=last))]
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        Console().print(f"nothing was ever promoted as {name} in {catalog.store.url}")
    else:
        table = _table("number", "version", "promoted at (UTC)", "by", "how", "reason")
        for row in rows:
            table.add_row(
                str(row["number"]), row["version"], _time(row["promoted_at"]), row["by"], _how(row), row["reason"]
            )
        Console().print(table, markup=False)


@app.command("diff")
def diff_command(
    name: Name,
    before: Annotated[str, typer.Argument(metavar="A", help="From this version ...")],
    after: Annotated[str | None, typer.Argument(metavar="[B]", help="... to this one (default: the promoted).")] = None,
    root: Root = None,
    *,
    names: Annotated[int, typer.Option("--names", min=0, help="How many documents of each kind to name.")] = EXAMPLES,
    as_json: AsJson = False,
) -> None:
    """What changes from A to B: documents added, removed and changed, and every setting that differs."""
    with one_line_failures():
        catalog = _open(root)
        old = catalog.manifest(ArtifactRef("indexes", name, before))
        difference = compare(catalog, old, catalog.resolve("indexes", name, after), examples=names)
    if as_json:
        typer.echo(json.dumps(difference.to_json()))
    else:
        _print_difference(difference)


@app.command("promote")
def promote_command(
    name: Name,
    version: Version,
    root: Root = None,
    *,
    reason: Reason = "",
    force: Annotated[
        bool, typer.Option("--force", help="Also when a gate has not passed; the history says so.")
    ] = False,
    expected: Annotated[
        str | None, typer.Option("--expected", help="Only if this version is promoted now (default: whichever is).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Promote a published version whose gates have passed."""
    with one_line_failures():
        wanted = Expected.CURRENT if expected is None else expected
        catalog = _open(root)
        pointer = promote_index(catalog, name, version, force=force, reason=reason, expected_version=wanted)
    _print_promoted(name, pointer, as_json=as_json)


@app.command("rollback")
def rollback_command(
    name: Name,
    root: Root = None,
    *,
    to: Annotated[str | None, typer.Option("--to", help="A version further back (default: the one before).")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Promote what was promoted before; again goes further back."""
    with one_line_failures():
        pointer = rollback_index(_open(root), name, to=to, reason=reason)
    _print_promoted(name, pointer, as_json=as_json)


@app.command("verify")
def verify_command(
    name: Name,
    version: Annotated[str | None, typer.Argument(help="One of its versions (default: the promoted).")] = None,
    root: Root = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Read a version from the object store, check every byte, and open the index. Exit code 1 if anything is wrong."""
    with one_line_failures():
        catalog = _open(root)
        verified = verify(catalog, catalog.resolve("indexes", name, version).ref)
    row = {"ref": str(verified.ref), "size_bytes": verified.size_bytes, "seconds": round(verified.seconds, 3)}
    typer.echo(
        json.dumps(row) if as_json else f"ok  {row['ref']}  {verified.size_bytes:,} bytes  {verified.seconds:.1f} s"
    )


@app.command("unpin")
def unpin_command(
    release: Annotated[str, typer.Argument(help="A release that is not served any more.")],
    root: Root = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Let go of the versions, models too, that a release keeps from `gc`. A release that is served pins them again."""
    with one_line_failures():
        retention = Retention(_open(root))
        try:
            held, damage = retention.pinned(release), None
        except ArtifactCorruptError as exc:
            held, damage = (), exc.message
        retention.unpin(release)
        others = [] if held or damage else [hold.owner for hold in retention.pins()]
    if damage:
        typer.echo(f"warning: {damage}", err=True)
    if as_json:
        typer.echo(json.dumps({"release": release, "unpinned": list(held)}))
    elif not held:
        known = f"; those that do are {', '.join(others)}" if others else ""
        typer.echo("its damaged pin is removed" if damage else f"the release {release!r} pins nothing{known}")
    else:
        typer.echo(f"the release {release!r} does not hold these any more:")
        for ref in held:
            typer.echo(ref)


add_gc(app, "indexes")


def _open(root: str | None) -> Catalog:
    return Catalog(open_store(artifacts_config(root).root))


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # Nothing of a name is cut off, however narrow the terminal.
        table.add_column(column, overflow="fold", no_wrap=column == "version")
    return table


def _time(text: str) -> str:
    return text.removesuffix("+00:00").replace("T", " ")


def _how(row: dict[str, Any]) -> str:
    if row["restores"] is not None:
        return f"rollback to {row['restores']}"
    return "forced" if row["forced"] else "promoted"


def _print_promoted(name: str, pointer: Pointer, *, as_json: bool) -> None:
    row = promotion_row(pointer.promotion)
    if as_json:
        typer.echo(json.dumps({"name": name, **row}))
        return
    before = f"before it {pointer.previous}" if pointer.previous else "nothing before it"
    typer.echo(f"indexes/{name}/{pointer.version} is promoted, {before}  ({_how(row)}, number {pointer.number})")


def _print_difference(difference: Difference) -> None:
    found, old, new = difference.documents, difference.before, difference.after
    typer.echo(f"from {old.ref} to {new.ref}")
    counts = f"{found.added} added, {found.removed} removed, {found.changed} changed, {found.unchanged} unchanged"
    typer.echo(f"documents   {counts}")
    typer.echo(f"passages    {old.metadata.get('passages')} -> {new.metadata.get('passages')}")
    typer.echo(f"bytes       {old.size_bytes:,} -> {new.size_bytes:,}")
    for setting, (before, after) in difference.settings.items():
        typer.echo(f"{setting:<11} {short(before)} -> {short(after)}")
    for sign, names, count in (
        ("+", found.added_names, found.added),
        ("-", found.removed_names, found.removed),
        ("~", found.changed_names, found.changed),
    ):
        for each in names:
            typer.echo(f"{sign} {each}")
        if count > len(names):
            typer.echo(f"{sign} and {count - len(names)} more")
