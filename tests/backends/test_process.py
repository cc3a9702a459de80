"""The process backend: the contract, and what is special about plain processes."""

import asyncio
import errno
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest
import uvloop

from enginegate.backends import proc, process, process_files, process_launch, process_life
from enginegate.backends.base import EngineSpec, Presence
from enginegate.backends.process import ProcessBackend
from enginegate.backends.process_launch import SAMPLE_COMMAND
from enginegate.errors import BackendError, ConfigError, DataLostError, PortTakenError
from enginegate.probe import Probe
from tests.backends.conftest import Make, ProcessHarness
from tests.backends.contract import (
    KEY,
    OTHER_KEY,
    PATIENCE_S,
    BackendContract,
    eventually,
    key_hash,
)

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
MANY_THREADS = """
import os, signal, socket, threading
said = os.path.join(os.environ["ENGINE_DATA_DIR"], "said")
def write(what):
    with open(said, "w") as file:
        file.write(what)
def end(*_):
    write("ended")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for _ in range(4):
    one, other = socket.socketpair()
    threading.Thread(target=one.recv, args=(1,), daemon=True).start()
    threading.Thread(target=other.recv, args=(1,), daemon=True).start()
listener = socket.create_server(("127.0.0.1", 0))
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # the others wake first
write("ready")
listener.accept()
"""
Patch = pytest.MonkeyPatch


async def count_of(harness: ProcessHarness, number: int) -> None:
    """Wait until so many processes bear our engines' environment."""

    async def reached() -> bool:
        return len(harness.processes()) == number

    await eventually(reached)


async def stopped(harness: ProcessHarness, spec: EngineSpec) -> None:
    async def seen() -> bool:
        return await harness.presence(spec) is Presence.STOPPED

    await eventually(seen)


def open_files(pid: int) -> dict[str, str]:
    """Return what each file descriptor of a process leads to."""
    files = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            files[fd.name] = str(fd.readlink())
    return files


def record_of(harness: ProcessHarness, spec: EngineSpec) -> Path:
    return harness.folder / "run" / f"{spec.engine_id}.json"


class TestProcessBackend(BackendContract):
    """The contract, run by real processes."""


