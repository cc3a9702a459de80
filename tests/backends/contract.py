"""What every backend keeps to, told once and run by each of them.

A test file subclasses `BackendContract` and provides a fixture `harness`: a `Harness`
whose backend is open and which removes every engine at the end. Backends whose
engines speak HTTP take `HttpHarness` and add `crash`, `reopen` and `close`.
"""

import asyncio
import hashlib
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

import httpx
import msgspec
import pytest

from enginegate.backends.base import Backend, BackendEvent, EngineSpec, Presence
from enginegate.errors import BackendError, DataLostError, PortTakenError

KEY, OTHER_KEY = "sk-eg-first", "sk-eg-second"
PORTS = range(20_000, 30_000)
PATIENCE_S = 20.0


def key_hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def free_port() -> int:
    """Return a port that nobody holds and that the kernel gives to no client."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


async def eventually(check, *, within_s: float = PATIENCE_S):
    """Return the first true answer of an async check."""
    async with asyncio.timeout(within_s):
        while not (answer := await check()):
            await asyncio.sleep(0.01)
        return answer


class Harness(ABC):
    """A backend under test, and a way to do things to its engines behind its back."""

    backend: Backend
    prefix = "engine"
    versions = ("sample:1", "sample:2")
    crash_code: int | None = 137

    def __init__(self) -> None:
        self._number = 0

    def spec(self, **changes: object) -> EngineSpec:
        """Return a new engine's spec."""
        self._number += 1
        first = EngineSpec(
            engine_id=f"{self.prefix}-{self._number}",
            engine_version=self.versions[0],
            port=free_port(),
            key_hashes=(key_hash(KEY),),
        )
        return msgspec.structs.replace(first, **changes)

    async def started(self) -> EngineSpec:
        spec = self.spec()
        await self.backend.start(spec)
        await self.wait_healthy(spec)
        return spec

    async def presence(self, spec: EngineSpec) -> Presence:
        return (await self.backend.inspect(spec.engine_id)).presence

    async def life(self, spec: EngineSpec) -> str:
        return (await self.backend.inspect(spec.engine_id)).life

    @abstractmethod
    async def crash(self, engine_id: str) -> None:
        """Kill the engine's process with SIGKILL, behind the backend's back."""

    @abstractmethod
    async def reopen(self) -> None:
        """Close the backend and put another one, opened on the same engines, in its place."""

    @abstractmethod
    async def wait_healthy(self, spec: EngineSpec) -> None: ...

    @abstractmethod
    async def write(self, spec: EngineSpec, name: str, text: str) -> None:
        """Let the engine write a file of its own."""

    @abstractmethod
    async def read(self, spec: EngineSpec, name: str) -> str | None:
        """Let the engine read it, None where there is none."""

    @abstractmethod
    async def accepts(self, spec: EngineSpec, key: str) -> bool:
        """Return whether the engine lets a caller with this key in."""

    @abstractmethod
    def connection(self, spec: EngineSpec) -> AbstractAsyncContextManager[None]:
        """Hold a connection to the engine."""

    @contextmanager
    def port_held(self, port: int) -> Iterator[None]:
        """Be another program on that port."""
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            stranger.bind(("127.0.0.1", port))
            stranger.listen()
            yield


