"""An activator: its parts, put together, and its two ports."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from rag_stack.activator.door import Door, Service
from rag_stack.activator.keys import Keys
from rag_stack.activator.kube_api import KubeApi, leases, ray_services
from rag_stack.activator.lease import LeaseReader
from rag_stack.activator.measure import PrometheusRecorder
from rag_stack.activator.ops import Ops
from rag_stack.activator.presence import Presence
from rag_stack.activator.settings import Settings
from rag_stack.activator.sleep import Sleep
from rag_stack.activator.upstream import Upstream
from rag_stack.activator.use import Use
from rag_stack.activator.wake import Target, Wake
from rag_stack.activator.watch import Watch
from rag_stack.api.places import Places
from rag_stack.errors import KubernetesError

_LOG = logging.getLogger(__name__)


class Activator:
    """`door` is the app for clients, `ops` that for probes and Prometheus. Both work inside of `running` alone."""

    def __init__(self, settings: Settings, client: httpx.AsyncClient) -> None:
        api, self._settings = KubeApi(client), settings
        target = Target(ray_services(settings.namespace), settings.service)
        self.recorder = PrometheusRecorder()
        self.use, self.keys = Use(), Keys(settings.keys)
        self.watch = Watch(api, target.kind, target.name)
        self.presence = Presence(
            api,
            leases(settings.namespace),
            settings.lease,
            identity=settings.identity,
            reader=LeaseReader(identity=settings.identity, lease_s=settings.lease_s, idle_s=settings.idle_s),
            look=self.watch.refresh,
        )
        self.wake = Wake(
            api,
            self.watch,
            target,
            rules=lambda: settings.rules(self.keys.api),
            limit_s=settings.wake_limit_s,
            recorder=self.recorder,
        )
        self.sleep = Sleep(
            api,
            self.watch,
            self.presence,
            self.use,
            target,
            identity=settings.identity,
            idle_s=settings.idle_s,
            recorder=self.recorder,
        )
        self._upstream = Upstream(settings.upstream)
        service = Service(self.watch, self.wake, self.presence, self._upstream)
        places = Places(self.recorder)
        self.ops = Ops(self.watch, self.recorder, tell=self.sleep.tell)
        self.door = Door(service, use=self.use, keys=self.keys, places=places, recorder=self.recorder)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """What goes on beside the requests: it watches, beats and sleeps. One that ends by itself is an error."""
        await self.keys.read()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.watch.run()),
                group.create_task(self.sleep.run(every_s=self._settings.beat_s)),
                group.create_task(self.keys.run()),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await self.wake.close()
                await self._upstream.close()
                with contextlib.suppress(KubernetesError):
                    await self.presence.leave()

    def by_port(self) -> ASGIApp:
        """Both apps behind one server, told apart by the port to which a client came."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            server = scope.get("server")
            to_ops = scope["type"] == "http" and server is not None and server[1] == self._settings.ops_port
            await (self.ops if to_ops else self.door)(scope, receive, send)

        return app
