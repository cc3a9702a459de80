"""Old engine keys after live rotations: they stay in the engine's file until their overlap ends."""

from collections import defaultdict

from enginegate import facts as f
from enginegate.agenda import Agenda
from enginegate.errors import GateError
from enginegate.lifecycle.ground import Ground
from enginegate.lifecycle.rotation import Rotation
from enginegate.model import OldKey
from enginegate.policy import old_keys
from enginegate.registry import LiveEngine

AT_WORK_S = 1.0  # before the file is looked at again that a verb may be writing
RETRY_S = 25.0  # and after a backend that could not write it
UNTOLD = ""  # stands for the key of a rotation that failed, which nobody was told


class Overlaps:
    """Told of every fact; `plan_all` at the start, `end_due` once a second.

    The agenda holds (engine, hash of an old key), and what it holds is what still works:
    on the monotonic clock, so that a step of the other one makes no overlap longer than
    another one would be.
    """

    def __init__(self, ground: Ground, rotation: Rotation) -> None:
        self.ground = ground
        self.rotation = rotation
        self.agenda: Agenda[tuple[str, str]] = Agenda()
        ground.registry.listeners.append(self.plan)

    def plan(self, live: LiveEngine, fact: f.AnyFact) -> None:
        """Plan the end of each overlap that goes on."""
        engine = live.engine
        by_file = self.ground.config.engine.rotate_mode == "live"
        if by_file and isinstance(fact, f.KeyRotationFailed):
            # The new key may be in the file although nobody was told so, and stay there.
            self.agenda.put((engine.engine_id, UNTOLD), self.ground.clock.now())
        for old in old_keys(engine, self.ground.clock.wall_ms()):
            self._plan_end(engine.engine_id, old)

    def plan_all(self) -> None:
        """Take over the overlaps that the journal remembers, those too that ended meanwhile."""
        for live in self.ground.registry.engines.values():
            for old in old_keys(live.engine, 0):
                self._plan_end(live.engine.engine_id, old)

    def _plan_end(self, engine_id: str, old: OldKey) -> None:
        if (engine_id, old.key_hash) in self.agenda:
            return
        left_s = (old.until_ms - self.ground.clock.wall_ms()) / 1000
        left_s = min(max(left_s, 0.0), self.ground.config.engine.key_overlap_s)
        self.agenda.put((engine_id, old.key_hash), self.ground.clock.now() + left_s)

    async def end_due(self) -> None:
        """End the overlaps that are over; one that fails is tried again."""
        due = defaultdict[str, list[str]](list)
        for engine_id, key_hash in self.agenda.due(self.ground.clock.now()):
            due[engine_id].append(key_hash)
        for engine_id, ended in due.items():
            live = self.ground.registry.engines.get(engine_id)
            if live is not None:
                await self._end(live, ended)

    async def _end(self, live: LiveEngine, ended: list[str]) -> None:
        if self._at_work(live):
            self._again(live, ended, AT_WORK_S)
            return
        engine_id = live.engine.engine_id
        kept = [old.key_hash for old in old_keys(live.engine, 0)]
        kept = [key_hash for key_hash in kept if (engine_id, key_hash) in self.agenda]
        in_force = live.engine.key_hash
        try:
            await self.rotation.keep_keys(live, kept)
        except GateError:
            self._again(live, ended, RETRY_S)
        else:
            if self._at_work(live) or live.engine.key_hash != in_force:
                self._again(live, ended, AT_WORK_S)  # it wrote meanwhile, maybe before us

    def _at_work(self, live: LiveEngine) -> bool:
        """Return whether a verb is: it may be a rotation, which writes the same file."""
        return live.operation is not None

    def _again(self, live: LiveEngine, ended: list[str], after_s: float) -> None:
        for key_hash in ended:
            self.agenda.put((live.engine.engine_id, key_hash), self.ground.clock.now() + after_s)
