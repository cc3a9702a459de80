"""uvicorn's server, started and stopped so that no request is lost."""

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn

from enginegate.edge import versions
from enginegate.edge.connection import Connection
from enginegate.edge.doors import KEEP_ALIVE_S, Doors, Limits
from enginegate.edge.lane import Lane, Warm

log = logging.getLogger(__name__)

BACKLOG = 4096  # clients the kernel queues while a successor recovers
DRAIN_S = 1.0  # idle clients have so long to send once more, and to hear that it is the last time
OTHER_FILES = 512  # beside connections: journal, engines, pidfds, probes


class HttpServer(uvicorn.Server):
    """Serves an ASGI application behind the doors; `stop` ends it without losing a request.

    `warm` answers what can be answered in the lane; None leaves all to the application.
    The listening socket is let go at once. What is asked on open connections is
    answered as the last of its connection, for `DRAIN_S`; then `on_drained` is called,
    and whatever is still at work has `grace_s` to finish.
    """

    def __init__(
        self,
        app: Any,
        limits: Limits,
        *,
        warm: Warm | None,
        grace_s: float,
        on_started: Callable[[], None],
        on_drained: Callable[[], None],
    ) -> None:
        self.doors = Doors(asyncio.get_running_loop(), limits)
        super().__init__(
            uvicorn.Config(
                app,
                http=self._protocol(warm),
                ws="none",
                lifespan="off",
                interface="asgi3",
                proxy_headers=False,  # nothing here asks for the client's address
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=int(KEEP_ALIVE_S),
                timeout_graceful_shutdown=int(grace_s) + 1,
            )
        )
        self._drain_s = min(DRAIN_S, grace_s)
        self._on_started = on_started
        self._on_drained = on_drained
        _allow_files(limits.max_connections + OTHER_FILES)

    def _protocol(self, warm: Warm | None) -> Any:
        """Return what makes a protocol for each connection."""
        if not versions.is_tested(uvicorn.__version__):
            log.warning(
                "uvicorn %s is not a tested version: admits take the long road, and clients that "
                "are slow or many are not kept in bounds",
                uvicorn.__version__,
            )
            return "httptools"
        # An admit has to fit into one piece to be answered in the lane.
        if warm is None or self.doors.limits.max_body_bytes < self.doors.piece_bytes:
            return partial(Connection, doors=self.doors)
        return partial(Lane, doors=self.doors, warm=warm)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to who started us, so that a stop ends with exit code 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    def stop(self) -> None:
        """Accept nobody any more, from this moment on, and begin to end."""
        self.should_exit = True
        if self.started:
            for server in self.servers:
                server.close()
        self.doors.drain()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await self.doors.emptied()
        self._on_drained()
        await super().shutdown(sockets)


def _allow_files(wanted: int) -> None:
    """Raise the limit on open files to what the connections may need, where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    within = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (within, hard))
    if within < wanted:
        log.warning(
            "%d open files are allowed, %d may be needed: raise the limit (systemd: LimitNOFILE), "
            "or lower server.max_connections",
            within,
            wanted,
        )
