"""Calls of a server's /admin routes, with the operator's key from RAG_STACK_ADMIN_KEY."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Final, cast

import httpx
import typer

from rag_stack.client.endpoint import resolve_endpoint
from rag_stack.errors import EngineError, RagStackError, UnavailableError

ADMIN_KEY_VARIABLE: Final = "RAG_STACK_ADMIN_KEY"
_TIMEOUT_S: Final = 60.0

Server = Annotated[
    str | None,
    typer.Option("--server", help="Ask a running server, with RAG_STACK_ADMIN_KEY, and not the object store."),
]


class AdminCalls:
    """One server's. Other routes than /admin want a client's key, from RAG_STACK_API_KEY."""

    def __init__(self, server: str, *, as_admin: bool = True) -> None:
        endpoint = resolve_endpoint(server, api_key=os.environ.get(ADMIN_KEY_VARIABLE) if as_admin else None)
        self._root = endpoint.base_url.removesuffix("/v1")
        self._headers = {"authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}

    def get(self, path: str) -> dict[str, Any]:
        """A GET's answer. Raises RagStackError with what the server says, UnavailableError when it says nothing."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A POST's answer. Raises as `get`."""
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        url = f"{self._root}{path}"
        try:
            answer = httpx.request(method, url, json=body, headers=self._headers, timeout=_TIMEOUT_S)
        except httpx.HTTPError as exc:
            raise UnavailableError(f"no answer from {url}: {exc or type(exc).__name__}; does the server run?") from exc
        try:
            told = answer.json()
        except ValueError as exc:
            raise EngineError(f"{url} answered {answer.status_code} and no JSON; is it a rag_stack server?") from exc
        if answer.status_code >= 400:
            message = told.get("error", {}).get("message") if isinstance(told, dict) else None
            raise RagStackError(f"{url} answered {answer.status_code}: {message or answer.text[:200]}")
        return cast(dict[str, Any], told)
