"""The demo's story: scene by scene, each measured and each checked."""

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from threading import Barrier
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from enginegate.backends.proc import read_stat
from enginegate.cli.client import Gate
from enginegate.cli.failures import Failure
from enginegate.cli.sandbox import Sandbox

WARM_ADMITS: Final = 1_000
CROWD: Final = 30
PRODUCT: Final = "demo"
ALICE, BOB = "alice", "bob"
_TIMEOUT_S: Final = 30
_HTTP_OK, _UNAUTHORIZED = 200, 401
_KEY: Final = re.compile(r"\b[aps]k-eg-[\w-]+")


class Call(NamedTuple):
    """What an engine answered."""

    status: int
    body: dict[str, Any]


class Story:
    """One life of an engine. `told` gets each scene's name and what came of it."""

    def __init__(self, sandbox: Sandbox, scene: "Scene") -> None:
        self.sandbox = sandbox
        self.scene = scene
        self.product_id = ""
        self.platform_key = ""
        self._gate: Gate

    def tell(self) -> None:
        """Play every scene in order.

        Raises:
            Failure: one of them went otherwise than promised.
        """
        self._serve()
        self._register()
        self._cold_admit()
        self._call_engine()
        self._warm_admits()
        self._crowd()
        self._sleep()
        self._wake()
        self._crash()
        self._trail()

    def _serve(self) -> None:
        with self.scene("serve", "starting a server on an empty directory") as told:
            begun = time.perf_counter()
            self.sandbox.start()
            told(f"enginegate accepts requests on {self.sandbox.url} after {since(begun)}")

    def _register(self) -> None:
        with self.scene("register", "registering a product") as told:
            body = {"slug": PRODUCT, "display_name": "The demo", "policy": {"max_engines": 5}}
            answer = self.sandbox.admin().call("POST", "/products/register", body)
            self.product_id, self.platform_key = answer["product_id"], answer["platform_api_key"]
            self._gate = self._as_product()
            told(f"product {PRODUCT} may have 5 engines; its platform key is shown once")

    def _cold_admit(self) -> None:
        with self.scene("cold admit", "admitting a user who has no engine yet") as told:
            begun = time.perf_counter()
            answer = self._admit(ALICE, auto_provision=True)
            took = since(begun)
            expect(answer["admitted"] and answer["action"] == "provisioned", answer)
            told(f"{ALICE}'s engine was made, booted and healthy in {took}: {self._url(ALICE)}")

    def _call_engine(self) -> None:
        with self.scene("call", "calling the engine, without enginegate in between") as told:
            with_key, without = self._call(ALICE), self._call(ALICE, key="")
            expect(with_key.status == _HTTP_OK and without.status == _UNAUTHORIZED, with_key)
            told(f"the engine answers {with_key.status} with its key, {without.status} without")

    def _warm_admits(self) -> None:
        with self.scene("warm admits", f"admitting {ALICE} {WARM_ADMITS:,} times") as told:
            with closing(self._connect()) as connection:
                begun = time.perf_counter()
                each = sorted(self._warm(connection) for _ in range(WARM_ADMITS))
                total_s = time.perf_counter() - begun
            p50, p99 = each[len(each) // 2], each[len(each) * 99 // 100]
            told(
                f"{WARM_ADMITS:,} one after the other: p50 {p50 * 1000:.2f} ms,"
                f" p99 {p99 * 1000:.2f} ms, {WARM_ADMITS / total_s:,.0f} a second"
            )

    def _crowd(self) -> None:
        with self.scene("stampede", f"admitting {BOB}, who is new, {CROWD} times at once") as told:
            begun = time.perf_counter()
            ids = self._at_once(BOB)
            took = since(begun)
            expect(len(ids) == CROWD and len(set(ids)) == 1, ids)
            total = self._gate.call("GET", "/engines")["total"]
            expect(total == len((ALICE, BOB)), total)
            told(f"{CROWD} simultaneous admits of {BOB} made one engine; all have it in {took}")

    def _sleep(self) -> None:
        with self.scene("sleep", "putting an engine to sleep") as told:
            pid = self._pid(ALICE)
            begun = time.perf_counter()
            self._gate.call("POST", f"/engines/{ALICE}/sleep")
            took = since(begun)
            stat = read_stat(pid)
            expect(stat is not None and stat.state == "T", stat)
            told(f"{ALICE}'s engine (pid {pid}) is frozen after {took}; its memory is as it was")

    def _wake(self) -> None:
        with self.scene("wake", "admitting the sleeper") as told:
            refused = self._admit(ALICE)
            expect(refused.get("reason") == "engine_sleeping", refused)
            begun = time.perf_counter()
            answer = self._admit(ALICE, auto_wake=True)
            took = since(begun)
            expect(answer["admitted"] and answer["action"] == "woke", answer)
            told(f"an admit with auto_wake thaws it and has it healthy in {took}")

    def _crash(self) -> None:
        with self.scene("kill -9", "killing the server") as told:
            before = [self._life(user) for user in (ALICE, BOB)]
            engine = self._admit(ALICE)["engine"]
            killed = self.sandbox.pid
            self.sandbox.kill()
            alone = ask(engine["url"], engine["api_key"])
            expect(alone.status == _HTTP_OK, alone)
            begun = time.perf_counter()
            self.sandbox.start()
            took = since(begun)
            self._gate = self._as_product()
            answer = self._admit(ALICE)
            expect(answer["admitted"] and answer["action"] == "none", answer)
            after = [self._life(user) for user in (ALICE, BOB)]
            expect(before == after, (before, after))
            pids = " and ".join(str(pid) for pid, _ in after)
            told(
                f"server {killed} killed; engines answer on, the next server is ready in {took},"
                f" has both as they were (pids {pids}, not restarted)"
            )

    def _trail(self) -> None:
        with self.scene("audit", "reading the audit trail") as told:
            entries = self.sandbox.admin().call("GET", "/audit")["entries"]
            expect({"provision", "sleep", "wake"} <= {one["action"] for one in entries}, entries)
            told(f"{len(entries)} entries, the oldest first:")
        for entry in reversed(entries):
            took = entry["duration_ms"]
            self.scene.detail(
                f"{entry['timestamp']}  {entry['action']:<16} {entry['outcome']:<7}"
                f" {entry['actor']:<7} {entry['user_id'] or '-':<6}"
                f" {'' if took is None else f'{took:.1f} ms':>10}".rstrip()
            )

    # --- how things are asked -------------------------------------------------------------------

    def _as_product(self) -> Gate:
        return Gate(self.sandbox.url, {"X-Platform-Key": self.platform_key})

    def _admit(self, user: str, **options: bool) -> dict[str, Any]:
        answer: dict[str, Any] = self._gate.call("POST", f"/engines/{user}/admit", options)
        return answer

    def _url(self, user: str) -> str:
        return str(self._gate.call("GET", f"/engines/{user}")["url"])

    def _call(self, user: str, key: str | None = None) -> Call:
        engine = self._gate.call("GET", f"/engines/{user}")
        return ask(engine["url"], engine["api_key"] if key is None else key)

    def _life(self, user: str) -> tuple[int, float]:
        """Return the engine's pid and start, by its own word."""
        body = self._call(user).body
        return body["pid"], body["started_at"]

    def _pid(self, user: str) -> int:
        return self._life(user)[0]

    def _connect(self) -> HTTPConnection:
        return HTTPConnection(urlsplit(self.sandbox.url).netloc, timeout=_TIMEOUT_S)

    def _post_admit(self, connection: HTTPConnection, user: str, body: str) -> bytes:
        headers = {"X-Platform-Key": self.platform_key}
        connection.request("POST", f"/engines/{user}/admit", body, headers)
        return connection.getresponse().read()

    def _warm(self, connection: HTTPConnection) -> float:
        """Admit once; return the seconds it took."""
        begun = time.perf_counter()
        answer = self._post_admit(connection, ALICE, "")
        seconds = time.perf_counter() - begun
        expect(answer.startswith(b'{"admitted":true'), answer)
        return seconds

    def _at_once(self, user: str) -> list[str]:
        """Admit a new user from many connections at the same moment; return the engines' ids."""
        ready = Barrier(CROWD)

        def admit(_: int) -> str:
            with closing(self._connect()) as connection:
                connection.connect()
                ready.wait(_TIMEOUT_S)
                answer = json.loads(self._post_admit(connection, user, '{"auto_provision":true}'))
                expect(answer.get("admitted"), answer)
                return str(answer["engine"]["engine_id"])

        with ThreadPoolExecutor(CROWD) as pool:
            return list(pool.map(admit, range(CROWD)))


class Scene:
    """Shows what is going on: a spinner on a terminal, then a line; elsewhere lines alone."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, soft_wrap=True)
        self.number = 0

    @contextmanager
    def __call__(self, name: str, doing: str) -> Iterator[Callable[[str], None]]:
        self.number += 1
        outcome: list[str] = []
        if self._console.is_terminal:
            with self._console.status(f"{name}: {doing} …"):
                yield outcome.append
        else:
            yield outcome.append
        text = "; ".join(outcome)
        self._console.print(f"{self.number:>2}  {name:<12}  {text}", markup=False)

    def detail(self, text: str) -> None:
        self._console.print(f"{'':18}{text}", markup=False, style="dim")


def ask(url: str, key: str) -> Call:
    """Ask an engine who it is."""
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT_S)) as connection:
        connection.request("GET", "/whoami", headers={"X-Engine-Key": key} if key else {})
        answer = connection.getresponse()
        return Call(answer.status, json.loads(answer.read()))


def expect(as_promised: object, found: object) -> None:
    """Stop the story where it goes otherwise."""
    if not as_promised:
        raise Failure(f"that is not what was promised: {_KEY.sub('***', repr(found))}")


def since(begun: float) -> str:
    return f"{(time.perf_counter() - begun) * 1000:.0f} ms"
