"""The journal on the event loop: group commit, order, and what waiters are told.

    submit -> queue -> one frame, one sync (in a thread) -> apply in order -> futures resolve

Everything queued while the previous sync ran becomes the next frame: batches form by
themselves, without a timer. Exactly one frame is in flight. Memory changes only in
`apply`, after the sync, so a failed write leaves nothing to roll back but reservations,
and those `abandon` drops.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

from msgspec import Raw

from enginegate.clock import Clock, SystemClock
from enginegate.errors import StorageUnavailableError
from enginegate.facts import AnyFact
from enginegate.journal.failures import JournalFailed, JournalFull
from enginegate.journal.journal import Journal
from enginegate.journal.payloads import MAX_FACT_BYTES, encode_fact
from enginegate.journal.recovery import Position
from enginegate.model import SnapshotRecord

log = logging.getLogger("enginegate.journal")

FULL = "The disk is full: nothing was changed. It goes on by itself once there is room."
FAILED = (
    "The journal cannot be written: whether this change was kept is known after a restart of"
    " enginegate."
)
CLOSED = "The journal is closed: nothing was changed."
CROWDED = "Too many changes are waiting for the disk: nothing was changed."

MAX_BATCH_FACTS = 1000  # keeps one turn of the loop short
PART_RECORDS = 200  # to list, not to encode
REST_S = 0.001  # between the steps of a snapshot, so that they take a small part of the time
PACE_BYTES_PER_S = 16 * 1024 * 1024  # of its file, so that system and disk have time for others
FEW = 3  # steps that need no rest: the header's, one of records, the end's
MAX_QUEUED_FACTS = 100_000
TICK_S = 1.0
SNAPSHOT_RETRY_S = 60.0

_CLOCK = SystemClock()

T = TypeVar("T")


class _Item(NamedTuple):
    fact: AnyFact
    raw: Raw
    future: asyncio.Future[int]
    use_reserve: bool


class Committer:
    """Writes facts in the order of `submit`. Belongs to one event loop.

    `apply` gets each batch with its numbers, on the loop, after it is durable.
    `abandon` is called when everything queued is given up. `snapshot_source` yields the
    applied state, which only `apply` changes; without it no live snapshots are made.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        apply: Callable[[Sequence[tuple[int, AnyFact]]], None],
        abandon: Callable[[], None],
        snapshot_source: Callable[[], Iterable[SnapshotRecord]] | None = None,
        clock: Clock = _CLOCK,
    ) -> None:
        self._journal = journal
        self._apply = apply
        self._abandon = abandon
        self._source = snapshot_source
        self._clock = clock
        self._queue: deque[_Item] = deque()
        self._in_flight: list[_Item] = []
        self._compactions: list[asyncio.Future[None]] = []
        self._snapshotting: asyncio.Task[None] | None = None
        self._encoding = False
        self._snapshot_failure: JournalFailed | None = None
        self._snapshot_not_before = 0.0
        self._wake = asyncio.Event()
        self._done = asyncio.Event()
        self._running = False
        self._closing = False
        self._hurry = threading.Event()
        self._ticked = False
        self._busy = False  # something was written since the last tick
        self._thread = ThreadPoolExecutor(1, "journal")
        self._snapshot_thread = ThreadPoolExecutor(1, "snapshot")

    # --- for callers on the loop --------------------------------------------------------------

    def submit(self, fact: AnyFact, *, use_reserve: bool = False) -> asyncio.Future[int]:
        """Queue a fact; the future gives its number once it is durable and applied.

        With `use_reserve` it may be written on a full disk. Cancelling the future does not
        unwrite the fact. Raises StorageUnavailableError at once while nothing can be written,
        TypeError or ValueError where the fact itself cannot; the future raises the former.
        """
        refusal = self._refusal(use_reserve=use_reserve)
        if refusal:
            raise StorageUnavailableError(refusal)
        raw = encode_fact(fact)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append(_Item(fact, raw, future, use_reserve))
        self._wake.set()
        return future

    def compact(self) -> asyncio.Future[None]:
        """Ask for a live snapshot; the future resolves when it is on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refusal = self._refusal(use_reserve=False)
        if refusal or self._source is None:
            raise StorageUnavailableError(refusal or "No snapshots are made here.")
        self._compactions.append(future)
        self._wake.set()
        return future

    async def close(self) -> None:
        """Write what is queued, then close the journal. May be called again."""
        self._closing = True
        self._hurry.set()
        self._wake.set()
        if self._running:
            await self._done.wait()
        self._reject_all(CLOSED)
        if self._snapshotting:
            if self._encoding:  # of which nothing is on disk yet
                self._snapshotting.cancel()
            await asyncio.wait([self._snapshotting])
        await asyncio.to_thread(self._journal.close)
        self._thread.shutdown(wait=False)
        self._snapshot_thread.shutdown(wait=False)

    # --- the task -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit until closed. A bug in here or in a callback latches the journal.

        The server goes on without changes then: admits need no journal.
        """
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                ticks = group.create_task(self._tick())
                await self._work()
                ticks.cancel()
        except asyncio.CancelledError:
            self._journal.fail("its task was cancelled")
            raise
        except Exception as error:
            log.critical("the committer stopped over a bug", exc_info=error)
            self._journal.fail(f"a bug stopped the committer: {error!r}")
            self._give_up_quietly()
        finally:
            self._reject_all(FAILED)
            self._running = False
            self._done.set()

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(TICK_S)
            self._ticked = True
            self._wake.set()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                self._raise_snapshot_failure()
                if self._queue:
                    await self._commit()
                await self._snapshot_if_due()
                if self._ticked:
                    await self._each_tick()
            except JournalFailed as error:
                log.critical("changes are refused until a restart: %s", error)
                self._give_up(FAILED)
            if self._queue:
                self._wake.set()
            elif self._closing:
                return

    async def _commit(self) -> None:
        """Write one batch, then apply it, then tell the waiters. Raises JournalFailed."""
        batch = self._in_flight = self._take()
        self._busy = True
        use_reserve = any(item.use_reserve for item in batch)  # its outcomes are done already
        raws = [item.raw for item in batch]
        try:
            first = await self._in_thread(
                partial(self._journal.append, raws, use_reserve=use_reserve)
            )
        except JournalFull as error:
            log.warning("changes are refused until there is room: %s", error)
            self._give_up(FULL)
            return
        self._apply([(first + index, item.fact) for index, item in enumerate(batch)])
        self._in_flight = []
        for index, item in enumerate(batch):
            if not item.future.done():
                item.future.set_result(first + index)

    def _take(self) -> list[_Item]:
        """Take from the queue what makes one frame."""
        batch: list[_Item] = []
        size = 0
        while self._queue and len(batch) < MAX_BATCH_FACTS:
            size += memoryview(self._queue[0].raw).nbytes
            if size > MAX_FACT_BYTES:
                break
            batch.append(self._queue.popleft())
        return batch

    async def _each_tick(self) -> None:
        """About once a second: heal from a full disk, or seal what an idle journal ends with."""
        self._ticked = False
        idle, self._busy = not self._busy, False
        if await self._in_thread(self._journal.check) == "full":
            try:
                await self._in_thread(self._journal.heal)
            except JournalFull:
                return
            log.warning("there is room on the disk again: changes are accepted")
        elif idle and self._journal.sealable:
            await self._in_thread(self._journal.seal)

    # --- live snapshots -----------------------------------------------------------------------

    async def _snapshot_if_due(self) -> None:
        """Rotate, list the state as of that moment, and have it written beside the commits."""
        if self._snapshotting or self._source is None or not self._snapshot_wanted():
            return
        waiting, self._compactions = self._compactions, []
        try:
            at: Position = await self._in_thread(self._journal.rotate)
        except JournalFull as error:
            self._snapshot_failed(error, waiting)
            return
        except JournalFailed:
            self._compactions = waiting
            raise
        records = await _listed(self._source())
        self._encoding = True
        self._snapshotting = asyncio.create_task(self._snapshot(records, at))
        self._snapshotting.add_done_callback(partial(self._snapshot_done, waiting))

    async def _snapshot(self, records: deque[SnapshotRecord], at: Position) -> None:
        """Encode the state here, in short turns, and have a thread write it.

        A thread that encodes wants the interpreter thousands of times, and each time the loop
        waits for it: for longer than a turn takes, on few cores.
        """
        encoded = deque[bytes]()
        for part in self._journal.encode_snapshot(_let_go(records), at):
            if len(encoded) >= FEW:
                await self._clock.sleep(REST_S)
            encoded.append(part)
        self._encoding = False
        write = partial(self._journal.write_encoded, _let_go(encoded), at, rest=self._rest)
        await asyncio.get_running_loop().run_in_executor(self._snapshot_thread, write)

    def _rest(self, size: int) -> None:
        """Let the loop, and the disk, have their time between two blocks; a close does not wait."""
        self._hurry.wait(size / PACE_BYTES_PER_S)

    def _snapshot_wanted(self) -> bool:
        if self._compactions:
            return True
        due = self._journal.should_snapshot and self._journal.status == "ok"
        return due and self._clock.now() >= self._snapshot_not_before

    def _snapshot_done(self, waiting: list[asyncio.Future[None]], done: asyncio.Task[None]) -> None:
        self._snapshotting = None
        error = None if done.cancelled() else done.exception()
        if done.cancelled():
            for future in waiting:
                _reject(future, CLOSED)
        elif error:
            self._snapshot_failed(error, waiting)
        for future in waiting:
            if not future.done():
                future.set_result(None)
        if isinstance(error, JournalFailed):
            self._snapshot_failure = error
        self._wake.set()

    def _raise_snapshot_failure(self) -> None:
        """Raise JournalFailed if a snapshot has: here, where no frame is in flight.

        One that was may have reached the disk, and then it counts.
        """
        error, self._snapshot_failure = self._snapshot_failure, None
        if error is not None:
            raise error

    def _snapshot_failed(self, error: BaseException, waiting: list[asyncio.Future[None]]) -> None:
        """Go on without it: the older snapshot and the longer journal have the same end."""
        log.error("no snapshot could be written, trying again later: %s", error)
        self._snapshot_not_before = self._clock.now() + SNAPSHOT_RETRY_S
        for future in waiting:
            _reject(future, f"No snapshot could be written: {error}")

    # --- giving up ----------------------------------------------------------------------------

    def _refusal(self, *, use_reserve: bool) -> str | None:
        if self._closing:
            return CLOSED
        status = self._journal.check()
        if status == "failed":
            return FAILED
        if status == "full" and not use_reserve:
            return FULL
        return CROWDED if len(self._queue) >= MAX_QUEUED_FACTS else None

    def _give_up(self, reason: str) -> None:
        """Drop everything queued: later facts were decided on top of the ones that failed."""
        try:
            self._abandon()
        finally:
            self._reject_all(reason)

    def _give_up_quietly(self) -> None:
        try:
            self._give_up(FAILED)
        except Exception:  # logged: what was given up is told by _reject_all all the same
            log.exception("abandon failed as well")

    def _reject_all(self, reason: str) -> None:
        doomed: list[asyncio.Future[int] | asyncio.Future[None]] = [
            item.future for item in (*self._in_flight, *self._queue)
        ]
        doomed += self._compactions
        self._in_flight = []
        self._compactions = []
        self._queue.clear()
        for future in doomed:
            _reject(future, reason)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


async def _listed(source: Iterable[SnapshotRecord]) -> deque[SnapshotRecord]:
    """List the state in short turns of the loop; who applies facts waits for it here."""
    remaining, records = iter(source), deque[SnapshotRecord]()
    while part := list(islice(remaining, PART_RECORDS)):
        records += part
        await asyncio.sleep(0)
    return records


def _let_go(parts: deque[T]) -> Iterator[T]:
    """Yield all, and keep none that was taken.

    A large fleet's state is tens of megabytes, and to let go of 100,000 rows at once would
    take milliseconds.
    """
    while parts:
        yield parts.popleft()


def _reject(future: asyncio.Future[int] | asyncio.Future[None], reason: str) -> None:
    """Fail a future; one that nobody looks at makes no noise."""
    if not future.done():
        future.set_exception(StorageUnavailableError(reason))
        future.exception()
