"""`rag-stack search`: the passages nearest to a query, from a running server."""

import json
from typing import Annotated

import typer
from rich.console import Console

from rag_stack.cli.ask import BaseUrl, Store
from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.output import print_hits
from rag_stack.client import Client
from rag_stack.client.plan import Ranker


def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    store: Store = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, max=50, help="How many passages.")] = 10,
    ranker: Annotated[
        Ranker | None, typer.Option("--ranker", help="auto, none (no reranker), hybrid, dense or lexical.")
    ] = None,
    base_url: BaseUrl = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the hits as JSON.")] = False,
) -> None:
    """Search a store without asking the model."""
    with one_line_failures(), Client(base_url=base_url) as client:
        results = client.search(query, store=store, top_k=top_k, ranker=ranker)
    if as_json:
        body = {
            "store": results.store,
            "index_version": results.index_version,
            "timings_ms": dict(results.timings_ms),
            "hits": [hit.model_dump() for hit in results],
        }
        typer.echo(json.dumps(body, ensure_ascii=False))
        return
    print_hits(Console(highlight=False), results)
