"""A Docker Engine in memory, behind a unix socket: faithful where asked, faulty where told.

It keeps containers, volumes, networks, images, execs and events as the real one does, as
far as our backend goes; the contract of all backends runs on it, so that it is proven.
`fail` scripts what goes wrong with a call: a status, silence, a body cut off, or an answer
that gets lost when the effect has taken place.
"""

import asyncio
import io
import itertools
import json
import re
import socket
import struct
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

from aiohttp import web

EVENTS_KEPT = 256
HANG, HANG_IN_BODY, CUT, HALF_JSON, LOST, LOST_AND_LATE = (
    "hang",
    "hang in body",
    "cut",
    "half json",
    "lost",
    "lost and late",
)
STATUSES = (404, 409, 500, 304)
FAULTS: tuple[str | int, ...] = (*STATUSES, HANG, HANG_IN_BODY, CUT, HALF_JSON, LOST, LOST_AND_LATE)
LATE_S = 15.0  # how long after its answer was lost a call of that fault takes effect

Handler = Callable[..., Awaitable[web.StreamResponse]]


class RefusalError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """What happens at the n-th call of a route, and for how many calls from there."""

    route: str
    kind: str | int
    nth: int = 1
    times: int = 1
    seen: int = 0

    def meets(self, route: str) -> bool:
        if self.route not in ("*", route):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


@dataclass
class Box:
    """A container."""

    id: str
    name: str
    body: dict[str, Any]
    status: str = "created"
    started_at: float = 0.0
    exit_code: int = 0
    restarts: int = 0
    networks: set[str] = field(default_factory=set)
    connections: int = 0
    log: list[str] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.body["Labels"])

    @property
    def alive(self) -> bool:
        return self.status in ("running", "paused")

    @property
    def port(self) -> int:
        [[binding]] = self.body["HostConfig"]["PortBindings"].values()
        return int(binding["HostPort"])

    @property
    def key_hash(self) -> str:
        """The key that it was given at birth, in force where there is no key file."""
        name = "ENGINE_KEY_HASH="
        return next(str(one).removeprefix(name) for one in self.body["Env"] if one.startswith(name))

    @property
    def volume(self) -> str:
        return str(self.body["HostConfig"]["Mounts"][0]["Source"])


