"""The Docker Engine in memory is a faithful one: the contract of all backends runs on it."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from enginegate.backends.base import EngineSpec
from enginegate.backends.docker import DockerBackend
from enginegate.backends.docker.container import KEY_FILE
from tests.backends.contract import BackendContract, Harness, eventually, key_hash
from tests.backends.dockerd import Box, Dockerd


class DockerdHarness(Harness):
    """The Docker backend on an Engine in memory, whose containers only seem to run."""

    backend: DockerBackend
    versions = ("my-engine:1", "my-engine:2")
    crash_code = 137

    def __init__(self, dockerd: Dockerd) -> None:
        super().__init__()
        self.dockerd = dockerd
        self.backend = self.make()

    def make(self, **settings: Any) -> DockerBackend:
        return DockerBackend(instance="here", docker_host=self.dockerd.address, **settings)

    def spec(self, **changes: object) -> EngineSpec:
        return super().spec(**({"engine_id": str(uuid.uuid4())} | changes))

    def box(self, spec: EngineSpec) -> Box:
        found = self.dockerd.box(spec.engine_id)
        assert found is not None
        return found

    async def crash(self, engine_id: str) -> None:
        box = self.dockerd.box(engine_id)
        assert box is not None
        self.dockerd.kill(box)

    async def reopen(self) -> None:
        await self.backend.close()
        self.backend = self.make()
        await self.backend.open()

    async def wait_healthy(self, spec: EngineSpec) -> None:
        async def up() -> bool:
            return self.dockerd.by_port(spec.port) is self.box(spec)

        await eventually(up)

    async def write(self, spec: EngineSpec, name: str, text: str) -> None:
        self.dockerd.volumes[self.box(spec).volume][name] = text.encode()

    async def read(self, spec: EngineSpec, name: str) -> str | None:
        found = self.dockerd.volumes[self.box(spec).volume].get(name)
        return None if found is None else found.decode()

    async def accepts(self, spec: EngineSpec, key: str) -> bool:
        return key_hash(key) in (await self.read(spec, KEY_FILE) or self.box(spec).key_hash)

    @asynccontextmanager
    async def connection(self, spec: EngineSpec) -> AsyncIterator[None]:
        self.box(spec).connections += 1
        yield
        self.box(spec).connections -= 1


@pytest.fixture(params=["1.41", "1.50"])
async def dockerd(request: pytest.FixtureRequest) -> AsyncIterator[Dockerd]:
    made = Dockerd(version=request.param, images=DockerdHarness.versions)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def harness(dockerd: Dockerd) -> AsyncIterator[DockerdHarness]:
    made = DockerdHarness(dockerd)
    await made.backend.open()
    yield made
    await made.backend.close()


class TestContract(BackendContract):
    """The contract, run by the Docker backend on the Engine in memory, of two API versions."""
