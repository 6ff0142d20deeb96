"""The Python SDK: ask, stream and search, with typed answers and typed failures.

    from rag_stack.client import Client

    with Client(base_url="http://127.0.0.1:8000/v1") as client:
        answer = client.ask("How do I define a coroutine?")

Needs the base install only. `Client.openai` is the official client underneath, for everything else in OpenAI's API.
"""

from rag_stack.client.answer import Answer, Usage
from rag_stack.client.client import AsyncClient, Client
from rag_stack.client.plan import AskOptions, SearchOptions, SearchResults
from rag_stack.client.stream import AnswerStream, AsyncAnswerStream

__all__ = [
    "Answer",
    "AnswerStream",
    "AskOptions",
    "AsyncAnswerStream",
    "AsyncClient",
    "Client",
    "SearchOptions",
    "SearchResults",
    "Usage",
]