class TestEnvironment:
    """What an engine is given, and what is kept from it."""

    async def test_an_engine_sees_exactly_what_is_listed(
        self, make: Make, monkeypatch: Patch, tmp_path: Path
    ) -> None:
        """Its identity, engine.env, the passthrough and four variables of ours; no secrets."""
        monkeypatch.setenv("ENGINEGATE_MASTER_KEY", "secret")
        monkeypatch.setenv("PROVIDER_KEY", "p")
        monkeypatch.setenv("NOT_NAMED", "n")
        monkeypatch.setenv("TZ", "UTC")
        monkeypatch.delenv("LANG", raising=False)
        harness = await make(
            command=["sleep", "600"],
            env={"MODEL": "m", "PORT": "1"},
            env_passthrough=["PROVIDER_KEY", "NOT_SET"],
            catalog_dir=str(tmp_path),
        )
        spec = harness.spec()
        await harness.backend.start(spec)
        data = harness.folder.resolve() / "engines" / spec.engine_id

        async def seen() -> dict[str, str]:
            return proc.read_environ(await harness.pid(spec.engine_id))

        assert await eventually(seen) == {
            "PORT": str(spec.port),
            "ENGINE_ID": spec.engine_id,
            "ENGINE_VERSION": spec.engine_version,
            "ENGINE_KEY_HASH": key_hash(KEY),
            "ENGINE_KEY_HASH_FILE": str(data / ".enginegate/key_hash"),
            "ENGINE_DATA_DIR": str(data),
            "CATALOG_DIR": str(tmp_path.resolve()),
            "MODEL": "m",
            "PROVIDER_KEY": "p",
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "TZ": "UTC",
        }

    async def test_an_engine_has_a_session_a_folder_and_no_open_files_of_ours(
        self, make: Make
    ) -> None:
        """It leads its own session, works in its data directory and holds three files."""
        harness = await make(command=["/bin/sleep", "600"])
        spec = harness.spec()
        await harness.backend.start(spec)
        pid = await harness.pid(spec.engine_id)
        seen = proc.read_stat(pid)
        assert seen is not None
        assert (seen.pgrp, seen.session) == (pid, pid)
        assert Path(f"/proc/{pid}/cwd").readlink().name == spec.engine_id
        log = str(harness.folder.resolve() / "logs" / f"{spec.engine_id}.log")
        expected = {"0": "/dev/null", "1": log, "2": log}

        async def loaded() -> bool:
            # A program has its own libraries open while it is being loaded.
            return open_files(pid) == expected

        with suppress(TimeoutError):
            await eventually(loaded)
        assert open_files(pid) == expected

    async def test_files_are_private(self, harness: ProcessHarness) -> None:
        """Folders are 0700, and keys, records and logs 0600; also after a rotation."""
        spec = await harness.started()
        await harness.backend.put_key(spec.engine_id, [key_hash(OTHER_KEY), key_hash(KEY)])
        data = harness.folder / "engines" / spec.engine_id
        record = record_of(harness, spec)
        log = harness.folder / "logs" / f"{spec.engine_id}.log"
        for folder in (data, data / ".enginegate", record.parent, log.parent):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in (data / ".enginegate/key_hash", record, log):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        content = (data / ".enginegate/key_hash").read_text()
        assert content == f"{key_hash(OTHER_KEY)}\n{key_hash(KEY)}\n"

    def test_our_own_variables_cannot_be_passed_on(self, tmp_path: Path) -> None:
        """A passthrough of a secret of ours is a fault of the configuration."""
        with pytest.raises(ConfigError, match="ENGINEGATE_MASTER_KEY"):
            ProcessBackend(data_dir=tmp_path, env_passthrough=["ENGINEGATE_MASTER_KEY", "X"])

    async def test_an_engine_without_a_version_gets_the_label(self, make: Make) -> None:
        """An empty version is the default one, and starting again changes nothing."""
        harness = await make(default_version="plain")
        spec = harness.spec(engine_version="")
        await harness.backend.start(spec)
        life = await harness.life(spec)
        await harness.backend.start(spec)
        seen = await harness.backend.inspect(spec.engine_id)
        assert (seen.engine_version, seen.life) == ("plain", life)

    @pytest.mark.parametrize(
        ("host", "url"), [("engines.lan", "http://engines.lan:1"), ("::1", "http://[::1]:1")]
    )
    def test_the_url_names_the_advertised_host(self, tmp_path: Path, host: str, url: str) -> None:
        """Products reach the engine where the configuration says."""
        spec = EngineSpec(engine_id="e", engine_version="v", port=1, key_hashes=("h",))
        assert ProcessBackend(data_dir=tmp_path, advertise_host=host).url(spec) == url

    @pytest.mark.parametrize("engine_id", ["", "..", "a/b", "a\0", "-a", "a" * 65])
    async def test_an_id_that_is_not_ours_names_no_file(
        self, harness: ProcessHarness, engine_id: str
    ) -> None:
        """An id that could leave the folder is refused before anything is touched."""
        with pytest.raises(ValueError, match="no engine id"):
            await harness.backend.start(harness.spec(engine_id=engine_id))
        assert list((harness.folder / "run").iterdir()) == []

    def test_the_sample_command_is_complete(self) -> None:
        """It names an interpreter and a file that exist."""
        assert Path(SAMPLE_COMMAND[0]).exists()
        assert Path(SAMPLE_COMMAND[-1]).exists()


