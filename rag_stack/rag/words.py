"""The words of a sentence that carry its claim: stems, with what is negated and what must be matched exactly."""

import re
from dataclasses import dataclass
from functools import lru_cache

_TOKEN = re.compile(r"\w+(?:['’]\w+)*")
_OPENING, _CLOSING = "`\"'“‘", "`\"'”’"
_AFTER_CODE = frozenset("(." + _CLOSING)
_NUMBERS = {
    "zero": "0", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_NEGATION_REACH = 3  # words after "not" that it can speak of: "is not normally called"


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NEGATIONS = _listed("not no never without neither nor cannot unless")

# Words that turn a claim round when they are missing or added, as "before" for "after" does.
_POLAR = _listed("""
    all always ascending before after beginning both close decrease descending different end equal false fewer first
    greater highest immutable increase inside largest last left less lowest max maximum min minimum more mutable never
    only open outside read right same smallest start true unlike write
""")
# What limits a claim, by kind: without it another thing is said. "May" grants what "can" grants.
_QUALIFIERS = {
    "if": "if", "when": "if", "whenever": "if", "unless": "if", "until": "until", "while": "while", "may": "may",
    "might": "may", "except": "except", "only": "only", "outside": "outside", "optionally": "may", "usually": "may",
    "otherwise": "otherwise", "often": "may",
}  # fmt: skip
_KINDS = _listed("""
    attribute builtin class clause command constructor context decorator exception expression function iterator keyword
    library literal manager method module object operator package python statement type
""")
# With these a sentence points at something that was named before, or at nothing in particular.
_GENERIC = _KINDS | _listed("answer argument call code default example output parameter process result return value")
STOP_WORDS = _listed("""
    a about above also am an and any are as at be because been being below between but by can could did do does doing
    done down during each either else etc for from further get gets given has have having he hence her here hers him his
    how however i if in into is it its itself just let like made make makes many may me might much must my namely of off
    often on once one or other others otherwise our ours out over own per quite rather s shall she should simply since
    so some such t than that the their them then there therefore these they this those through thus to too under until
    up upon us use used uses using usually very via was way we well were what when where whereas whether which while who
    whom whose why will with within would yet you your yours
""")


_NEUTRAL = _listed("python certain following given provided simply specific specified basically")


@dataclass(frozen=True, slots=True)
class Word:
    """A content word. An `exact` one (number, identifier, polar word) may not be missing from what supports it."""

    stem: str
    negated: bool
    exact: bool
    identifier: bool
    kind: bool  # it says what sort of thing a name is: function, statement, module
    neutral: bool  # it may be left out or put in: "the given", "in Python"
    generic: bool  # as a subject it points back: "the function", "the result"


@dataclass(frozen=True, slots=True)
class _Spelling:
    """What a token says by itself, wherever it stands."""

    lower: str
    negates: bool
    plain: bool  # a stop word or a negation: no content word, unless it is quoted
    qualifier: str
    word: Word  # where nothing negates it, and nothing beside it says that it is code


def content_words(text: str) -> tuple[Word, ...]:
    """The content words of a text in order; stop words and negations themselves are left out."""
    return read_words(text)[0]


def qualifiers(text: str) -> frozenset[str]:
    """The kinds of conditions and limits that a text names."""
    return read_words(text)[1]


def read_words(text: str) -> tuple[tuple[Word, ...], frozenset[str]]:
    """`content_words` and `qualifiers` in one go: passages are read for each answer, word by word."""
    words: list[Word] = []
    limits: set[str] = set()
    reach = 0
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        spelling = _spelling(match.group())
        if spelling.plain or spelling.qualifier:
            # A quoted word is a name: the "with" statement, the operator `not`.
            quoted = _is_quoted(text, start, end)
            if spelling.negates and not quoted:
                reach = _NEGATION_REACH + 1
            if spelling.qualifier and not quoted:
                limits.add(spelling.qualifier)
            if spelling.plain and not quoted:
                reach = reach - 1 if reach else 0
                continue
        reach = reach - 1 if reach else 0
        # Looked at here, and not behind a call: most words have neither beside them.
        beside_code = text[end : end + 1] in _AFTER_CODE or text[start - 1 : start] == "."
        if beside_code and not spelling.word.identifier and _is_written_as_code(text, start, end):
            words.append(_word(spelling.lower, reach > 0, True))
        else:
            words.append(_word(spelling.lower, True, spelling.word.identifier) if reach else spelling.word)
    return tuple(words), frozenset(limits)


@lru_cache(maxsize=16384)
def _spelling(token: str) -> _Spelling:
    lower = token.lower()
    straight = lower.replace("’", "'")
    negates = straight in _NEGATIONS or straight.endswith("n't")
    return _Spelling(
        lower=straight,
        negates=negates,
        plain=negates or straight in STOP_WORDS,
        qualifier=_QUALIFIERS.get(lower, ""),
        word=_word(straight, False, _is_identifier(token)),
    )


@lru_cache(maxsize=16384)  # a documentation's vocabulary; half of a citer's time went into the same words
def _word(lower: str, negated: bool, identifier: bool) -> Word:
    number = _NUMBERS.get(lower, lower)
    exact = identifier or lower in _POLAR or number.isdecimal()
    stem = number if number.isdecimal() or "_" in lower else _stem(lower)
    return Word(
        stem=stem,
        negated=negated,
        exact=exact,
        identifier=identifier,
        kind=lower in _KINDS or lower.removesuffix("s") in _KINDS,
        neutral=lower in _NEUTRAL and not identifier,
        generic=lower in _GENERIC or lower.removesuffix("s") in _GENERIC,
    )


def _is_identifier(token: str) -> bool:
    """`__enter__`, `lru_cache`, `KeyError`, `utf8`: spelled as prose is not."""
    mixed_case = token[1:] != token[1:].lower() and not token.isupper()
    return "_" in token or mixed_case or not (token.isalpha() or token.isdecimal() or not any(map(str.isdigit, token)))


def _is_written_as_code(text: str, start: int, end: int) -> bool:
    """Whether the word is called, part of a dotted name, or alone in quotation marks or backticks."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if after == "(":
        return True
    dotted = (before == "." and text[max(0, start - 2) : start - 1].isalnum()) or (
        after == "." and text[end + 1 : end + 2].isalnum()
    )
    return dotted or _is_quoted(text, start, end)


def _is_quoted(text: str, start: int, end: int) -> bool:
    before, after = text[start - 1 : start], text[end : end + 1]
    return bool(before and after) and before in _OPENING and after in _CLOSING


def _stem(word: str) -> str:
    """A light English stem: raises, raised, raising and raise are one word."""
    if word.endswith("'s"):
        word = word[:-2]
    for suffix, shortest in (("ies", 5), ("ing", 6), ("edly", 7), ("ed", 5), ("ly", 6), ("es", 5), ("s", 4)):
        if word.endswith(suffix) and len(word) >= shortest and not word.endswith(("ss", "us", "is")):
            word = word[: -len(suffix)] + ("y" if suffix == "ies" else "")
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiousl":
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
