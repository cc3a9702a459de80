"""The fleet in memory: what the journal holds, indexed for questions."""

from enginegate.registry.fleet import LiveEngine, LiveProduct, Operation
from enginegate.registry.registry import Registry
from enginegate.registry.resealing import Sealer
from enginegate.registry.trail import Trail
from enginegate.registry.unsealing import open_keys

__all__ = [
    "LiveEngine",
    "LiveProduct",
    "Operation",
    "Registry",
    "Sealer",
    "Trail",
    "open_keys",
    "resealed_snapshot",
    "resealed_tail",
]
