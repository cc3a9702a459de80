"""The Docker backend against a real Engine: the contract of all backends, and what is Docker's own.

Needs a Docker Engine. Without one these tests are skipped with a word, or fail where
`ENGINEGATE_REQUIRE_DOCKER=1` says that there must be one.
"""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from enginegate.backends.base import BackendEvent, EngineSpec, Presence
from enginegate.backends.docker import DockerBackend, peers
from enginegate.backends.docker.budget import Priority
from enginegate.backends.docker.container import ENGINE_ID, INSTANCE, container_name, volume_name
from enginegate.backends.docker.daemon import Ask
from enginegate.config import Limits
from enginegate.errors import BackendError, ImageUnavailableError
from tests.backends import image
from tests.backends.contract import (
    KEY,
    OTHER_KEY,
    BackendContract,
    HttpHarness,
    eventually,
    key_hash,
)
from tests.docker.conftest import need_docker
from tests.docker.engine import docker, inspected, remove_all, remove_network

pytestmark = pytest.mark.docker


@pytest.fixture(scope="session")
def engine() -> str:
    """Have an Engine and the test images, or skip; fail where an Engine is required."""
    need_docker()
    return image.build()


class DockerHarness(HttpHarness):
    """Real containers of an instance of its own, which leaves nothing behind."""

    versions = (image.IMAGE, image.OTHER_IMAGE)

    def __init__(self) -> None:
        super().__init__()
        self.instance = f"test-{uuid.uuid4().hex[:12]}"
        self.backend = self.make()
        self._opened = [self.backend]

    def make(self, **settings: Any) -> DockerBackend:
        return DockerBackend(instance=self.instance, network=self.instance, **settings)

    async def use(self, **settings: Any) -> None:
        """Go on with a backend of other settings."""
        await self.backend.close()
        self.backend = self.make(**settings)
        self._opened.append(self.backend)
        await self.backend.open()

    def spec(self, **changes: object) -> EngineSpec:
        return super().spec(**({"engine_id": str(uuid.uuid4())} | changes))

    async def crash(self, engine_id: str) -> None:
        """Kill it as an operator would; Docker restarts what was not killed by hand."""
        await asyncio.to_thread(docker, "kill", container_name(engine_id))

    async def reopen(self) -> None:
        await self.use()

    async def close(self) -> None:
        for backend in self._opened:
            await backend.close()
        await asyncio.to_thread(remove_all, f"{INSTANCE}={self.instance}")

    def inspected(self, spec: EngineSpec) -> dict[str, Any]:
        return inspected(container_name(spec.engine_id))

    def python(self, spec: EngineSpec, code: str) -> str:
        """Run Python inside the engine's container."""
        name = container_name(spec.engine_id)
        return docker("exec", "-i", name, "/usr/bin/python3.11", "-", stdin=code.encode())


@pytest.fixture
async def harness(engine: str) -> AsyncIterator[DockerHarness]:
    made = DockerHarness()
    await made.backend.open()
    yield made
    await made.close()


class TestContract(BackendContract):
    """The Docker backend keeps the contract of all backends."""


async def test_hardening_is_what_docker_and_the_kernel_see(harness: DockerHarness) -> None:
    """The baseline profile is in force, not merely asked for."""
    spec = await harness.started()
    found = harness.inspected(spec)
    host = found["HostConfig"]
    assert (host["Privileged"], host["ReadonlyRootfs"], host["Init"]) == (False, False, False)
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert (host["PidsLimit"], host["OomScoreAdj"]) == (512, 500)
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (1 << 30, 1 << 30, 10**9)
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"]["Config"]["max-size"] == "10m"
    assert found["Config"]["StopTimeout"] == 30
    published = {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(spec.port)}]}
    assert found["NetworkSettings"]["Ports"] == published
    assert [mount["Destination"] for mount in found["Mounts"]] == ["/data"]
    status = harness.python(spec, "print(open('/proc/1/status').read())")
    assert "CapEff:\t00000000000000eb" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


async def test_strict_profile_serves_without_any_capability(harness: DockerHarness) -> None:
    """An image with a user of its own runs on a read-only root and still writes its data."""
    await harness.use(limits=Limits(profile="strict"))
    spec = harness.spec(engine_version=image.USER_IMAGE)
    await harness.backend.start(spec)
    await harness.wait_healthy(spec)
    await harness.write(spec, "note", "kept")
    assert await harness.accepts(spec, KEY)
    status = harness.python(spec, "print(open('/proc/1/status').read())")
    assert "CapEff:\t0000000000000000" in status
    assert "Uid:\t1000" in status
    assert harness.inspected(spec)["HostConfig"]["ReadonlyRootfs"] is True


