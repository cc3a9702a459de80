"""What every verb stands on: memory, backend, keys, time and settings."""

from dataclasses import dataclass
from typing import TypedDict

from enginegate.backends.base import Backend
from enginegate.clock import Clock
from enginegate.config import Config
from enginegate.errors import StorageUnavailableError
from enginegate.keys import Keyring
from enginegate.probe import Probe
from enginegate.registry import LiveEngine, Registry


class Ids(TypedDict):
    """What every engine fact names."""

    engine_id: str
    product_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Ground:
    registry: Registry
    backend: Backend
    probe: Probe
    keyring: Keyring
    clock: Clock
    config: Config

    def ids(self, live: LiveEngine) -> Ids:
        engine = live.engine
        return Ids(engine_id=engine.engine_id, product_id=engine.product_id, user_id=engine.user_id)

    def took_ms(self, started: float) -> float:
        """Return the milliseconds since `started` (monotonic seconds)."""
        return round((self.clock.now() - started) * 1000, 3)

    def refuse_if_unwritable(self, *, reserve: bool = False) -> None:
        """Raise before the backend is touched for a change that could not be recorded."""
        if not self.registry.takes_changes(reserve=reserve):
            raise StorageUnavailableError(
                "The journal cannot be written; running engines are still admitted."
            )
