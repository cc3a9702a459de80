"""What was refused, in the audit trail: that it happened and how often, not each time.

A product over its limit may ask a thousand times a second, and an entry is a write to
the disk. So there is at most one entry per product, action and reason in 10 s.
"""

from dataclasses import dataclass
from typing import Final

from enginegate.clock import Clock
from enginegate.model import Outcome
from enginegate.registry.fleet import LiveProduct
from enginegate.registry.registry import Registry

EVERY_S: Final = 10.0


@dataclass(slots=True)
class _Held:
    """What came since the last entry: when that was, how many, who was the last."""

    since: float
    count: int
    user_id: str


class Denials:
    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._held: dict[tuple[str, str, str], _Held] = {}

    def add(self, owner: LiveProduct, user_id: str, *, action: str, reason: str) -> None:
        """Note it at once, or hold it back if another one was noted a moment ago."""
        key = (owner.product.product_id, action, reason)
        held = self._held.get(key)
        if held is None:
            self._held[key] = _Held(self._clock.now(), 0, user_id)
            self._note(owner, key, user_id, 1)
        else:
            held.count += 1
            held.user_id = user_id

    def flush(self) -> None:
        """Note what was held back for long enough; to be called about once a second."""
        now = self._clock.now()
        due = [key for key, held in self._held.items() if now - held.since >= EVERY_S]
        for key in due:
            held = self._held.pop(key)
            owner = self._registry.products.get(key[0])
            if held.count and owner is not None:
                self._held[key] = _Held(now, 0, held.user_id)
                self._note(owner, key, held.user_id, held.count)

    def _note(
        self, owner: LiveProduct, key: tuple[str, str, str], user_id: str, count: int
    ) -> None:
        _, action, reason = key
        self._registry.note(
            action,
            product=owner.product,
            user_id=user_id,
            outcome=Outcome.DENIED,
            actor=owner.product.slug,
            reason=reason,
            count=count,
        )