class TestStart:
    """Starts that go wrong, or meet something."""

    @pytest.mark.parametrize(
        ("command", "detail"),
        [(["no-such-program"], "No such file"), (["/etc/passwd"], "Permission denied")],
    )
    async def test_a_command_that_cannot_run_is_named(
        self, make: Make, command: list[str], detail: str
    ) -> None:
        """The error names the command and the reason; the engine is known as stopped."""
        harness = await make(command=command)
        spec = harness.spec()
        with pytest.raises(BackendError, match=f"{command[0]}: {detail}"):
            await harness.backend.start(spec)
        assert await harness.presence(spec) is Presence.STOPPED

    async def test_a_relative_command_is_found_from_where_we_run(
        self, make: Make, monkeypatch: Patch, tmp_path: Path
    ) -> None:
        """Engines run in their own folders; the command's path does not change with them."""
        tool = tmp_path / "tool"
        tool.write_text("#!/bin/sh\nexec sleep 600\n")
        tool.chmod(0o755)
        monkeypatch.chdir(tmp_path)
        harness = await make(command=["./tool"])
        await harness.backend.start(spec := harness.spec())
        assert await harness.presence(spec) is Presence.RUNNING

    async def test_lost_data_is_told_and_not_replaced(self, harness: ProcessHarness) -> None:
        """A known engine whose data is gone does not start on an empty folder."""
        spec = await harness.started()
        await harness.backend.stop(spec.engine_id, grace_s=10)
        data = harness.folder / "engines" / spec.engine_id
        data.rename(harness.folder / "elsewhere")
        for seen in (await harness.backend.inspect(spec.engine_id), *await harness.backend.list()):
            assert (seen.presence, seen.data_lost) == (Presence.ABSENT, True)
            assert spec.engine_id in seen.detail
        with pytest.raises(DataLostError, match=spec.engine_id):
            await harness.backend.start(spec)
        await harness.backend.destroy(spec.engine_id)
        await harness.backend.start(spec)
        await harness.wait_healthy(spec)

    async def test_an_address_that_is_not_ours_is_no_taken_port(self, make: Make) -> None:
        """Only a port that somebody holds is worth trying another one."""
        harness = await make(publish_address="192.0.2.1")
        with pytest.raises(BackendError) as caught:
            await harness.backend.start(harness.spec())
        assert not isinstance(caught.value, PortTakenError)

    async def test_a_port_held_on_ipv6_is_taken(self, make: Make) -> None:
        """The check is made on the address that is published."""
        harness = await make(publish_address="::1")
        spec = harness.spec()
        with socket.socket(socket.AF_INET6) as stranger:
            stranger.bind(("::1", spec.port))
            stranger.listen()
            with pytest.raises(PortTakenError, match=str(spec.port)):
                await harness.backend.start(spec)

    async def test_a_key_that_was_put_is_no_reason_for_a_restart(
        self, harness: ProcessHarness
    ) -> None:
        """After a live rotation the start with the new key leaves the engine alone."""
        spec = await harness.started()
        life = await harness.life(spec)
        new, old = key_hash(OTHER_KEY), key_hash(KEY)
        await harness.backend.put_key(spec.engine_id, [new, old])
        await harness.reopen()
        await harness.backend.start(msgspec.structs.replace(spec, key_hashes=(new,)))
        assert await harness.life(spec) == life
        assert not await harness.accepts(spec, KEY)

    async def test_put_key_needs_an_engine(self, harness: ProcessHarness) -> None:
        """There is no key file for what does not exist."""
        with pytest.raises(BackendError, match="no such engine"):
            await harness.backend.put_key("unknown", ["h"])

    async def test_put_key_works_while_stopped(self, harness: ProcessHarness) -> None:
        """The next life begins with the key that was put."""
        spec = await harness.started()
        await harness.backend.stop(spec.engine_id, grace_s=10)
        await harness.reopen()
        await harness.backend.put_key(spec.engine_id, [key_hash(OTHER_KEY)])
        path = harness.folder / "engines" / spec.engine_id / ".enginegate/key_hash"
        assert path.read_text() == key_hash(OTHER_KEY) + "\n"

    async def test_a_cancelled_start_leaves_a_known_process(
        self, make: Make, monkeypatch: Patch
    ) -> None:
        """Whoever gives up a start leaves nothing behind that nobody knows of."""
        harness = await make(command=SLEEPER)
        spec, loop = harness.spec(), asyncio.get_running_loop()
        reached, real = asyncio.Event(), process_launch.Launcher.begin

        def begin(self, *args, **kwargs):
            loop.call_soon_threadsafe(reached.set)
            return real(self, *args, **kwargs)

        monkeypatch.setattr(process_launch.Launcher, "begin", begin)
        call = asyncio.create_task(harness.backend.start(spec))
        await reached.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await harness.presence(spec) is Presence.RUNNING
        await count_of(harness, 1)

    async def test_many_engines_start_side_by_side(self, make: Make) -> None:
        """A storm of starts gives every engine its process."""
        harness = await make(command=SLEEPER)
        specs = [harness.spec() for _ in range(10)]
        await asyncio.gather(*(harness.backend.start(spec) for spec in specs))
        seen = await harness.backend.list()
        assert [one.presence for one in seen] == [Presence.RUNNING] * 10


