"""HTML -> Markdown, so that headings become sections: what a reader came for, without the page around it."""

import codecs
import re
from collections.abc import Mapping
from typing import Any, Final

from bs4 import BeautifulSoup, Tag
from bs4.dammit import EncodingDetector
from bs4.exceptions import ParserRejectedMarkup
from markdownify import ATX, MarkdownConverter

from rag_stack.errors import DocumentError

_NO_CONTENT: Final = ("title", "script", "style", "noscript", "template", "svg", "iframe", "object", "button", "select")
_AROUND: Final = ("nav", "footer", "aside")
_AROUND_ROLES: Final = ("navigation", "banner", "contentinfo", "complementary", "search")
_HEADINGS: Final = ("h1", "h2", "h3", "h4", "h5", "h6")
# Their text says what is to be found; marks in it would be in every quote.
_PLAIN: Final = ("a", "b", "strong", "i", "em", "del", "s", "sub", "sup")
# The signs beside headings that link to them, as Sphinx and others set them.
_PERMALINKS: Final = frozenset({"¶", "#", "§", "🔗", "\uf0c1"})
# What goes on below is told as text: the converter calls itself for every level.
_MAX_DEPTH: Final = 100
_SCOPE: Final = frozenset({"table", "td", "th", "caption", "object", "template", "button", "html"})
_BLOCKS: Final = (
    *("address", "article", "aside", "blockquote", "div", "dl", "fieldset", "footer", "form", "header", "hr", "main"),
    *("nav", "ol", "p", "pre", "section", "table", "ul"),
)
# A start tag -> the elements that it ends where they were left open, and those it does not look beyond.
_ENDS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = {
    **{name: (frozenset({"p"}), _SCOPE) for name in (*_BLOCKS, *_HEADINGS)},
    "li": (frozenset({"li"}), _SCOPE | {"ul", "ol", "menu"}),
    **{name: (frozenset({"dt", "dd"}), _SCOPE | {"dl"}) for name in ("dt", "dd")},
    **{name: (frozenset({"td", "th"}), frozenset({"tr", "table"})) for name in ("td", "th")},
    "tr": (frozenset({"tr"}), frozenset({"table"})),
    **{name: (frozenset({"thead", "tbody", "tfoot"}), frozenset({"table"})) for name in ("thead", "tbody", "tfoot")},
}


def to_markdown(data: bytes) -> tuple[str, str]:
    """The Markdown and the title of a page. Raises DocumentError with the reason.

    `main` or a sole `article` is taken where there is one, and navigation, scripts, headers and footers are dropped.
    """
    try:
        page = _Page("<!doctype html>" + _decoded(data), "html.parser")
    except ParserRejectedMarkup as exc:
        raise DocumentError(f"is not HTML: {exc}") from exc
    title = " ".join(page.title.get_text().split()) if page.title else ""
    _drop_around(page)
    for content in _contents(page):
        _flatten(content)
        text = _Markdown().convert_soup(content)
        text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()
        if text:
            return text + "\n", title
    raise DocumentError("holds no text; a page that a script fills must be saved as a browser shows it")


class _Page(BeautifulSoup):
    """A parsed page in which paragraphs, items and cells that were left open end where a browser ends them."""

    def handle_starttag(self, name: str, *args: Any, **options: Any) -> Tag | None:  # noqa: ANN401 - bs4's own
        ended, beyond = _ENDS.get(name, (frozenset(), _SCOPE))
        for open_tag in reversed(self.tagStack[-_MAX_DEPTH:] if ended else []):
            if open_tag.name in ended:
                self.handle_endtag(open_tag.name)
                break
            if open_tag.name in beyond:
                break
        return super().handle_starttag(name, *args, **options)


class _Markdown(MarkdownConverter):
    """Headings, lists, tables and code as Markdown, and all else as its text."""

    def __init__(self) -> None:
        super().__init__(
            heading_style=ATX,
            bullets="-",
            strip=[*_PLAIN],
            escape_asterisks=False,
            escape_underscores=False,
            table_infer_header=True,
        )

    def convert_img(self, element: Tag, text: str, parent_tags: set[str]) -> str:
        """Only what it shows in words."""
        del text, parent_tags
        return str(element.get("alt") or "")


def _decoded(data: bytes) -> str:
    """The text, by its byte order mark, by the encoding that it declares, or else as UTF-8."""
    body, encoding = EncodingDetector.strip_byte_order_mark(data)
    if encoding is None:
        declared = EncodingDetector.find_declared_encoding(body, is_html=True)
        encoding = _as_browsers_do(declared) if declared else "utf-8"
    try:
        text = body.decode(encoding)
    except (UnicodeError, LookupError) as exc:
        raise DocumentError(f"is not {encoding}, as it should be by what it declares: {exc}; convert it") from exc
    if "\0" in text:
        raise DocumentError("is binary: it holds NUL bytes")
    return text


def _as_browsers_do(declared: str) -> str:
    try:
        name = codecs.lookup(declared).name
    except LookupError:
        return "utf-8"
    if name in ("iso8859-1", "ascii"):
        return "cp1252"
    # What declares itself in bytes of one is not of two.
    return "utf-8" if name.startswith(("utf-16", "utf-32")) else name


def _drop_around(page: BeautifulSoup) -> None:
    for name in _NO_CONTENT:
        for element in page.find_all(name):
            element.decompose()
    for element in [
        *page.find_all(_AROUND),
        *page.find_all(attrs={"role": _AROUND_ROLES}),
        *page.find_all(hidden=True),
    ]:
        if not element.decomposed:
            element.decompose()
    for element in page.find_all("header"):
        # That of an article holds its title.
        if not element.decomposed and not (element.find(_HEADINGS) and element.find_parent(("main", "article"))):
            element.decompose()
    for link in page.find_all("a"):
        if link.get_text(strip=True) in _PERMALINKS:
            link.decompose()


def _contents(page: BeautifulSoup) -> list[Tag]:
    """The content, and what to take where that is empty."""
    articles = page.find_all("article")
    found = page.find("main") or page.find(role="main") or (articles[0] if len(articles) == 1 else None)
    whole = page.body or page
    return [found, whole] if isinstance(found, Tag) else [whole]


def _flatten(content: Tag) -> None:
    waiting = [(content, 0)]
    while waiting:
        element, depth = waiting.pop()
        if depth >= _MAX_DEPTH:
            element.replace_with("\n" + element.get_text("\n") + "\n")
            continue
        waiting.extend((child, depth + 1) for child in element.children if isinstance(child, Tag))
