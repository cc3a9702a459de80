"""Journal and backend compared: at the start, on a hint, and now and then while running.

A crash may have cut a verb in half, and other hands may have touched the backend.
Each engine's row and what the backend shows of it meet in one place, `settle`, which
begins whatever brings the two together again. What cannot be asked is not concluded.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from enginegate import facts as f
from enginegate.backends.base import BackendEvent, Observation, Presence
from enginegate.errors import BackendError, BootTimeoutError, GateError
from enginegate.health import HealthLoop
from enginegate.lifecycle import Lifecycle, Products
from enginegate.lifecycle.boot import told, unanswered
from enginegate.lifecycle.failure import STOP_GRACE_S
from enginegate.lifecycle.ground import Ground
from enginegate.model import Engine, Status
from enginegate.orphans import Orphans
from enginegate.overlaps import Overlaps
from enginegate.policy import valid_key_hashes
from enginegate.registry import LiveEngine, Operation
from enginegate.slices import sliced

log = logging.getLogger(__name__)

COMPARE_EVERY_S = 25.0  # and a restart within 35 s of a crash that no event told
COMPARE_BLIND_S = 10.0  # while no events come
COMPARE_PAUSE_S = 1.0
REPAIR_S = 60.0
TRIM_EVERY_S = 5.0  # a log outgrows its bound by what an engine writes in this time

IN_SERVICE = (Status.RUNNING, Status.SLEEPING)
UP = (Presence.RUNNING, Presence.PAUSED)
Act = Callable[[str], Awaitable[object]]
DOWN = (Presence.STOPPED, Presence.ABSENT)

_HALF_WAY: Final = (Status.PROVISIONING, Status.DESTROYING)
_UNFIT_FOR_A_USER: Final = ("exited", "paused", "removed")
_STEADY: Final[Mapping[Status, Presence]] = {
    Status.RUNNING: Presence.RUNNING,
    Status.SLEEPING: Presence.PAUSED,
    Status.STOPPED: Presence.STOPPED,
}

_RESTING: Final = (Status.SLEEPING, Status.STOPPED, Status.FAILED)

# Events of these kinds are news only where the row says otherwise; most tell of our own verbs.
_SURPRISING: Final[Mapping[str, Collection[Status]]] = {
    "exited": (Status.SLEEPING,),
    "removed": (Status.RUNNING, Status.SLEEPING, Status.STOPPED),
    "started": (Status.SLEEPING, Status.STOPPED, Status.FAILED),
    "paused": (Status.RUNNING,),
    "unpaused": (Status.SLEEPING,),
}


class Recovery:
    """Owned by the server: `at_start` before it listens, then the loops ending in `_forever`."""

    def __init__(
        self, ground: Ground, lifecycle: Lifecycle, products: Products, health: HealthLoop
    ) -> None:
        self.ground = ground
        self.lifecycle = lifecycle
        self.products = products
        self.health = health
        self.overlaps = Overlaps(ground, lifecycle.rotation)
        self.orphans = Orphans(ground, lifecycle.operations)
        self._down_asleep: set[str] = set()
        self._stale = asyncio.Event()
        self._unadopted = False

    async def at_start(self) -> None:
        """Settle every engine, or have it under way, before the first request."""
        seen = await self._list()
        adopted = 0
        if seen is not None:
            by_id = {one.engine_id: one for one in seen}
            for live in list(self.ground.registry.engines.values()):
                one = by_id.get(live.engine.engine_id) or _absent(live)
                adopted += self._adopt(live, one)
                live.life = one.life
                if live.engine.status is Status.SLEEPING and one.presence is Presence.STOPPED:
                    self._down_asleep.add(live.engine.engine_id)  # as it was left, for all we know
                await self._meet(live, one)
        self._unadopted = seen is None
        self.products.go_on_with_deletions()
        self.health.plan_all()
        self.overlaps.plan_all()
        if self.ground.registry.engines:
            self.ground.registry.note(
                "recovered", engines=len(self.ground.registry.engines), adopted=adopted
            )

    async def compare_forever(self) -> None:
        """Compare now and then, and as soon as events may have been lost."""
        while True:
            await self._until_due()
            self._stale.clear()
            await self.compare()
            await self.ground.clock.sleep(COMPARE_PAUSE_S)

    async def _until_due(self) -> None:
        every_s = COMPARE_BLIND_S if self.health.blind else COMPARE_EVERY_S
        waits = [
            asyncio.ensure_future(self.ground.clock.sleep(every_s - COMPARE_PAUSE_S)),
            asyncio.ensure_future(self._stale.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()

    async def watch_forever(self) -> None:
        """Act on what the backend says of engines, as it says it; doubts are settled by a look."""
        async for event in self.ground.backend.watch():
            self._seen_at(event)
            live = self.ground.registry.engines.get(event.engine_id)
            if event.kind in ("blind", "resync"):
                self.health.blind = event.kind == "blind"
                await self.health.ask_backend()
                self._stale.set()
            elif live is not None:
                await self._hear(live, event)
            elif event.kind in _UNFIT_FOR_A_USER:
                self.ground.registry.spares.withdraw(event.engine_id)  # the pool replaces it

    def _seen_at(self, event: BackendEvent) -> None:
        """Note that the stream lives, where the backend has one that could die."""
        meters = self.ground.registry.meters
        if event.kind == "resync" or (event.kind != "blind" and meters.events_at is not None):
            meters.events_at = self.ground.clock.now()

    async def _hear(self, live: LiveEngine, event: BackendEvent) -> None:
        if event.kind == "exited":
            live.exit_seen = True
        if event.kind == "exited" and live.in_service:
            await self.health.fail_if_gone(live, exit_code=event.exit_code)
        elif live.operation is not None:
            return
        elif event.kind == "started" and live.engine.restart_at_ms is not None:
            self.health.hasten(live)
        elif live.engine.status in _SURPRISING[event.kind]:
            await self.look(live)

    async def trim_logs_forever(self) -> None:
        """Keep engines' logs bounded; a round that fails is made up for by the next."""
        while True:
            await self.ground.clock.sleep(TRIM_EVERY_S)
            try:
                await self.ground.backend.trim_logs()
            except BackendError as error:
                log.warning("logs not trimmed: %s", error)

    async def compare(self) -> None:
        """Compare all rows with the backend, finish what has no owner, remove orphans.

        All at once, and what takes time goes on by itself: nobody waits for the slowest.
        """
        seen = await self._list()
        if seen is None:
            return
        by_id = {one.engine_id: one async for one in sliced(seen)}
        engines = self.ground.registry.engines
        self._down_asleep = {one for one in self._down_asleep if one in engines}
        meetings = []
        async for live in self.ground.registry.walk():
            listed = by_id.get(live.engine.engine_id) or _absent(live)
            if live.operation is None and not live.gone and not self._at_rest(live, listed):
                meetings.append(self._meet(live, listed))
        await asyncio.gather(*meetings)
        self._unadopted = False
        await self.orphans.remove(seen)
        self.products.go_on_with_deletions()

    async def _list(self) -> Sequence[Observation] | None:
        try:
            seen = await self.ground.backend.list()
        except BackendError as error:
            log.warning("the backend cannot be listed, nothing is concluded: %s", error)
            await self.health.ask_backend()
            return None
        self.health.backend_ok = True
        return seen

    # One engine

    def _adopt(self, live: LiveEngine, seen: Observation) -> bool:
        """Note an engine that went on without us; return whether it did."""
        survived = live.engine.status in IN_SERVICE and seen.presence in UP
        if survived:
            self.ground.registry.note("adopt", live=live, presence=seen.presence.value)
        return survived

    async def _meet(self, live: LiveEngine, listed: Observation) -> None:
        """Settle an engine; a listing that speaks against its row is old, so look again first."""
        if live.operation is not None or live.gone:
            return  # somebody acted since it was listed
        if _half_way(live.engine) or self._agree(live, listed):
            await self._settle(live, listed)
        else:
            await self.look(live)

    def _at_rest(self, live: LiveEngine, listed: Observation) -> bool:
        """Return whether there is nothing to do: of a large fleet that is nearly everybody."""
        row = live.engine
        if _half_way(row) or row.pending_key is not None:
            return False
        known = row.status is not Status.SLEEPING or (
            (row.engine_id in self._down_asleep) == (listed.presence in DOWN)
        )
        return known and self._agree(live, listed)

    def _agree(self, live: LiveEngine, seen: Observation) -> bool:
        match live.engine.status:
            case Status.FAILED:
                down = seen.presence in DOWN and not seen.restarting
                return down or live.engine.restart_at_ms is not None
            case Status.RUNNING if seen.life != live.life or self._has_another_key(live, seen):
                return False
            case Status.SLEEPING if live.engine.deep or live.engine.engine_id in self._down_asleep:
                return seen.presence is Presence.STOPPED
            case status:
                return (
                    seen.presence is _STEADY.get(status) and seen.connected and not seen.restarting
                )

    async def look(self, live: LiveEngine) -> None:
        """Ask for this engine alone, and settle it unless it has moved on meanwhile."""
        row = live.engine
        try:
            seen = await self.ground.backend.inspect(row.engine_id)
        except BackendError:
            return  # unknown changes nothing; the next comparison decides
        if live.operation is None and live.engine is row and not live.gone:
            await self._settle(live, seen)

    async def _settle(self, live: LiveEngine, seen: Observation) -> None:
        """Bring row and backend together; what takes time goes on as an operation."""
        if self.ground.registry.ahead(live.engine.engine_id) is not live.engine:
            return  # somebody else has settled it, and that is not on the disk yet
        if seen.presence in UP:
            live.ended = None  # others have started it again
        elif live.running:
            live.ended, live.answer = live.engine.incarnation, None  # whatever can be recorded
        frozen = live.running and seen.presence is Presence.PAUSED  # a thaw needs no record
        unwritable = self.ground.registry.journal_status != "ok" and not frozen
        if unwritable or self.lifecycle.operations.closed:
            return
        try:
            await self._settle_late_rotation(live, seen)
            await self._settle_one(live, seen)
        except (GateError, BackendError) as error:
            log.warning("engine %s not settled yet: %s", live.engine.engine_id, error)

    async def _settle_one(self, live: LiveEngine, seen: Observation) -> None:
        had_data = live.engine.booted_at_ms is not None
        if seen.data_lost and had_data and live.engine.status in _STEADY:
            await self.health.fail_without_data(live, seen.detail)
            return
        up = seen.presence in UP or seen.restarting
        match live.engine.status:
            case _ if live.engine.stopping:
                self.lifecycle.begin_stop(live)
            case status if status in _STEADY and not seen.connected:
                self._bring(live, self.ground.backend.reconnect, "brought back onto its network")
            case Status.PROVISIONING:
                self.lifecycle.provisioning.resume(live)
            case Status.DESTROYING:
                self.lifecycle.begin_destroy(live, actor="system")
            case Status.RUNNING:
                await self._settle_running(live, seen)
            case Status.SLEEPING:
                self._settle_sleeping(live, seen)
            case Status.STOPPED if up:
                self._bring(live, self._stop, "stopped again")
            case Status.FAILED if up and live.engine.restart_at_ms is None:
                self._bring(live, self._stop, "stopped, it was given up")
            case _:
                pass  # they agree

    def _settle_sleeping(self, live: LiveEngine, seen: Observation) -> None:
        """Asleep an engine is frozen or stopped; that other hands stopped it is noted once."""
        engine_id = live.engine.engine_id
        if live.engine.deep:
            if seen.presence in UP:
                self._bring(live, self._stop, "stopped again, it sleeps deeply")
        elif seen.presence is Presence.RUNNING:
            self._bring(live, self.ground.backend.pause, "paused again")
        elif seen.restarting:
            self._bring(live, self._stop, "stopped, the backend was restarting it")
        elif seen.presence in DOWN and engine_id not in self._down_asleep:
            self.ground.registry.note("adopt", live=live, found=seen.presence.value)
        if seen.presence in DOWN:
            self._down_asleep.add(engine_id)
        else:
            self._down_asleep.discard(engine_id)

    async def _settle_running(self, live: LiveEngine, seen: Observation) -> None:
        by_restart = self.ground.config.engine.rotate_mode == "recreate"
        cut = live.engine.pending_key is not None
        if cut:
            await self._settle_rotation(live, seen)
        if not live.life and seen.presence in UP:
            live.life = seen.life
            if self._unadopted:
                self._adopt(live, seen)
        if cut and by_restart and seen.presence in DOWN:
            self._bring(live, lambda _: self._with_its_key(live), "started after a cut rotation")
        elif seen.presence in DOWN or seen.life != live.life:
            await self.health.fail_if_gone(live)
        elif seen.presence is Presence.PAUSED:
            self._bring(live, self.ground.backend.unpause, "unpaused")
        elif self._has_another_key(live, seen):
            self._bring(live, lambda _: self._with_its_key(live), "given its key again")

    async def _settle_late_rotation(self, live: LiveEngine, seen: Observation) -> None:
        """Finish a rotation whose end could not be written while the engine ran."""
        row = live.engine
        if row.status in _RESTING and row.pending_key is not None and not row.stopping:
            await self._settle_rotation(live, seen)

    def _has_another_key(self, live: LiveEngine, seen: Observation) -> bool:
        """Return whether a rotation that failed left it with the key that is not in force."""
        by_file = self.ground.config.engine.rotate_mode == "live"
        return not by_file and seen.key_hash not in (None, live.engine.key_hash)

    async def _with_its_key(self, live: LiveEngine) -> None:
        await self.lifecycle.booter.bring_up(live, late=BootTimeoutError)

    async def _settle_rotation(self, live: LiveEngine, seen: Observation) -> None:
        """Finish a rotation whose new key the engine already has, else forget it."""
        pending = live.engine.pending_key
        assert pending is not None
        ids, at_ms = self.ground.ids(live), self.ground.clock.wall_ms()
        live_mode = self.ground.config.engine.rotate_mode == "live"
        if seen.presence in UP and seen.key_hash == pending.key_hash and not live_mode:
            await self.ground.registry.commit(
                f.KeyRotated(**ids, at_ms=at_ms, metadata={"finished": "after a restart"})
            )
        else:
            await self.ground.registry.commit(
                f.KeyRotationFailed(**ids, at_ms=at_ms, reason="enginegate was restarted meanwhile")
            )
            hashes = valid_key_hashes(live.engine, self.ground.clock.wall_ms())
            await self.ground.backend.put_key(live.engine.engine_id, hashes)

    def _bring(self, live: LiveEngine, act: Act, what: str) -> None:
        """Begin to bring the engine where its row says; one that is slow holds nobody up."""
        if live.operation is not None:
            return

        async def work(_: Operation) -> None:
            try:
                async with asyncio.timeout(REPAIR_S):
                    await act(live.engine.engine_id)
            except BackendError as error:
                raise told(error) from error
            except TimeoutError as error:
                raise told(unanswered("settle", live)) from error
            self.ground.registry.note("recovered", live=live, what=what)

        self.lifecycle.operations.begin(live, "settle", work, actor="system")

    async def _stop(self, engine_id: str) -> None:
        await self.ground.backend.stop(engine_id, grace_s=STOP_GRACE_S)


def _half_way(row: Engine) -> bool:
    """Return whether a verb was at work on it and has to be finished, whatever is seen."""
    return row.status in _HALF_WAY or row.stopping


def _absent(live: LiveEngine) -> Observation:
    """Return what a complete listing says of an engine that is not in it."""
    return Observation(engine_id=live.engine.engine_id, presence=Presence.ABSENT)
