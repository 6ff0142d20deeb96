"""`rag-stack ask`: a question to a running server, answered as it is generated."""

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Console

from rag_stack.cli.failure import one_line_failures
from rag_stack.cli.output import print_answer_footer, printable
from rag_stack.client import Answer, AskOptions, Client
from rag_stack.client.endpoint import BASE_URL_VARIABLE, DEFAULT_BASE_URL

BaseUrl = Annotated[
    str | None, typer.Option("--base-url", envvar=BASE_URL_VARIABLE, help=f"The server; by default {DEFAULT_BASE_URL}.")
]
Store = Annotated[str | None, typer.Option("--store", help="The store to search.")]
Stores = Annotated[list[str] | None, typer.Option("--store", help="A store to search; may be given several times.")]


def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    store: Stores = None,
    model: Annotated[str | None, typer.Option("--model", help="The model, if the server has several.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, max=50, help="How many passages to use.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Length of the answer.")] = None,
    base_url: BaseUrl = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Wait for the whole answer.")] = False,
) -> None:
    """Ask a question; the answer comes with its sources and citations.

    A key, where the server wants one, is read from RAG_STACK_API_KEY.
    """
    options = AskOptions(store=store or None, model=model, top_k=top_k, max_tokens=max_tokens)
    console = Console(highlight=False)
    with one_line_failures(), Client(base_url=base_url) as client:
        if as_json:
            typer.echo(json.dumps(to_json(client.ask(question, **options)), ensure_ascii=False))
            return
        answer = client.ask(question, **options) if no_stream else _stream(client, question, options)
        if no_stream:
            typer.echo(printable(answer.text))
        print_answer_footer(console, answer)


def to_json(answer: Answer) -> dict[str, Any]:
    """The answer as one JSON object."""
    fields = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    return {
        **fields,
        "citations": [citation.model_dump() for citation in answer.citations],
        "sources": [source.model_dump(exclude_none=True) for source in answer.sources],
        "timings_ms": dict(answer.timings_ms),
        "index_versions": dict(answer.index_versions),
        "usage": None if answer.usage is None else dataclasses.asdict(answer.usage),
    }


def _stream(client: Client, question: str, options: AskOptions) -> Answer:
    """Print the text as it comes; a failure in the middle begins on a line of its own."""
    with client.stream(question, **options) as stream:
        try:
            for text in stream:
                typer.echo(printable(text), nl=False)
        finally:
            typer.echo()
        return stream.answer
