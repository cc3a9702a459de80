"""Requests on aiodocker's session: its sockets, TLS and version, and nothing left behind.

aiodocker's own calls leave the body of an answer unread where they expect none, and a
stream that fails half-way open, until the garbage collector comes by. Here every answer
is read to its end or its connection closed, whatever happens.
"""

import struct
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Final

import aiohttp
import msgspec
from aiodocker import Docker, DockerError

from enginegate.backends.docker.answers import Message, Progress

_FRAME: Final = struct.Struct(">BxxxL")  # which stream, and how much of it follows


async def sent(
    docker: Docker,
    method: str,
    path: str,
    params: Mapping[str, str] | None = None,
    body: object = None,
    *,
    versioned: bool = True,
) -> bytes:
    """Send a request and return the answer's body; bytes go as they are, all else as JSON.

    Raises:
        DockerError: the Engine says no.
        aiohttp.ClientError: it could not be asked, or its answer did not come whole.
    """
    url = await _url(docker, path) if versioned else docker.docker_host + path
    data, headers = _packed(body)
    async with docker.session.request(
        method, url, params=params, data=data, headers=headers
    ) as response:
        return await _checked(response)


async def pulled(docker: Docker, image: str) -> AsyncIterator[Progress]:
    """Pull an image, and yield what the Engine says meanwhile.

    Raises:
        DockerError: it cannot be had.
    """
    whole = image if ":" in image.rpartition("/")[2] else f"{image}:latest"
    url = await _url(docker, "/images/create")
    async with docker.session.post(url, params={"fromImage": whole}) as response:
        if response.status >= HTTPStatus.MULTIPLE_CHOICES:
            await _checked(response)
        async for line in response.content:
            said = msgspec.json.decode(line, type=Progress)
            if said.error:
                raise DockerError(HTTPStatus.OK, said.error)
            yield said


def spoken(stream: bytes) -> str:
    """Return what a container said, from the frames in which the Engine wraps it."""
    pieces, at = [], 0
    while at + _FRAME.size <= len(stream):
        _, size = _FRAME.unpack_from(stream, at)
        at += _FRAME.size
        pieces.append(stream[at : at + size])
        at += size
    return b"".join(pieces).decode(errors="replace")


async def _url(docker: Docker, path: str) -> str:
    if docker.api_version == "auto":
        await docker.version()  # negotiates: from then on it is the Engine's own
    return f"{docker.docker_host}/{docker.api_version}{path}"


def _packed(body: object) -> tuple[bytes | None, dict[str, str]]:
    if body is None:
        return None, {}
    if isinstance(body, bytes):
        return body, {"Content-Type": "application/x-tar"}
    return msgspec.json.encode(body), {"Content-Type": "application/json"}


async def _checked(response: aiohttp.ClientResponse) -> bytes:
    answer = await response.read()
    if response.status >= HTTPStatus.MULTIPLE_CHOICES:  # 304 too: it says that nothing was done
        raise DockerError(response.status, _message(answer))
    return answer


def _message(answer: bytes) -> str:
    try:
        return msgspec.json.decode(answer, type=Message).message
    except msgspec.MsgspecError:
        return answer.decode(errors="replace")
