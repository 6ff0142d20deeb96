"""What HAProxy itself answers is text: the official client asks again, and ours says that nothing could serve."""

import openai
import pytest

from rag_stack.client import Client
from rag_stack.errors import UnavailableError
from tests.scripted import Reply, build_scripted
from tests.servers import serve

CHAT = "POST /v1/chat/completions"
ANSWER = Reply(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    }
)
# Found in Ray 2.60: HAProxy's own 502, 503 and 504 leave as a 500, its router's failure as a 503; all as text.
TEXTS = [(500, "Internal Server Error"), (502, "Bad Gateway"), (503, "Service Unavailable"), (504, "Gateway Timeout")]


@pytest.mark.parametrize(("status", "text"), TEXTS)
def test_the_official_client_asks_again(status: int, text: str) -> None:
    app = build_scripted({CHAT: [Reply(text, status=status, headers={"retry-after-ms": "1"}), ANSWER]})
    with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "q"}])
    assert reply.choices[0].message.content == "yes"
    assert [received.route for received in app.state.received] == [CHAT, CHAT]


@pytest.mark.parametrize(("status", "text"), TEXTS)
def test_our_client_says_that_nothing_could_serve(status: int, text: str) -> None:
    app = build_scripted({CHAT: Reply(text, status=status)})
    with serve(app) as url, Client(base_url=f"{url}/v1", max_retries=0) as client, pytest.raises(UnavailableError):
        client.ask("q", model="m")
