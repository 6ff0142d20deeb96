"""What a server's answers look like on the wire, as far as the SDK reads them."""

from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from rag_stack.errors import EngineError
from rag_stack.protocol import RagBlock, VectorStore, Wire

ModelT = TypeVar("ModelT", bound=BaseModel)


class Text(Wire):
    """A message or a piece of one."""

    content: str | None = None


class Choice(Wire):
    """`message` in a whole answer, `delta` in a chunk."""

    index: int = 0
    message: Text | None = None
    delta: Text | None = None
    finish_reason: str | None = None


class CachedTokens(Wire):
    """Which part of the prompt was computed before."""

    cached_tokens: int | None = None


class UsageReply(Wire):
    """Tokens; engines leave the details out, or null."""

    prompt_tokens: int
    completion_tokens: int | None = None
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class Completion(Wire):
    """A whole answer, or a chunk of one."""

    model: str
    choices: list[Choice]
    usage: UsageReply | None = None
    rag: RagBlock | None = None


class ModelCard(Wire):
    """A model by name."""

    id: str


class ModelPage(Wire):
    """GET /v1/models."""

    data: list[ModelCard]


class StorePage(Wire):
    """GET /v1/vector_stores."""

    data: list[VectorStore] = Field(default_factory=list)
    has_more: bool = False


def parse(reply: object, model: type[ModelT]) -> ModelT:
    """Raises EngineError when the reply has another shape than ours: most often it is another kind of server."""
    try:
        return model.model_validate(reply)
    except ValidationError as exc:
        problem = exc.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "body"
        raise EngineError(
            f"the server's answer is not what a rag_stack server sends ({place}: {problem['msg']}); is base_url right?"
        ) from exc
