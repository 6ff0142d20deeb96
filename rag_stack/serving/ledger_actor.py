"""The cluster's ledger as an actor: it keeps a question open while there is nothing to fetch."""

import asyncio
import time
from typing import Any, Final

from rag_stack.artifacts.ledger import NOTHING, Chunks, Ledger, NodeId, Progress, Reply, Session, UnknownSessionError

# A session that has to wait asks again after so long, which also says that it lives.
_WAIT_S: Final = 2.0


class LedgerActor:
    """See Ledger. A session that has to wait is answered as soon as others get on."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._progress = asyncio.Event()

    async def join(self, session: Session, have: Chunks, **others: Any) -> None:  # noqa: ANN401 - as Ledger.join has them
        """See Ledger.join."""
        self._ledger.join(session, have=have, **others)
        self._wake()

    async def hold(self, session_id: str, holdings: dict[NodeId, Chunks]) -> bool:
        """See Ledger.hold; False for a session that has to join first."""
        try:
            self._ledger.hold(session_id, holdings)
        except UnknownSessionError:
            return False
        if holdings:
            self._wake()
        return True

    async def next(self, session_id: str, progress: Progress) -> Reply | bool:
        """See Ledger.next; False for a session that has to join first."""
        try:
            reply = self._ledger.next(session_id, progress)
            if progress != NOTHING:
                self._wake()
            until = time.monotonic() + _WAIT_S
            while reply == "wait" and await self._others_progress(until - time.monotonic()):
                reply = self._ledger.next(session_id, NOTHING)
        except UnknownSessionError:
            return False
        return reply

    async def leave(self, session_id: str, progress: Progress) -> None:
        """See Ledger.leave."""
        self._ledger.leave(session_id, progress)
        self._wake()

    async def _others_progress(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self._progress.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()