class HttpHarness(Harness):
    """Talks to real engines: the bundled sample engine, wherever it runs."""

    async def ask(
        self, spec: EngineSpec, path: str, *, method: str = "GET", key: str = KEY, body: str = ""
    ) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_S) as client:
            return await client.request(
                method,
                self.backend.url(spec) + path,
                content=body.encode(),
                headers={"x-engine-key": key},
            )

    async def wait_healthy(self, spec: EngineSpec) -> None:
        async def healthy() -> bool:
            try:
                return (await self.ask(spec, "/health")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(healthy)

    async def write(self, spec: EngineSpec, name: str, text: str) -> None:
        answer = await self.ask(spec, f"/data/{name}", method="PUT", body=text)
        assert answer.status_code == 201

    async def read(self, spec: EngineSpec, name: str) -> str | None:
        answer = await self.ask(spec, f"/data/{name}")
        return answer.text if answer.status_code == 200 else None

    async def accepts(self, spec: EngineSpec, key: str) -> bool:
        return (await self.ask(spec, "/whoami", key=key)).status_code == 200

    @asynccontextmanager
    async def connection(self, spec: EngineSpec) -> AsyncIterator[None]:
        url = httpx.URL(self.backend.url(spec))
        _, writer = await asyncio.open_connection(url.host, url.port)
        try:
            yield
        finally:
            writer.close()
            await writer.wait_closed()


class BackendContract:
    """The tests. Read alone, they say what a backend promises."""

    async def test_start_makes_an_engine_that_gets_healthy(self, harness: Harness) -> None:
        """A started engine runs, and is known by port, version and key."""
        spec = await harness.started()
        seen = await harness.backend.inspect(spec.engine_id)
        assert seen.presence is Presence.RUNNING
        assert (seen.engine_id, seen.port) == (spec.engine_id, spec.port)
        assert (seen.engine_version, seen.key_hash) == (spec.engine_version, spec.key_hashes[0])
        assert seen.life
        assert await harness.accepts(spec, KEY)
        assert not await harness.accepts(spec, OTHER_KEY)

    async def test_start_of_a_running_engine_leaves_it_alone(self, harness: Harness) -> None:
        """Starting what runs as the spec says does not restart it."""
        spec = await harness.started()
        life = await harness.life(spec)
        await harness.backend.start(spec)
        assert await harness.life(spec) == life

    async def test_start_thaws_a_frozen_engine(self, harness: Harness) -> None:
        """Starting a frozen engine lets the same life go on."""
        spec = await harness.started()
        life = await harness.life(spec)
        await harness.backend.pause(spec.engine_id)
        await harness.backend.start(spec)
        assert await harness.presence(spec) is Presence.RUNNING
        assert await harness.life(spec) == life
        await harness.wait_healthy(spec)

    async def test_start_of_a_stopped_engine_begins_a_new_life_on_its_data(
        self, harness: Harness
    ) -> None:
        """What an engine wrote is there after a stop and a start."""
        spec = await harness.started()
        await harness.write(spec, "note", "kept")
        life = await harness.life(spec)
        await harness.backend.stop(spec.engine_id, grace_s=10)
        await harness.backend.start(spec)
        await harness.wait_healthy(spec)
        assert await harness.life(spec) != life
        assert await harness.read(spec, "note") == "kept"

    async def test_start_with_another_key_replaces_the_engine_on_its_data(
        self, harness: Harness
    ) -> None:
        """A changed key hash means another life, which knows the new key alone."""
        spec = await harness.started()
        await harness.write(spec, "note", "kept")
        life = await harness.life(spec)
        other = msgspec.structs.replace(spec, key_hashes=(key_hash(OTHER_KEY),))
        await harness.backend.start(other)
        await harness.wait_healthy(other)
        assert await harness.life(other) != life
        assert await harness.accepts(other, OTHER_KEY)
        assert not await harness.accepts(other, KEY)
        await harness.backend.start(spec)
        await harness.wait_healthy(spec)
        assert await harness.read(spec, "note") == "kept"

    async def test_start_with_another_version_replaces_the_engine_on_its_data(
        self, harness: Harness
    ) -> None:
        """A changed version means another life on the same data."""
        spec = await harness.started()
        await harness.write(spec, "note", "kept")
        other = msgspec.structs.replace(spec, engine_version=harness.versions[1])
        await harness.backend.start(other)
        await harness.wait_healthy(other)
        seen = await harness.backend.inspect(spec.engine_id)
        assert seen.engine_version == harness.versions[1]
        assert await harness.read(other, "note") == "kept"

    async def test_start_with_another_port_moves_the_engine(self, harness: Harness) -> None:
        """A changed port means that the engine answers there, on the same data."""
        spec = await harness.started()
        await harness.write(spec, "note", "kept")
        other = msgspec.structs.replace(spec, port=free_port())
        await harness.backend.start(other)
        await harness.wait_healthy(other)
        assert (await harness.backend.inspect(spec.engine_id)).port == other.port
        assert await harness.read(other, "note") == "kept"

    async def test_start_on_a_taken_port_is_refused(self, harness: Harness) -> None:
        """Another program on the port is said so, and nothing runs; later the start works."""
        spec = harness.spec()
        with harness.port_held(spec.port):
            with pytest.raises(PortTakenError):
                await harness.backend.start(spec)
            assert await harness.presence(spec) in {Presence.ABSENT, Presence.STOPPED}
        await harness.backend.start(spec)
        await harness.wait_healthy(spec)

    async def test_data_that_must_be_there_are_not_made_anew(self, harness: Harness) -> None:
        """An engine that has run before does not start on empty data: that would hide a loss."""
        spec = harness.spec(fresh=False)
        with pytest.raises(DataLostError):
            await harness.backend.start(spec)
        assert await harness.presence(spec) is Presence.ABSENT
        first = msgspec.structs.replace(spec, fresh=True)
        await harness.backend.start(first)
        await harness.wait_healthy(first)
        await harness.backend.stop(spec.engine_id, grace_s=10)
        await harness.backend.start(spec)
        await harness.wait_healthy(spec)

    async def test_an_engine_on_its_network_is_connected(self, harness: Harness) -> None:
        """Bringing it back onto its network changes nothing there; absent is done."""
        spec = await harness.started()
        before = await harness.backend.inspect(spec.engine_id)
        assert before.connected
        await harness.backend.reconnect(spec.engine_id)
        await harness.backend.reconnect(harness.spec().engine_id)
        assert await harness.backend.inspect(spec.engine_id) == before

    async def test_stop_ends_the_process_and_keeps_the_engine(self, harness: Harness) -> None:
        """A stopped engine is known as stopped, with its exit code; stopping twice is once."""
        spec = await harness.started()
        await harness.backend.stop(spec.engine_id, grace_s=10)
        await harness.backend.stop(spec.engine_id, grace_s=10)
        seen = await harness.backend.inspect(spec.engine_id)
        assert (seen.presence, seen.exit_code) == (Presence.STOPPED, 0)

    async def test_stop_of_a_frozen_engine_works(self, harness: Harness) -> None:
        """A frozen engine is thawed so that it can stop cleanly."""
        spec = await harness.started()
        await harness.backend.pause(spec.engine_id)
        await harness.backend.stop(spec.engine_id, grace_s=10)
        seen = await harness.backend.inspect(spec.engine_id)
        assert (seen.presence, seen.exit_code) == (Presence.STOPPED, 0)

    async def test_stop_of_an_absent_engine_is_done(self, harness: Harness) -> None:
        """Stopping what does not exist is no error and creates nothing."""
        spec = harness.spec()
        await harness.backend.stop(spec.engine_id, grace_s=1)
        assert await harness.presence(spec) is Presence.ABSENT

    async def test_pause_and_unpause_may_be_repeated(self, harness: Harness) -> None:
        """Freezing the frozen and thawing the running change nothing; the life stays."""
        spec = await harness.started()
        life = await harness.life(spec)
        for _ in range(2):
            await harness.backend.pause(spec.engine_id)
            assert await harness.presence(spec) is Presence.PAUSED
        for _ in range(2):
            await harness.backend.unpause(spec.engine_id)
            assert await harness.presence(spec) is Presence.RUNNING
        await harness.wait_healthy(spec)
        assert await harness.life(spec) == life

    @pytest.mark.parametrize("verb", ["pause", "unpause"])
    async def test_what_does_not_run_cannot_be_frozen_or_thawed(
        self, harness: Harness, verb: str
    ) -> None:
        """Freezing and thawing need a process, and say so."""
        spec = await harness.started()
        await harness.backend.stop(spec.engine_id, grace_s=10)
        for engine_id in (spec.engine_id, harness.spec().engine_id):
            with pytest.raises(BackendError) as caught:
                await getattr(harness.backend, verb)(engine_id)
            assert not caught.value.unavailable

    async def test_an_unknown_engine_is_absent(self, harness: Harness) -> None:
        """An engine that was never started is absent, without data, logs or usage."""
        spec = harness.spec()
        backend = harness.backend
        assert await harness.presence(spec) is Presence.ABSENT
        assert list(await backend.logs(spec.engine_id, lines=10)) == []
        assert (await backend.usage(spec.engine_id)).cpu_s is None
        assert list(await backend.connections(spec.engine_id, port=spec.port)) == []

    async def test_the_list_is_complete(self, harness: Harness) -> None:
        """Running, frozen and stopped engines are all listed, the destroyed one is not."""
        specs = [await harness.started() for _ in range(4)]
        running, frozen, stopped, gone = (spec.engine_id for spec in specs)
        await harness.backend.pause(frozen)
        await harness.backend.stop(stopped, grace_s=10)
        await harness.backend.destroy(gone)
        seen = {one.engine_id: one.presence for one in await harness.backend.list()}
        assert seen == {
            running: Presence.RUNNING,
            frozen: Presence.PAUSED,
            stopped: Presence.STOPPED,
        }

    async def test_destroy_frees_data_and_port(self, harness: Harness) -> None:
        """After a destroy nothing is left; the same engine starts from scratch."""
        spec = await harness.started()
        await harness.write(spec, "note", "gone")
        await harness.backend.destroy(spec.engine_id)
        await harness.backend.destroy(spec.engine_id)
        assert await harness.presence(spec) is Presence.ABSENT
        assert list(await harness.backend.logs(spec.engine_id, lines=10)) == []
        await harness.backend.start(spec)
        await harness.wait_healthy(spec)
        assert await harness.read(spec, "note") is None

    async def test_destroy_works_on_a_frozen_engine(self, harness: Harness) -> None:
        """A frozen engine is destroyed as it is."""
        spec = await harness.started()
        await harness.backend.pause(spec.engine_id)
        await harness.backend.destroy(spec.engine_id)
        assert await harness.presence(spec) is Presence.ABSENT

    async def test_remove_orphan_leaves_the_data(self, harness: Harness) -> None:
        """An engine without a row goes away, but whoever starts it again finds its data."""
        spec = await harness.started()
        await harness.write(spec, "note", "kept")
        await harness.backend.remove_orphan(spec.engine_id)
        await harness.backend.remove_orphan(spec.engine_id)
        assert await harness.presence(spec) is Presence.ABSENT
        await harness.backend.start(spec)
        await harness.wait_healthy(spec)
        assert await harness.read(spec, "note") == "kept"

    async def test_logs_are_what_the_engine_said(self, harness: Harness) -> None:
        """The last lines come back, oldest first, and no more than asked for."""
        spec = await harness.started()
        lines = list(await harness.backend.logs(spec.engine_id, lines=50))
        assert any(spec.engine_id in line for line in lines)
        assert len(await harness.backend.logs(spec.engine_id, lines=1)) == 1
        assert list(await harness.backend.logs(spec.engine_id, lines=0)) == []

    async def test_put_key_reaches_the_running_engine(self, harness: Harness) -> None:
        """A live rotation needs no restart: both keys count, then the new one alone."""
        spec = await harness.started()
        life = await harness.life(spec)
        new, old = key_hash(OTHER_KEY), key_hash(KEY)
        await harness.backend.put_key(spec.engine_id, [new, old])
        assert await harness.accepts(spec, KEY)
        assert await harness.accepts(spec, OTHER_KEY)
        await harness.backend.put_key(spec.engine_id, [new])
        assert not await harness.accepts(spec, KEY)
        assert await harness.accepts(spec, OTHER_KEY)
        assert await harness.life(spec) == life

    async def test_put_key_survives_a_restart_of_the_engine(self, harness: Harness) -> None:
        """A key that was put is in force in the next life too."""
        spec = await harness.started()
        await harness.backend.put_key(spec.engine_id, [key_hash(OTHER_KEY)])
        await harness.backend.stop(spec.engine_id, grace_s=10)
        await harness.backend.start(
            msgspec.structs.replace(spec, key_hashes=(key_hash(OTHER_KEY),))
        )
        await harness.wait_healthy(spec)
        assert await harness.accepts(spec, OTHER_KEY)
        assert not await harness.accepts(spec, KEY)

    async def test_a_crash_is_told_at_once(self, harness: Harness) -> None:
        """An engine that ends by itself is an event within a second, with life and exit code."""
        spec = await harness.started()
        life = await harness.life(spec)
        events = aiter(harness.backend.watch())
        heard = asyncio.ensure_future(_exit_of(events, spec.engine_id, life))
        await asyncio.sleep(0)
        await harness.crash(spec.engine_id)
        async with asyncio.timeout(1):
            event = await heard
        assert event.exit_code == harness.crash_code
        seen = await harness.backend.inspect(spec.engine_id)
        assert seen.exit_code == harness.crash_code
        await events.aclose()

    async def test_an_established_connection_is_seen(self, harness: Harness) -> None:
        """A caller's connection counts as long as it is open, once."""
        spec = await harness.started()

        async def count() -> int:
            return len(await harness.backend.connections(spec.engine_id, port=spec.port))

        async def quiet() -> bool:
            return await count() == 0

        await eventually(quiet)
        async with harness.connection(spec):
            assert await eventually(count) == 1
        await eventually(quiet)

    async def test_usage_of_a_running_engine_is_known(self, harness: Harness) -> None:
        """CPU time is counted while the engine runs."""
        spec = await harness.started()
        used = (await harness.backend.usage(spec.engine_id)).cpu_s
        assert used is not None
        assert used >= 0

    async def test_engines_outlive_the_backend_and_are_found_again(self, harness: Harness) -> None:
        """Another backend on the same engines sees the same lives, and works on them."""
        running, frozen, stopped = [await harness.started() for _ in range(3)]
        await harness.backend.pause(frozen.engine_id)
        await harness.backend.stop(stopped.engine_id, grace_s=10)
        before = {one.engine_id: one for one in await harness.backend.list()}
        await harness.reopen()
        after = {one.engine_id: one for one in await harness.backend.list()}
        assert after.keys() == before.keys()
        for spec in (running, frozen):
            assert after[spec.engine_id] == before[spec.engine_id]
        assert after[stopped.engine_id].presence is Presence.STOPPED
        life = await harness.life(running)
        await harness.backend.start(running)
        assert await harness.life(running) == life
        for spec in (frozen, stopped):
            await harness.backend.start(spec)
            await harness.wait_healthy(spec)

    async def test_closing_twice_and_asking_for_life(self, harness: Harness) -> None:
        """A backend answers the ping while it is open, and closes as often as it is told."""
        assert await harness.backend.ping()
        await harness.backend.close()
        await harness.backend.close()
        await harness.reopen()
        assert await harness.backend.ping()


async def _exit_of(events: AsyncIterator[BackendEvent], engine_id: str, life: str) -> BackendEvent:
    async for event in events:
        if (event.kind, event.engine_id, event.life) == ("exited", engine_id, life):
            return event
    raise AssertionError("the watch ended")
