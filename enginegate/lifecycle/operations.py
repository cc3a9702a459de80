"""One operation at a time per engine, each in a task of its own that callers join.

The same verb joins the one at work and shares its outcome. Another verb waits its
turn. Destroy does not wait: it overtakes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from uuid import uuid4

from enginegate.clock import Clock
from enginegate.errors import EngineNotFoundError, GateError, InternalError, ShuttingDownError
from enginegate.metrics import Meters
from enginegate.registry import LiveEngine, Operation

log = logging.getLogger(__name__)

Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]
"""Starts a task that the server owns."""

Work = Callable[[Operation], Awaitable[Any]]


class OvertakenError(EngineNotFoundError):
    """A destroy came and cut the operation short."""


class Operations:
    """Starts operations and keeps count of them for shutdown."""

    def __init__(self, *, spawn: Spawn, clock: Clock, meters: Meters) -> None:
        self.closed = False
        self.at_work: set[Operation] = set()
        self._spawn = spawn
        self._clock = clock
        self._meters = meters

    def refuse_if_closed(self) -> None:
        """Raise if no new work is taken, before anything has been touched."""
        if self.closed:
            raise ShuttingDownError("enginegate is shutting down; ask again in a moment.")

    async def perform(
        self,
        live: LiveEngine,
        verb: str,
        work: Work,
        *,
        actor: str,
        params: object = None,
        holds: bool = True,
    ) -> Any:
        """Do the verb on the engine, or join the one at work; return its result.

        Raises:
            EngineNotFoundError: the engine went away while this call waited its turn.
            GateError: what the work ended with.
        """
        while live.operation is not None:
            at_work = live.operation
            if (at_work.verb, at_work.params) == (verb, params):
                return await at_work.join()
            if verb == "destroy":
                at_work.overtake()
            await at_work.settled()
            if live.gone:
                break  # nobody takes what was at work off a row that went with it
        if live.gone:
            raise EngineNotFoundError("The engine was destroyed meanwhile.")
        return await self.begin(live, verb, work, actor=actor, params=params, holds=holds).join()

    def later(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Have it done by a task of its own: for who must not wait for an operation's turn."""
        _ = self._spawn(work, name)  # the server owns it

    def begin(
        self,
        live: LiveEngine,
        verb: str,
        work: Work,
        *,
        actor: str,
        params: object = None,
        holds: bool = True,
    ) -> Operation:
        """Start an operation on an engine that has none at work."""
        assert live.operation is None
        operation = self.operation(verb, actor=actor, params=params, holds=holds)
        live.operation = operation
        if holds:
            live.answer = None

        def leave() -> None:
            live.operation = None
            live.answer = None

        self.launch(operation, work, leave)
        return operation

    def operation(self, verb: str, *, actor: str, params: object, holds: bool) -> Operation:
        """Make an operation that is not at work yet.

        Raises:
            ShuttingDownError: no new work is taken.
        """
        self.refuse_if_closed()
        return Operation(verb, params=params, actor=actor, holds=holds, since=self._clock.now())

    def launch(self, operation: Operation, work: Work, leave: Callable[[], object]) -> None:
        """Run it in a task; `leave` frees its place before the callers hear of the end."""
        self.at_work.add(operation)
        run = self._run(operation, work, leave)
        operation.task = self._spawn(run, f"{operation.verb}")

        def never_begun(_: object) -> None:
            """Settle a task that was cancelled before its first step, so before `_run`."""
            if not operation.done.done():
                self._settle(operation, leave, error=_cut(operation))

        operation.task.add_done_callback(never_begun)

    async def _run(self, operation: Operation, work: Work, leave: Callable[[], object]) -> None:
        try:
            result = await work(operation)
        except asyncio.CancelledError:
            self._settle(operation, leave, error=_cut(operation))
        except GateError as refused:
            self._settle(operation, leave, error=refused)
        except Exception as bug:  # noqa: BLE001 - an edge: one engine's bug is not the fleet's
            self._settle(operation, leave, error=_internal(operation, bug))
        else:
            self._settle(operation, leave, result=result)

    def _settle(
        self,
        operation: Operation,
        leave: Callable[[], object],
        *,
        result: Any = None,
        error: GateError | None = None,
    ) -> None:
        self.at_work.discard(operation)
        leave()
        took_s = self._clock.now() - operation.since
        self._meters.work(operation.verb, "failed" if error else "ok", took_s)
        if error is not None:
            operation.done.set_exception(error)
        else:
            operation.done.set_result(result)

    async def close(self, grace_s: float) -> None:
        """Take no new work, wait for what is at work, then hand the rest to the next start."""
        self.closed = True
        tasks = {operation.task for operation in self.at_work if operation.task is not None}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


def _cut(operation: Operation) -> GateError:
    if operation.overtaken:
        return OvertakenError("The engine is being destroyed.")
    return ShuttingDownError("enginegate was shut down while at it; ask again.")


def _internal(operation: Operation, bug: Exception) -> InternalError:
    reference = uuid4().hex[:12]
    log.error("operation %s failed, reference %s", operation.verb, reference, exc_info=bug)
    return InternalError(f"Something went wrong; reference {reference}.", reference=reference)
