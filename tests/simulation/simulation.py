"""A seed becomes a history: callers, faults, crashes and restarts, every promise checked.

The seed decides everything: what callers ask, what goes wrong, when threads and tasks run,
every random byte. So a seed that breaks a promise breaks it again, at the same step.
"""

import asyncio
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginegate.backends.base import Presence
from enginegate.config import Audit, Boot, Config, EngineSettings, Health, Idle, Ports, Restart
from enginegate.errors import StorageUnavailableError
from enginegate.journal import JournalFull
from enginegate.journal.inspect import verify
from enginegate.keys import digest_hex
from enginegate.model import Policy
from tests.fakes import FakeWorld, SimulatedCrash
from tests.simulation.disk import Disk
from tests.simulation.life import ADMIN_KEY, KEYS, UP_TO_S, Life, Past
from tests.simulation.model import ANY, GONE, Cell, Oracle, Violation, Write, demand
from tests.simulation.world import happen, heal, reboot

SLUGS = ("acme", "blue")
USERS = ("ann", "bob", "cid")
VERSIONS = ("app:1", "app:2", "evil:1")
REST_S = 130.0  # orphans: seen within 30 s, 60 s of grace, removed within another 30 s
TRACE_LINES = 40

REFUSALS = frozenset(
    {
        "INVALID_REQUEST",
        "INVALID_PLATFORM_KEY",
        "INVALID_ADMIN_KEY",
        "POLICY_DENIED",
        "PRODUCT_NOT_FOUND",
        "ENGINE_NOT_FOUND",
        "ENGINE_ALREADY_EXISTS",
        "ENGINE_NOT_RUNNING",
        "ENGINE_ALREADY_RUNNING",
        "PRODUCT_SLUG_EXISTS",
        "ENGINE_BUSY",
        "QUOTA_EXCEEDED",
        "RATE_LIMITED",
    }
)
"""What says that nothing was changed; every other error leaves it open."""

Learn = Callable[[dict[str, Any]], dict[Cell, Any] | None]
"""What a 200 tells of the cells: a value each; a cell left out stays open; None: no change."""

Claims = dict[Cell, tuple[Any, ...]]
"""The values that a call may give to cells; none where it only tells of one."""


@dataclass(frozen=True)
class Request:
    """What a caller sends, what it may change, and what an answer would tell.

    `exists` tells whether what a refusal says is there already is durable.
    """

    method: str
    path: str
    body: Any
    claims: Claims
    learn: Learn
    exists: Callable[[], bool] = lambda: True


@dataclass
class Call:
    """A request under way, and what it may change."""

    text: str
    begun_s: float
    writes: dict[Cell, Write]
    learn: Learn
    exists: Callable[[], bool]
    existed: bool
    task: "asyncio.Task[None] | None" = None
    surely_valid: bool = False
    key_cell: Cell | None = None
    key_hash: str = ""


@dataclass
class Report:
    """What a seed went through."""

    seed: int
    steps: int = 0
    calls: int = 0
    answered: int = 0
    lives: int = 0
    power_cuts: int = 0
    facts: int = 0
    trace: list[str] = field(default_factory=list)


