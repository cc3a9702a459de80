"""Images that start as root, give their data to a user and become that user, under `baseline`."""

import uuid
from collections.abc import AsyncIterator

import httpx
import pytest

from enginegate.backends.base import EngineSpec
from enginegate.backends.docker import DockerBackend
from enginegate.backends.docker.container import INSTANCE, container_name
from tests.backends.contract import eventually, free_port, key_hash
from tests.docker import tiny
from tests.docker.engine import inspected, remove_all

pytestmark = pytest.mark.docker

USER = 70  # that of postgres in its Alpine image


@pytest.fixture
async def backend(tiny_image: str) -> AsyncIterator[DockerBackend]:
    instance = f"drop-{uuid.uuid4().hex[:8]}"
    backend = DockerBackend(instance=instance, network=instance, env={"TINY_DROP_TO": str(USER)})
    await backend.open()
    yield backend
    await backend.close()
    remove_all(f"{INSTANCE}={instance}")


async def health(backend: DockerBackend, spec: EngineSpec) -> dict[str, object]:
    async def answer() -> dict[str, object] | None:
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                return dict((await http.get(f"{backend.url(spec)}/health")).json())
            except httpx.TransportError:
                return None

    return await eventually(answer)


async def test_an_image_that_drops_root_itself_starts_and_starts_again(
    backend: DockerBackend,
) -> None:
    """chown, chmod, setgroups, setgid and setuid work, also on data that are the user's already."""
    spec = EngineSpec(
        engine_id=str(uuid.uuid4()),
        engine_version=tiny.IMAGE,
        port=free_port(),
        key_hashes=(key_hash("a key"),),
    )
    await backend.start(spec)
    assert await health(backend, spec) == {"status": "ok", "boots": 1, "uid": USER}
    host = inspected(container_name(spec.engine_id))["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert set(host["CapAdd"]) == {
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"),
    }
    await backend.stop(spec.engine_id, grace_s=5)
    await backend.start(spec)
    assert await health(backend, spec) == {"status": "ok", "boots": 2, "uid": USER}