class TestStop:
    """How processes end."""

    async def test_one_that_ignores_sigterm_is_killed_when_the_grace_is_over(
        self, make: Make
    ) -> None:
        """SIGKILL follows, not before its time, and the exit code tells."""
        harness = await make(env={"SAMPLE_IGNORE_SIGTERM": "1"})
        spec, loop = await harness.started(), asyncio.get_running_loop()
        began = loop.time()
        await harness.backend.stop(spec.engine_id, grace_s=0.2)
        assert loop.time() - began >= 0.2
        seen = await harness.backend.inspect(spec.engine_id)
        assert (seen.presence, seen.exit_code) == (Presence.STOPPED, 137)

    async def test_destroy_does_not_wait_for_a_stop(self, make: Make) -> None:
        """A destroy ends a long grace at once, and the stop is done as well."""
        harness = await make(env={"SAMPLE_IGNORE_SIGTERM": "1"})
        spec = await harness.started()
        stopping = asyncio.create_task(harness.backend.stop(spec.engine_id, grace_s=600))
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            await harness.backend.destroy(spec.engine_id)
            await stopping
        assert await harness.presence(spec) is Presence.ABSENT
        assert harness.processes() == []

    async def test_an_exit_of_our_making_is_no_event(self, harness: ProcessHarness) -> None:
        """Stops, replacements and removals are silent; only a crash is heard."""
        specs = [await harness.started() for _ in range(3)]
        await harness.backend.stop(specs[0].engine_id, grace_s=10)
        await harness.backend.start(msgspec.structs.replace(specs[1], engine_version="other"))
        await harness.backend.destroy(specs[2].engine_id)
        await harness.crash(specs[1].engine_id)
        event = await anext(aiter(harness.backend.watch()))
        assert (event.engine_id, event.exit_code) == (specs[1].engine_id, 137)
        assert not harness.backend._events

    async def test_an_end_after_an_abandoned_stop_is_an_event(self, make: Make) -> None:
        """A stop that is given up takes no responsibility for what follows."""
        harness = await make(env={"SAMPLE_IGNORE_SIGTERM": "1"})
        spec = await harness.started()
        stopping = asyncio.create_task(harness.backend.stop(spec.engine_id, grace_s=600))
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await harness.crash(spec.engine_id)
        event = await anext(aiter(harness.backend.watch()))
        assert event.engine_id == spec.engine_id

    async def test_one_that_survives_everything_is_an_error(
        self, harness: ProcessHarness, monkeypatch: Patch
    ) -> None:
        """A process in the kernel's grip is told, not waited for."""
        spec = await harness.started()
        with monkeypatch.context() as patch:
            patch.setattr(process, "KILL_WAIT_S", 0.01)
            patch.setattr(process_life.Life, "send", lambda self, number: None)
            with pytest.raises(BackendError, match="survives"):
                await harness.backend.stop(spec.engine_id, grace_s=0)
        assert await harness.presence(spec) is Presence.RUNNING

    @pytest.mark.parametrize("reopened", [False, True])
    async def test_the_whole_group_ends_with_its_leader(self, make: Make, reopened: bool) -> None:
        """Children of an engine that crashed do not hold its port for ever."""
        harness = await make(command=["/bin/sh", "-c", "sleep 600 & sleep 601 & wait"])
        await harness.backend.start(spec := harness.spec())
        await count_of(harness, 3)
        if reopened:
            await harness.reopen()
        await harness.crash(spec.engine_id)
        await count_of(harness, 0)

    async def test_what_a_dead_leader_left_is_ended_before_the_next_start(self, make: Make) -> None:
        """Also where the leader died while no enginegate was there."""
        harness = await make(command=["/bin/sh", "-c", "sleep 600 & wait"])
        await harness.backend.start(spec := harness.spec())
        await count_of(harness, 2)
        pid = await harness.pid(spec.engine_id)
        await harness.backend.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        (left,) = harness.processes()
        await harness.reopen(command=SLEEPER)
        assert await harness.presence(spec) is Presence.STOPPED
        await harness.backend.start(spec)
        await count_of(harness, 1)
        assert left not in harness.processes()

    async def test_a_freeze_that_the_kernel_does_not_confirm_is_told(
        self, make: Make, monkeypatch: Patch
    ) -> None:
        """Only what the kernel calls stopped is frozen."""
        harness = await make(command=SLEEPER)
        await harness.backend.start(spec := harness.spec())
        with monkeypatch.context() as patch:
            patch.setattr(process, "STATE_WAIT_S", 0.01)
            patch.setattr(process_life.Life, "send", lambda self, number: None)
            with pytest.raises(BackendError, match="does not follow"):
                await harness.backend.pause(spec.engine_id)

    async def test_an_end_during_a_freeze_is_told(self, make: Make, monkeypatch: Patch) -> None:
        """What ends while it is being frozen is not frozen."""
        harness = await make(command=SLEEPER)
        await harness.backend.start(spec := harness.spec())
        real = process_life.Life.send
        with monkeypatch.context() as patch:
            patch.setattr(
                process_life.Life, "send", lambda self, number: real(self, signal.SIGKILL)
            )
            with pytest.raises(BackendError, match="has ended"):
                await harness.backend.pause(spec.engine_id)

    async def test_closing_waits_for_what_a_dead_leader_left(
        self, make: Make, monkeypatch: Patch
    ) -> None:
        """A clean-up under way is finished before the backend is closed."""
        harness, go, swept = await make(command=SLEEPER), threading.Event(), []

        def sweep(*_: object) -> None:
            go.wait(PATIENCE_S)
            swept.append(True)

        def not_our_child(life: process_life.Life) -> bool:
            os.waitid(os.P_PIDFD, life.pidfd, os.WEXITED)
            life.over = True
            return False

        await harness.backend.start(spec := harness.spec())
        with monkeypatch.context() as patch:
            patch.setattr(process, "sweep", sweep)
            patch.setattr(process_life.Life, "collect", not_our_child)
            await harness.crash(spec.engine_id)
            await anext(aiter(harness.backend.watch()))
            closing = asyncio.create_task(harness.backend.close())
            await asyncio.sleep(0)
            assert not closing.done()
            go.set()
            await closing
        assert swept == [True]

    async def test_nothing_is_left_open_after_a_life(self, harness: ProcessHarness) -> None:
        """Engines that come and go cost no file descriptors, no zombies and no memory."""

        def held() -> list[str]:
            links = open_files(os.getpid()).values()
            return sorted(link for link in links if "pidfd" in link or str(harness.folder) in link)

        before = held()
        for _ in range(3):
            spec = await harness.started()
            await harness.backend.destroy(spec.engine_id)
        assert held() == before
        assert [s for s in proc.processes() if s.ppid == os.getpid() and s.over] == []
        assert harness.backend._slots == {}


