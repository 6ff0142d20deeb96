"""`rag-stack index`: build index versions and see what is there."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.artifacts.tiers import open_tiers
from rag_stack.cli.artifact import AsJson, Cache, Root, artifacts_config, published
from rag_stack.cli.failure import one_line_failures
from rag_stack.index.format import IndexMetadata
from rag_stack.index.spec import load_spec
from rag_stack.metrics import MemoryRecorder

app = typer.Typer(help="Index versions in the object store.", no_args_is_help=True, add_completion=False)


@app.command()
def build(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="An index spec (YAML).")],
    root: Root = None,
    cache: Cache = None,
    *,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Batches embedded at once (default: one a core)")
    ] = None,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the index has a promoted version that can be read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build an index version from its spec, publish and promote it."""
    with one_line_failures():
        spec = load_spec(spec_file)
        tiers = open_tiers(artifacts_config(root), MemoryRecorder(), cache=cache)
        if if_missing and (built := tiers.catalog.readable("indexes", spec.name)) is not None:
            _report(built, seconds=0.0, as_json=as_json)
            return
        # Imports torch: only for those who build.
        from rag_stack.jobs.index_build import Progress as Embedded
        from rag_stack.jobs.index_build import build_index

        columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("embedding", total=None, rate="reading documents")

            def show(embedded: Embedded) -> None:
                rate = f"{embedded.rate:.1f} passages/s, {embedded.eta_s:.0f} s left"
                bar.update(task, completed=embedded.done, total=embedded.total, rate=rate)

            report = build_index(spec, tiers=tiers, workers=workers or len(os.sched_getaffinity(0)), progress=show)
        _report(report.manifest, seconds=report.seconds, as_json=as_json)


@app.command()
def versions(
    name: Annotated[str, typer.Argument(help="An index.")], root: Root = None, *, as_json: AsJson = False
) -> None:
    """The published versions of an index; the promoted one is marked."""
    with one_line_failures():
        catalog = Catalog(open_store(artifacts_config(root).root))
        pointer = catalog.promoted("indexes", name)
        manifests = published(catalog, "indexes", name)
        rows = [_row(each) | {"promoted": bool(pointer and pointer.version == each.version)} for each in manifests]
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        Console().print(f"no versions of {name} in {catalog.store.url}; publish one with `rag-stack index build`")
    else:
        _print(rows)


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("version", "promoted", "documents", "passages", "embedder", "recipe", "bytes", box=None)
    for row in rows:
        keys = ("documents", "passages", "embedder", "recipe")
        size = f"{row['size_bytes']:,}"
        table.add_row(row["version"], "yes" if row["promoted"] else "", *(str(row[key]) for key in keys), size)
    Console().print(table)


def _report(manifest: Manifest, *, seconds: float, as_json: bool) -> None:
    metadata = IndexMetadata.of(manifest)
    if as_json:
        skipped = [each.model_dump() for each in metadata.skipped]
        typer.echo(json.dumps(_row(manifest) | {"skipped": skipped, "seconds": round(seconds, 3)}))
        return
    for each in metadata.skipped:
        Console(stderr=True).print(f"left out {each.document}: {each.reason}", style="yellow", markup=False)
    counts = f"{metadata.documents} documents, {metadata.passages} passages, {len(metadata.skipped)} left out"
    Console().print(f"[bold]{manifest.ref}[/bold]  {counts}, {seconds:.1f} s", highlight=False)


def _row(manifest: Manifest) -> dict[str, Any]:
    metadata = IndexMetadata.of(manifest)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "documents": metadata.documents,
        "passages": metadata.passages,
        "embedder": metadata.embedder.name,
        "recipe": metadata.recipe,
        "size_bytes": manifest.size_bytes,
    }
