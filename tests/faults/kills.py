"""kill -9 of the real server under 32 clients, again and again: what was answered is there.

Each client owns one thing (a product with its key and policy, or a user's engine) and changes
it over and over; it knows what was answered last, and forgets it while a call is open. Two
servers on directories of their own take turns on two processors.
"""

import asyncio
import json
import random
import re
import signal
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Server
from tests.e2e.test_kill import engine_processes
from tests.faults.campaign import Run, campaign, plain

CLIENTS, USERS = 32, 4
LANES = 2
LIVES_S = (0.03, 0.2)  # how long a server lives under load
RECOVERY_S = 0.5  # the bound on what the server logs of its recovery, held by the median
RECOVERED = re.compile(r"listening ([0-9.]+) s after the journal was opened \(([^)]*)\)")
BODIES = {"admit": {"auto_provision": True, "auto_wake": True}, "sleep": {"force": True}}
ENGINE_VERBS = ("admit", "admit", "stop", "start", "sleep", "rotate-key", "destroy")


class Connection:
    """A connection to the server that knows as much of HTTP as is needed here."""

    def __init__(self, url: str) -> None:
        self.host, self.port = url.removeprefix("http://").split(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """Return status and JSON. Raises OSError or EOFError where no whole answer came."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self.host, int(self.port))
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: gate", f"content-length: {len(content)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split(" ", 2)[1])
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        assert length, head
        return status, json.loads(await reader.readexactly(int(length[1])))

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Lane:
    """One server, its clients, and what they know."""

    server: Server
    dice: random.Random
    key: str = ""
    products: dict[int, dict[str, Any]] = field(default_factory=dict)
    users: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    survivors: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    checked: int = 0
    recoveries: list[tuple[float, str]] = field(default_factory=list)  # seconds, and its stages

    def one_round(self) -> None:
        """Start, check what was answered before, load, kill."""
        self.server.start()
        took_s, stages = RECOVERED.findall(self.server.log)[-1]
        self.recoveries.append((float(took_s), stages))
        asyncio.run(self._live())
        self.server.process.wait(10)
        self.survivors = engine_processes(self.server.directory)

    async def _live(self) -> None:
        await self.check()
        clients = [self._change_product(n) for n in range(CLIENTS - USERS)]
        clients += [self._change_engine(f"user{n}") for n in range(USERS)]
        tasks = [asyncio.create_task(self._until_death(client)) for client in clients]
        await asyncio.sleep(self.dice.uniform(*LIVES_S))
        self.server.process.send_signal(signal.SIGKILL)
        await asyncio.gather(*tasks)

    async def _until_death(self, change: Callable[[Connection], Awaitable[None]]) -> None:
        with closing(Connection(self.server.url)) as connection, suppress(OSError, EOFError):
            while True:
                await change(connection)
                self.answered += 1

    def admin(self) -> dict[str, str]:
        return {"x_admin_key": self.server.admin_key}

    # Products

    def _change_product(self, number: int) -> Callable[[Connection], Awaitable[None]]:
        async def change(connection: Connection) -> None:
            known = self.products.setdefault(number, {})
            if "id" not in known:
                await self._register(connection, number, known)
            elif self.dice.random() < 0.5:
                await self._rotate(connection, known)
            elif self.dice.random() < 0.9:
                await self._set_policy(connection, known)
            else:
                await self._delete(connection, known)

        return change

    async def _register(self, connection: Connection, number: int, known: dict[str, Any]) -> None:
        known["slug"] = f"p{number}-{self.dice.getrandbits(40):x}"
        body = {"slug": known["slug"], "display_name": "P", "policy": {"max_engines": 1}}
        status, told = await connection.ask("POST", "/products/register", body, **self.admin())
        assert status == 200, told
        known |= {"id": told["product_id"], "key": told["platform_api_key"], "quota": 1}

    async def _rotate(self, connection: Connection, known: dict[str, Any]) -> None:
        known.pop("key", None)
        path = f"/products/{known['id']}/rotate-platform-key"
        status, told = await connection.ask("POST", path, None, **self.admin())
        assert status == 200, told
        known["key"] = told["platform_api_key"]

    async def _set_policy(self, connection: Connection, known: dict[str, Any]) -> None:
        known.pop("quota", None)
        quota = self.dice.randrange(1000)
        path, body = f"/products/{known['id']}/policy", {"policy": {"max_engines": quota}}
        status, told = await connection.ask("PUT", path, body, **self.admin())
        assert status == 200, told
        known["quota"] = quota

    async def _delete(self, connection: Connection, known: dict[str, Any]) -> None:
        path = f"/products/{known['id']}"
        known.clear()
        status, told = await connection.ask("DELETE", path, None, **self.admin())
        assert status == 200, told
        known["gone"] = told["product_id"]

    # Engines

    def _change_engine(self, user: str) -> Callable[[Connection], Awaitable[None]]:
        async def change(connection: Connection) -> None:
            verb = self.dice.choice(ENGINE_VERBS)
            before = self.users.pop(user, None)
            state, key = await self._verb(connection, user, verb)
            if state is not None:
                key = key or (before[1] if before and state != "gone" else None)
                self.users[user] = (state, key)
            elif before is not None:
                self.users[user] = before  # refused: nothing changed

        return change

    async def _verb(
        self, connection: Connection, user: str, verb: str
    ) -> tuple[str | None, str | None]:
        """Return the state and the key that an answered change promises."""
        path, key = f"/engines/{user}", {"x_platform_key": self.key}
        if verb == "destroy":
            status, _ = await connection.ask("DELETE", path, **key)
            return ("gone" if status in (200, 404) else None), None
        status, told = await connection.ask("POST", f"{path}/{verb}", BODIES.get(verb), **key)
        if status != 200 or told.get("admitted") is False:
            return None, None
        if verb == "admit":
            return "running", told["engine"]["api_key"]
        return told.get("status", "running"), told.get("api_key")

    # What must be there

    async def check(self) -> None:
        with closing(Connection(self.server.url)) as connection:
            if not self.key:
                body = {"slug": "demo", "display_name": "Demo"}
                _, told = await connection.ask("POST", "/products/register", body, **self.admin())
                self.key = told["platform_api_key"]
            await self._check_products(connection)
            await self._check_engines(connection)

    async def _check_products(self, connection: Connection) -> None:
        _, told = await connection.ask("GET", "/products", **self.admin())
        found = {row["product_id"]: row for row in told["products"]}
        for known in self.products.values():
            assert known.get("gone") not in found, f"a deleted product is back: {known}"
            if "id" not in known:
                continue
            row = found.get(known["id"])
            assert row is not None, f"an answered product is lost: {known}"
            if "quota" in known:
                assert row["policy"]["max_engines"] == known["quota"], f"{known} is {row}"
            if "key" in known:
                status, _ = await connection.ask("GET", "/status", x_platform_key=known["key"])
                assert status == 200, f"an answered platform key is lost: {known['slug']}"
            self.checked += 1

    async def _check_engines(self, connection: Connection) -> None:
        """Answered states and keys are there; rows and processes agree; nobody was restarted."""
        key = {"x_platform_key": self.key}
        now = engine_processes(self.server.directory)
        _, told = await connection.ask("GET", "/engines?limit=1000", **key)
        ids = {row["engine_id"] for row in told["engines"]}
        assert set(now) <= ids, "an engine process without a row"
        for user, (state, engine_key) in self.users.items():
            status, row = await connection.ask("GET", f"/engines/{user}", **key)
            if state == "gone":
                assert status == 404, f"{user} was destroyed and is {row}"
                continue
            assert row.get("status") == state, f"{user} was {state} and is {row}"
            assert engine_key in (None, row["api_key"]), f"the answered key of {user} is lost"
            if state == "running":
                name = row["engine_id"]
                assert now[name] == self.survivors.get(name), f"{user} was restarted"
            self.checked += 1


def work(lane: Lane, run: Run, lock: threading.Lock, broken: list[BaseException]) -> None:
    """Do rounds in one lane until there are none left, or something is broken."""
    try:
        while not broken:
            with lock:
                if run.over:
                    break
                run.advance(1)
            lane.one_round()
        lane.server.start()
        asyncio.run(lane.check())
    except BaseException as error:  # noqa: BLE001 - told by the thread that waits
        broken.append(error)
    finally:
        lane.server.close()


@campaign("kill", "kill -9 under 32 clients, on the real command", ci=300, long=3_000)
def kills(run: Run) -> str:
    """F1: 0 answered changes lost, and recovery is quick."""
    lock, broken, lanes = threading.Lock(), list[BaseException](), []
    with tempfile.TemporaryDirectory(prefix="enginegate-kill-") as place:
        for number in range(min(LANES, run.count)):
            directory = Path(place) / str(number)
            directory.mkdir()
            lanes.append(Lane(Server(directory), random.Random(number)))
            lanes[-1].server.cli.env = plain(lanes[-1].server.cli.env)
        threads = [threading.Thread(target=work, args=(lane, run, lock, broken)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if broken:
        raise broken[0]
    took = sorted(one for lane in lanes for one in lane.recoveries)
    middle_s, (slowest_s, stages) = took[len(took) // 2][0], took[-1]
    assert middle_s < RECOVERY_S, f"recoveries take {middle_s:.3f} s"
    over = sum(one >= RECOVERY_S for one, _ in took)
    answered, checked = sum(one.answered for one in lanes), sum(one.checked for one in lanes)
    return (
        f"{answered:,} answered changes, {checked:,} checks, 0 lost,"
        f" recovery {middle_s:.3f} s in the middle, {slowest_s:.3f} s at most ({stages}),"
        f" {over} of {len(took):,} over {RECOVERY_S} s"
    )