class TestAdoption:
    """Finding engines again, whatever enginegate died of."""

    async def test_a_process_without_a_record_is_found_by_its_environment(
        self, harness: ProcessHarness
    ) -> None:
        """Everything a record says is in the environment too."""
        spec = await harness.started()
        before = await harness.backend.inspect(spec.engine_id)
        record_of(harness, spec).unlink()
        for _ in range(2):
            await harness.reopen()
            assert await harness.backend.inspect(spec.engine_id) == before

    async def test_killed_between_fork_and_record(self, make: Make, monkeypatch: Patch) -> None:
        """The start that was begun leads to the process that came of it."""
        harness = await make(command=SLEEPER)
        spec, real = harness.spec(), process_files.Files.write_record

        def write(self: process_files.Files, record: process_files.Record) -> None:
            if record.pid is None:
                real(self, record)

        with monkeypatch.context() as patch:
            patch.setattr(process_files.Files, "write_record", write)
            await harness.backend.start(spec)
        before = await harness.backend.inspect(spec.engine_id)
        await harness.reopen()
        assert await harness.backend.inspect(spec.engine_id) == before

    async def test_killed_between_record_and_fork(self, make: Make) -> None:
        """A start that was begun and came to nothing is a stopped engine."""
        harness = await make(command=["no-such-program"])
        spec = harness.spec()
        with pytest.raises(BackendError):
            await harness.backend.start(spec)
        await harness.reopen(command=SLEEPER)
        assert await harness.presence(spec) is Presence.STOPPED
        await harness.backend.start(spec)
        assert await harness.presence(spec) is Presence.RUNNING

    async def test_a_session_that_an_engine_opened_is_not_the_engine(self, make: Make) -> None:
        """The oldest leader is the engine; one left over from an earlier life is nobody."""
        inner = "import os, time; os.fork() or (os.setsid(), time.sleep(600)); time.sleep(600)"
        harness = await make(command=[sys.executable, "-I", "-S", "-c", inner])
        await harness.backend.start(spec := harness.spec())
        await count_of(harness, 2)
        pid = await harness.pid(spec.engine_id)
        record_of(harness, spec).unlink()
        await harness.reopen()
        assert await harness.pid(spec.engine_id) == pid
        await harness.backend.stop(spec.engine_id, grace_s=10)
        await count_of(harness, 1)
        await harness.reopen()
        assert await harness.presence(spec) is Presence.STOPPED

    async def test_a_number_that_was_given_away_is_not_the_engine(self, make: Make) -> None:
        """A process with the recorded pid and another start, or of another boot, is a stranger."""
        harness = await make(command=SLEEPER)
        await harness.backend.start(spec := harness.spec())
        path = record_of(harness, spec)
        record = msgspec.json.decode(path.read_bytes(), type=process_files.Record)
        await harness.backend.stop(spec.engine_id, grace_s=10)
        me = proc.read_stat(os.getpid())
        assert me is not None
        for stranger in (
            msgspec.structs.replace(record, pid=me.pid, start_ticks=me.start_ticks - 1),
            msgspec.structs.replace(record, pid=me.pid, start_ticks=me.start_ticks, boot_id="old"),
        ):
            path.write_bytes(msgspec.json.encode(stranger))
            await harness.reopen()
            assert await harness.presence(spec) is Presence.STOPPED
            await harness.backend.stop(spec.engine_id, grace_s=0)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}'])
    async def test_a_spoilt_record_is_no_obstacle(self, make: Make, content: bytes) -> None:
        """The engine is found by its environment all the same."""
        harness = await make(command=SLEEPER)
        await harness.backend.start(spec := harness.spec())
        before = await harness.backend.inspect(spec.engine_id)
        record_of(harness, spec).write_bytes(content)
        await harness.reopen()
        assert await harness.backend.inspect(spec.engine_id) == before

    async def test_an_exit_before_the_first_watch_is_not_lost(
        self, harness: ProcessHarness
    ) -> None:
        """Events are kept from when the backend was opened."""
        spec = await harness.started()
        await harness.crash(spec.engine_id)
        await stopped(harness, spec)
        event = await anext(aiter(harness.backend.watch()))
        assert (event.engine_id, event.life) == (spec.engine_id, await harness.life(spec))

    async def test_too_many_events_become_one_resync(self, make: Make, monkeypatch: Patch) -> None:
        """Who does not listen is told to compare everything."""
        monkeypatch.setattr(process, "EVENTS_MAX", 2)
        harness = await make(command=["/bin/false"])
        for spec in [harness.spec() for _ in range(3)]:
            await harness.backend.start(spec)
            await stopped(harness, spec)
        events = aiter(harness.backend.watch())
        assert [(await anext(events)).kind for _ in range(2)] == ["resync", "exited"]

    async def test_exit_codes_are_told_of_children(self, make: Make) -> None:
        """A program's own exit code reaches the event and the observation."""
        harness = await make(command=["/bin/sh", "-c", "exit 7"])
        await harness.backend.start(spec := harness.spec())
        event = await anext(aiter(harness.backend.watch()))
        assert event.exit_code == 7
        assert (await harness.backend.inspect(spec.engine_id)).exit_code == 7

    async def test_engines_survive_a_killed_enginegate(self, make: Make) -> None:
        """Somebody else's child is adopted and tells its end at once, though not its code."""
        harness = await make(command=SLEEPER)
        spec = harness.spec()
        code = (
            "import asyncio, os, pathlib\n"
            "from enginegate.backends.process import ProcessBackend\n"
            "from enginegate.backends.base import EngineSpec\n"
            "async def main():\n"
            f"    folder, command = pathlib.Path({str(harness.folder)!r}), {SLEEPER!r}\n"
            "    backend = ProcessBackend(data_dir=folder, command=command)\n"
            "    await backend.open()\n"
            f"    await backend.start(EngineSpec(engine_id={spec.engine_id!r},"
            f" engine_version={spec.engine_version!r}, port={spec.port}, key_hashes=('h',)))\n"
            "    os.kill(os.getpid(), 9)\n"
            "asyncio.run(main())\n"
        )
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        assert await other.wait() == -signal.SIGKILL
        await harness.reopen()
        assert await harness.presence(spec) is Presence.RUNNING
        heard = asyncio.ensure_future(anext(aiter(harness.backend.watch())))
        await harness.crash(spec.engine_id)
        async with asyncio.timeout(1):
            event = await heard
        assert (event.kind, event.exit_code) == ("exited", None)
        await harness.backend.start(spec)
        assert await harness.presence(spec) is Presence.RUNNING

    async def test_a_closed_backend_says_so(self, harness: ProcessHarness) -> None:
        """What cannot be asked is an error, never an answer."""
        await harness.backend.close()
        with pytest.raises(BackendError) as caught:
            await harness.backend.list()
        assert caught.value.unavailable

    def test_everything_works_on_uvloop(self, tmp_path: Path) -> None:
        """The loop that serves in production notices exits and freezes alike."""

        async def life() -> Sequence[object]:
            harness = ProcessHarness(tmp_path)
            await harness.backend.open()
            try:
                spec = await harness.started()
                await harness.backend.pause(spec.engine_id)
                frozen = await harness.presence(spec)
                await harness.reopen()
                await harness.backend.unpause(spec.engine_id)
                await harness.wait_healthy(spec)
                heard = asyncio.ensure_future(anext(aiter(harness.backend.watch())))
                await harness.crash(spec.engine_id)
                async with asyncio.timeout(1):
                    event = await heard
                return frozen, event.kind, event.exit_code
            finally:
                await harness.clean()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(life()) == (Presence.PAUSED, "exited", 137)


