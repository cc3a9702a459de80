"""A whole gate behind its HTTP API, in memory: real core, real journal, fake backend."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.types import ASGIApp, Message

from enginegate.admission import Admission
from enginegate.api.app import build
from enginegate.api.prepared import prepare
from enginegate.api.services import Phase, Services
from enginegate.config import Config, Secrets
from enginegate.health import HealthLoop
from enginegate.idle import IdleLoop
from enginegate.journal import Committer, Journal
from enginegate.keys import Keyring
from enginegate.lifecycle import Lifecycle, Operations, Products
from enginegate.lifecycle.ground import Ground
from enginegate.model import Status
from enginegate.ports import PortMap
from enginegate.recovery import Recovery
from enginegate.registry import LiveEngine, Registry
from tests.fakes import FakeBackend, FakeEngine, FakeProbe, ManualClock, settle

ADMIN_KEY = "ak-eg-admin-key-of-the-tests"
METRICS_KEY = "mk-eg-metrics-key-of-the-tests"
MASTER_KEY = "x" * 43 + "="
SECRETS = Secrets(admin_key=ADMIN_KEY, master_keys=(MASTER_KEY,), metrics_key=METRICS_KEY)
ADMIN = {"X-Admin-Key": ADMIN_KEY}
PATIENCE_S = 5.0  # of real time, before a test that waits for something gives up
STEP_S = 1.0
TIME_STEP_S = 0.25


class Gate:
    """The parts of a gate and a client of its API; `key` is that of the product `demo`.

    With `after` it is the next start on the directory and the world of another one.
    """

    def __init__(self, config: Config, directory: Path, after: "Gate | None" = None) -> None:
        self.config = config
        self.clock = after.clock if after else ManualClock()
        self.backend = FakeBackend(clock=self.clock, world=after.backend.world if after else None)
        keyring = Keyring(SECRETS.master_keys)
        self.journal = Journal.open(directory, key_id=keyring.key_id, check=lambda _: [])
        self.registry = Registry(
            ports=PortMap(config.ports.min, config.ports.max),
            keyring=keyring,
            clock=self.clock,
            url_of=lambda engine: f"http://127.0.0.1:{engine.port}",
            sleep_after_s=config.idle.sleep_after_s,
        )
        self.registry.load(self.journal.snapshot, self.journal.tail)
        self.journal.begin(self.registry.snapshot())
        self.journal.on_sync = self.registry.meters.synced
        self.registry.trail.history = lambda before, naming: self.journal.history(
            before=before, naming=naming
        )
        self.committer = Committer(
            self.journal, apply=self.registry.apply, abandon=self.registry.abandon
        )
        self.registry.attach(self.committer, self.journal)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.writing: asyncio.Task[Any]
        ground = Ground(
            registry=self.registry,
            backend=self.backend,
            probe=FakeProbe(self.backend),  # type: ignore[arg-type]
            keyring=keyring,
            clock=self.clock,
            config=config,
        )
        self.operations = Operations(
            spawn=self.spawn, clock=self.clock, meters=self.registry.meters
        )
        self.lifecycle = Lifecycle(ground, self.operations)
        self.health = HealthLoop(ground, self.lifecycle)
        self.products = Products(registry=self.registry, lifecycle=self.lifecycle, clock=self.clock)
        self.recovery = Recovery(ground, self.lifecycle, self.products, self.health)
        self.idle = IdleLoop(ground, self.lifecycle, look_into=self.recovery.look, spawn=self.spawn)
        self.services = Services(
            config=config,
            secrets=SECRETS,
            registry=self.registry,
            lifecycle=self.lifecycle,
            products=self.products,
            admission=Admission(
                registry=self.registry,
                lifecycle=self.lifecycle,
                health=self.health,
                clock=self.clock,
                encode=prepare,
            ),
            health=self.health,
            clock=self.clock,
            started_at=self.clock.now(),
            phase=Phase("serving"),
        )
        self.app: ASGIApp = build(self.services)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://gate"
        )
        self.key = after.key if after else ""

    async def recover(self) -> None:
        """Do what a server does before it listens."""
        await self.recovery.at_start()
        self.idle.plan_all()

    def run_loops(self) -> None:
        """Run what a server runs beside the requests, by the clock of the test."""
        self.spawn(self.health.sweep_forever(), "probes")
        self.spawn(self.recovery.watch_forever(), "watch")
        self.spawn(self.health.restart_forever(), "restarts")
        self.spawn(self.idle.run_forever(), "idle")

    async def close(self) -> None:
        """End as a killed server does, its journal apart, which is closed. May be called twice."""
        others = self.tasks - {self.writing}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.committer.close()
        await asyncio.wait([self.writing])

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "") -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        return task

    # Calls

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **more: Any
    ) -> httpx.Response:
        """Call as the product whose key this is, as `demo` if none is given."""
        headers = {"X-Platform-Key": key or self.key} | more.pop("headers", {})
        async with asyncio.timeout(PATIENCE_S):  # a call that hangs fails its test
            return await self.client.request(method, path, json=body, headers=headers, **more)

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.call("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return await self.call("POST", path, body, **more)

    async def admin(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> httpx.Response:
        return await self.client.request(method, path, json=body, headers=ADMIN | headers)

    async def admit(self, user_id: str = "ann", **options: Any) -> httpx.Response:
        return await self.post(f"/engines/{user_id}/admit", options)

    # What tests begin with

    async def product(self, slug: str = "demo", **policy: Any) -> dict[str, Any]:
        """Register a product; its calls are made with the key in the answer."""
        asked = {"slug": slug, "display_name": slug.title(), "policy": policy}
        answer = await self.admin("POST", "/products/register", asked)
        assert answer.status_code == 200, answer.text
        registered: dict[str, Any] = answer.json()
        return registered

    async def policy(self, **policy: Any) -> None:
        """Replace the policy of `demo`."""
        product_id = self.registry.by_slug["demo"].product.product_id
        answer = await self.admin("PUT", f"/products/{product_id}/policy", {"policy": policy})
        assert answer.status_code == 200, answer.text

    async def engine(self, user_id: str = "ann", *, key: str | None = None) -> dict[str, Any]:
        """Provision an engine and return what `GET` says of it."""
        made = await self.post("/engines/provision", {"user_id": user_id}, key=key)
        assert made.status_code == 200, made.text
        found = await self.get(f"/engines/{user_id}", key=key)
        engine: dict[str, Any] = found.json()
        return engine

    def live(self, user_id: str = "ann") -> LiveEngine:
        return self.registry.by_slug["demo"].engines[user_id]

    def fake(self, user_id: str = "ann") -> FakeEngine:
        """Return the engine as the fake backend has it."""
        return self.backend.engine(self.live(user_id).engine.engine_id)

    async def fail(self, user_id: str = "ann") -> None:
        """Let the engine's process die and be noticed."""
        self.backend.crash(self.live(user_id).engine.engine_id, tell=False)
        await self.health.fail_if_gone(self.live(user_id))

    async def audit(self, **query: Any) -> list[dict[str, Any]]:
        """Return the trail of the whole fleet, newest first, once it is on disk."""
        await self.registry.flushed()
        answer = await self.client.get("/audit", params=query, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        entries: list[dict[str, Any]] = answer.json()["entries"]
        return entries

    # Time

    async def settled(self, task: "asyncio.Task[Any]") -> Any:
        """Let the clock run until the task is done; return its result."""
        async with asyncio.timeout(PATIENCE_S):
            while not task.done():
                await self.clock.advance(STEP_S)
                await asyncio.wait([task], timeout=0.001)
        return task.result()

    async def durable(self) -> None:
        """Wait until everything that was begun is on disk and its consequences have been drawn."""
        async with asyncio.timeout(PATIENCE_S):
            await settle()
            while self.registry._pending:
                await asyncio.sleep(0.001)
                await settle()

    async def pass_time(self, seconds: float) -> None:
        """Let the clock run in small steps, each with all that it brings about."""
        for _ in range(round(seconds / TIME_STEP_S)):
            await self.clock.advance(TIME_STEP_S)
            await self.durable()

    async def slowly(self, call: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        """Return the answer of a call that takes time by the clock."""
        answer: httpx.Response = await self.settled(self.spawn(call))
        return answer


@asynccontextmanager
async def opened(
    directory: Path, *, after: Gate | None = None, **sections: Any
) -> AsyncIterator[Gate]:
    """Open a gate with these sections of the configuration and the product `demo`.

    `after` is a gate that was closed: this one starts on what it left behind.
    """
    gate = Gate(Config(**sections), directory, after)
    gate.writing = gate.spawn(gate.committer.run(), "journal")
    try:
        async with gate.client:
            if after is None:
                gate.key = (await gate.product())["platform_api_key"]
            await gate.recover()
            yield gate
    finally:
        await gate.close()


def code(answer: httpx.Response) -> str:
    """Return the error code of an answer, which has the shape every error has."""
    error = answer.json()["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    found: str = error["code"]
    return found


async def reach(gate: Gate, state: str) -> None:
    """Bring the engine of `ann` into one of the six states."""
    if state == "provisioning":
        gate.backend.hang("start")
        gate.spawn(gate.post("/engines/provision", {"user_id": "ann"}))
        await until(lambda: bool(gate.registry.by_slug["demo"].engines))
        return
    await gate.engine()
    match state:
        case "sleeping":
            assert (await gate.post("/engines/ann/sleep")).status_code == 200
        case "stopped":
            assert (await gate.post("/engines/ann/stop")).status_code == 200
        case "failed":
            await gate.fail()
        case "destroying":
            gate.backend.hang("destroy")
            gate.spawn(gate.call("DELETE", "/engines/ann"))
            await until(lambda: gate.live().engine.status is Status.DESTROYING)


async def until(seen: Callable[[], bool]) -> None:
    """Wait for something that happens without time passing."""
    async with asyncio.timeout(PATIENCE_S):
        while not seen():
            await asyncio.sleep(0)


async def refused(gate: Gate, **options: Any) -> dict[str, Any]:
    """Return what an admit of `ann` is refused with."""
    answer = await gate.admit(**options)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert set(body) == {"admitted", "engine", "reason", "retry_after_s"}
    assert (body["admitted"], body["engine"]) == (False, None)
    return body


async def admitted(gate: Gate, user_id: str = "ann", **options: Any) -> dict[str, Any]:
    """Return the answer to an admit that goes through."""
    answer = await gate.admit(user_id, **options)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert body["admitted"] is True, body
    return body


class Wire:
    """One request in plain ASGI, for what an HTTP client does not let a test do."""

    def __init__(
        self, app: ASGIApp, method: str, path: str, headers: dict[str, str], *chunks: bytes
    ) -> None:
        self.app = app
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "scheme": "http",
            "server": ("gate", 80),
            "headers": [(name.lower().encode(), v.encode()) for name, v in headers.items()],
        }
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self.received = 0
        for position, chunk in enumerate(chunks, start=1):
            more = position < len(chunks)
            self.incoming.put_nowait({"type": "http.request", "body": chunk, "more_body": more})

    async def receive(self) -> Message:
        message = await self.incoming.get()
        self.received += 1
        return message

    async def send(self, message: Message) -> None:
        self.sent.put_nowait(message)

    async def run(self) -> tuple[int, bytes]:
        """Run the request to its end; return status and body (0: nothing was answered)."""
        async with asyncio.timeout(PATIENCE_S):
            await self.app(self.scope, self.receive, self.send)
        status, body = 0, b""
        while not self.sent.empty():
            message = self.sent.get_nowait()
            status = message.get("status", status)
            body += message.get("body", b"")
        return status, body

    async def chunk(self) -> bytes:
        """Return the next piece of body as it is sent."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                message = await self.sent.get()
                if message["type"] == "http.response.body":
                    body: bytes = message["body"]
                    return body

    def leave(self) -> None:
        """Let the client hang up."""
        self.incoming.put_nowait({"type": "http.disconnect"})
