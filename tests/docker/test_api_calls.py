"""What of Docker's API enginegate needs: the README's list, and what really goes over the wire."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from msgspec.structs import replace

from enginegate.backends.base import EngineSpec
from enginegate.backends.docker import DockerBackend, peers
from enginegate.backends.docker.container import INSTANCE, container_name
from enginegate.errors import ImageUnavailableError
from tests.backends import image
from tests.backends.contract import eventually, free_port, key_hash
from tests.docker.engine import SOCKET, docker, remove_all
from tests.docker.wire import Wire

pytestmark = pytest.mark.docker

README = Path(__file__).parents[2] / "README.md"
_LISTED = re.compile(r"^\| `(GET|POST|PUT|DELETE|HEAD) (/\S+)` \|", re.MULTILINE)
_VERSION = re.compile(r"^/v\d+\.\d+(?=/)")
_NAMES = [
    (re.compile(r"^(/(?:containers|networks|volumes|exec))/[^/]{6,}(?=/|$)"), r"\1/{id}"),
    (re.compile(r"^/images/.+/json$"), "/images/{name}/json"),
]
# Made only in races that cannot be brought about at will; the backend's own tests do so.
RARE = {  # of races, and of a host whose control groups cannot be seen from here
    ("POST", "/containers/{id}/wait"),
    ("DELETE", "/networks/{id}"),
    ("GET", "/containers/{id}/stats"),
}
_NOT_NAMES = ("/containers/create", "/networks/create", "/volumes/create")


def general(path: str) -> str:
    """Return the path without version, names and ids."""
    path = _VERSION.sub("", path)
    if path not in _NOT_NAMES:
        for pattern, put in _NAMES:
            path = pattern.sub(put, path)
    return path


@pytest.fixture
async def wired(tmp_path: Path) -> AsyncIterator[tuple[Wire, DockerBackend, str]]:
    instance = f"calls-{uuid.uuid4().hex[:8]}"
    wire = Wire(tmp_path / "wire.sock", SOCKET)
    backend = DockerBackend(instance=instance, network=instance, docker_host=wire.url)
    await backend.open()
    yield wire, backend, instance
    await backend.close()
    wire.close()
    remove_all(f"{INSTANCE}={instance}")


async def whole_life(backend: DockerBackend, network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do everything that the backend can be asked for."""
    spec = EngineSpec(
        engine_id=str(uuid.uuid4()),
        engine_version=image.IMAGE,
        port=free_port(),
        key_hashes=(key_hash("a key"),),
    )
    assert await backend.ping()
    async with aclosing(backend.watch()) as watching:
        hearing = asyncio.ensure_future(anext(aiter(watching)))
        await backend.start(spec)
        await hearing
    await backend.put_key(spec.engine_id, [key_hash("another")])
    await backend.connections(spec.engine_id, port=spec.port)
    monkeypatch.setattr(peers, "inside", _not_from_here)  # as it is with Docker elsewhere
    with pytest.raises(Exception, match="can be read neither"):
        await backend.connections(spec.engine_id, port=spec.port)
    await backend.usage(spec.engine_id)
    await backend.logs(spec.engine_id, lines=5)
    await backend.pause(spec.engine_id)
    await backend.unpause(spec.engine_id)
    docker("network", "disconnect", network, container_name(spec.engine_id))
    await backend.reconnect(spec.engine_id)
    await backend.list()
    await backend.stop(spec.engine_id, grace_s=5)
    await backend.remove_orphan(spec.engine_id)
    await backend.inspect(spec.engine_id)
    await backend.start(replace(spec, fresh=False))
    with pytest.raises(ImageUnavailableError):
        await backend.prepare(replace(spec, engine_version="localhost:1/no-such-image:9"))
    await backend.destroy(spec.engine_id)


def _not_from_here(**_: object) -> None:
    raise PermissionError


async def test_the_readme_lists_the_calls_that_are_made(
    tiny_image: str, wired: tuple[Wire, DockerBackend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever puts a filter before the socket finds in the README what has to pass, and no more."""
    image.build()
    wire, backend, network = wired
    await whole_life(backend, network, monkeypatch)

    async def all_there() -> bool:
        return bool(wire.requests)

    await eventually(all_there)
    made = {(method, general(path)) for method, path in wire.requests}
    _, _, section = README.read_text().partition("## Operating it with Docker")
    listed = set(_LISTED.findall(section.partition("\n## ")[0]))
    assert made | RARE == listed
