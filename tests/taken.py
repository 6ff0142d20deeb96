"""A backup in a process that may be killed. Apart from the test, whose imports take seconds."""

from rag_stack.recovery.backup import take
from tests.killed import Place


def take_there(place: Place) -> None:
    """Take a point."""
    take(place.tiers().catalog)
