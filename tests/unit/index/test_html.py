"""Pages as they are found -> Markdown whose headings make sections."""

import time

import pytest

from rag_stack.errors import DocumentError
from rag_stack.index.html import to_markdown
from rag_stack.index.sections import sections

_PAGE = """<!DOCTYPE html>
<html><head><title>The guide &mdash;
  Docs</title><style>p {color: red}</style><script>document.write("<p>no</p>")</script></head>
<body><nav><ul><li>Home</ul></nav><header><h1>The site</h1></header><div role="search">Search</div>
<main><article><header><h1>Guide<a class="headerlink" href="#guide">¶</a></h1></header>
<p>A snake_case *word*, <b>bold</b> &amp; <a href="https://x.example/">linked</a>. 2 &lt; 3.
<p>A second with <code>a_b()</code>.
<h2>Install</h2>
<pre><code class="language-python">import os

def f(x):
    return x
</code></pre>
<ul><li>one<li>two<ul><li>inner</ul></ul>
<table><tr><th>A<th>B<tr><td>1<td>2</table>
<img src="x.png" alt="A diagram"><p hidden>unseen</p></article></main>
<aside>Buy this</aside><footer>Imprint</footer></body></html>"""


def test_the_content_is_kept_and_what_is_around_it_dropped() -> None:
    text, title = to_markdown(_PAGE.encode())
    assert title == "The guide — Docs"
    assert text == (
        "# Guide\n\nA snake_case *word*, bold & linked. 2 < 3.\n\nA second with `a_b()`.\n\n## Install\n\n"
        "```\nimport os\n\ndef f(x):\n    return x\n```\n\n- one\n- two\n  - inner\n\n"
        "| A | B |\n| --- | --- |\n| 1 | 2 |\n\nA diagram\n"
    )


def test_headings_are_sections() -> None:
    text, _ = to_markdown(_PAGE.encode())
    assert [each.title for each in sections(text, text_format="markdown")] == ["Guide", "Guide > Install"]


def test_without_a_main_part_the_body_is_taken() -> None:
    assert to_markdown(b"<article>one</article><article>two</article><p>three")[0] == "one\n\ntwo\n\nthree\n"
    assert to_markdown(b"<p>outside<article>inside</article>")[0] == "inside\n"
    assert to_markdown(b"<div role=main>inside</div>outside")[0] == "inside\n"
    assert to_markdown(b"<main> </main><p>all the rest")[0] == "all the rest\n", "an empty one is no content"


@pytest.mark.parametrize(
    "data",
    [
        "<p>naïve".encode(),
        "\ufeff<p>naïve".encode(),
        "\ufeff<p>naïve".encode("utf-16-le"),
        '<meta charset="utf-8"><p>naïve'.encode(),
        b'<meta charset="latin1"><p>na\xefve',
        b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1252"><p>na\xefve',
        b'<?xml version="1.0" encoding="iso-8859-1"?><html><body>na\xefve</body></html>',
        '<meta charset="utf-16"><p>naïve'.encode(),
        '<meta charset="no-such"><p>naïve'.encode(),
    ],
)
def test_the_encoding_is_found(data: bytes) -> None:
    assert to_markdown(data)[0] == "naïve\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<body><script>render()</script></body>", "holds no text; a page that a script fills"),
        (b"<title>only a title</title>", "holds no text"),
        (b"<p>na\xefve", "is not utf-8, which it declares or, declaring none, should be"),
        (b'<meta charset="shift_jis">\xff\xff', "is not shift_jis"),
        (b'<meta charset="rot13"><p>x', "is not rot-13"),
        (b"<p>a\0b", "is binary"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        to_markdown(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"<div>" * 5000 + b"deep <b>word</b>", "word"),
        (b"<p>word " * 5000, "word"),
        (b"<font>word " * 3000, "word"),
        (b"<ul><li>" * 2000 + b"word", "word"),
        (b"<b><i>" * 2000 + b"word", "word"),
        (b"</div></p>" * 20000 + b"word", "word"),
        (b"<table><tr><td>" * 1000 + b"word", "word"),
        (b"<dl>" + b"<dt>word<dd>x" * 3000, "word"),
        (b"word <a href='", "word"),
        (b"word <![if !x]> <!-- never closed", "word"),
        (b"word &#xD800; &#0; &nosuch;", "word"),
    ],
)
def test_broken_pages_are_read_in_good_time(data: bytes, word: str) -> None:
    started = time.thread_time()
    text, _ = to_markdown(data)
    assert text.count(word) >= data.count(word.encode()) * 0.999
    text.encode("utf-8")
    assert time.thread_time() - started < 5


def test_items_that_were_left_open_stand_side_by_side() -> None:
    assert to_markdown(b"<ul><li>a<li>b<ul><li>c<li>d</ul><li>e</ul>")[0] == "- a\n- b\n  - c\n  - d\n- e\n"
    assert to_markdown(b"<p>a<p>b<div>c</div>")[0] == "a\n\nb\n\nc\n"