async def test_strict_profile_refuses_an_image_that_runs_as_root(harness: DockerHarness) -> None:
    """Root in a container is what the profile is there to forbid; the error says what to do."""
    await harness.use(limits=Limits(profile="strict"))
    spec = harness.spec()
    with pytest.raises(BackendError, match="USER"):
        await harness.backend.start(spec)
    assert await harness.presence(spec) is Presence.ABSENT


async def test_engines_cannot_reach_each_other(harness: DockerHarness) -> None:
    """Hostile code in one engine does not get to the port of another, nor it to ours."""
    one, other = await harness.started(), await harness.started()
    address = harness.inspected(other)["NetworkSettings"]["Networks"][harness.instance]
    code = (
        "import socket\n"
        "for target in (('127.0.0.1', 8000), ('{}', 8000), ('{}', {})):\n"
        "    try: socket.create_connection(target, 1.5).close(); print('reached')\n"
        "    except OSError: print('blocked')\n"
    ).format(address["IPAddress"], address["Gateway"], other.port)
    assert harness.python(one, code).split() == ["reached", "blocked", "blocked"]


async def test_on_a_shared_network_engines_are_reached_by_name(harness: DockerHarness) -> None:
    """In network mode products are containers too, and use the url that names the engine."""
    await harness.use(url_mode="network")
    one, other = harness.spec(), harness.spec()
    for spec in (one, other):
        await harness.backend.start(spec)
    code = (
        "import time, urllib.request\n"
        "for _ in range(100):\n"
        "    try:\n"
        f"        url = {harness.backend.url(other)!r} + '/health'\n"
        "        print(urllib.request.urlopen(url, timeout=1).status)\n"
        "        break\n"
        "    except OSError: time.sleep(0.05)\n"
    )
    assert harness.python(one, code) == "200"


async def test_look_alikes_are_neither_listed_nor_touched(harness: DockerHarness) -> None:
    """A container with our labels under another name is nobody's engine."""
    spec = await harness.started()
    marks = [f"--label={INSTANCE}={harness.instance}", f"--label={ENGINE_ID}={spec.engine_id}"]
    stranger = docker(
        "run", "-d", "--network=none", *marks, "--name", f"{harness.instance}-stranger", image.IMAGE
    )
    assert [one.engine_id for one in await harness.backend.list()] == [spec.engine_id]
    await harness.backend.destroy(spec.engine_id)
    assert await harness.backend.list() == []
    assert docker("inspect", "-f", "{{.State.Running}}", stranger) == "true"


async def test_a_stranger_under_our_name_is_left_alone(harness: DockerHarness) -> None:
    """Who holds an engine's name without its labels is not adopted, and the start says so."""
    spec = harness.spec()
    name = container_name(spec.engine_id)
    docker("create", f"--label={INSTANCE}={harness.instance}", "--name", name, image.IMAGE)
    assert await harness.presence(spec) is Presence.ABSENT
    with pytest.raises(BackendError, match="held by another container"):
        await harness.backend.start(spec)
    await harness.backend.destroy(spec.engine_id)
    assert docker("inspect", "-f", "{{.State.Status}}", name) == "created"


async def test_an_image_that_is_nowhere_is_named(harness: DockerHarness) -> None:
    """The error names the image; the engine and its volume were not made."""
    spec = harness.spec(engine_version="localhost:1/no-such-image:9")
    with pytest.raises(ImageUnavailableError) as caught:
        await harness.backend.start(spec)
    assert caught.value.detail == "localhost:1/no-such-image:9"
    seen = await harness.backend.inspect(spec.engine_id)
    assert (seen.presence, seen.data_lost) == (Presence.ABSENT, True)


async def test_an_upgrade_to_a_missing_image_leaves_the_engine_up(harness: DockerHarness) -> None:
    """Nothing is taken down before what replaces it is there."""
    spec = await harness.started()
    life = await harness.life(spec)
    with pytest.raises(ImageUnavailableError):
        await harness.backend.start(replace(spec, engine_version="localhost:1/no-such-image:9"))
    assert await harness.life(spec) == life
    await harness.wait_healthy(spec)


async def test_a_removed_container_comes_back_on_its_volume(harness: DockerHarness) -> None:
    """Whoever removes the container behind our back does not take the data."""
    spec = await harness.started()
    await harness.write(spec, "note", "kept")
    docker("rm", "-f", container_name(spec.engine_id))
    seen = await harness.backend.inspect(spec.engine_id)
    assert (seen.presence, seen.data_lost) == (Presence.ABSENT, False)
    await harness.backend.start(spec)
    await harness.wait_healthy(spec)
    assert await harness.read(spec, "note") == "kept"


