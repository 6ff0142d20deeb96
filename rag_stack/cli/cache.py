"""`rag-stack cache`: what this node keeps of the object store, whether it is still right, and what may go."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.artifacts.eviction import CachedArtifact
from rag_stack.artifacts.manifest import Manifest
from rag_stack.artifacts.node_cache import NodeCache, read_manifest
from rag_stack.artifacts.tiers import LocalArtifact, open_tiers
from rag_stack.cli.artifact import AsJson, Cache, Root, artifacts_config
from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.warm import to_warm
from rag_stack.config import ArtifactsConfig, load_deployed_release
from rag_stack.errors import ArtifactCorruptError, ArtifactNotFoundError, InvalidRequestError
from rag_stack.metrics import MemoryRecorder

app = typer.Typer(help="What this node keeps of the object store.", no_args_is_help=True, add_completion=False)

_UNREADABLE = "(unreadable)"


@app.command("ls")
def ls_command(cache: Cache = None, *, as_json: AsJson = False) -> None:
    """List what is cached, least recently used first: that goes first when room is needed."""
    with one_line_failures():
        node_cache = _open(cache)
        rows = [_row(artifact) for artifact in node_cache.eviction.artifacts()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    if any(row["ref"] is None for row in rows):
        Console(stderr=True, soft_wrap=True).print(
            "unreadable ones are removed by `rag-stack cache gc`", style="yellow"
        )
    if rows:
        Console().print(_table(rows))
    total = sum(row["size_bytes"] for row in rows)
    typer.echo(f"{total:,} bytes in {node_cache.directory}" if rows else f"nothing is cached in {node_cache.directory}")


@app.command("verify")
def verify_command(
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND/NAME[/VERSION]]...", help="What to verify (default: all).")
    ] = None,
    cache: Cache = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Read what is cached and check every digest. Exit code 1 if anything is wrong. Needs no object store."""
    with one_line_failures():
        node_cache = _open(cache)
        found = [(artifact, _manifest(artifact)) for artifact in node_cache.eviction.artifacts()]
        chosen = [each for each in found if not refs or any(_is_meant(each[1], ref) for ref in refs)]
        for ref in refs or []:
            if not any(_is_meant(manifest, ref) for _, manifest in found):
                raise ArtifactNotFoundError(f"{ref!r} is not in {node_cache.directory}; see `rag-stack cache ls`")
        rows = []
        for artifact, manifest in chosen:
            rows.append(_verified(node_cache, artifact, manifest))
            if not as_json:
                _print_verified(rows[-1])
    if as_json:
        typer.echo(json.dumps(rows))
    elif not rows:
        typer.echo(f"nothing is cached in {node_cache.directory}")
    raise typer.Exit(int(any(row["problem"] for row in rows)))


