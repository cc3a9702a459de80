"""Old engine keys after a live rotation: both are in the engine's file until the overlap ends."""

from enginegate import facts as f
from enginegate.agenda import Agenda
from enginegate.errors import GateError
from enginegate.lifecycle.ground import Ground
from enginegate.lifecycle.rotation import Rotation
from enginegate.registry import LiveEngine

AT_WORK_S = 1.0  # before the file is looked at again that a verb may be writing
RETRY_S = 25.0  # and after a backend that could not write it


class Overlaps:
    """Told of every fact; `plan_all` at the start, `end_due` once a second."""

    def __init__(self, ground: Ground, rotation: Rotation) -> None:
        self.ground = ground
        self.rotation = rotation
        self.agenda: Agenda[str] = Agenda()
        ground.registry.listeners.append(self.plan)

    def plan(self, live: LiveEngine, fact: f.AnyFact | None = None) -> None:
        """Leave only the key in force in the file, once the overlap is over."""
        engine, now = live.engine, self.ground.clock.now()
        by_file = self.ground.config.engine.rotate_mode == "live"
        if by_file and isinstance(fact, f.KeyRotationFailed):
            # The new key may be in the file although nobody was told so, and stay there.
            self.agenda.put(engine.engine_id, now)
        elif engine.old_key_hash is not None:
            left_s = (engine.old_key_until_ms - self.ground.clock.wall_ms()) / 1000
            left_s = min(max(left_s, 0.0), self.ground.config.engine.key_overlap_s)
            self.agenda.put(engine.engine_id, now + left_s)

    def plan_all(self) -> None:
        """Take over the overlaps that the journal remembers."""
        for live in self.ground.registry.engines.values():
            self.plan(live)

    async def end_due(self) -> None:
        """End the overlaps that are over; one that fails is tried again."""
        now = self.ground.clock.now()
        for engine_id in self.agenda.due(now):
            live = self.ground.registry.engines.get(engine_id)
            if live is None:
                continue
            if live.operation is not None:  # it may be a rotation, which writes the same file
                self.agenda.put(engine_id, now + AT_WORK_S)
                continue
            try:
                await self.rotation.drop_old_key(live)
            except GateError:
                self.agenda.put(engine_id, now + RETRY_S)