async def test_a_removed_network_is_made_again(harness: DockerHarness) -> None:
    """A stopped engine whose network is gone starts on a new one, still isolated."""
    spec = await harness.started()
    await harness.backend.stop(spec.engine_id, grace_s=5)
    remove_network(harness.instance)
    await harness.backend.start(spec)
    await harness.wait_healthy(spec)
    [network] = json.loads(docker("network", "inspect", harness.instance))
    assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"


async def test_a_second_network_of_the_name_is_removed(harness: DockerHarness) -> None:
    """Two makers at once leave two networks, with which Docker starts nothing; one goes again."""
    await harness.started()
    spec = harness.spec()
    ask = Ask("test", None, Priority.PROBE)
    body = {"Name": harness.instance, "Labels": {INSTANCE: harness.instance}}
    await harness.backend._daemon.create_network(ask, body)
    await harness.backend.start(spec)
    await harness.wait_healthy(spec)
    [network] = await harness.backend._daemon.networks(ask, harness.instance)
    assert network.options == {"com.docker.network.bridge.enable_icc": "false"}


async def test_a_start_cut_off_anywhere_is_taken_up_by_the_next(harness: DockerHarness) -> None:
    """Whenever the caller is cancelled or killed, starting again ends in one healthy engine."""
    spec = harness.spec()
    for turns in (1, 5, 20, 60, 120):
        task = asyncio.ensure_future(harness.backend.start(spec))
        for _ in range(turns):
            await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await harness.backend.start(spec)
    await harness.wait_healthy(spec)
    assert len(await harness.backend.list()) == 1
    assert harness.backend._daemon.budget.free == 8


async def test_simultaneous_starts_make_one_container(harness: DockerHarness) -> None:
    """The name is the guard: who comes second adopts what the first one made."""
    spec = harness.spec()
    await asyncio.gather(*(harness.backend.start(spec) for _ in range(4)))
    await harness.wait_healthy(spec)
    assert len(await harness.backend.list()) == 1


async def test_settings_of_today_come_with_the_next_start_only(harness: DockerHarness) -> None:
    """A changed configuration restarts no engine that runs; one that starts anyway gets it."""
    spec = await harness.started()
    life = await harness.life(spec)
    await harness.use(env={"COLOUR": "blue"}, limits=Limits(memory="64m"))
    await harness.backend.start(spec)
    assert await harness.life(spec) == life
    await harness.backend.stop(spec.engine_id, grace_s=5)
    await harness.backend.start(spec)
    assert harness.inspected(spec)["HostConfig"]["Memory"] == 64 << 20
    assert "COLOUR=blue" in harness.inspected(spec)["Config"]["Env"]


async def test_a_live_rotation_never_replaces_the_container(harness: DockerHarness) -> None:
    """Where engines read the key file, another key is no other container, now or later."""
    await harness.use(rotate_mode="live")
    spec = await harness.started()
    container = harness.inspected(spec)["Id"]
    other = replace(spec, key_hashes=(key_hash(OTHER_KEY),))
    await harness.backend.start(other)
    assert await harness.accepts(other, OTHER_KEY)
    assert not await harness.accepts(other, KEY)
    await harness.backend.stop(spec.engine_id, grace_s=5)
    await harness.backend.start(other)
    await harness.wait_healthy(other)
    assert await harness.accepts(other, OTHER_KEY)
    assert harness.inspected(spec)["Id"] == container


async def test_the_key_file_is_never_half_written(harness: DockerHarness) -> None:
    """The file is put in place by a rename where the image can, and holds the hashes."""
    spec = await harness.started()
    hashes = [key_hash(OTHER_KEY), key_hash(KEY)]
    await harness.backend.put_key(spec.engine_id, hashes)
    written = harness.python(spec, "print(open('/data/.enginegate/key_hash').read())")
    assert written.split() == hashes


async def test_an_engine_that_ends_by_itself_is_told_with_its_life(harness: DockerHarness) -> None:
    """Docker restarts it at once; the event tells which life ended, and the listing the next."""
    spec = await harness.started()
    life = await harness.life(spec)
    async with aclosing(harness.backend.watch()) as watching:
        heard = asyncio.ensure_future(_first(watching, "exited"))
        with suppress(httpx.TransportError):  # it may end before it has answered
            await harness.ask(spec, "/control", method="POST", body='{"exit": 3}')
        async with asyncio.timeout(2):
            event = await heard
    assert event == BackendEvent(kind="exited", engine_id=spec.engine_id, life=life, exit_code=3)

    async def again() -> bool:
        seen = await harness.backend.inspect(spec.engine_id)
        return seen.presence is Presence.RUNNING and seen.life != life and seen.restarts == 1

    await eventually(again)


