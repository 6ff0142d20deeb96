"""Chunks are verbatim slices within the budget that cover the document."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from rag_stack.index.chunking import chunk, token_count
from rag_stack.index.sections import TextFormat

# BERT's rules over a vocabulary of single characters: each word is many tokens, so budgets and long words matter.
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?#=-*`\"'()é한"
_VOCABULARY = {token: n for n, token in enumerate(["[UNK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)])}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(WordPiece(_VOCABULARY, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = BertNormalizer()
    made.pre_tokenizer = BertPreTokenizer()
    return made


_TEXTS = st.lists(
    st.one_of(
        st.text(alphabet='ab é한.!?\n\t #=-*`\u200b\u0301\r"中', max_size=40),
        st.sampled_from(
            ["# Title\n", "\n\n", "Heading\n=======\n", "One sentence. ", "x" * 90 + " ", "```\n# no\n```\n", "\u2028"]
        ),
    ),
    max_size=30,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    text=_TEXTS,
    budget=st.tuples(st.integers(16, 60), st.integers(0, 8)),
    text_format=st.sampled_from(["text", "markdown"]),
)
def test_chunks_are_verbatim_cover_the_text_and_hold_the_budget(
    tokenizer: Tokenizer, text: str, budget: tuple[int, int], text_format: TextFormat
) -> None:
    max_tokens, overlap_tokens = budget
    chunks = chunk(
        text, tokenizer=tokenizer, max_tokens=max_tokens, overlap_tokens=overlap_tokens, text_format=text_format
    )
    covered: set[int] = set()
    for each in chunks:
        piece = text[each.start : each.end]
        assert piece, "no chunk is empty"
        assert piece == piece.strip()
        assert token_count(tokenizer, piece) <= max_tokens
        covered.update(range(each.start, each.end))
    if token_count(tokenizer, text):
        assert {n for n, character in enumerate(text) if not character.isspace()} <= covered
    else:
        assert chunks == []
    assert [each.start for each in chunks] == sorted({each.start for each in chunks}), "each chunk starts further on"
    for left, right in pairwise(chunks):
        if right.start < left.end:
            assert token_count(tokenizer, text[right.start : left.end]) <= overlap_tokens


def test_markdown_is_cut_at_headings_and_titled_with_their_path(tokenizer: Tokenizer) -> None:
    install = "## Install\n\nsecond\n\n```\n# a comment\n```"
    text = f"intro\n\n# Guide\n\nfirst\n\n{install}\n\nSetup\n-----\n\nthird\n\n# Other\n\nlast\n"
    chunks = chunk(text, tokenizer=tokenizer, max_tokens=200, overlap_tokens=20, text_format="markdown")
    assert [each.title for each in chunks] == ["", "Guide", "Guide > Install", "Guide > Setup", "Other"]
    assert text[chunks[2].start : chunks[2].end] == install


def test_a_heading_without_a_body_goes_with_the_next(tokenizer: Tokenizer) -> None:
    text = "# Guide\n\n## Install\n\nrun it\n"
    (only,) = chunk(text, tokenizer=tokenizer, max_tokens=200, overlap_tokens=20, text_format="markdown")
    assert only.title == "Guide > Install"
    assert text[only.start : only.end] == text.strip()


def test_underlined_headings_of_plain_text(tokenizer: Tokenizer) -> None:
    book, detail = "****\nBook\n****\n\nstart", "Detail\n------\n\nmore"
    text = f"{book}\n\nPart one\n========\n\nbody\n\n{detail}\n\nPart two\n========\n\nend\n"
    chunks = chunk(text, tokenizer=tokenizer, max_tokens=200, overlap_tokens=20, text_format="text")
    titles = [each.title for each in chunks]
    assert titles == ["Book", "Book > Part one", "Book > Part one > Detail", "Book > Part two"]
    assert text[chunks[0].start : chunks[0].end] == book


def test_cuts_fall_between_paragraphs_then_sentences(tokenizer: Tokenizer) -> None:
    paragraphs = "aaaa bbbb cccc.\n\ndddd eeee ffff."
    chunks = chunk(paragraphs, tokenizer=tokenizer, max_tokens=24, overlap_tokens=0)
    assert [paragraphs[c.start : c.end] for c in chunks] == ["aaaa bbbb cccc.", "dddd eeee ffff."]
    sentences = "aaaa bbbb cc. dddd eeee ffff gg."
    chunks = chunk(sentences, tokenizer=tokenizer, max_tokens=20, overlap_tokens=0)
    assert [sentences[c.start : c.end] for c in chunks] == ["aaaa bbbb cc.", "dddd eeee ffff gg."]


def test_neighbours_share_a_whole_sentence(tokenizer: Tokenizer) -> None:
    text = "aaaa aaaa aa. bb bb. cccc cccc cccc. dddd dddd."
    chunks = chunk(text, tokenizer=tokenizer, max_tokens=20, overlap_tokens=6)
    assert [text[c.start : c.end] for c in chunks] == ["aaaa aaaa aa. bb bb.", "bb bb. cccc cccc cccc.", "dddd dddd."]


def test_a_text_without_words_gives_nothing(tokenizer: Tokenizer) -> None:
    assert chunk("", tokenizer=tokenizer, max_tokens=20, overlap_tokens=0) == []
    assert chunk(" \n\t ", tokenizer=tokenizer, max_tokens=20, overlap_tokens=0) == []


def test_an_overlap_over_half_of_the_budget_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="half of max_tokens"):
        chunk("a", tokenizer=tokenizer, max_tokens=20, overlap_tokens=11)
