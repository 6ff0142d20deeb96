"""The node-loss drill as a Ray worker runs it, with an embedder that needs no weights."""

from pathlib import Path

from rag_stack.config import Release
from rag_stack.recovery.node_loss_drill import NodeLossDrill, fetch_here
from tests.promoted import words


def fetch_words(release: Release, scratch: Path) -> NodeLossDrill:
    """As `fetch_here`."""
    return fetch_here(release, scratch, load_with=words)
