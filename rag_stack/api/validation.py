"""From a part of a body to a wire model. What is wrong is told in one short message, however much of it is wrong."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from rag_stack.config import describe
from rag_stack.errors import InvalidRequestError

# A model reports every wrong value, several times where types are alternatives: small bodies would make huge errors.
_MAX_VALUES = 4096
_MAX_DEPTH = 32
_MAX_MESSAGE_CHARS = 1000

M = TypeVar("M", bound=BaseModel)


def validated(
    model: type[M], given: object, *, where: str = "", param: str | None = None, max_values: int = _MAX_VALUES
) -> M:
    """`given` as a `model`; null means left out, and fields that the model does not know are not looked at.

    `where` opens the message. Raises InvalidRequestError; without a `param` it names the first field that is wrong.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(given, Mapping):
        raise InvalidRequestError(f"{prefix}expected an object, got {type(given).__name__}", param=param)
    known = {name: given[name] for name in model.model_fields if given.get(name) is not None}
    for name, value in known.items():
        _check_size(value, where=f"{prefix}{name}", param=param or name, max_values=max_values)
    try:
        return model.model_validate(known)
    except ValidationError as exc:
        named = str(exc.errors(include_input=False)[0]["loc"][0])
        raise InvalidRequestError(prefix + describe(exc)[:_MAX_MESSAGE_CHARS], param=param or named) from exc


def _check_size(value: object, *, where: str, param: str, max_values: int) -> None:
    values, waiting = 0, [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        inside = list(each.values()) if isinstance(each, dict) else each if isinstance(each, list) else []
        values += len(inside)
        if values > max_values:
            raise InvalidRequestError(f"{where}: more than {max_values} values", param=param)
        if depth > _MAX_DEPTH:
            raise InvalidRequestError(f"{where}: nested more than {_MAX_DEPTH} levels deep", param=param)
        waiting.extend((inner, depth + 1) for inner in inside)
