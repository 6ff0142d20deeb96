"""Tries again what may go well in a moment: an object store that does not answer, or others who write the same."""

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from rag_stack.errors import ArtifactBusyError, ArtifactError, ConflictError, PromotionConflictError, RagStackError

T = TypeVar("T")

_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 15.0
_LOG: Final = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long somebody tries again."""

    limit_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def call(self, work: Callable[[], T]) -> T:
        """The result of `work`. Blocking. Raises what it raised last, and at once what another try would not change."""
        until_s = self.clock() + self.limit_s
        for number in itertools.count():
            try:
                return work()
            except RagStackError as exc:
                wait_s = min(_FIRST_WAIT_S * 2**number, _LONGEST_WAIT_S)
                if not may_pass(exc) or self.clock() + wait_s > until_s:
                    raise
                _LOG.warning("tried again in %g s: %s", wait_s, exc.message)
                self.sleep(wait_s)
        raise AssertionError("it counts for ever")


def may_pass(error: RagStackError) -> bool:
    """Whether the next try may find it otherwise: ArtifactError itself is a store that does not answer."""
    return type(error) is ArtifactError or isinstance(error, (ArtifactBusyError, PromotionConflictError, ConflictError))
