"""What a request is about, read from its body in the router: the client's own key, or the words of its question."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rag_stack.rag.words import STOP_WORDS

_WORD: Final = re.compile(r"\w+")
# What is read of a question: enough for its words, little enough for a router.
_CHARS: Final = 4096
_WORDS: Final = 48
_KEY_CHARS: Final = 1024
# Of a body that HAProxy's buffer has cut: its model, the key that it gives, and its first message of a user, wherever
# that ends.
_STRING: Final = r'"((?:[^"\\]|\\.)*)'
_CUT_MODEL: Final = re.compile(rf'"model"\s*:\s*{_STRING}"')
_CUT_KEY: Final = re.compile(rf'"prompt_cache_key"\s*:\s*{_STRING}"')
_CUT_TEXT: Final = re.compile(
    rf'"role"\s*:\s*"user"\s*,\s*"content"\s*:\s*{_STRING}'
    rf'|"content"\s*:\s*{_STRING}"\s*,\s*"role"\s*:\s*"user"'
    rf'|"prompt"\s*:\s*{_STRING}'
)


@dataclass(frozen=True, slots=True)
class Subject:
    """Hashes of what a request is about, none twice; the same in every router.

    `given` where the client has said it with `prompt_cache_key`: that is then the only one.
    """

    words: tuple[int, ...]
    given: bool = False


def subject_of(body: bytes) -> Subject | None:
    """The subject of an OpenAI request's body, whole or cut; None where it has none. Raises nothing.

    A conversation's subject is that of its first question, so that the later ones find what they share with it.
    """
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return _of_cut(body.decode("utf-8", "replace"))
    if not isinstance(told, dict):
        return None
    # A model's name may say which store is asked.
    model, key = told.get("model"), told.get("prompt_cache_key")
    model = model if isinstance(model, str) else ""
    return _of_key(key, model) if isinstance(key, str) and key.strip() else _of(_first_question(told), model)


def _first_question(told: dict[str, Any]) -> str:
    messages = told.get("messages")
    if isinstance(messages, list):
        users = (each for each in messages if isinstance(each, dict) and each.get("role") == "user")
        return _text(next(users, {}).get("content"))
    return _text(told.get("prompt"))


def _text(content: object) -> str:
    match content:
        case str():
            return content
        case [str() as first, *_]:
            return first
        case list():
            texts = (part.get("text") for part in content if isinstance(part, dict))
            return " ".join(text for text in texts if isinstance(text, str))
        case _:
            return ""


def _of_cut(body: str) -> Subject | None:
    named = _CUT_MODEL.search(body)
    model = _unescaped(named[1]) if named else ""
    if (key := _CUT_KEY.search(body)) and key[1].strip():
        return _of_key(_unescaped(key[1]), model)
    found = _CUT_TEXT.search(body)
    return _of(_unescaped(next(filter(None, found.groups()), "")), model) if found else None


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        # Cut within an escape.
        return re.sub(r"\\(?:u[0-9a-fA-F]{0,4}|.?)", " ", text)


def _of_key(key: str, model: str) -> Subject:
    return Subject((_hash(model, key.strip()[:_KEY_CHARS]),), given=True)


def _of(text: str, model: str) -> Subject | None:
    words = tuple(dict.fromkeys(_hash(model, word) for word in _content_words(text[:_CHARS])))[:_WORDS]
    return Subject(words) if words else None


def _content_words(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.lower()):
        if word not in STOP_WORDS:
            # The plural and its singular are about the same.
            yield word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word


def _hash(model: str, word: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{model}\0{word}".encode("utf-8", "replace"), digest_size=8).digest(), "big")
