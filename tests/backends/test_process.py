"""The process backend keeps the contract, with real processes of the sample engine."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginegate.backends.base import Presence
from enginegate.backends.proc import read_environ
from enginegate.backends.process import ProcessBackend
from enginegate.errors import BackendError, ConfigError
from tests.backends.contract import (
    KEY,
    OTHER_KEY,
    BackendContract,
    HttpHarness,
    eventually,
    key_hash,
)


class ProcessHarness(HttpHarness):
    """Real processes below a directory of the test's own, none left behind."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self.data_dir = data_dir
        self.backend = self.make()
        self._opened = [self.backend]

    def make(self, **settings: Any) -> ProcessBackend:
        return ProcessBackend(data_dir=self.data_dir, instance="test", **settings)

    async def use(self, **settings: Any) -> None:
        """Go on with a backend of other settings."""
        await self.backend.close()
        self.backend = self.make(**settings)
        self._opened.append(self.backend)
        await self.backend.open()

    async def pid(self, engine_id: str) -> int:
        return int((await self.backend.inspect(engine_id)).life.split(".")[1])

    async def crash(self, engine_id: str) -> None:
        os.kill(await self.pid(engine_id), signal.SIGKILL)

    async def reopen(self) -> None:
        await self.use()

    async def close(self) -> None:
        for seen in await self.backend.list():
            await self.backend.destroy(seen.engine_id)
        for backend in self._opened:
            await backend.close()


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[ProcessHarness]:
    made = ProcessHarness(tmp_path)
    await made.backend.open()
    yield made
    await made.close()


class TestContract(BackendContract):
    """The process backend keeps the contract of all backends."""


