"""The rules that custom kinds' definitions carry, in the Common Expression Language."""

import functools
import re
from collections.abc import Iterator
from typing import Any, Final

import cel

from deploy.verify.crd_schema import definition_of, with_defaults
from deploy.verify.prerequisite import is_custom
from deploy.verify.rendered import Document, Flaw, Rendered, api_group, title

# Field names that are words of the language are written so in rules.
_RESERVED: Final = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)


def definition_rules(overlay: Rendered) -> Iterator[Flaw]:
    """Each rule of a definition holds for what is created. Rules about a change are not asked: nothing changes yet."""
    for document in overlay.documents:
        if not is_custom(api_group(document)):
            continue
        definition = definition_of(document)
        if definition is not None:
            stored = with_defaults(document, definition.schema)
            for place, message in broken(stored, definition.schema):
                yield Flaw(title(document), f"{place or 'the document'}: {message}")


RULES: Final = (definition_rules,)


def broken(value: Any, schema: Document, place: str = "") -> Iterator[tuple[str, str]]:
    """The rules of a schema, and of all schemas in it, that a value breaks: where, and their message."""
    for rule in schema.get("x-kubernetes-validations") or []:
        if not re.search(r"\boldSelf\b", rule["rule"]) and not _program(rule["rule"]).execute(
            {"self": _escaped(value)}
        ):
            yield place, rule.get("message") or f"the rule `{rule['rule']}` does not hold"
    if isinstance(value, dict):
        for name, each in value.items():
            inner = (schema.get("properties") or {}).get(name, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                yield from broken(each, inner, f"{place}.{name}".removeprefix("."))
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index, each in enumerate(value):
            yield from broken(each, schema["items"], f"{place}.{index}")


@functools.cache
def _program(rule: str) -> cel.Program:
    return cel.compile(rule)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {f"__{key}__" if key in _RESERVED else key: _escaped(each) for key, each in value.items()}
    return [_escaped(each) for each in value] if isinstance(value, list) else value
