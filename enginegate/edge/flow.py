"""Flow control of one connection, for uvicorn and for what is held back before it."""

import asyncio
from collections.abc import Callable, Sized

from uvicorn.protocols.http.flow_control import FlowControl

WAITING_MAX = 1
"""Behind so many requests that wait for their turn more is read: also that the client has left."""


class Flow(FlowControl):
    """Flow control that tells its connection when to read on.

    That is not while several requests wait for their turn in `pipeline`: uvicorn reads on with
    each request that begins or ends, and what that brings are more than one, so that they would
    only grow.
    """

    def __init__(
        self, transport: asyncio.Transport, pipeline: Sized, go_on: Callable[[], None]
    ) -> None:
        super().__init__(transport)
        self._pipeline = pipeline
        self._go_on = go_on

    def resume_reading(self) -> None:
        if self.read_paused and len(self._pipeline) <= WAITING_MAX:
            self.read_paused = False
            self._go_on()