async def test_an_engine_gets_what_the_contract_names_and_nothing_else(
    harness: ProcessHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not our secrets, not our environment; passthrough and env as configured."""
    monkeypatch.setenv("PROVIDER_KEY", "passed")
    monkeypatch.setenv("ENGINEGATE_MASTER_KEY", "secret")
    monkeypatch.setenv("STRAY", "secret")
    await harness.use(
        env={"MODE": "x"}, env_passthrough=["PROVIDER_KEY", "ABSENT"], catalog_dir="/srv/catalog"
    )
    spec = await harness.started()
    given = read_environ(await harness.pid(spec.engine_id))
    data = harness.data_dir / "engines" / spec.engine_id
    expected = {
        "PORT": str(spec.port),
        "ENGINE_ID": spec.engine_id,
        "ENGINE_VERSION": spec.engine_version,
        "ENGINE_KEY_HASH": spec.key_hashes[0],
        "ENGINE_KEY_HASH_FILE": str(data / ".enginegate" / "key_hash"),
        "ENGINE_DATA_DIR": str(data),
        "CATALOG_DIR": "/srv/catalog",
        "MODE": "x",
        "PROVIDER_KEY": "passed",
    }
    assert {k: v for k, v in given.items() if k not in ("PATH", "HOME", "LANG", "TZ")} == expected


def test_our_own_variables_cannot_be_passed_through(tmp_path: Path) -> None:
    """ENGINEGATE_ names are refused, whatever the configuration says."""
    with pytest.raises(ConfigError, match="ENGINEGATE_MASTER_KEY"):
        ProcessBackend(data_dir=tmp_path, env_passthrough=["ENGINEGATE_MASTER_KEY"])


async def test_files_are_ours_alone(harness: ProcessHarness) -> None:
    """Directories 0700, key file and record 0600."""
    spec = await harness.started()
    data = harness.data_dir / "engines" / spec.engine_id
    assert data.stat().st_mode & 0o777 == 0o700
    assert (data / ".enginegate" / "key_hash").stat().st_mode & 0o777 == 0o600
    for folder in ("run", "logs"):
        for path in (harness.data_dir / folder).iterdir():
            assert path.stat().st_mode & 0o777 == 0o600


async def test_a_command_that_is_not_there_is_said(harness: ProcessHarness) -> None:
    """BackendError names the command; no process and no record is left."""
    await harness.use(command=["/nonexistent/engine"])
    with pytest.raises(BackendError, match="/nonexistent/engine"):
        await harness.backend.start(harness.spec())


async def test_an_engine_without_a_record_is_found_by_its_environment(
    harness: ProcessHarness,
) -> None:
    """Enginegate may be killed between the fork and the record; the engine is adopted."""
    spec = await harness.started()
    pid = await harness.pid(spec.engine_id)
    for record in (harness.data_dir / "run").iterdir():
        record.unlink()
    await harness.reopen()
    [seen] = await harness.backend.list()
    assert (seen.engine_id, seen.presence) == (spec.engine_id, Presence.RUNNING)
    assert (seen.key_hash, seen.port) == (spec.key_hashes[0], spec.port)
    assert await harness.pid(spec.engine_id) == pid


async def test_the_grace_is_kept_and_then_the_engine_is_killed(harness: ProcessHarness) -> None:
    """An engine deaf to SIGTERM ends with the grace."""
    await harness.use(env={"SAMPLE_IGNORE_SIGTERM": "1"})
    spec = await harness.started()
    began = time.monotonic()
    await harness.backend.stop(spec.engine_id, grace_s=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert await harness.presence(spec) is Presence.STOPPED


async def test_logs_are_bounded_and_keep_the_newest_lines(harness: ProcessHarness) -> None:
    """A log over its bound is cut; its end can still be read."""
    spec = await harness.started()
    log = harness.data_dir / "logs" / f"{spec.engine_id}.log"
    with log.open("ab") as file:
        file.write(b"\xff old line\n" * 200_000 + b"newest line\n")
    await harness.backend.trim_logs()
    assert log.stat().st_size < 1 << 20
    lines = await harness.backend.logs(spec.engine_id, lines=5)
    assert lines[-1] == "newest line"


async def test_usage_grows_with_work(harness: ProcessHarness) -> None:
    """CPU time is that of the engine and its children."""
    spec = await harness.started()
    await harness.ask(spec, "/work?seconds=0.3", method="POST")

    async def worked() -> bool:
        return (await harness.backend.usage(spec.engine_id)).cpu_s >= 0.1

    await eventually(worked)


@pytest.fixture
async def measured(harness: ProcessHarness) -> ProcessHarness:
    """Engines that report their coverage where the tests do; else like any other."""
    await harness.use(
        command=[sys.executable, "-m", "enginegate.sample_engine"],
        env_passthrough=["COVERAGE_PROCESS_CONFIG", "COVERAGE_FILE"],
    )
    return harness


class TestSampleEngine:
    """The bundled engine keeps the engine's side of the contract."""

    async def test_a_key_is_demanded_everywhere_but_for_health(
        self, measured: ProcessHarness
    ) -> None:
        """401 without the key, 200 with it; health needs none."""
        spec = await measured.started()
        assert (await measured.ask(spec, "/whoami", key="sk-eg-wrong")).status_code == 401
        assert (await measured.ask(spec, "/whoami")).json()["engine_id"] == spec.engine_id
        health = (await measured.ask(spec, "/health", key="")).json()
        assert (health["status"], health["busy"]) == ("ok", False)

    async def test_it_streams_and_says_busy_meanwhile(self, measured: ProcessHarness) -> None:
        """An open stream is a request at work."""
        spec = await measured.started()
        url = f"{measured.backend.url(spec)}/stream?seconds=5&interval=0.05"
        headers = {"x-engine-key": "sk-eg-first"}
        async with (
            httpx.AsyncClient(headers=headers) as client,
            client.stream("GET", url) as answer,
        ):
            lines = answer.aiter_lines()
            assert (await anext(lines)).startswith(("data:", "id:", "event:"))
            health = (await measured.ask(spec, "/health")).json()
            assert health["busy"] or health["active_requests"] > 0

    async def test_it_ends_well_on_sigterm(self, measured: ProcessHarness) -> None:
        """Exit code 0."""
        spec = await measured.started()
        await measured.backend.stop(spec.engine_id, grace_s=10)
        assert (await measured.backend.inspect(spec.engine_id)).exit_code == 0

    @pytest.mark.parametrize(("name", "text"), [("SAMPLE_NEVER_HEALTHY", "1")])
    async def test_it_can_be_told_to_stay_unhealthy(
        self, measured: ProcessHarness, name: str, text: str
    ) -> None:
        """For tests of boots that fail."""
        await measured.use(
            command=[sys.executable, "-m", "enginegate.sample_engine"],
            env={name: text},
            env_passthrough=["COVERAGE_PROCESS_CONFIG", "COVERAGE_FILE"],
        )
        spec = measured.spec()
        await measured.backend.start(spec)

        async def answers() -> int:
            try:
                return (await measured.ask(spec, "/health")).status_code
            except httpx.TransportError:
                return 0

        assert await eventually(answers) == 503

    async def test_control_lets_it_crash(self, measured: ProcessHarness) -> None:
        """The watch reports the code it was told to end with."""
        spec = await measured.started()
        events = measured.backend.watch()
        with contextlib.suppress(httpx.TransportError):  # it may be gone before it answers
            await measured.ask(spec, "/control", method="POST", body='{"exit": 3}')
        async with asyncio.timeout(5):
            event = await anext(events)
        assert (event.kind, event.engine_id, event.exit_code) == ("exited", spec.engine_id, 3)

    async def test_data_is_kept_under_plain_names(self, measured: ProcessHarness) -> None:
        """Files come and go by name; names that lead elsewhere are refused."""
        spec = await measured.started()
        assert (await measured.ask(spec, "/data/a", method="PUT", body="one")).status_code == 201
        assert (await measured.ask(spec, "/data/a")).text == "one"
        assert (await measured.ask(spec, "/data/missing")).status_code == 404
        for name in (".hidden", "%2e%2e", "x" * 300):
            assert (await measured.ask(spec, f"/data/{name}")).status_code in (400, 404)

    async def test_it_refuses_what_it_does_not_know(self, measured: ProcessHarness) -> None:
        """Paths, methods and bodies that make no sense are answered, not dropped."""
        spec = await measured.started()
        assert (await measured.ask(spec, "/nowhere")).status_code == 404
        assert (await measured.ask(spec, "/whoami", method="DELETE")).status_code in (404, 405)
        answer = await measured.ask(spec, "/control", method="POST", body="{")
        assert answer.status_code == 400

    async def test_control_sets_health_and_busy(self, measured: ProcessHarness) -> None:
        """Tests and demos can make it unwell or busy, and well again."""
        spec = await measured.started()
        await measured.ask(spec, "/control", method="POST", body='{"busy": true}')
        assert (await measured.ask(spec, "/health")).json()["busy"]
        body = '{"healthy": false, "busy": false}'
        await measured.ask(spec, "/control", method="POST", body=body)
        assert (await measured.ask(spec, "/health")).status_code == 503
        await measured.ask(spec, "/control", method="POST", body='{"healthy": true}')
        assert (await measured.ask(spec, "/health")).status_code == 200

    async def test_work_makes_it_busy_for_a_while(self, measured: ProcessHarness) -> None:
        """A job with no connection is said all the same."""
        spec = await measured.started()
        await measured.ask(spec, "/work?seconds=0.3", method="POST")
        assert (await measured.ask(spec, "/health")).json()["busy"]

        async def done() -> bool:
            return not (await measured.ask(spec, "/health")).json()["busy"]

        await eventually(done)

    async def test_a_new_key_file_is_read_at_once(self, measured: ProcessHarness) -> None:
        """Every line is a valid key; what is not in the file is not."""
        spec = await measured.started()
        await measured.backend.put_key(spec.engine_id, [key_hash(OTHER_KEY), key_hash(KEY)])
        assert await measured.accepts(spec, KEY)
        assert await measured.accepts(spec, OTHER_KEY)
        await measured.backend.put_key(spec.engine_id, [key_hash(OTHER_KEY)])
        assert not await measured.accepts(spec, KEY)
