"""Is anybody using this engine right now? Asked before every freeze, and again right after it.

Evidence comes from the kernel (established connections to the engine's port, CPU time,
bytes moved) and from the engine's own word (`busy`), never from a memory of finished
requests. What cannot be asked is no permission.
"""

from collections.abc import Sequence
from math import inf

from msgspec.structs import replace

from enginegate.backends.base import Connection, Usage
from enginegate.errors import BackendError, BackendUnavailableError
from enginegate.lifecycle.boot import Booter
from enginegate.lifecycle.ground import Ground
from enginegate.registry import LiveEngine
from enginegate.registry.fleet import Reading, Signal, Value

VETOES_KEPT = 10

# CPU time is judged over a window right before the freeze. A job that wants a whole
# processor gets a tenth of one even on a machine ten times overbooked; engines that only
# wait use less than a fiftieth, garbage collectors and timers included. A twentieth lies
# between. In a window much shorter than a second the kernel's ticks of 10 ms blur that,
# in a longer one a short job drowns.
CPU_WINDOW_S = 1.0
CPU_SHARE = 0.05  # of one processor
CPU_NOISE_S = 0.02  # two ticks
# Where the kernel also tells for how long threads waited for a processor, work is known on
# a machine however overbooked: it wants one all the time. Who only waits for others does
# not, even if each of its short turns has to wait in the queue.
WANTED_SHARE = 0.4  # of one thread's time
CPU_PROBES_MAX_S = 0.1  # allowed for answering our own probes, beyond the noise
RECHECK_S = 0.25  # what is more than noise may have just begun: look again after so long
READING_MAX_AGE_S = 10.0

# Where connections cannot be seen, bytes are counted instead: coarser, for what moves a few
# hundred bytes in a second hides behind our own probes.
PROBE_BYTES = 2048  # a probe of ours moves less, handshake and headers included
NOISE_BYTES = 1024  # address resolution and the like
BLIND_SHARE, BLIND_MIN_S = 0.1, 1.0  # of the lease, and at least: how long nothing must move