class Simulation:
    """One seed."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.dice = dice = random.Random(seed)
        self.report = Report(seed)
        self.directory = directory
        self.disk = Disk(dice)
        self.world = FakeWorld()
        self.past = Past()
        self.oracle = Oracle(SLUGS, USERS)
        self.keys: dict[str, str] = {}
        self.calls: list[Call] = []
        self.shuffle = dice.random() < 0.7
        self.wall_jump_s = 0.0
        self.now_s = 1000.0
        self.config = Config(
            audit=Audit(retention_days=36_500),  # the wall clock jumps by years
            ports=Ports(min=9001, max=dice.choice((9004, 9012))),
            boot=Boot(timeout_s=20),
            health=Health(interval_s=dice.choice((5, 30)), timeout_s=2, max_failures=3),
            restart=Restart(backoff_base_s=1, backoff_max_s=20, max_attempts=3),
            idle=Idle(sleep_after_s=dice.choice((0, 3, 40, 900))),
            engine=EngineSettings(
                image="app:1",
                allowed_images=("app:*",),
                rotate_mode=dice.choice(("recreate", "live")),
                key_overlap_s=dice.choice((5, 60)),
                wake_timeout_s=5,
            ),
        )
        self.segment_bytes = dice.choice((8, 16, 64)) * 1024
        self.snapshot_after_bytes = dice.choice((4, 32, 1024)) * 1024
        self.late_s = dice.choice((0.0, 0.3, 1.0))
        self.life: Life | None = None

    # The whole history

    def run(self, steps: int) -> Report:
        self._live_again()
        for _ in range(steps):
            self.report.steps += 1
            self._step()
            self._check()
        self._rest()
        assert self.life is not None
        self.life.stop()
        self._bury()
        self._check_disk()
        self.report.facts = len(self.past.facts)
        return self.report

    def _step(self) -> None:
        dice = self.dice
        roll = dice.random()
        if roll < 0.70:
            for _ in range(dice.choice((1, 1, 1, 2, 4))):
                self._call()
        elif roll < 0.82:
            assert self.life is not None
            self._note(happen(dice, self.life.backend))
        elif roll < 0.90:
            self._trouble()
        elif roll < 0.93:
            self._leave()
        elif roll < 0.975:
            self._crash()
        elif roll < 0.985:
            self._terminate()
        elif roll < 0.993:
            self._compact()
        else:
            self._rest()
        self._advance(dice.choice((0.0, 0.001, 0.01, 0.1, 0.5, 1.0, 3.0, dice.random() * 20)))

    def _advance(self, seconds: float) -> None:
        assert self.life is not None
        self.life.loop.advance(seconds)
        if self.life.loop.dead:
            self._note("(dead)")
            self._live_again()

    # Callers

    def _call(self) -> None:
        slug, user = self.dice.choice(SLUGS), self.dice.choice(USERS)
        if not self._known(slug) and self.dice.random() < 0.8:
            self._register(slug)
            return
        self.dice.choice(VERBS)(self, slug, user)

    def _known(self, slug: str) -> str | None:
        """Return the product's id as an operator would look it up."""
        rows = self.past.fleet.products.items()
        return next((name for name, row in rows if row["slug"] == slug), None)

    def _has_engine(self, slug: str, user: str) -> bool:
        owner = (self._known(slug), user)
        return owner in {(row["product"], row["user"]) for row in self.past.fleet.engines.values()}

    def _register(self, slug: str) -> None:
        cells = self.oracle.products[slug]
        policy = self._some_policy()

        def learn(body: dict[str, Any]) -> dict[Cell, Any]:
            self.keys[slug] = key = body["platform_api_key"]
            told = {cells.identity: body["product_id"], cells.key: digest_hex(key)}
            return {**told, cells.policy: policy}

        body = {"slug": slug, "display_name": slug.title(), "policy": _plain(policy)}
        claims = {cells.identity: (ANY,), cells.key: (ANY,), cells.policy: (policy,)}
        known = lambda: self._known(slug) is not None  # noqa: E731 - asked twice, later
        self._admin(Request("POST", "/products/register", body, claims, learn, known))

    def _set_policy(self, slug: str, _: str) -> None:
        cell, policy = self.oracle.products[slug].policy, self._some_policy()
        path = f"/products/{self._known(slug) or 'none'}/policy"
        body = {"policy": _plain(policy)}
        self._admin(Request("PUT", path, body, {cell: (policy,)}, lambda _: {cell: policy}))

    def _some_policy(self) -> Policy:
        dice = self.dice
        return Policy(
            max_engines=dice.choice((None, None, 1, 2, 3)),
            rate_limit_rpm=dice.choice((None, None, None, None, 0)),
            idle_sleep_s=dice.choice((None, None, 0, 2, 30)),
        )

    def _rotate_platform_key(self, slug: str, _: str) -> None:
        cell = self.oracle.products[slug].key

        def learn(body: dict[str, Any]) -> dict[Cell, Any]:
            self.keys[slug] = body["platform_api_key"]
            return {cell: digest_hex(self.keys[slug])}

        path = f"/products/{self._known(slug) or 'none'}/rotate-platform-key"
        body = {"overlap_s": self.dice.choice((0, 0, 10))}
        self._admin(Request("POST", path, body, {cell: (ANY,)}, learn))

    def _delete_product(self, slug: str, _: str) -> None:
        if self.dice.random() < 0.8:
            return
        product = self.oracle.products[slug]
        cells = [product.identity, product.key, product.policy]
        claims: Claims = dict.fromkeys(cells, (GONE,))
        for user in USERS:
            one = self.oracle.users[slug, user]
            claims |= {one.identity: (GONE,), one.key: (GONE,), one.status: ("destroying", GONE)}
        path = f"/products/{self._known(slug) or 'none'}"
        self._admin(Request("DELETE", path, None, claims, lambda _: dict.fromkeys(claims, GONE)))

    def _provision(self, slug: str, user: str) -> None:
        one = self.oracle.users[slug, user]
        body = {"user_id": user}
        if self.dice.random() < 0.3:
            body["engine_version"] = self.dice.choice(VERSIONS)

        def learn(told: dict[str, Any]) -> dict[Cell, Any]:
            key = digest_hex(told["api_key"])
            return {one.identity: told["engine_id"], one.key: key, one.status: "running"}

        claims = {one.identity: (ANY,), one.key: (ANY,), one.status: BOOTING}
        known = lambda: self._has_engine(slug, user)  # noqa: E731 - asked twice, later
        self._product(slug, Request("POST", "/engines/provision", body, claims, learn, known))

    def _admit(self, slug: str, user: str) -> None:
        one, dice = self.oracle.users[slug, user], self.dice
        provision, wake = dice.random() < 0.6, dice.random() < 0.6
        touch = dice.random() < 0.9
        body: dict[str, Any] = {"auto_provision": provision, "auto_wake": wake, "touch": touch}
        if dice.random() < 0.3:
            body["wait_s"] = dice.choice((0, 0.5, 5))
        if dice.random() < 0.1:
            body["verify"] = True
        claims: Claims = {one.identity: (), one.key: ()}
        claims[one.status] = ("running", "failed") if wake else ("running",) if touch else ()
        if provision:
            claims |= {one.identity: (ANY,), one.key: (ANY,), one.status: BOOTING}

        def learn(told: dict[str, Any]) -> dict[Cell, Any] | None:
            if not told["admitted"]:
                return {} if provision or wake else None
            engine = told["engine"]
            if touch:
                self._promise(engine["engine_id"], told["lease_s"])
            key = digest_hex(engine["api_key"])
            return {one.identity: engine["engine_id"], one.key: key, one.status: "running"}

        self._product(slug, Request("POST", f"/engines/{user}/admit", body, claims, learn))

    def _promise(self, engine_id: str, lease_s: float) -> None:
        assert self.life is not None
        ends_s = self.life.loop.time() + lease_s if lease_s else float("inf")
        self.past.leases[engine_id] = ends_s

    def _touch(self, slug: str, user: str) -> None:
        one = self.oracle.users[slug, user]
        path = f"/engines/{user}/touch"
        claims = {one.status: ("running",)}
        self._product(slug, Request("POST", path, None, claims, lambda _: {one.status: "running"}))

    def _verb(self, slug: str, user: str, verb: str, *may: Any, ends: str) -> None:
        one = self.oracle.users[slug, user]
        body: dict[str, Any] | None = None
        if verb == "sleep":
            body = {"force": self.dice.random() < 0.5}
        elif verb == "start" and self.dice.random() < 0.3:
            body = {"engine_version": self.dice.choice(VERSIONS)}
        claims = {one.status: may}
        path = f"/engines/{user}/{verb}"
        self._product(slug, Request("POST", path, body, claims, lambda _: {one.status: ends}))

    def _start(self, slug: str, user: str) -> None:
        self._verb(slug, user, "start", "running", "failed", ends="running")

    def _stop(self, slug: str, user: str) -> None:
        self._verb(slug, user, "stop", "stopped", ends="stopped")

    def _sleep(self, slug: str, user: str) -> None:
        self._verb(slug, user, "sleep", "sleeping", ends="sleeping")

    def _rotate_key(self, slug: str, user: str) -> None:
        one = self.oracle.users[slug, user]

        def learn(told: dict[str, Any]) -> dict[Cell, Any]:
            key = digest_hex(told["api_key"])
            return {one.identity: told["engine_id"], one.key: key, one.status: "running"}

        claims = {one.identity: (), one.key: (ANY,), one.status: ("running", "failed")}
        self._product(slug, Request("POST", f"/engines/{user}/rotate-key", None, claims, learn))

    def _destroy(self, slug: str, user: str) -> None:
        one = self.oracle.users[slug, user]
        claims = {one.identity: (GONE,), one.key: (GONE,), one.status: ("destroying", GONE)}
        path = f"/engines/{user}"
        self._product(
            slug, Request("DELETE", path, None, claims, lambda _: dict.fromkeys(claims, GONE))
        )

    def _look(self, slug: str, user: str) -> None:
        paths = (f"/engines/{user}", "/engines", "/status", "/metrics", "/audit?limit=5")
        path = self.dice.choice((*paths, f"/engines/{user}/activity"))
        self._product(slug, Request("GET", path, None, {}, lambda _: {}))

    def _admin(self, request: Request) -> None:
        self._send(request, {"x-admin-key": ADMIN_KEY})

    def _product(self, slug: str, request: Request) -> None:
        key = self.keys.get(slug)
        if key is None or self.dice.random() < 0.1:
            self._send(request, {"x-admin-key": ADMIN_KEY, "x-product": slug}, of=slug)
            return
        call = self._send(request, {"x-platform-key": key}, of=slug)
        call.key_cell, call.key_hash = self.oracle.products[slug].key, digest_hex(key)
        call.surely_valid = self._surely_valid(call)

    def _surely_valid(self, call: Call) -> bool:
        return call.key_cell is not None and call.key_cell.allowed() == {call.key_hash}

    def _send(self, request: Request, headers: dict[str, str], *, of: str = "") -> Call:
        assert self.life is not None
        writes = {cell: cell.begin(*values) for cell, values in request.claims.items()}
        body = json.dumps(request.body) if request.body else ""
        text = f"{request.method} {request.path} {of} {body}".strip()
        exists = request.exists
        call = Call(text, self.life.loop.time(), writes, request.learn, exists, exists())
        self.report.calls += 1
        self._note(text)
        call.task = self.life.spawn(self._ask(call, request, headers), text)
        self.calls.append(call)
        return call

    async def _ask(self, call: Call, request: Request, headers: dict[str, str]) -> None:
        assert self.life is not None
        if self.life.app is None:
            await asyncio.sleep(0.01)  # it does not listen yet
        status, told = await ask(self.life.app, request, headers)
        self.calls.remove(call)
        self.report.answered += 1
        code = "" if status == 200 else told["error"]["code"]
        self._note(f"    {call.text} -> {status} {code or json.dumps(told)[:100]}")
        self._learn(call, status, code, told)

    def _learn(self, call: Call, status: int, code: str, told: dict[str, Any]) -> None:
        demand(code != "INTERNAL_ERROR", f"an internal error: {call.text} -> {told}")
        if code in ("PRODUCT_SLUG_EXISTS", "ENGINE_ALREADY_EXISTS"):
            demand(call.existed or call.exists(), f"told of what is not durable: {call.text}")
        if code == "INVALID_PLATFORM_KEY":
            valid = call.surely_valid and self._surely_valid(call)
            demand(not valid, f"a valid platform key was refused: {call.text}")
            self._forget_key(call.key_hash)
        known = call.learn(told) if status == 200 else None
        writes = call.writes.values()
        left = any(ANY in write.values or GONE in write.beside for write in writes)
        overtaken = code == "ENGINE_NOT_FOUND" and left  # it was done, and a destroy undoes it
        for cell, write in call.writes.items():
            if known and cell in known:
                cell.succeed(write, known[cell])
            elif (status == 200 and known is None) or (code in REFUSALS and not overtaken):
                cell.refuse(write)

    def _forget_key(self, key_hash: str) -> None:
        """Act as the operator from now on, until a rotation tells a new key."""
        self.keys = {slug: key for slug, key in self.keys.items() if digest_hex(key) != key_hash}

    def _leave(self) -> None:
        """A caller hangs up; what it asked for goes on, or never began."""
        if self.calls:
            call = self.dice.choice(self.calls)
            self.calls.remove(call)
            self._note(f"leaves: {call.text}")
            assert call.task is not None
            call.task.cancel()

    # What goes wrong

    def _trouble(self) -> None:
        life, dice = self.life, self.dice
        assert life is not None
        what = dice.choice(("backend", "backend", "down", "full", "slow", "fault", "wall", "well"))
        match what:
            case "backend":
                life.backend.trouble = dice.choice((0.0, 0.05, 0.3))
            case "down":
                life.backend.down = not life.backend.down
            case "full":
                self.disk.full = not self.disk.full
            case "slow":
                life.loop.slow_s = dice.choice((0.004, 0.004, 0.5, 3.0))
            case "fault" if dice.random() < 0.3:
                operation = dice.choice(("fdatasync", "pwrite", "fsync", "rename", "allocate"))
                life.mount.faults[operation] = dice.choice((5, 28))
                what = f"{operation} fails next"
            case "wall":
                self.wall_jump_s += dice.choice((-3600, 3600, -315e6, 315e6, 0.5))
                life.clock.wall_jump_s = self.wall_jump_s
            case _:
                self._get_well()
        self._note(f"trouble: {what}")

    def _get_well(self) -> None:
        assert self.life is not None
        self.disk.full = False
        self.life.backend.trouble, self.life.backend.down = 0.0, False
        self.life.loop.slow_s = 0.004
        self.life.mount.faults.clear()

    def _crash(self) -> None:
        """Die now, at one of the next operations of the disk, or at a call of the backend."""
        life, dice = self.life, self.dice
        assert life is not None
        how = dice.choice(("now", "disk", "disk", "backend"))
        self._note(f"crash: {how}")
        if how == "disk":
            life.mount.crash_at = life.mount.operations + dice.randint(1, 12)
        elif how == "backend":
            life.backend.crash_in = dice.randint(1, 6)
        else:
            life.loop.die()

    def _terminate(self) -> None:
        assert self.life is not None
        self._note("SIGTERM")
        self.life.stop()
        self.life.loop.die()

    def _compact(self) -> None:
        life = self.life
        assert life is not None

        async def compact() -> None:
            with suppress(StorageUnavailableError):
                life.committer.compact().add_done_callback(lambda done: done.exception())

        if life.ready and life.journal is not None and life.journal.status == "ok":
            self._note("compact")
            life.spawn(compact(), "compact")

    # Death and life

    def _bury(self) -> None:
        life = self.life
        if life is None:
            return
        self.now_s = life.loop.time() + self.dice.random() * 30
        life.check_noise()
        for call in self.calls:
            self._note(f"    {call.text} -> (no answer: the server is gone)")
        self.calls.clear()
        life.end()
        self.life = None

    def _live_again(self) -> None:
        """Start until a start succeeds; some starts are cut short as well."""
        self._bury()
        if self.report.lives and self.dice.random() < 0.5:
            self._cut_power()
        self._check_disk(torn_allowed=True)
        for attempt in range(20):
            crash_at = self.dice.randint(1, 25) if self.dice.random() < 0.15 else None
            if self._try_to_live(crash_at if attempt < 10 else None):
                return
            if self.dice.random() < 0.5:
                self._cut_power()
        raise Violation("twenty starts in a row did not succeed")

    def _cut_power(self) -> None:
        self.report.power_cuts += 1
        self._note("the power goes")
        self.disk.cut_power(self.dice.choice((0.0, 0.5, 1.0, None)))
        reboot(self.dice, self.world)

    def _try_to_live(self, crash_at: int | None) -> bool:
        self.report.lives += 1
        self.life = life = Life(
            dice=self.dice,
            config=self.config,
            directory=self.directory,
            disk=self.disk,
            world=self.world,
            past=self.past,
            start_s=self.now_s,
            wall_jump_s=self.wall_jump_s,
            shuffle=self.shuffle,
            late_s=self.late_s,
        )
        life.mount.crash_at = crash_at
        self._note(f"start {self.report.lives}" + (f", dies at {crash_at}" if crash_at else ""))
        try:
            life.start(
                segment_bytes=self.segment_bytes, snapshot_after_bytes=self.snapshot_after_bytes
            )
        except JournalFull:
            demand(self.disk.full, "a start found the disk full, and it is not")
            self.disk.full = False
        except SimulatedCrash:
            pass
        else:
            self._advance_start(life)
            if not life.loop.dead:
                return True
        self._bury()
        return False

    def _advance_start(self, life: Life) -> None:
        """Have the start go on until requests are taken, as a caller would wait for."""
        waited_s = 0.0
        while not (life.ready or life.loop.dead):
            life.loop.advance(1.0)
            waited_s += 1.0
            demand(waited_s < UP_TO_S, "the server does not come up")

    # What must be true

    def _check(self) -> None:
        life = self.life
        assert life is not None
        life.check_noise()
        life.compare_fleet()
        self.oracle.check(self.past.fleet)
        for call in self.calls:
            waits_s = life.loop.time() - call.begun_s
            demand(waits_s < UP_TO_S, f"no answer for {waits_s:.0f} s: {call.text}")

    def _rest(self) -> None:
        """Let all trouble end; then everything comes to rest, and what remains must agree."""
        self._note("rest")
        self._get_well()
        heal(self.world)
        assert self.life is not None
        if self.life.journal is None or self.life.journal.status == "failed":
            self.life.loop.die()
            self._live_again()
            self._get_well()
        self._advance_unharmed(REST_S)
        heal(self.world)  # engines made meanwhile, too
        for _ in range(10):
            self._advance(20.0)
            if self._at_rest():
                break
        assert self.life is not None
        work = [one.verb for one in self.life.parts.operations.at_work]
        waiting = [call.text for call in self.calls]
        demand(self._at_rest(), f"no rest: {work}, {waiting}, {self.past.fleet.engines}")
        self._check()
        self._check_world()
        self.oracle.settle(self.past.fleet)
        self._check_disk()

    def _advance_unharmed(self, seconds: float) -> None:
        """Live on for so long, from the last death on: one may have been on its way."""
        life = None
        while life is not self.life:
            life = self.life
            assert life is not None
            life.mount.crash_at = life.backend.crash_in = None
            self._advance(seconds)

    def _at_rest(self) -> bool:
        life = self.life
        assert life is not None
        rows = self.past.fleet.engines.values()
        return not (
            self.calls
            or life.parts.operations.at_work
            or any(row["status"] in ("provisioning", "destroying") for row in rows)
            or any(row["restart"] or row["pending"] for row in rows)
            or any(row["deleting"] for row in self.past.fleet.products.values())
        )

    def _check_world(self) -> None:
        """Rows and engines agree: one for each user, with its key, and none without a row."""
        rows = self.past.fleet.engines
        for engine_id, row in rows.items():
            engine = self.world.engines.get(engine_id)
            presence = engine.presence if engine else Presence.ABSENT
            fits = presence in FITTING[row["status"]]
            demand(fits, f"{engine_id} is {row['status']} on disk and {presence} in the world")
            if engine is not None and presence is Presence.RUNNING:
                same = (engine.key_file[0], engine.spec.port) == (row["key"], row["port"])
                demand(same, f"{engine_id} runs with another key or port than its row has")
        strangers = {name for name, one in self.world.engines.items() if name not in rows}
        few = len(strangers) <= 3
        demand(not (strangers and few), f"orphans after the grace: {strangers}")

    def _check_disk(self, *, torn_allowed: bool = False) -> None:
        """The journal verifies, and no key lies anywhere in the clear."""
        for path, content in self.disk.contents().items():
            demand(not KEYS.search(content), f"a key in the clear in {path.name}")
        for engine in self.world.engines.values():
            demand(not KEYS.search(repr(engine).encode()), f"a key in the clear: {engine}")
        told = verify(self.directory, storage=self.disk.mount())
        fine = ("clean", "torn") if torn_allowed else ("clean",)
        demand(told.verdict in fine, f"journal verify: {told.verdict}: {told.message}")

    def _note(self, line: str) -> None:
        at_s = self.life.loop.time() if self.life else self.now_s
        self.report.trace.append(f"{self.report.steps:4d} {at_s:9.3f} {line}")


