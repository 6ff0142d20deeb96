"""`python -m rag_stack.activator`: what the activator's pod runs."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from rag_stack.activator.activator import Activator
from rag_stack.activator.cluster import Cluster, in_cluster
from rag_stack.activator.settings import Settings
from rag_stack.errors import RagStackError

_BACKLOG = 1024


def main(
    namespace: Annotated[str, typer.Option(envvar="RAG_STACK_NAMESPACE", help="Of the RayService and the Lease.")],
    service: Annotated[str, typer.Option(envvar="RAG_STACK_SERVICE", help="The RayService.")] = "rag-stack",
    identity: Annotated[
        str, typer.Option(envvar="RAG_STACK_POD", help="This activator's own name; by default the host's.")
    ] = "",
    upstream: Annotated[
        str, typer.Option(envvar="RAG_STACK_UPSTREAM", help="By default http://SERVICE-serve-svc.NAMESPACE:8000.")
    ] = "",
    lease: Annotated[str, typer.Option(envvar="RAG_STACK_LEASE", help="The Lease.")] = "rag-stack-activator",
    idle_s: Annotated[
        float, typer.Option(envvar="RAG_STACK_IDLE_S", min=0, help="Suspend after so long without a request; 0: never.")
    ] = 1800.0,
    wake_limit_s: Annotated[
        float, typer.Option(envvar="RAG_STACK_WAKE_LIMIT_S", min=1, help="A wake that takes longer has failed.")
    ] = 900.0,
    heartbeat_s: Annotated[
        float, typer.Option(envvar="RAG_STACK_HEARTBEAT_S", help="Who waits hears so often.")
    ] = 10.0,
    drain_s: Annotated[
        float, typer.Option(envvar="RAG_STACK_DRAIN_S", min=0, help="Requests have so long to end after SIGTERM.")
    ] = 900.0,
    hold_requests: Annotated[int, typer.Option(envvar="RAG_STACK_HOLD_REQUESTS", min=1)] = 1000,
    hold_bytes: Annotated[int, typer.Option(envvar="RAG_STACK_HOLD_BYTES", min=1024)] = 256 * 1024 * 1024,
    hold_body_bytes: Annotated[int, typer.Option(envvar="RAG_STACK_HOLD_BODY_BYTES", min=1024)] = 32 * 1024 * 1024,
    keys: Annotated[
        Path | None, typer.Option(envvar="RAG_STACK_KEYS_DIRECTORY", help="Files `api` and `admin`, a key a line.")
    ] = None,
    host: Annotated[str, typer.Option(envvar="RAG_STACK_HOST")] = "0.0.0.0",  # noqa: S104 - in a pod
    port: Annotated[int, typer.Option(envvar="RAG_STACK_PORT", min=1, max=65535, help="For clients.")] = 8000,
    ops_port: Annotated[
        int, typer.Option(envvar="RAG_STACK_OPS_PORT", min=1, max=65535, help="For probes and Prometheus.")
    ] = 8081,
    api: Annotated[
        str, typer.Option(envvar="RAG_STACK_KUBERNETES", help="URL of an API server, outside of a cluster.")
    ] = "",
) -> None:
    """Suspend an idle RayService, and wake it for the first request. See rag_stack/activator."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = Settings(
            namespace=namespace,
            service=service,
            identity=identity or socket.gethostname(),
            upstream=upstream or f"http://{service}-serve-svc.{namespace}:8000",
            lease=lease,
            host=host,
            port=port,
            ops_port=ops_port,
            idle_s=idle_s,
            wake_limit_s=wake_limit_s,
            heartbeat_s=heartbeat_s,
            drain_s=drain_s,
            hold_requests=hold_requests,
            hold_bytes=hold_bytes,
            hold_body_bytes=hold_body_bytes,
            keys=keys,
        )
        cluster = Cluster(api, None, None) if api else in_cluster(os.environ)
        asyncio.run(serve(settings, cluster))
    except RagStackError as exc:
        typer.echo(exc.message, err=True)
        raise typer.Exit(1) from exc


async def serve(settings: Settings, cluster: Cluster) -> None:
    """Until SIGTERM or Ctrl-C; then requests under way have `drain_s`."""
    async with cluster.client() as client:
        activator = Activator(settings, client)
        config = uvicorn.Config(
            activator.by_port(),
            log_level="warning",
            ws="none",
            lifespan="off",
            # Longer than a load balancer keeps a connection that it may still use.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(settings.drain_s),
        )
        sockets = [_listen(settings.host, port) for port in (settings.port, settings.ops_port)]
        server = _Server(config)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
        async with activator.running():
            await server.serve(sockets=sockets)


class _Server(uvicorn.Server):
    """Ends when it is told to, and lets the program end after it: uvicorn would send itself the signal once more."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by the loop."""
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG, reuse_port=False)


if __name__ == "__main__":
    typer.run(main)