class TestFiles:
    """What lies on disk: logs within bounds, and data that goes away."""

    async def test_lines_are_cut_and_bad_bytes_replaced(self, make: Make) -> None:
        """A hostile log harms nobody who reads it."""
        script = "import os; os.write(1, b'\\xff\\xfe\\n' + b'x' * 9000 + b'\\nlast\\n')"
        harness = await make(command=[sys.executable, "-I", "-S", "-c", script])
        await harness.backend.start(spec := harness.spec())
        await anext(aiter(harness.backend.watch()))
        lines = list(await harness.backend.logs(spec.engine_id, lines=10))
        assert lines == ["\ufffd\ufffd", "x" * 4096, "last"]

    async def test_a_large_log_is_trimmed_and_goes_on(
        self, harness: ProcessHarness, monkeypatch: Patch
    ) -> None:
        """One older file is kept, the newer one starts empty, and reading spans both."""
        monkeypatch.setattr(process_files, "LOG_MAX_BYTES", 1000)
        spec = await harness.started()
        log = harness.folder / "logs" / f"{spec.engine_id}.log"
        with log.open("a") as file:
            file.writelines(f"entry {number}\n" for number in range(200))
        await harness.backend.trim_logs()
        assert log.stat().st_size == 0
        assert log.with_name(log.name + ".1").stat().st_size == 1000
        await harness.ask(spec, "/control", method="POST", body='{"log": "after"}')
        lines = list(await harness.backend.logs(spec.engine_id, lines=3))
        assert lines == ["entry 198", "entry 199", "after"]
        await harness.backend.trim_logs()
        assert log.stat().st_size == len("after\n")

    async def test_data_goes_away_though_the_engine_locked_it(
        self, harness: ProcessHarness
    ) -> None:
        """Folders without write permission do not stop a destroy; nothing at all is left."""
        spec = await harness.started()
        locked = harness.folder / "engines" / spec.engine_id / "locked"
        locked.mkdir()
        (locked / "file").touch()
        locked.chmod(0o500)
        await harness.backend.destroy(spec.engine_id)
        assert [p.name for p in harness.folder.rglob("*") if p.is_file()] == []
        assert list((harness.folder / "engines").iterdir()) == []

    def test_data_goes_away_though_somebody_still_writes(
        self, tmp_path: Path, monkeypatch: Patch
    ) -> None:
        """A folder that changes meanwhile is removed again; one that cannot go is an error."""
        files = process_files.Files(tmp_path)
        files.prepare()
        files.data("e").mkdir()
        real, faults = process_files.shutil.rmtree, []

        def remove(path: Path) -> None:
            if faults:
                raise faults.pop()
            real(path)

        monkeypatch.setattr(process_files, "REMOVE_PAUSE_S", 0)
        monkeypatch.setattr(process_files.shutil, "rmtree", remove)
        faults += [PermissionError(), OSError(errno.ENOTEMPTY, "filled"), FileNotFoundError()]
        files.remove("e")
        assert not files.data("e").exists()
        files.data("e").mkdir()
        for fault in (OSError(errno.EIO, "broken"), PermissionError()):
            faults[:] = [fault] * process_files.REMOVE_ATTEMPTS
            with pytest.raises(OSError, match=r"broken|cannot be removed"):
                files.remove("e")

    def test_unlocking_opens_what_is_inside_and_nothing_else(self, tmp_path: Path) -> None:
        """Locked folders are opened to their depth; where a link leads nothing changes."""
        outside, root = tmp_path / "outside", tmp_path / "root"
        outside.mkdir()
        outside.chmod(0o555)
        (root / "a/b").mkdir(parents=True)
        (root / "link").symlink_to(outside)
        for folder in ("a/b", "a", "."):
            (root / folder).chmod(0o500)
        process_files._unlock(root)
        modes = [stat.S_IMODE((root / name).stat().st_mode) for name in (".", "a", "a/b")]
        assert modes == [0o700] * 3
        assert stat.S_IMODE(outside.stat().st_mode) == 0o555


