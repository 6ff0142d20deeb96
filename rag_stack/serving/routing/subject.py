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
# Of a body that HAProxy's buffer has cut: the text of its first message of a user, wherever it ends.
_CUT: Final = re.compile(
    r'"role"\s*:\s*"user"\s*,\s*"content"\s*:\s*"((?:[^"\\]|\\.)*)|"prompt"\s*:\s*"((?:[^"\\]|\\.)*)'
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
        return _of(_cut(body), model="")
    if not isinstance(told, dict):
        return None
    model = told.get("model")
    model = model if isinstance(model, str) else ""
    key = told.get("prompt_cache_key")
    if isinstance(key, str) and key.strip():
        return Subject((_hash(model, key.strip()[:_KEY_CHARS]),), given=True)
    return _of(_first_question(told), model=model)


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


def _cut(body: bytes) -> str:
    found = _CUT.search(body[: 2 * _CHARS].decode("utf-8", "replace"))
    return re.sub(r"\\[nrt]", " ", found[1] or found[2] or "") if found else ""


def _of(text: str, *, model: str) -> Subject | None:
    words = tuple(dict.fromkeys(_hash(model, word) for word in _content_words(text[:_CHARS])))[:_WORDS]
    return Subject(words) if words else None


def _content_words(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.lower()):
        if word not in STOP_WORDS:
            # The plural and its singular are about the same.
            yield word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word


def _hash(model: str, word: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{model}\0{word}".encode("utf-8", "replace"), digest_size=8).digest(), "big")