VERBS: tuple[Callable[[Simulation, str, str], None], ...] = (
    *[Simulation._admit] * 6,
    *[Simulation._provision] * 2,
    *[Simulation._start] * 2,
    *[Simulation._stop] * 2,
    *[Simulation._sleep] * 2,
    *[Simulation._rotate_key] * 2,
    *[Simulation._destroy] * 2,
    Simulation._touch,
    Simulation._look,
    Simulation._set_policy,
    Simulation._rotate_platform_key,
    Simulation._delete_product,
)
BOOTING = ("provisioning", "running", "failed", "destroying")  # the last: undone, no room
FITTING = {
    "running": {Presence.RUNNING},
    "sleeping": {Presence.PAUSED, Presence.STOPPED, Presence.ABSENT},
    "stopped": {Presence.STOPPED, Presence.ABSENT},
    "failed": {Presence.STOPPED, Presence.ABSENT},
}


def _plain(policy: Policy) -> dict[str, Any]:
    names = ("max_engines", "rate_limit_rpm", "idle_sleep_s")
    return {name: value for name in names if (value := getattr(policy, name)) is not None}


async def ask(app: Any, request: Request, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Make one request of an ASGI application in memory; return status and JSON."""
    path, _, query = request.path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "server": ("gate", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[dict[str, Any]] = []
    content = b"" if request.body is None else json.dumps(request.body).encode()
    messages = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(part.get("body", b"") for part in sent[1:]))


@contextmanager
def seeded_bytes(seed: int) -> Iterator[None]:
    """Draw ids, keys and nonces from the seed, too: a history is then the same to the byte."""
    dice = random.Random(f"bytes {seed}")
    before, system = os.urandom, random._urandom  # type: ignore[attr-defined]
    os.urandom = random._urandom = dice.randbytes  # type: ignore[attr-defined]
    try:
        yield
    finally:
        os.urandom, random._urandom = before, system  # type: ignore[attr-defined]


def simulate(seed: int, steps: int = 200) -> Report:
    """Live through a seed's history; raises Violation with the way to replay it."""
    with tempfile.TemporaryDirectory(prefix="enginegate-simulation-") as place:
        simulation = Simulation(seed, Path(place) / "data")
        try:
            with seeded_bytes(seed):
                return simulation.run(steps)
        except Exception as error:
            trace = simulation.report.trace
            told = "\n".join(trace[-TRACE_LINES:])
            raise Violation(
                f"seed {seed}, step {simulation.report.steps}: {error}\n{told}\n"
                f"replay: python -m tests.simulation --seed {seed} --steps {steps}"
            ) from error
        finally:
            if simulation.life is not None:
                simulation.life.end()