class Quietness:
    """Judges; what it has seen of an engine stays with the engine, for `activity`."""

    def __init__(self, ground: Ground, booter: Booter) -> None:
        self.ground = ground
        self.booter = booter
        engine = ground.config.engine
        processors = engine.limits.cpus if engine.backend == "docker" else 1.0
        self._cpu_share = CPU_SHARE * min(processors, 1.0)  # a throttled job cannot be louder

    def window_s(self, live: LiveEngine) -> float:
        """Return how long before the freeze the first of two looks at the CPU time is due."""
        return min(CPU_WINDOW_S, live.lease_s / 2) if live.lease_s else CPU_WINDOW_S

    def read_at(self, live: LiveEngine) -> float:
        """Return when the engine's CPU time was last read in this life (monotonic); -inf: never.

        A reading that is too old to compare with counts as none.
        """
        reading = live.reading
        if reading is None or reading.incarnation != live.engine.incarnation:
            return -inf
        return reading.at if self.ground.clock.now() - reading.at <= READING_MAX_AGE_S else -inf

    async def read(self, live: LiveEngine) -> None:
        """Take the first of the two looks.

        Raises:
            BackendError: it could not be read.
        """
        usage = await self.ground.backend.usage(live.engine.engine_id)
        live.reading = self._reading(live, usage)

    async def veto(
        self, live: LiveEngine, *, idle: bool, probe_timeout_s: float | None = None
    ) -> Signal | None:
        """Return what speaks against a freeze, None if nothing does.

        A connection over which nothing has moved for `idle.connection_idle_s` does
        not count: pooled and half-open ones must not keep an engine awake for ever.
        Only a sleep for idleness (`idle`) asks for CPU time and for an answer; an
        engine that does not answer is left to the health loop.

        Raises:
            BackendUnavailableError: it cannot be told, and it is not for idleness.
        """
        earlier = live.reading if self.read_at(live) > -inf else None
        found: Signal | None
        if idle:
            found = await self._idle(live, earlier, probe_timeout_s)
        else:
            found = await self._connections(live) or await self._own_word(live, probe_timeout_s)
            if found is not None and found.kind == "unknown":
                raise BackendUnavailableError(
                    "Whether the engine is in use cannot be told now; ask again, or force."
                )
        return found and _kept(live, found)

    async def came_in(self, live: LiveEngine) -> Signal | None:
        """Return who connected between the look and the freeze, which is just over."""
        if live.blind:
            return None
        found = await self._connections(live)
        return found and _kept(live, found)

    async def _idle(
        self, live: LiveEngine, earlier: Reading | None, timeout_s: float | None
    ) -> Signal | None:
        """Ask the kernel first: then what our probe costs is in no reading."""
        try:
            await self.read(live)
        except BackendError as error:
            return self._unknown(error)
        found = await self._connections(live, or_bytes=True) or await self._cpu(live, earlier)
        if found is not None:
            return found
        found = await self._own_word(live, timeout_s, must_answer=True)
        return found or (None if earlier else self._signal("unread", None))

    async def _own_word(
        self, live: LiveEngine, timeout_s: float | None, *, must_answer: bool = False
    ) -> Signal | None:
        timeout_s = timeout_s or self.ground.config.health.timeout_s
        health = await self.booter.check(live, timeout_s=timeout_s)
        said = live.signals["busy"] = self._signal("busy", health.busy)
        if health.busy:
            return said
        return self._signal("unanswered", health.detail) if must_answer and not health.ok else None

    # Connections

    async def _connections(self, live: LiveEngine, *, or_bytes: bool = False) -> Signal | None:
        engine = live.engine
        try:
            found = await self.ground.backend.connections(engine.engine_id, port=engine.port)
        except BackendError as error:
            live.blind = or_bytes
            return self._bytes(live, error) if or_bytes else self._unknown(error)
        live.blind = False
        active = self._active(live, found)
        seen = live.signals["connections"] = self._signal("connections", active)
        return seen if active else None

    def _active(self, live: LiveEngine, found: Sequence[Connection]) -> int:
        """Count the connections in use.

        Where the kernel's table does not tell how long they have been quiet (all say 0),
        the engine's byte counters tell it of all of them together.
        """
        idle_s = self.ground.config.idle.connection_idle_s
        if all(one.quiet_s == 0.0 for one in found) and self._still_s(live) >= idle_s:
            return 0
        return sum(one.quiet_s < idle_s for one in found)

    def _bytes(self, live: LiveEngine, error: BackendError) -> Signal | None:
        """Judge by the bytes moved, where they are counted and connections cannot be seen."""
        if live.reading is None or live.reading.moved is None:
            return self._unknown(error)
        idle_s = self.ground.config.idle.connection_idle_s
        needed_s = min(idle_s, max(live.lease_s * BLIND_SHARE, BLIND_MIN_S))
        still_s = self._still_s(live)
        seen = live.signals["bytes"] = self._signal("bytes_still_s", round(still_s, 3))
        return seen if still_s < needed_s else None

    def _still_s(self, live: LiveEngine) -> float:
        """Return for how long no more bytes have moved than our probes account for."""
        reading = live.reading
        if reading is None or reading.moved is None:
            return 0.0
        return self.ground.clock.now() - reading.still_since

    # CPU time

    async def _cpu(self, live: LiveEngine, earlier: Reading | None) -> Signal | None:
        """Compare with the earlier look, and look once more where that leaves a doubt."""
        now = live.reading
        if now is None or now.cpu_s is None or earlier is None or earlier.cpu_s is None:
            return None
        loud = self._loud(live, earlier, now)
        if loud is None and _grown(earlier, now) > CPU_NOISE_S:
            await self.ground.clock.sleep(RECHECK_S)
            try:
                await self.read(live)
            except BackendError as error:
                return self._unknown(error)
            loud = self._loud(live, now, live.reading)
        return loud

    def _loud(self, live: LiveEngine, earlier: Reading, now: Reading | None) -> Signal | None:
        if now is None or earlier.cpu_s is None or now.cpu_s is None:
            return None
        used_s, elapsed_s = now.cpu_s - earlier.cpu_s, max(now.at - earlier.at, 0.001)
        probes_s = min(now.probing_s - earlier.probing_s, CPU_PROBES_MAX_S)
        wanted_s = (now.wanted_s or 0.0) - (earlier.wanted_s or 0.0)
        wants = max(used_s, wanted_s, 0.0) / elapsed_s
        seen = live.signals["cpu"] = self._signal("cpu", round(wants, 3))
        allowed_s = CPU_NOISE_S + probes_s
        loud = used_s > self._cpu_share * elapsed_s + allowed_s
        return seen if loud or wanted_s > WANTED_SHARE * elapsed_s + allowed_s else None

    def _reading(self, live: LiveEngine, usage: Usage) -> Reading:
        now, moved = self.ground.clock.now(), None
        if usage.rx_bytes is not None and usage.tx_bytes is not None:
            moved = usage.rx_bytes + usage.tx_bytes
        fresh = Reading(
            at=now,
            incarnation=live.engine.incarnation,
            cpu_s=usage.cpu_s,
            wanted_s=usage.wanted_s,
            probing_s=live.probing_s,
            moved=moved,
            still_since=now,
            moved_then=moved,
            probes_then=live.probes,
        )
        return _still(live.reading, fresh)

    def _unknown(self, error: BackendError) -> Signal:
        return self._signal("unknown", error.detail)

    def _signal(self, kind: str, value: Value) -> Signal:
        return Signal(kind=kind, value=value, at_ms=self.ground.clock.wall_ms())


def _grown(earlier: Reading, now: Reading) -> float:
    """Return by how much the processor was used or wanted between two looks (s)."""
    used_s = (now.cpu_s or 0.0) - (earlier.cpu_s or 0.0)
    return max(used_s, (now.wanted_s or 0.0) - (earlier.wanted_s or 0.0))


def _still(earlier: Reading | None, fresh: Reading) -> Reading:
    """Carry on since when nothing has moved, if nothing has."""
    if earlier is None or earlier.incarnation != fresh.incarnation:
        return fresh
    if earlier.moved_then is None or fresh.moved is None:
        return fresh
    allowed = NOISE_BYTES + PROBE_BYTES * (fresh.probes_then - earlier.probes_then)
    if not 0 <= fresh.moved - earlier.moved_then <= allowed:
        return fresh
    return replace(
        fresh,
        still_since=earlier.still_since,
        moved_then=earlier.moved_then,
        probes_then=earlier.probes_then,
    )


def _kept(live: LiveEngine, found: Signal) -> Signal:
    live.signals[found.kind] = found
    live.vetoes = [*live.vetoes, found][-VETOES_KEPT:]
    return found
