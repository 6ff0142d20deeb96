"""`rag-stack serve RELEASE.yaml`."""

import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rag_stack.cli.ask import ask as ask_server
from rag_stack.cli.failure import one_line_failures
from rag_stack.config import Release, load_release

if TYPE_CHECKING:
    from rag_stack.serving.startup import Server


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
    stopped = threading.Event()
    _on_interrupt(stopped)
    with one_line_failures():
        chosen = _with_overrides(load_release(release), host=host, port=port, root=root, cache=cache)
        with console.status("starting") as status:
            server = startup.start(chosen, tell=status.update)
    _on_interrupt(stopped)  # again: Ray has put handlers of its own in place of ours
    console.print(start_table(server))
    if chosen.server.host not in ("127.0.0.1", "localhost", "::1") and not chosen.server.api_key_sha256:
        console.print("[yellow]open to the network without a key: set RAG_STACK_API_KEYS[/yellow]")
    console.print(f"metrics {server.metrics}")
    console.print(f"[bold green]ready[/bold green] {server.url}/v1   Ctrl-C stops it")
    try:
        if ask is not None:
            console.print(f"\n[bold]{ask}[/bold]")
            ask_server(ask, max_tokens=160, base_url=f"{server.url}/v1")
        stopped.wait()
    except KeyboardInterrupt:
        pass
    finally:
        console.print("stopping")
        server.stop()


def start_table(server: "Server") -> Table:
    """Where the start went: seconds, bytes, GB/s and source of each stage."""
    table = Table(title="start", title_justify="left")
    table.add_column("stage")
    for column in ("seconds", "MB", "GB/s"):
        table.add_column(column, justify="right")
    table.add_column("from")
    for place, stages in (("", server.stages), ("replica: ", server.replica_stages)):
        for stage in stages:
            moved = stage.size_bytes > 0 and stage.source != "cache"  # what the cache has already is only looked at
            table.add_row(
                place + stage.name,
                f"{stage.seconds:.2f}",
                f"{stage.size_bytes / 1e6:.1f}" if stage.size_bytes else "",
                f"{stage.gb_per_s:.2f}" if moved else "",
                stage.source,
            )
    return table


def _on_interrupt(stopped: threading.Event) -> None:
    """Ctrl-C and SIGTERM break off a start, and end the wait once it serves."""

    def interrupt(*_: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def _with_overrides(
    release: Release, *, host: str | None, port: int | None, root: str | None, cache: Path | None
) -> Release:
    """The release with flags and environment on top of the file."""
    server: dict[str, Any] = {k: v for k, v in (("host", host), ("port", port)) if v is not None}
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
