"""`rag-stack serve RELEASE.yaml`."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rag_stack.cli.ask import ask as ask_server
from rag_stack.cli.failure import one_line_failures
from rag_stack.config import load_release

if TYPE_CHECKING:
    from rag_stack.serving.start_report import StartReport


def serve(
    release: Annotated[Path, typer.Argument(help="The release file.", exists=False)],
    host: Annotated[str | None, typer.Option(envvar="RAG_STACK_HOST", help="Where to listen.")] = None,
    port: Annotated[int | None, typer.Option(envvar="RAG_STACK_PORT", min=1, max=65535)] = None,
    root: Annotated[str | None, typer.Option(envvar="RAG_STACK_ROOT", help="URL of the object store.")] = None,
    cache: Annotated[Path | None, typer.Option(envvar="RAG_STACK_CACHE", help="The node's cache directory.")] = None,
    ask: Annotated[str | None, typer.Option(help="Ask this once the server is ready, and keep serving.")] = None,
) -> None:
    """Serve a release on this machine until Ctrl-C.

    Keys that may call are given as SHA-256 digests in the file, or in RAG_STACK_API_KEYS, separated by commas; those
    that may call /admin likewise, in RAG_STACK_ADMIN_KEYS. RAG_STACK_KEYS_DIRECTORY names a directory with more, one a
    line in the files `api` and `admin`.
    """
    from rag_stack.serving import startup
    from rag_stack.serving.overrides import with_overrides

    console = Console(stderr=True)
    stopped = threading.Event()
    _on_interrupt(stopped)
    with one_line_failures():
        chosen = with_overrides(load_release(release), host=host, port=port, root=root, cache=cache)
        with console.status("starting") as status:
            server = startup.start(chosen, tell=status.update)
    _on_interrupt(stopped)  # again: Ray has put handlers of its own in place of ours
    console.print(start_table(server.report))
    if chosen.server.host not in ("127.0.0.1", "localhost", "::1") and not chosen.server.api_key_sha256:
        console.print("[yellow]open to the network without a key: set RAG_STACK_API_KEYS[/yellow]")
    if server.notice:
        console.print(server.notice, style="yellow", markup=False)
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
        console.print(f"stopping: answers under way have {server.drain_s:g} s; Ctrl-C again breaks them off")
        server.stop()


def start_table(report: "StartReport") -> Table:
    """Where the start went, in the order of its stages. `waited` adds up to the whole; what ran beside counts 0."""
    breakdown = report.breakdown()
    table = Table(title="start", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("process", no_wrap=True, min_width=11)
    table.add_column("stage", no_wrap=True)
    for column in ("seconds", "waited", "MB", "GB/s"):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    table.add_column("from", min_width=12)
    for stage in breakdown.stages:
        span = stage.span
        moved = (f"{span.size_bytes / 1e6:.1f}", f"{span.gb_per_s:.2f}") if span.size_bytes else ("", "")
        cells = (f"{span.seconds:.2f}", f"{stage.critical_s:.2f}", *moved, span.source)
        table.add_row(span.process, Text(span.name), *cells, style="dim" if span.beside else "")
    table.add_section()
    table.add_row("", f"unnamed ({breakdown.unnamed_share:.1%})", "", f"{breakdown.unnamed_s:.2f}")
    table.add_row("", "whole", "", f"{breakdown.seconds:.2f}", style="bold")
    return table


def _on_interrupt(stopped: threading.Event) -> None:
    """Ctrl-C and SIGTERM break off a start, and end the wait once it serves."""

    def interrupt(*_: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
