"""What the official client needs, unchanged, from a server of ours. Any server with a store and a `base_url` can be checked."""

import openai
import pytest
from openai.types.chat import ChatCompletion

QUESTION = "When does the harbour of Alden freeze?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def base_url(layer_url: str) -> str:
    """The real layer around the deterministic engine, with the store "town" as its default."""
    return f"{layer_url}/v1"


@pytest.fixture
def client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="any", max_retries=0)


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id
