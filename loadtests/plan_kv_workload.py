"""Sessions of questions about documents: what `loadtests.plan_kv` asks. Documents are of Python's own reference."""

import random
from collections.abc import Sequence
from pydoc_data import topics
from typing import Any, Final

from loadtests.closed_loop import Messages

SYSTEM: Final = "Answer the question from the documents below, in their own words wherever you can."
_WORDS: Final = (60, 140)
_PASSAGES: Final = (2, 4)
_TURNS: Final = (1, 4)
_AT_ONCE: Final = 12
_ASKED: Final = ("explain", "summarise", "give an example of", "say when to use", "say what is wrong with")


def documents(count: int, *, seed: int) -> list[str]:
    """Stretches of the reference's text, in the order of their popularity."""
    draw = random.Random(seed)
    words = " ".join(text for _, text in sorted(topics.topics.items())).split()
    starts = [draw.randrange(len(words) - _WORDS[1]) for _ in range(count)]
    return [" ".join(words[start : start + draw.randint(*_WORDS)]) for start in starts]


def requests(
    count: int, *, documents: Sequence[str], exponent: float, seed: int, at_once: int = _AT_ONCE
) -> list[Messages]:
    """Zipf: document n is drawn with a weight of n ** -exponent. A session asks again about what it has drawn.

    So many sessions go on at once, each of which asks when chance says so: what one asked lies some way back.
    """
    draw = random.Random(seed)
    weights = [(n + 1) ** -exponent for n in range(len(documents))]
    asked: list[Messages] = []
    sessions: list[tuple[str, int]] = []
    while len(asked) < count:
        while len(sessions) < at_once:
            chosen = sorted(set(draw.choices(range(len(documents)), weights, k=draw.randint(*_PASSAGES))))
            context = "\n\n".join(f"<document>\n{documents[n]}\n</document>" for n in chosen)
            sessions.append((context, draw.randint(*_TURNS)))
        context, turns = sessions.pop(draw.randrange(len(sessions)))
        question = f"Please {draw.choice(_ASKED)} number {draw.randrange(10_000)} of that."
        asked.append([_said("system", f"{SYSTEM}\n\n{context}"), _said("user", question)])
        if turns > 1:
            sessions.append((context, turns - 1))
    return asked


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}
