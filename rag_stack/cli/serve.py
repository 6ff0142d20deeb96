"""`rag-stack serve RELEASE.yaml`."""

import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.config import Release, load_release


def serve(
    release: Annotated[Path, typer.Argument(help="The release file.", exists=False)],
    host: Annotated[str | None, typer.Option(envvar="RAG_STACK_HOST", help="Where to listen.")] = None,
    port: Annotated[int | None, typer.Option(envvar="RAG_STACK_PORT", min=1, max=65535)] = None,
    root: Annotated[str | None, typer.Option(envvar="RAG_STACK_ROOT", help="URL of the object store.")] = None,
    cache: Annotated[Path | None, typer.Option(envvar="RAG_STACK_CACHE", help="The node's cache directory.")] = None,
    ask: Annotated[str | None, typer.Option(help="Ask this once the server is ready, and keep serving.")] = None,
) -> None:
    """Serve a release on this machine until Ctrl-C.

    Keys that may call are given as SHA-256 digests in the file, or in RAG_STACK_API_KEYS, separated by commas.
    """
    from rag_stack.serving import startup

    console = Console(stderr=True)
    chosen = _with_overrides(load_release(release), host=host, port=port, root=root, cache=cache)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _interrupt(stopped))
    with console.status("starting") as status:
        server = startup.start(chosen, tell=status.update)
    console.print(start_table(server))
    if chosen.server.host not in ("127.0.0.1", "localhost", "::1") and not chosen.server.api_key_sha256:
        console.print("[yellow]open to the network without a key: set RAG_STACK_API_KEYS[/yellow]")
    console.print(f"metrics {server.metrics}")
    console.print(f"[bold green]ready[/bold green] {server.url}/v1   Ctrl-C stops it")
    try:
        if ask is not None:
            ask_once(ask, server=server)
        stopped.wait()
    except KeyboardInterrupt:
        pass
    finally:
        console.print("stopping")
        server.stop()


def start_table(server: "startup.Server") -> Table:  # noqa: F821 - imported where it is used: Ray comes with it
    """Where the start went: seconds, bytes, GB/s and source of each stage."""
    table = Table(title="start", title_justify="left")
    table.add_column("stage")
    for column in ("seconds", "MB", "GB/s"):
        table.add_column(column, justify="right")
    table.add_column("from")
    for place, stages in (("", server.stages), ("replica: ", server.replica_stages)):
        for stage in stages:
            moved = stage.size_bytes > 0
            table.add_row(
                place + stage.name,
                f"{stage.seconds:.2f}",
                f"{stage.size_bytes / 1e6:.1f}" if moved else "",
                f"{stage.gb_per_s:.2f}" if moved else "",
                stage.source,
            )
    return table


def _interrupt(stopped: threading.Event) -> None:
    """During the start, Ctrl-C must break it off; once serving, it ends the wait."""
    stopped.set()
    raise KeyboardInterrupt


def _with_overrides(
    release: Release, *, host: str | None, port: int | None, root: str | None, cache: Path | None
) -> Release:
    """The release with flags and environment on top of the file."""
    server = {k: v for k, v in (("host", host), ("port", port)) if v is not None}
    artifacts = {k: v for k, v in (("root", root), ("cache", cache)) if v is not None}
    keys = [key.strip() for key in os.environ.get("RAG_STACK_API_KEYS", "").split(",") if key.strip()]
    if keys:
        digests = tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)
        server["api_key_sha256"] = (*release.server.api_key_sha256, *digests)
    return release.model_copy(
        update={
            "server": release.server.model_copy(update=server),
            "artifacts": release.artifacts.model_copy(update=artifacts),
        }
    )
