"""What the routes call: the gate's parts, wired by the server or by a test."""

from collections.abc import Callable
from dataclasses import dataclass, field

from enginegate.admission import Admission
from enginegate.clock import Clock
from enginegate.config import Config, Secrets
from enginegate.health import HealthLoop
from enginegate.lifecycle import Lifecycle, Products
from enginegate.registry import Registry


@dataclass(slots=True)
class Phase:
    """Whether requests are taken: `recovering`, `serving` or `stopping`."""

    name: str = "recovering"


@dataclass(frozen=True, slots=True)
class Services:
    config: Config
    secrets: Secrets
    registry: Registry
    lifecycle: Lifecycle
    products: Products
    admission: Admission
    health: HealthLoop
    clock: Clock
    started_at: float
    phase: Phase = field(default_factory=Phase)
    pool: Callable[[], dict[str, int | bool]] = lambda: {
        "size": 0,
        "ready": 0,
        "booting": 0,
        "stalled": False,
    }
