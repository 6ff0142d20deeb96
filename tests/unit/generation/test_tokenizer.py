"""Counting prompts with a real tokenizer file and real chat templates."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from rag_stack.errors import InvalidRequestError
from rag_stack.generation.tokenizer import GeneratorTokenizer

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('one system message, first') }}{% endif %}"
    "{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
USER = {"role": "user", "content": "one two three"}


def saved(folder: Path, template: str | None) -> Path:
    words = Tokenizer(WordLevel({"<unk>": 0, "one": 1, "two": 2, "three": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    return folder


def test_the_template_counts(tmp_path: Path) -> None:
    assert GeneratorTokenizer(saved(tmp_path, TEMPLATE)).count([USER]) == 5


def test_without_a_template_the_text_alone_counts(tmp_path: Path) -> None:
    assert GeneratorTokenizer(saved(tmp_path, None)).count([USER]) == 3


@pytest.mark.parametrize("text", ["", "one", "one two three one two three one"])
def test_a_text_counts_whole_even_where_the_file_cuts_and_fills_up(tmp_path: Path, text: str) -> None:
    file = saved(tmp_path, TEMPLATE) / "tokenizer.json"
    cuts = Tokenizer.from_file(str(file))
    cuts.enable_truncation(2)
    cuts.enable_padding(length=2)
    cuts.save(str(file))
    tokenizer = GeneratorTokenizer(tmp_path)
    counted = tokenizer.count_text(text)
    assert counted == len(text.split()) == len(tokenizer.encode_text(text))


def test_a_tokenizer_that_is_not_rust_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = GeneratorTokenizer(saved(tmp_path, TEMPLATE))
    monkeypatch.setattr(tokenizer, "_backend", None)
    assert tokenizer.count_text("one two") == 2


def test_messages_that_the_template_refuses_are_the_clients_mistake(tmp_path: Path) -> None:
    tokenizer = GeneratorTokenizer(saved(tmp_path, TEMPLATE))
    with pytest.raises(InvalidRequestError, match="one system message"):
        tokenizer.count([USER, {"role": "system", "content": "late"}])