class TestUse:
    """What engines consume, and who uses them."""

    async def test_the_time_of_descendants_counts(self, make: Make) -> None:
        """Work done by children of the engine is work of the engine."""
        burn = "import os\nos.fork()\nwhile True: pass"
        harness = await make(command=[sys.executable, "-I", "-S", "-c", burn])
        await harness.backend.start(spec := harness.spec())
        pid = await harness.pid(spec.engine_id)

        async def more_than_the_leader() -> bool:
            both = (await harness.backend.usage(spec.engine_id)).cpu_s
            alone = proc.read_stat(pid)
            assert alone is not None
            assert both is not None
            return both > alone.cpu_ticks / proc.TICKS_PER_S + 0.05

        await eventually(more_than_the_leader)
        await harness.backend.stop(spec.engine_id, grace_s=1)
        assert (await harness.backend.usage(spec.engine_id)).cpu_s is None

    async def test_our_own_probe_is_nobodys_use(self, make: Make) -> None:
        """A probe under way is left out, everybody else is counted."""
        async with Probe() as probe:
            harness = await make(own_sources=lambda: probe.sources)
            spec = await harness.started()
            await harness.ask(spec, "/control", method="POST", body='{"hang": true}')
            url = harness.backend.url(spec) + "/health"
            check = asyncio.create_task(probe.check(url, timeout_s=PATIENCE_S))

            async def connected() -> bool:
                return bool(probe.sources)

            async def one() -> bool:
                found = await harness.backend.connections(spec.engine_id, port=spec.port)
                return len(found) == 1

            await eventually(connected)
            async with harness.connection(spec):
                await eventually(one)
            await harness.ask(spec, "/control", method="POST", body='{"hang": false}')
            assert (await check).ok


