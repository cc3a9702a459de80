"""Engines as plain processes of this machine: no Docker needed.

An engine is the leader of a session of its own and outlives enginegate. It is found
again by its run record, or by its environment where enginegate was killed between the
fork and the record. A descendant that opens a session of its own is out of reach.
Needs Linux 5.4 or later.
"""

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from enginegate import sockets
from enginegate.backends import proc
from enginegate.backends.base import (
    BackendEvent,
    Connection,
    EngineSpec,
    Observation,
    Presence,
    Usage,
)
from enginegate.backends.process_files import NO_ROOM, Files, Record
from enginegate.backends.process_launch import SAMPLE_COMMAND, Launcher, base_environ, checked
from enginegate.backends.process_life import Life, sweep
from enginegate.backends.process_slot import Slot, required, to_the_end, within
from enginegate.errors import BackendError, NoRoomError, NotRunningError

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
EVENTS_MAX = 10_000
KILL_WAIT_S = 10.0
ORPHAN_GRACE_S = 10.0
STATE_WAIT_S = 2.0
STATE_PAUSE_S = 0.001


class ProcessBackend:
    """Runs `command` once per engine.

    `own_sources` returns the (address, port) pairs that our probes connect from; such
    connections are nobody's use of an engine.
    """

    name = "process"

    def __init__(
        self,
        *,
        data_dir: Path,
        command: Sequence[str] = SAMPLE_COMMAND,
        env: Mapping[str, str] | None = None,
        env_passthrough: Sequence[str] = (),
        catalog_dir: str = "",
        advertise_host: str = "127.0.0.1",
        publish_address: str = "127.0.0.1",
        instance: str = "",
        default_version: str = "process",
        replace_grace_s: float = 30.0,
        own_sources: Callable[[], Collection[tuple[str, int]]] = frozenset,
    ) -> None:
        self.instance = instance
        self._files = Files(data_dir)
        self._launcher = Launcher(
            self._files,
            command=command,
            env=base_environ(env or {}, env_passthrough, catalog_dir),
            publish_address=publish_address,
            default_version=default_version,
        )
        self._host = f"[{advertise_host}]" if ":" in advertise_host else advertise_host
        self._replace_grace_s = replace_grace_s
        self._own_sources = own_sources
        self._slots: dict[str, Slot] = {}
        self._events: deque[BackendEvent] = deque()
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Find every engine of an earlier enginegate again."""
        self._threads = ThreadPoolExecutor(THREADS, "engines")
        await self._in_thread("open", None, self._files.prepare)
        for life, record in await self._in_thread("open", None, self._launcher.find_all):
            slot = self._slots.setdefault(record.engine_id, Slot())
            slot.record, slot.swept = record, life is not None
            if life is not None:
                self._attend(slot, life)

    async def close(self) -> None:
        """Let go of everything but the engines, which stay up. May be called twice."""
        threads, self._threads = self._threads, None
        if threads is None:
            return
        for slot in [*self._slots.values()]:
            async with slot.turn:
                if slot.life is not None:
                    self._let_go(slot.life)
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._slots.clear()
        threads.shutdown(wait=False)

    async def ping(self) -> bool:
        return True

    def url(self, spec: EngineSpec) -> str:
        return f"http://{self._host}:{spec.port}"

    async def prepare(self, spec: EngineSpec) -> None: ...

    async def start(self, spec: EngineSpec) -> Observation:
        async with self._turn(spec.engine_id) as slot:
            life = slot.living()
            if life is not None and self._launcher.fits(life.record, spec):
                await self._put_key(spec.engine_id, spec.key_hashes)
                await self._thaw(life)
            else:
                await self._end(slot, self._replace_grace_s)
                await to_the_end(self._spawn(slot, spec))
            return self._observe(slot)

    async def stop(self, engine_id: str, *, grace_s: float) -> None:
        async with self._turn(engine_id) as slot:
            await self._end(slot, grace_s)

    async def pause(self, engine_id: str) -> None:
        """Freeze the process group and wait until the kernel says that it is frozen."""
        async with self._turn(engine_id) as slot:
            life = required(slot, "pause", engine_id)
            life.send(signal.SIGSTOP)
            await self._until(life, "pause", frozen=True)

    async def unpause(self, engine_id: str) -> Observation:
        async with self._turn(engine_id) as slot:
            await self._thaw(required(slot, "unpause", engine_id))
            return self._observe(slot)

    async def reconnect(self, engine_id: str) -> None: ...

    async def destroy(self, engine_id: str) -> None:
        """Kill at once, also an engine that another call is waiting for; then remove all."""
        self._kill(engine_id)
        async with self._turn(engine_id) as slot:
            await self._end(slot, 0.0)
            await to_the_end(self._in_thread("destroy", engine_id, self._files.remove, engine_id))
            self._forget(slot)

    async def remove_orphan(self, engine_id: str) -> None:
        async with self._turn(engine_id) as slot:
            await self._end(slot, ORPHAN_GRACE_S)
            await to_the_end(self._in_thread("remove", engine_id, self._files.disown, engine_id))
            self._forget(slot)

    async def inspect(self, engine_id: str) -> Observation:
        slot = self._slots.get(engine_id)
        if slot is None or slot.record is None:
            return Observation(engine_id=engine_id, presence=Presence.ABSENT)
        return self._observe(slot)

    async def list(self) -> Sequence[Observation]:
        lives = [slot.life for slot in self._slots.values() if slot.life is not None]
        stats = await self._in_thread(
            "list", None, lambda: {life: life.stat() for life in lives if not life.over}
        )
        return [
            self._observe(slot, None if slot.life is None else stats.get(slot.life))
            for slot in self._slots.values()
            if slot.record is not None
        ]

    async def logs(self, engine_id: str, *, lines: int) -> Sequence[str]:
        return await self._in_thread("logs", engine_id, self._files.tail, engine_id, lines)

    async def trim_logs(self) -> None:
        """Bound what logs take on disk; to be called now and then."""
        await self._in_thread("trim_logs", None, self._files.trim_logs)

    async def usage(self, engine_id: str) -> Usage:
        """Return the CPU time of the process and its descendants; processes have no network."""
        slot = self._slots.get(engine_id)
        life = None if slot is None else slot.living()
        if life is None:
            return Usage()
        cpu_s, wanted_s = await self._in_thread("usage", engine_id, proc.consumed, life.pid)
        return Usage(cpu_s=cpu_s, wanted_s=wanted_s)

    async def connections(self, engine_id: str, *, port: int) -> Sequence[Connection]:
        found = await self._in_thread("connections", engine_id, sockets.established, port)
        # Only now: a probe may have connected meanwhile.
        ours = self._own_sources()
        return [Connection(one.quiet_s) for one in found if (one.address, one.port) not in ours]

    async def put_key(
        self,
        engine_id: str,
        key_hashes: Sequence[str],
        *,
        first: bool = False,  # noqa: ARG002 - a rename does for both
    ) -> None:
        """Replace the key file, and remember that the running process has these now."""
        async with self._turn(engine_id) as slot:
            if slot.record is None:
                raise BackendError("put_key", engine_id, "no such engine")
            await self._put_key(engine_id, key_hashes)
            record = msgspec.structs.replace(slot.record, delivered=tuple(key_hashes))
            await self._in_thread("put_key", engine_id, self._files.write_record, record)
            slot.record = record
            if slot.life is not None:
                slot.life.record = record

    async def watch(self) -> AsyncIterator[BackendEvent]:
        """Yield the exits that we did not cause ourselves, from when the backend was opened.

        What nobody fetched is kept, for one watcher at a time. Freezing and thawing by
        others is not seen here; the listing shows it.
        """
        while True:
            while self._events:
                yield self._events.popleft()
            self._news.clear()
            await self._news.wait()

    # One engine at a time: everything below runs in the turn of its slot.

    @asynccontextmanager
    async def _turn(self, engine_id: str) -> AsyncIterator[Slot]:
        slot = self._slots.setdefault(checked(engine_id), Slot())
        slot.users += 1
        try:
            async with slot.turn:
                yield slot
        finally:
            slot.users -= 1
            if slot.users == 0 and slot.record is None:
                self._slots.pop(engine_id, None)

    async def _spawn(self, slot: Slot, spec: EngineSpec) -> None:
        launch, known = self._launcher, slot.record is not None
        begun = await self._in_thread("start", spec.engine_id, launch.begin, spec, known=known)
        slot.record = begun
        life = await self._in_thread("start", spec.engine_id, launch.run, spec, begun)
        slot.record = life.record
        self._attend(slot, life)

    async def _end(self, slot: Slot, grace_s: float) -> None:
        """Leave nothing running: the process first, then what is left of its session."""
        life = slot.life
        if life is not None and not life.over:
            await self._end_life(life, grace_s)
        if life is not None:
            await life.cleared.wait()
        if not slot.swept and slot.record is not None:
            await self._sweep(slot.record)
        slot.swept = True

    async def _end_life(self, life: Life, grace_s: float) -> None:
        life.expected = True
        try:
            await life.ask_to_end()
            if grace_s > 0 and await within(grace_s, life.ended):
                return
            life.send(signal.SIGKILL)
            if not await within(KILL_WAIT_S, life.ended):
                raise BackendError("stop", life.record.engine_id, "survives SIGKILL")
        finally:
            life.expected = life.over  # an end that comes after we gave up is news

    def _kill(self, engine_id: str) -> None:
        slot = self._slots.get(engine_id)
        if slot is not None and slot.life is not None and not slot.life.over:
            slot.life.expected = True
            slot.life.send(signal.SIGKILL)

    async def _thaw(self, life: Life) -> None:
        life.send(signal.SIGCONT)
        await self._until(life, "unpause", frozen=False)

    async def _until(self, life: Life, operation: str, *, frozen: bool) -> None:
        """Wait until the kernel has done it: at once, mostly."""
        engine_id, loop = life.record.engine_id, asyncio.get_running_loop()
        until = loop.time() + STATE_WAIT_S
        while not life.has_ended() and life.frozen() != frozen:
            if loop.time() > until:
                raise BackendError(operation, engine_id, "the process does not follow the signal")
            await asyncio.sleep(STATE_PAUSE_S)
        if life.has_ended():
            raise NotRunningError(operation, engine_id, "the process has ended")

    async def _put_key(self, engine_id: str, hashes: Sequence[str]) -> None:
        await self._in_thread("put_key", engine_id, self._files.write_key, engine_id, hashes)

    # Ends, and who hears of them.

    def _attend(self, slot: Slot, life: Life) -> None:
        if slot.life is not None:
            self._let_go(slot.life)
        slot.life, slot.swept = life, True
        asyncio.get_running_loop().add_reader(life.pidfd, self._ended, life)

    def _let_go(self, life: Life) -> None:
        if life.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(life.pidfd)
            life.close()

    def _forget(self, slot: Slot) -> None:
        if slot.life is not None:
            self._let_go(slot.life)
        slot.record = slot.life = None

    def _observe(self, slot: Slot, stat: proc.Stat | None = None) -> Observation:
        """Say what is; an end is noticed even if the loop has not come round to it."""
        record, life, presence = slot.record, slot.life, Presence.STOPPED
        assert record is not None
        if life is not None and life.has_ended():
            self._ended(life)
        elif life is not None and (stat := stat or life.stat()) is not None:
            presence = Presence.PAUSED if stat.state == proc.STOPPED else Presence.RUNNING
        lost = not self._files.data(record.engine_id).is_dir()  # one that runs on is none, either
        return Observation(
            engine_id=record.engine_id,
            presence=Presence.ABSENT if lost else presence,
            data_lost=lost,
            detail=f"data directory {record.engine_id}" if lost else "",
            life="" if life is None else life.name,
            key_hash=record.key_hash,
            port=record.port,
            engine_version=record.engine_version,
            exit_code=None if life is None else life.exit_code,
        )

    def _ended(self, life: Life) -> None:
        """Take note of an end, once."""
        if life.over:
            return
        buried = life.collect()
        self._let_go(life)
        life.ended.set()
        if buried:
            life.cleared.set()
        else:
            task = asyncio.get_running_loop().create_task(self._clear(life))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not life.expected:
            self._tell(life)

    async def _clear(self, life: Life) -> None:
        try:
            await self._sweep(life.record)
        finally:
            life.cleared.set()

    async def _sweep(self, record: Record) -> None:
        data_dir = str(self._files.data(record.engine_id))
        await self._in_thread("stop", record.engine_id, sweep, record, data_dir)

    def _tell(self, life: Life) -> None:
        if len(self._events) >= EVENTS_MAX:
            self._events.clear()
            self._events.append(BackendEvent(kind="resync"))
        self._events.append(
            BackendEvent(
                kind="exited",
                engine_id=life.record.engine_id,
                life=life.name,
                exit_code=life.exit_code,
            )
        )
        self._news.set()

    # In threads.

    async def _in_thread(
        self,
        operation: str,
        engine_id: str | None,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        if self._threads is None:
            raise BackendError(operation, engine_id, "the backend is closed", unavailable=True)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        except OSError as fault:
            kind = NoRoomError if fault.errno in NO_ROOM else BackendError
            raise kind(operation, engine_id, str(fault)) from fault
