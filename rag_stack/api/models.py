"""GET /v1/models and /v1/models/{id}: the release's model and its `model@store` aliases, awake or not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from rag_stack.errors import NotFoundError

Starter: TypeAlias = Literal["replica", "command"]


class Starts:
    """The last known starts: of a replica, and of the command that started the server, if one did."""

    def __init__(self) -> None:
        self._cards: dict[Starter, dict[str, Any]] = {}

    def keep(self, starter: Starter, card: Mapping[str, Any]) -> None:
        """Take over a report; of several the newest stays, whatever the order in which they come."""
        kept = self._cards.get(starter)
        if kept is None or kept["ready_at"] <= card["ready_at"]:
            self._cards[starter] = dict(card)

    def load(self) -> dict[str, Any] | None:
        """The last replica's start, with the command's as `command` in it; None before any is known."""
        command = {"command": self._cards["command"]} if "command" in self._cards else {}
        return {**self._cards.get("replica", {}), **command} or None


@dataclass(frozen=True, slots=True)
class Models:
    """The handlers. `stores` gives those there are now, `load` how the model's last start went (None: not known).

    `engine` gives how the engine is: its state and, in seconds, the estimate of when it serves.
    """

    model: str
    stores: Callable[[], Sequence[str]]
    created_at: int
    load: Callable[[], Mapping[str, Any] | None] = lambda: None
    engine: Callable[[], Mapping[str, Any]] = dict

    def routes(self) -> list[Route]:
        """What this owns."""
        return [
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.get_model, methods=["GET"]),
        ]

    async def list_models(self, _: Request) -> JSONResponse:
        """All names that a request may give as its model."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._names()]})

    async def get_model(self, request: Request) -> JSONResponse:
        """One of them, asleep or not: `state`, `estimate_seconds`, and the stages of its last start as `load`."""
        name = request.path_params["model"]
        if name not in self._names():
            raise NotFoundError(f"the model {name!r} does not exist; there are {self._names()}", param="model")
        load = self.load()
        return JSONResponse(self._card(name) | dict(self.engine()) | ({} if load is None else {"load": dict(load)}))

    def _names(self) -> list[str]:
        return [self.model, *(f"{self.model}@{store}" for store in self.stores())]

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.created_at, "owned_by": "rag_stack"}
