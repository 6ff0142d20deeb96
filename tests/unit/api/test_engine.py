"""What the engine hears of a request."""

from starlette.types import Scope

from rag_stack.api.auth import CALLER
from rag_stack.api.engine import inner_scope
from rag_stack.api.waiting_room import HELD_SINCE


def test_the_engine_is_not_told_who_asks_nor_who_was_held() -> None:
    given: Scope = {"type": "http", "path": "/v1/completions", "state": {}, "headers": [(b"authorization", b"key")]}
    inner = inner_scope({**given, "router": object(), CALLER: "key", HELD_SINCE: 12.5})
    assert inner == {**given, "headers": []}
