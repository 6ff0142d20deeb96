"""Questions whose documents are asked for as they are in the world: a few often, most rarely, some again and again.

A question gets its documents from `documents` of which the n-th is drawn with weight 1 / n ** exponent, independently
of how they rank for it. Questions come from sessions, `sessions` of them side by side, `session_questions` long on
average; a follow-up keeps each document of the question before it with probability `kept` and ranks all anew. Each
question stands for itself: no earlier turns are sent along.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Ranked: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceShape:
    """What a trace is made by."""

    questions: int
    documents: int = 200
    exponent: float = 1.0
    per_question: int = 4
    sessions: int = 8
    session_questions: float = 3.0
    kept: float = 0.5


def zipf_trace(shape: TraceShape, *, seed: int) -> list[Ranked]:
    """The documents of each question, best first."""
    draw = random.Random(seed)
    popular = list(range(shape.documents))
    draw.shuffle(popular)
    weights = list(itertools.accumulate(1 / n**shape.exponent for n in range(1, shape.documents + 1)))
    before: list[Sequence[int]] = [()] * shape.sessions
    trace = []
    for _ in range(shape.questions):
        session = draw.randrange(shape.sessions)
        goes_on = draw.random() >= 1 / shape.session_questions
        found = [each for each in before[session] if goes_on and draw.random() < shape.kept]
        while len(found) < shape.per_question:
            (drawn,) = draw.choices(popular, cum_weights=weights)
            if drawn not in found:
                found.append(drawn)
        draw.shuffle(found)
        before[session] = found
        trace.append(tuple(found))
    return trace


def unshared_trace(shape: TraceShape) -> list[Ranked]:
    """No document comes twice."""
    numbers = iter(range(shape.questions * shape.per_question))
    return [tuple(itertools.islice(numbers, shape.per_question)) for _ in range(shape.questions)]