async def test_a_start_ends_dockers_own_restart_loop(harness: DockerHarness) -> None:
    """A crash loop is stopped, not joined: the engine gets its new container at once."""
    await harness.use(env={"SAMPLE_EXIT_AT_BOOT": "7"})
    spec = harness.spec()
    await harness.backend.start(spec)

    async def between_lives() -> bool:
        seen = await harness.backend.inspect(spec.engine_id)
        return seen.presence is Presence.STOPPED and seen.exit_code == 7 and seen.restarts > 1

    await eventually(between_lives)
    await harness.use()
    await harness.backend.stop(spec.engine_id, grace_s=1)
    await harness.backend.start(spec)
    await harness.wait_healthy(spec)


async def test_stop_kills_what_ignores_the_signal(harness: DockerHarness) -> None:
    """After the grace an engine is killed, and its exit code says so; wakes do not wait for it."""
    await harness.use(env={"SAMPLE_IGNORE_SIGTERM": "1"})
    spec = await harness.started()
    stopping = asyncio.ensure_future(harness.backend.stop(spec.engine_id, grace_s=1))
    daemon = harness.backend._daemon

    async def under_way() -> bool:
        return daemon._stops._value < 32

    await eventually(under_way)
    assert daemon.budget.free == 8
    assert not stopping.done()
    await stopping
    seen = await harness.backend.inspect(spec.engine_id)
    assert (seen.presence, seen.exit_code) == (Presence.STOPPED, 137)


@pytest.mark.parametrize("privileged", [True, False])
async def test_a_quiet_connection_is_known_to_be_quiet(
    harness: DockerHarness, monkeypatch: pytest.MonkeyPatch, privileged: bool
) -> None:
    """How long nothing has moved is told, as root and as anybody else on the host."""
    if not privileged:
        monkeypatch.setattr(peers, "_visit", _forbidden)
    spec = await harness.started()

    async def quiet_s() -> float:
        found = await harness.backend.connections(spec.engine_id, port=spec.port)
        return found[0].quiet_s if len(found) == 1 else 0.0

    async def grown() -> bool:
        return await quiet_s() > 0.3

    async with harness.connection(spec):
        await eventually(grown)


async def test_our_own_probes_are_no_connections(harness: DockerHarness) -> None:
    """A socket that our own prober holds keeps no engine awake."""
    own: set[tuple[str, int]] = set()
    await harness.use(own_sources=lambda: own)
    spec = await harness.started()

    async def none() -> bool:
        return not await harness.backend.connections(spec.engine_id, port=spec.port)

    _, writer = await asyncio.open_connection("127.0.0.1", spec.port)
    own.add(writer.get_extra_info("sockname"))
    await eventually(none)
    own.clear()
    assert len(await harness.backend.connections(spec.engine_id, port=spec.port)) == 1
    writer.close()
    await writer.wait_closed()


async def test_sockets_that_cannot_be_read_are_unknown_not_none(
    harness: DockerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the Engine on another machine and no `cat` in the image, nothing is claimed."""
    monkeypatch.setattr(peers, "_check", _forbidden)
    spec = await harness.started()
    with pytest.raises(BackendError) as caught:
        await harness.backend.connections(spec.engine_id, port=spec.port)
    assert caught.value.unavailable


async def test_engine_survives_the_wish_of_a_hundred_freezes(harness: DockerHarness) -> None:
    """Freezing and thawing in any interleaving ends in a state that Docker and we agree on."""
    spec = await harness.started()
    verbs = [harness.backend.pause, harness.backend.unpause] * 10
    await asyncio.gather(*(verb(spec.engine_id) for verb in verbs), return_exceptions=True)
    await harness.backend.unpause(spec.engine_id)
    await harness.wait_healthy(spec)


async def test_destroy_leaves_nothing(harness: DockerHarness) -> None:
    """Container and volume are gone, for Docker as well."""
    spec = await harness.started()
    await harness.backend.destroy(spec.engine_id)
    mine = f"label={INSTANCE}={harness.instance}"
    assert docker("ps", "-aq", "--filter", mine) == ""
    assert volume_name(spec.engine_id) not in docker("volume", "ls", "-q").split()


async def _first(watching: AsyncIterator[BackendEvent], kind: str) -> BackendEvent:
    async for event in watching:
        if event.kind == kind:
            return event
    raise AssertionError("the watch ended")


def _forbidden(*_: object) -> None:
    raise PermissionError
