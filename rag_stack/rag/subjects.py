"""What a sentence is about: the name it gives or points back to, and the name above a stretch of a passage."""

import re
from collections.abc import Iterator

from rag_stack.rag.sentences import Span, split_sentences
from rag_stack.rag.words import Word, content_words

_SIGNATURE = re.compile(
    r"^[ \t]*(?:(?:async|class|classmethod|staticmethod|coroutine|property|exception)\s+)*"
    r"(?P<name>[A-Za-z_][\w.]*)\([^\n]*\)(?:[ \t]*->[^\n]*)?:?[ \t]*$",
    re.MULTILINE,
)
_PARAMETERS = re.compile(r"\(.*?\)")
_POINTS_BACK = re.compile(r"\W*(?:it|its|this|these|they|that|those|such|here|there|he|she)\b", re.IGNORECASE)
_GIVEN = re.compile(
    r"\W*(?:the|this|that)\s+(?:returned|resulting|above|following|same|new|latter|former)\b", re.IGNORECASE
)
_ARTICLE = re.compile(r"\W*(?:the|a|an|this|that|these|those|each|your)\s+", re.IGNORECASE)
_JOINTS = frozenset(("of", "from", "for", "the", "a", "an"))
_TITLE_DEPTH = 2  # of a title "module > class > method", so many last parts name what the passage is about


def points_back(sentence: str) -> bool:
    """Whether the sentence leaves its subject to what was said before: "It returns", "The function returns"."""
    if _POINTS_BACK.match(sentence) or _GIVEN.match(sentence):
        return True
    article = _ARTICLE.match(sentence)
    if not article:
        return False
    rest = sentence[article.end() :].split(maxsplit=4)
    first = content_words(" ".join(rest[:1]))
    # "The function `f`" and "The return value of f" name their subject, "The function returns `f`" does not.
    return bool(first) and first[0].generic and not any(w.identifier for w in _noun_phrase(rest))


def last_named(text: str) -> frozenset[str]:
    """What the last sentence of a text that names something and does not point back itself names; else nothing."""
    for start, end in reversed(split_sentences(text)):
        if (found := names(text[start:end])) and not points_back(text[start:end]):
            return found
    return frozenset()


def names(sentence: str) -> frozenset[str]:
    """What the sentence names first: `random.sample` is "random" and "sample"; empty where it names nothing."""
    found: list[str] = []
    for word in content_words(sentence):
        if word.identifier:
            found.append(word.stem)
        elif found:
            break
    return frozenset(found)


def title_words(title: str) -> frozenset[str]:
    """The words of the last headings of a title, without parameters."""
    parts = _PARAMETERS.sub(" ", title).split(" > ")[-_TITLE_DEPTH:]
    return frozenset(word.stem for word in content_words(" ".join(parts)))


def headed_sentences(text: str) -> Iterator[tuple[Span, frozenset[str]]]:
    """The sentences of a passage, each with the names of the signature that it stands under, if there is one."""
    signatures = [(match.start(), match.end(), match["name"]) for match in _SIGNATURE.finditer(text)]
    for start, end in split_sentences(text):
        cuts = [stop for begin, stop, _ in signatures if start <= begin and stop < end]
        for begin, stop in zip((start, *cuts), (*cuts, end), strict=True):
            piece = text[begin:stop]
            begin += len(piece) - len(piece.lstrip())
            above = [name for _, after, name in signatures if after <= begin]
            named = frozenset(_stems(above[-1])) if above else frozenset()
            yield (begin, stop), named


def _noun_phrase(tokens: list[str]) -> Iterator[Word]:
    """The words of a subject: generic ones, what joins them, and the first that is neither."""
    for token in tokens:
        words = content_words(token)
        yield from words
        if token.lower() not in _JOINTS and not all(word.generic for word in words):
            return


def _stems(name: str) -> Iterator[str]:
    return (word.stem for word in content_words(name))