@app.command("gc")
def gc_command(
    cache: Cache = None,
    *,
    limit_bytes: Annotated[
        int | None, typer.Option("--limit-bytes", min=0, help="Evict the least recently used down to this.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Evict all that no process uses.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what killed processes left and what cannot be read; evict on request. What is in use stays."""
    with one_line_failures():
        if everything and limit_bytes is not None:
            raise InvalidRequestError("--all and --limit-bytes exclude each other; give one of them")
        node_cache = _open(cache)
        names = {artifact.hex: _manifest(artifact) for artifact in node_cache.eviction.artifacts()}
        collected = node_cache.collect(0 if everything else limit_bytes)
        left = node_cache.eviction.used_bytes()
        in_use = sum(artifact.size_bytes for artifact in node_cache.eviction.artifacts() if artifact.pinned)
    evicted = [{**_row(each), "ref": _ref(names.get(each.hex))} for each in collected.evicted]
    freed = sum(each.size_bytes for each in collected.evicted) + collected.leavings_bytes
    leavings = list(collected.leavings)
    if as_json:
        typer.echo(json.dumps({"evicted": evicted, "leavings": leavings, "freed_bytes": freed, "used_bytes": left}))
        return
    for row in evicted:
        typer.echo(f"evicted {row['ref'] or _UNREADABLE}  {row['size_bytes']:,} bytes  {row['path']}")
    for name in leavings:
        typer.echo(f"removed what a killed process left  {name}")
    typer.echo(f"freed {freed:,} bytes; {left:,} bytes stay, {in_use:,} of them in use by a process")


@app.command("warm")
def warm_command(
    refs: Annotated[
        list[str] | None, typer.Argument(metavar="[KIND/NAME[/VERSION]]...", help="Without a version: the promoted.")
    ] = None,
    release: Annotated[Path | None, typer.Option("--release", help="All that a release file names.")] = None,
    root: Root = None,
    cache: Cache = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Bring artifacts into this node's cache before anything needs them; returns when they are on the disk."""
    with one_line_failures():
        named = None if release is None else load_deployed_release(release)
        tiers = open_tiers(artifacts_config(root, named.artifacts if named else None), MemoryRecorder(), cache=cache)
        manifests = to_warm(tiers.catalog, refs or [], named)
        # All are pinned until the end, so that none makes room for the next.
        rows = []
        for manifest in manifests:
            rows.append(_fetched(tiers.ensure_local(manifest)))
            if not as_json:
                _print_fetched(rows[-1])
        started = time.perf_counter()
        tiers.cache.wait_synced()
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        typer.echo(f"on the disk of this node after {time.perf_counter() - started:.1f} s more")


def _open(cache: Path | None) -> NodeCache:
    node_cache = NodeCache(cache or ArtifactsConfig().cache)
    if node_cache.directory.exists() and not node_cache.directory.is_dir():
        raise InvalidRequestError(f"{str(node_cache.directory)!r} is a file; expected the directory of a cache")
    return node_cache


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    # Nothing of a name is cut off, however narrow the terminal.
    table.add_column("artifact", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("last used (UTC)", no_wrap=True)
    table.add_column("in use", no_wrap=True)
    table.add_column("folder", no_wrap=True)
    for row in rows:
        used_at = row["used_at"].removesuffix("+00:00").replace("T", " ")
        in_use, folder = "yes" if row["pinned"] else "", Path(row["path"]).name[:12]
        table.add_row(row["ref"] or _UNREADABLE, f"{row['size_bytes']:,}", used_at, in_use, folder)
    return table


def _manifest(artifact: CachedArtifact) -> Manifest | None:
    try:
        return read_manifest(artifact.directory)
    except (OSError, ArtifactCorruptError):
        return None


def _ref(manifest: Manifest | None) -> str | None:
    return None if manifest is None else str(manifest.ref)


def _is_meant(manifest: Manifest | None, ref: str) -> bool:
    return manifest is not None and ref.strip("/") in (str(manifest.ref), f"{manifest.kind}/{manifest.name}")


def _row(artifact: CachedArtifact) -> dict[str, Any]:
    return {
        "ref": _ref(_manifest(artifact)),
        "digest": f"sha256:{artifact.hex}",
        "size_bytes": artifact.size_bytes,
        "used_at": datetime.fromtimestamp(artifact.used_at, UTC).isoformat(timespec="seconds"),
        "pinned": artifact.pinned,
        "path": str(artifact.directory),
    }


def _verified(cache: NodeCache, artifact: CachedArtifact, manifest: Manifest | None) -> dict[str, Any]:
    started, problem = time.perf_counter(), None
    if manifest is None:
        problem = f"{str(artifact.directory)!r} holds no readable manifest; remove it with `rag-stack cache gc`"
    else:
        # It shall not be evicted under the reader, nor seem to have been used.
        pin = cache.pin(manifest, used=False)
        try:
            cache.verify(manifest)
        except ArtifactCorruptError as exc:
            problem = exc.message
        finally:
            pin.release()
    return {"ref": _ref(manifest), "problem": problem, "seconds": round(time.perf_counter() - started, 3)} | {
        key: value for key, value in _row(artifact).items() if key in ("digest", "size_bytes", "path")
    }


def _print_verified(row: dict[str, Any]) -> None:
    if row["problem"]:
        typer.echo(f"error: {row['problem']}", err=True)
    else:
        typer.echo(f"ok  {row['ref']}  {row['size_bytes']:,} bytes  {row['seconds']:.1f} s")


def _fetched(local: LocalArtifact) -> dict[str, Any]:
    return {
        "ref": str(local.manifest.ref),
        "source": local.source,
        "moved_bytes": sum(local.moved.values()),
        "size_bytes": local.size_bytes,
        "seconds": round(local.seconds, 3),
        "path": str(local.path),
    }


def _print_fetched(row: dict[str, Any]) -> None:
    rate = row["moved_bytes"] / max(row["seconds"], 1e-3) / 1e9
    speed = f"{rate:.2f} GB/s from {row['source']}" if row["moved_bytes"] else "cached"
    typer.echo(f"{row['ref']}  {row['size_bytes']:,} bytes  {row['seconds']:.1f} s  {speed}")
