"""One activator among those of a RayService: they share a Lease, one may suspend, and only if nobody minds.

Each says in the Lease whether it is *quiet*: without a request for so long that as far as it is concerned the service
may sleep. One that is quiet says that it no longer is before it passes a request on, and the holder says that it will
suspend before it does. Both are written only if the Lease is still as it was read, so one comes first: either the
holder sees that somebody is not quiet, or the other one sees that the service goes, waits for that, and wakes it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from rag_stack.activator.kube_api import CONFLICT, NOT_FOUND, Kind, KubeApi, Object
from rag_stack.activator.lease import SUSPENDING_S, LeaseReader, Notes, new_lease
from rag_stack.errors import KubernetesError

_TRIES: Final = 8
_LOOK_S: Final = 0.2
_LOG = logging.getLogger(__name__)


class Presence:
    """Used from one event loop. Calls raise KubernetesError unless they say otherwise.

    `look` looks anew at what is suspended. `quiet` is whether it has said that it is; `leads` whether this
    activator holds the Lease; `others_quiet` whether all others were quiet when it was read last.
    """

    def __init__(
        self,
        api: KubeApi,
        kind: Kind,
        name: str,
        *,
        identity: str,
        reader: LeaseReader,
        look: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._kind, self._name, self._identity = api, kind, name, identity
        self._reader, self._look, self._clock = reader, look, clock
        self._beats = 0
        self._writing = asyncio.Lock()
        self._suspending = asyncio.Lock()
        self._stirring: asyncio.Task[None] | None = None
        self.quiet = False
        self.leads = False
        self.others_quiet = True
        self._told = False

    async def beat(self, is_idle: Callable[[], bool]) -> None:
        """Say that this activator lives, and is quiet if it is idle; take the Lease if it is to be had."""
        async with self._writing:
            self.quiet = self.quiet or is_idle()  # only a request that stirs ends it
            await self._write(_as_it_is)

    async def stir(self) -> None:
        """Before a request is passed on: the others know then, and what is suspended meanwhile is known here.

        Raises nothing: where the API server cannot be reached, requests go on.
        """
        if self._told and not self.quiet:
            return
        if self._stirring is None:
            self._stirring = asyncio.create_task(self._stir())
        await asyncio.shield(self._stirring)

    @asynccontextmanager
    async def suspension(self) -> AsyncIterator[bool]:
        """Around a suspension; tells whether there may be one. Requests that come meanwhile wait for its end."""
        async with self._suspending:
            may = await self._announce()
            try:
                yield may
            finally:
                if may:
                    await self._announce_end()

    async def leave(self) -> None:
        """The end of this activator: the next need not wait until its Lease does."""
        async with self._writing:
            await self._write(_as_it_is, leaving=True)

    async def _stir(self) -> None:
        try:
            async with self._suspending:
                async with self._writing:
                    notes = await self._write(_as_it_is)
                await self._await_end(notes)
                await self._look()
        except KubernetesError as exc:
            _LOG.warning("%s; the other activators do not know that a request has come", exc.message)
        finally:
            self.quiet, self._told, self._stirring = False, True, None

    async def _await_end(self, notes: Notes) -> None:
        """Another activator suspends now: it will not take long."""
        until_s = self._clock() + SUSPENDING_S
        while notes.suspending and self._clock() < until_s:
            await asyncio.sleep(_LOOK_S)
            notes = self._reader.notes(await self._api.get(self._kind, self._name))

    async def _announce(self) -> bool:
        def if_all_are_quiet(notes: Notes) -> bool:
            if not self.leads or notes.suspending or not notes.all_quiet():
                return False
            notes.suspending = f"{self._identity} {self._beats}"
            return True

        async with self._writing:
            return bool((await self._write(if_all_are_quiet)).suspending)

    async def _announce_end(self) -> None:
        def ended(notes: Notes) -> bool:
            notes.suspending = ""
            return True

        async with self._writing:
            await self._write(ended)

    async def _write(self, change: Callable[[Notes], bool], *, leaving: bool = False) -> Notes:
        """Change the Lease, unless `change` declines; what it says then. Again when another was faster."""
        for _ in range(_TRIES):
            lease = await self._lease()
            notes = self._reader.notes(lease)
            self.others_quiet = notes.all_quiet()
            self._sign(lease, notes, leaving=leaving)
            if not change(notes):
                return Notes(notes.activators, "")
            notes.write(lease)
            try:
                await self._put(lease)
            except KubernetesError as exc:
                if exc.answer != CONFLICT:
                    raise
                continue
            self._told = True
            return notes
        raise KubernetesError(f"the Lease {self._name} changed before each of {_TRIES} writes", answer=CONFLICT)

    def _sign(self, lease: Object, notes: Notes, *, leaving: bool) -> None:
        """Put in what is said of this activator. One that goes and was not quiet is remembered for a while."""
        quiet = self.quiet and self._stirring is None
        self._beats += 1
        if not (leaving and quiet):
            notes.activators[self._identity] = {"quiet": quiet, "beat": self._beats}
        if leaving:
            self.leads = False
            self._reader.release(lease)
        else:
            self.leads = self._reader.take(lease)

    async def _lease(self) -> Object:
        try:
            return await self._api.get(self._kind, self._name)
        except KubernetesError as exc:
            if exc.answer != NOT_FOUND:
                raise
            return new_lease(self._name)

    async def _put(self, lease: Object) -> None:
        if "resourceVersion" in lease["metadata"]:
            await self._api.replace(self._kind, self._name, lease)
        else:
            await self._api.create(self._kind, lease)


def _as_it_is(_: Notes) -> bool:
    """Only what an activator says of itself is new."""
    return True