class TestEnds:
    """What an engine hears of its end."""

    async def test_a_frozen_one_hears_that_it_is_to_end(self, make: Make) -> None:
        """Its main thread does, which alone can act on it, though others wake at the same time."""
        harness = await make(command=[sys.executable, "-I", "-S", "-c", MANY_THREADS])
        spec = harness.spec()
        await harness.backend.start(spec)
        said = harness.folder / "engines" / spec.engine_id / "said"
        await eventually(partial(_is_there, said))
        await harness.backend.pause(spec.engine_id)
        async with asyncio.timeout(PATIENCE_S):
            await harness.backend.stop(spec.engine_id, grace_s=30)
        assert said.read_text() == "ended"


async def _is_there(path: Path) -> bool:
    return path.exists()


class TestProc:
    """Reading /proc while the world changes."""

    def test_what_is_gone_is_none_or_empty(self, tmp_path: Path, monkeypatch: Patch) -> None:
        """Nothing is known of a process that does not exist, and asking is no error."""
        monkeypatch.setattr(proc, "PROC", tmp_path)
        assert proc.read_stat(1) is None
        assert proc.read_environ(1) == {}
        assert proc.family(1) == []

    def test_a_name_may_hold_anything(self, tmp_path: Path, monkeypatch: Patch) -> None:
        """Brackets and blanks in a program's name do not shift the fields."""
        monkeypatch.setattr(proc, "PROC", tmp_path)
        (tmp_path / "7").mkdir()
        fields = " ".join(map(str, range(1, 50)))
        (tmp_path / "7/stat").write_text(f"7 (a) b) (c) S {fields}")
        expected = proc.Stat(
            pid=7, state="S", ppid=1, pgrp=2, session=3, cpu_ticks=11 + 12 + 13 + 14, start_ticks=19
        )
        assert list(proc.processes()) == [expected]
