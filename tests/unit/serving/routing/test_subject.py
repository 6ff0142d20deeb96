"""What a body is about, whole, cut or not JSON at all."""

import gzip
import json
from typing import Any

import pytest

from rag_stack.serving.routing.subject import subject_of


def chat(*texts: str, **more: Any) -> bytes:
    messages = [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(texts)]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def words(body: bytes) -> set[int]:
    subject = subject_of(body)
    assert subject is not None
    return set(subject.words)


def test_a_question_is_about_its_content_words_whatever_stands_around_them() -> None:
    assert words(chat("What is a context manager?")) == words(chat("and what about context managers?"))
    assert not words(chat("What is a decorator?")) & words(chat("Who opens a socket?"))


def test_a_conversation_is_about_its_first_question() -> None:
    first = subject_of(chat("How do I reset my badge?"))
    assert subject_of(chat("How do I reset my badge?", "Ask the desk.", "And on Sunday?")) == first
    parts = [{"type": "text", "text": "How do I reset"}, {"type": "image_url"}, {"type": "text", "text": "my badge?"}]
    assert subject_of(json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]}).encode()) == first


def test_the_same_words_of_another_model_or_store_are_another_subject() -> None:
    other = json.dumps({"model": "m@store", "messages": [{"role": "user", "content": "badge"}]}).encode()
    assert not words(chat("badge")) & words(other)


def test_what_the_client_says_goes_before_its_words() -> None:
    one, other = (
        subject_of(chat("a badge", prompt_cache_key="handbook")),
        subject_of(chat("x", prompt_cache_key="handbook")),
    )
    assert one == other
    assert one is not None
    assert one.given
    for nothing in ("", "  ", 7, None, ["a"]):
        assert subject_of(chat("a badge", prompt_cache_key=nothing)) == subject_of(chat("a badge"))


def test_a_prompt_is_read_like_a_question() -> None:
    assert words(json.dumps({"model": "m", "prompt": "a badge"}).encode()) == words(chat("a badge"))
    assert words(json.dumps({"model": "m", "prompt": ["a badge", "b"]}).encode()) == words(chat("a badge"))


def test_of_a_body_that_was_cut_the_first_question_counts() -> None:
    whole = chat("How do I reset my badge today?", "x" * 100_000)
    cut = subject_of(whole[:65_536])
    assert cut is not None
    assert subject_of(whole) == cut


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"not json",
        b"null",
        b"[1, 2]",
        b'{"messages": 5}',
        b'{"messages": [5, null]}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
        b'{"prompt": [1, 2, 3]}',
        b'{"messages": [{"role": "user", "content": "what is the"}]}',
        b"[" * 65_536,
        gzip.compress(b'{"messages": [{"role": "user", "content": "badge"}]}', mtime=0),
    ],
)
def test_a_body_that_is_about_nothing_is_no_error(body: bytes) -> None:
    assert subject_of(body) is None


def test_a_huge_question_is_read_as_far_as_it_matters() -> None:
    subject = subject_of(chat(" ".join(f"word{n}" for n in range(50_000))))
    assert subject is not None
    assert len(subject.words) <= 48
    lone = json.dumps({"messages": [{"role": "user", "content": "\ud800 badge"}]}).encode()
    assert subject_of(lone) is not None


def test_a_body_that_is_cut_is_about_the_same_as_it_is_whole() -> None:
    question = {"content": 'How do I reset a badge\u2019s "code"?', "role": "user"}
    whole = json.dumps({"model": "m@store", "messages": [question], "pad": "x" * 30_000}).encode()
    assert words(whole) == words(whole[:20_000])
    late = json.dumps({"model": "m", "messages": [{"role": "system", "content": "s" * 20_000}, question, question]})
    assert words(late.encode()) == words(late.encode()[:-5])
    given = json.dumps({"model": "m", "messages": [question], "prompt_cache_key": " team 7 ", "pad": "x"}).encode()
    assert subject_of(given) == subject_of(given[:-3])