class Dockerd:
    """The Engine. Tests may read and set everything; what they do `behind` makes events."""

    def __init__(
        self, *, version: str = "1.41", images: tuple[str, ...] = ("my-engine:1",)
    ) -> None:
        self.version = version
        self.boxes: dict[str, Box] = {}
        self.volumes: dict[str, dict[str, bytes]] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        self.images = set(images)
        self.registry: set[str] = set()
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self.asked: list[str] = []
        self.at_work: list[str] = []
        self.faults: list[Fault] = []
        self.deaf = False
        self._execs: dict[str, tuple[Box, list[str], list[int]]] = {}
        self._listeners: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self._ids = itertools.count(1)
        self._late: set[asyncio.Task[None]] = set()

    # Its life

    async def open(self) -> None:
        self._epoch = time.time() - asyncio.get_running_loop().time()
        self._folder = tempfile.TemporaryDirectory()  # pytest's own are too long for a socket
        self.address = f"unix://{self._folder.name}/docker.sock"
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(Path(self._folder.name) / "docker.sock")).start()

    async def close(self) -> None:
        self.cut_events()
        for task in self._late:
            task.cancel()
        await self._runner.cleanup()
        self._folder.cleanup()

    # What tests tell it

    def fail(self, route: str, kind: str | int, *, nth: int = 1, times: int = 1) -> None:
        """Let the n-th call of a route from now on go wrong; `*` is any route but events."""
        self.faults.append(Fault(route, kind, nth, times))

    def cut_events(self) -> None:
        for listener in self._listeners:
            listener.put_nowait(None)

    def box(self, engine_id: str) -> Box | None:
        return self._named(f"enginegate-{engine_id}")

    def by_port(self, port: int) -> Box | None:
        return next((box for box in self.boxes.values() if box.alive and box.port == port), None)

    def exit(self, box: Box, code: int = 1) -> None:
        """Let its process end by itself; Docker restarts it, as its policy says."""
        self._end(box, code)
        self._run(box)
        box.restarts += 1

    def kill(self, box: Box) -> None:
        """Kill it as an operator would: Docker leaves it down."""
        self._end(box, 137)

    def forget(self, box: Box) -> None:
        """Remove it as an operator would."""
        if box.alive:
            self._end(box, 137)
        del self.boxes[box.id]
        self._tell(box, "destroy")

    def move(self, box: Box, status: str) -> None:
        """Pause or unpause it as an operator would."""
        box.status = status
        self._tell(box, "pause" if status == "paused" else "unpause")

    # Requests

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if (prefix := re.match(r"/v(\d+\.\d+)/", path)) is not None:
            if _number(prefix[1]) > _number(self.version):
                return _error(400, f"client version {prefix[1]} is too new")
            path = path[prefix.end() - 1 :]
        for pattern, name in _ROUTES:
            if (found := pattern.fullmatch(f"{request.method} {path}")) is not None:
                return await self._routed(request, name, found.groups())
        return _error(404, "page not found")

    async def _routed(
        self, request: web.Request, name: str, names: tuple[str, ...]
    ) -> web.StreamResponse:
        handler: Handler = getattr(self, _HANDLERS[name])
        if name in _UNSCRIPTED:
            return await handler(request, *names)
        self.asked.append(name)
        self.at_work.append(name)
        met = [fault for fault in self.faults if fault.meets(name)]
        try:
            if met:
                return await self._faulty(request, handler, names, met[0].kind)
            return await self._served(request, handler, names)
        finally:
            self.at_work.remove(name)

    async def _served(
        self, request: web.Request, handler: Handler, names: tuple[str, ...]
    ) -> web.StreamResponse:
        try:
            return await handler(request, *names)
        except RefusalError as refusal:
            return _error(refusal.status, str(refusal))

    async def _faulty(
        self, request: web.Request, handler: Handler, names: tuple[str, ...], kind: str | int
    ) -> web.StreamResponse:
        if isinstance(kind, int):
            if kind == 304:
                return web.Response(status=304)
            return _error(kind, "told to say so")
        if kind == HANG:
            await asyncio.Event().wait()
        body = await request.read()  # what was sent is here, also for one who comes late
        if kind == LOST_AND_LATE:
            late = asyncio.ensure_future(self._later(request, handler, names))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            return self._hung_up(request)
        del body
        if kind == LOST:
            await self._served(request, handler, names)
            return self._hung_up(request)
        text = b"{" if kind == HALF_JSON else b'{"Id":'
        response = web.StreamResponse()
        response.content_type = "application/json"
        response.content_length = len(text) if kind == HALF_JSON else 4096
        await response.prepare(request)
        if kind == HANG_IN_BODY:
            await response.write(text)
            await asyncio.Event().wait()
        await response.write(text)
        return response if kind == HALF_JSON else self._hung_up(request, response)

    async def _later(self, request: web.Request, handler: Handler, names: tuple[str, ...]) -> None:
        await asyncio.sleep(LATE_S)
        with suppress(RefusalError, ConnectionError):
            await handler(request, *names)

    @staticmethod
    def _hung_up(
        request: web.Request, response: web.StreamResponse | None = None
    ) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return response or web.Response()

    # Containers

    async def list_boxes(self, request: web.Request) -> web.Response:
        wanted = json.loads(request.query.get("filters", "{}")).get("label", [])
        pairs = [label.split("=", 1) for label in wanted]
        rows = [
            self._row(box)
            for box in self.boxes.values()
            if all(box.labels.get(key) == value for key, value in pairs)
        ]
        return web.json_response(rows)

    async def create(self, request: web.Request) -> web.Response:
        body, name = await request.json(), request.query["name"]
        if body["Image"] not in self.images:
            raise RefusalError(404, f"No such image: {body['Image']}")
        if self._named(name) is not None:
            raise RefusalError(409, f'Conflict. The container name "/{name}" is already in use')
        box = Box(id=f"{next(self._ids):064x}", name=name, body=body)
        box.networks.add(body["HostConfig"]["NetworkMode"])
        self.volumes.setdefault(box.volume, {})
        self.boxes[box.id] = box
        return web.json_response({"Id": box.id, "Warnings": []}, status=201)

    async def inspect(self, request: web.Request, name: str) -> web.Response:
        return web.json_response(self._inspected(self._got(name)))

    async def start(self, request: web.Request, name: str) -> web.Response:
        box = self._got(name)
        if box.status == "paused":
            raise RefusalError(409, "cannot start a paused container, try unpause instead")
        if box.alive:
            return web.Response(status=304)
        mode = box.body["HostConfig"]["NetworkMode"]
        if all(net["Name"] != mode for net in self.networks.values()):
            raise RefusalError(404, f"network {mode} not found")
        if self._taken(box):
            box.status, box.exit_code = "created", 128
            raise RefusalError(
                500, f"Bind for 127.0.0.1:{box.port} failed: port is already allocated"
            )
        box.networks.add(mode)
        box.restarts = 0
        self._run(box)
        return web.Response(status=204)

    async def stop(self, request: web.Request, name: str) -> web.Response:
        box = self._got(name)
        if not box.alive:
            return web.Response(status=304)
        self._end(box, 0)
        return web.Response(status=204)

    async def pause(self, request: web.Request, name: str) -> web.Response:
        box = self._got(name)
        if box.status != "running":
            raise RefusalError(409, f"Container {name} is {box.status}")
        self.move(box, "paused")
        return web.Response(status=204)

    async def unpause(self, request: web.Request, name: str) -> web.Response:
        box = self._got(name)
        if box.status != "paused":
            raise RefusalError(500, f"Container {name} is not paused")
        self.move(box, "running")
        return web.Response(status=204)

    async def remove(self, request: web.Request, name: str) -> web.Response:
        self.forget(self._got(name))
        return web.Response(status=204)

    async def wait(self, request: web.Request, name: str) -> web.Response:
        self._got(name)
        return web.json_response({"StatusCode": 0})

    async def put(self, request: web.Request, name: str) -> web.Response:
        box = self._got(name)
        files = self.volumes[box.volume]
        with tarfile.open(fileobj=io.BytesIO(await request.read())) as tar:
            for member in tar:
                if (file := tar.extractfile(member)) is not None:
                    files[member.name] = file.read()
        return web.Response()

    async def logs(self, request: web.Request, name: str) -> web.Response:
        lines = self._got(name).log[-int(request.query["tail"]) :]
        framed = b"".join(_framed(line.encode() + b"\n") for line in lines)
        return web.Response(body=framed, content_type="application/octet-stream")

    async def stats(self, request: web.Request, name: str) -> web.Response:
        self._got(name)
        used = {"cpu_usage": {"total_usage": 5_000_000}}
        moved = {"eth0": {"rx_bytes": 10, "tx_bytes": 20}}
        return web.json_response({"cpu_stats": used, "networks": moved})

    # Execs

    async def create_exec(self, request: web.Request, name: str) -> web.Response:
        box = self._got(name)
        if box.status != "running":
            raise RefusalError(409, f"Container {name} is not running")
        exec_id = f"{next(self._ids):064x}"
        self._execs[exec_id] = (box, (await request.json())["Cmd"], [])
        return web.json_response({"Id": exec_id}, status=201)

    async def start_exec(self, request: web.Request, exec_id: str) -> web.StreamResponse:
        box, command, codes = self._exec(exec_id)
        code, output = self._executed(box, command)
        codes.append(code)
        framed = _framed(output) if output else b""
        return web.Response(body=framed, content_type="application/vnd.docker.raw-stream")

    async def inspect_exec(self, request: web.Request, exec_id: str) -> web.Response:
        _, _, codes = self._exec(exec_id)
        told = {"ProcessConfig": {"tty": False}, "ExitCode": codes[-1] if codes else None}
        return web.json_response(told)

    def _exec(self, exec_id: str) -> tuple[Box, list[str], list[int]]:
        if exec_id not in self._execs:
            raise RefusalError(404, "No such exec instance")
        return self._execs[exec_id]

    def _executed(self, box: Box, command: list[str]) -> tuple[int, bytes]:
        files = self.volumes[box.volume]
        if command[0] == "mv":
            source, target = (path.removeprefix("/data/") for path in command[2:])
            files[target] = files.pop(source)
            return 0, b""
        rows = "".join(
            f"   {n}: 020012AC:1F40 0900000A:{0xA000 + n:04X} 01 00000000:00000000\n"
            for n in range(box.connections)
        )
        return 0, f"  sl  local_address rem_address   st\n{rows}".encode()

    # Images, networks, volumes

    async def inspect_image(self, request: web.Request, name: str) -> web.Response:
        if name not in self.images:
            raise RefusalError(404, f"No such image: {name}")
        return web.json_response({"Id": f"sha256:{name}", "Config": {"User": ""}})

    async def pull(self, request: web.Request) -> web.Response:
        name = request.query["fromImage"]
        if name not in self.registry:
            raise RefusalError(404, f"manifest for {name} not found")
        self.images.add(name)
        return web.Response(text='{"status":"Pulling"}\n{"status":"Done"}\n')

    async def list_networks(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.networks.values()))

    async def create_network(self, request: web.Request) -> web.Response:
        body = await request.json()
        if any(net["Name"] == body["Name"] for net in self.networks.values()):
            raise RefusalError(409, "network with that name already exists")
        network_id = f"{next(self._ids):064x}"
        self.networks[network_id] = body | {"Id": network_id, "Created": f"{time.time()}"}
        return web.json_response({"Id": network_id}, status=201)

    async def remove_network(self, request: web.Request, name: str) -> web.Response:
        if self.networks.pop(name, None) is None:
            raise RefusalError(404, f"network {name} not found")
        return web.Response(status=204)

    async def connect(self, request: web.Request, name: str) -> web.Response:
        self._got((await request.json())["Container"]).networks.add(name)
        return web.Response()

    async def list_volumes(self, request: web.Request) -> web.Response:
        return web.json_response({"Volumes": [{"Name": name} for name in self.volumes]})

    async def create_volume(self, request: web.Request) -> web.Response:
        name = (await request.json())["Name"]
        self.volumes.setdefault(name, {})
        return web.json_response({"Name": name}, status=201)

    async def inspect_volume(self, request: web.Request, name: str) -> web.Response:
        if name not in self.volumes:
            raise RefusalError(404, f"get {name}: no such volume")
        return web.json_response({"Name": name})

    async def remove_volume(self, request: web.Request, name: str) -> web.Response:
        if name not in self.volumes:
            raise RefusalError(404, f"get {name}: no such volume")
        if any(box.volume == name for box in self.boxes.values()):
            raise RefusalError(409, f"remove {name}: volume is in use")
        del self.volumes[name]
        return web.Response(status=204)

    # The Engine itself

    async def ping(self, request: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def tell_version(self, request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": self.version})

    async def stream_events(self, request: web.Request) -> web.StreamResponse:
        if self.deaf:
            raise RefusalError(500, "no events today")
        news: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        since = float(request.query.get("since", "inf"))
        for event in self.events:
            if event["timeNano"] >= since * 1e9:
                news.put_nowait(event)
        self._listeners.add(news)
        response = web.StreamResponse(headers={"Date": formatdate(usegmt=True)})
        await response.prepare(request)
        try:
            while (event := await news.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._listeners.discard(news)
        return response

    # How it does it

    def _named(self, name: str) -> Box | None:
        return next((box for box in self.boxes.values() if name in (box.id, box.name)), None)

    def _got(self, name: str) -> Box:
        box = self._named(name)
        if box is None:
            raise RefusalError(404, f"No such container: {name}")
        return box

    def _taken(self, box: Box) -> bool:
        holder = self.by_port(box.port)
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", box.port))
            except OSError:
                return True
        return holder is not None and holder is not box

    def _run(self, box: Box) -> None:
        box.status, box.exit_code, box.started_at = "running", 0, self.time()
        box.connections = 0
        box.log.append(f"engine {box.labels['enginegate.engine_id']} listens")
        self._tell(box, "start")

    def _end(self, box: Box, code: int) -> None:
        box.status, box.exit_code = "exited", code
        self._tell(box, "die", {"exitCode": str(code)})

    def time(self) -> float:
        """What time it is, by the clock of its loop."""
        return self._epoch + asyncio.get_running_loop().time()

    def _tell(self, box: Box, action: str, more: dict[str, str] | None = None) -> None:
        event = {
            "Type": "container",
            "Action": action,
            "Actor": {"ID": box.id, "Attributes": box.labels | {"name": box.name} | (more or {})},
            "timeNano": int(self.time() * 1e9),
        }
        self.events.append(event)
        for listener in self._listeners:
            listener.put_nowait(event)

    def _row(self, box: Box) -> dict[str, Any]:
        age_s = max(int(self.time() - box.started_at), 0)
        ages = {
            "running": f"Up {age_s} seconds",
            "paused": f"Up {age_s} seconds (Paused)",
            "exited": f"Exited ({box.exit_code}) 2 seconds ago",
        }
        return {
            "Id": box.id,
            "Names": [f"/{box.name}"],
            "Labels": box.labels,
            "State": box.status,
            "Status": ages.get(box.status, "Created"),
            "HostConfig": {"NetworkMode": box.body["HostConfig"]["NetworkMode"]},
            "NetworkSettings": {"Networks": {name: {} for name in box.networks}},
        }

    def _inspected(self, box: Box) -> dict[str, Any]:
        began = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(box.started_at))
        return {
            "Id": box.id,
            "Name": f"/{box.name}",
            "Image": f"sha256:{box.body['Image']}",
            "RestartCount": box.restarts,
            "State": {
                "Status": box.status,
                "Pid": 0,
                "ExitCode": box.exit_code,
                "StartedAt": f"{began}.{round(box.started_at % 1 * 1e9):09}Z",
            },
            "Config": {"Labels": box.labels, "Tty": False},
            "HostConfig": {"NetworkMode": box.body["HostConfig"]["NetworkMode"]},
            "NetworkSettings": {"Networks": {name: {} for name in box.networks}},
        }


def _error(status: int, message: str) -> web.Response:
    return web.Response(
        body=json.dumps({"message": message}).encode(),
        content_type="application/json",
        status=status,
    )


def _framed(output: bytes) -> bytes:
    return struct.pack(">BxxxL", 1, len(output)) + output


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


_HANDLERS = {
    "GET /containers/json": "list_boxes",
    "POST /containers/create": "create",
    "GET /containers/{}/json": "inspect",
    "POST /containers/{}/start": "start",
    "POST /containers/{}/stop": "stop",
    "POST /containers/{}/pause": "pause",
    "POST /containers/{}/unpause": "unpause",
    "POST /containers/{}/wait": "wait",
    "PUT /containers/{}/archive": "put",
    "GET /containers/{}/logs": "logs",
    "GET /containers/{}/stats": "stats",
    "POST /containers/{}/exec": "create_exec",
    "DELETE /containers/{}": "remove",
    "POST /exec/{}/start": "start_exec",
    "GET /exec/{}/json": "inspect_exec",
    "GET /images/{}/json": "inspect_image",
    "POST /images/create": "pull",
    "GET /networks": "list_networks",
    "POST /networks/create": "create_network",
    "POST /networks/{}/connect": "connect",
    "DELETE /networks/{}": "remove_network",
    "GET /volumes": "list_volumes",
    "POST /volumes/create": "create_volume",
    "GET /volumes/{}": "inspect_volume",
    "DELETE /volumes/{}": "remove_volume",
    "GET /_ping": "ping",
    "GET /version": "tell_version",
    "GET /events": "stream_events",
}
_UNSCRIPTED = {"GET /events", "GET /version"}


def _pattern(name: str) -> re.Pattern[str]:
    hole = "(.+)" if "/images/" in name else "([^/]+)"
    return re.compile(re.escape(name).replace(r"\{\}", hole))


_ROUTES = [(_pattern(name), name) for name in _HANDLERS]
